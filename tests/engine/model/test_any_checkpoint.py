"""Checkpoints with one or two things wrong, whatever they are: each loads, or is refused in a sentence of ours."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.model.checkpoint_files import stored_tensors
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sampling.defaults import check_defaults
from seesaw.engine.sizing.fit import fit_host, fit_model
from seesaw.engine.sizing.model import shape_of
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import MOST_CHARS, ConfigError
from seesaw.engine.weights.checkpoint import resolve_checkpoint
from seesaw.engine.weights.placement import whole_bytes
from tests.patience import PATIENCE_S
from tests.tiny import LocalModel, write_tiny_checkpoint

NUM_MUTATIONS = int(os.environ.get("SEESAW_TEST_CHECKPOINTS", "250"))  # of each file
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_GROWN_BYTES = 1 << 29  # of this process, over all mutations; a model that has more bytes is not computed
MOST_MODEL_BYTES = 1 << 24

NUMBERS = [0, 1, 2, 3, -1, -(10**9), 10**9, 10**11, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 8, 64, 100, 1024, 16384]
FLOATS = [0.5, -0.0, 1.5, 4.0, 1e-320, 1e-30, 1e30, 1e308, float("nan"), float("inf"), -float("inf")]
OTHERS = [
    None,
    True,
    False,
    "",
    "x",
    "8",
    "a\0b",
    "\ud800",
    "../x",
    "/dev/zero",
    "[" * 50,
    "x" * 10_000,
    [],
    {},
    [1],
    [-1],
]
DEEP: Any = None
for _ in range(600):
    DEEP = [DEEP]
VALUES = [*NUMBERS, *FLOATS, *OTHERS, [None], {"a": 1}, [[1], {}], list(range(50)), DEEP]

ROPE = {
    "rope_type": ["default", "linear", "dynamic", "yarn", "llama3", "longrope"],
    "factor": [1, 2.0, 8, 1e9],
    "rope_theta": [10000.0, 1e6, 1.0],
    "original_max_position_embeddings": [256, 512],
    "low_freq_factor": [1.0],
    "high_freq_factor": [4.0],
    "beta_fast": [32, 0],
    "beta_slow": [1, 0],
    "mscale": [1.0],
    "mscale_all_dim": [1.0, 0],
    "attention_factor": [1.0],
    "truncate": [True, False],
    "partial_rotary_factor": [1, 0.5],
}
QUANTIZATION = {
    "quant_method": ["fp8", "compressed-tensors", "gptq"],
    "fmt": ["e4m3", "e5m2"],
    "activation_scheme": ["dynamic", "static"],
    "weight_block_size": [[128, 128]],
    "modules_to_not_convert": [["lm_head"], ["("]],
    "format": ["float-quantized"],
    "config_groups": [{"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}],
    "ignore": [["lm_head", "re:.*"], ["re:("]],
}


def _like(values: list[Any], *keys: str) -> dict[str, list[Any]]:
    return {key: values for key in keys}


KEYS: dict[str, list[Any]] = {
    "architectures": [["LlamaForCausalLM"], ["MistralForCausalLM"], ["Qwen2ForCausalLM"], ["Qwen3ForCausalLM"]],
    "model_type": ["llama", "mistral", "qwen2", "qwen3"],
    **_like([1, 2, 4, 8], "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"),
    **_like([4, 8, 96, 211], "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"),
    **_like([1e-5, 1.0, 16], "rms_norm_eps", "rope_theta", "partial_rotary_factor", "sliding_window"),
    **_like([True, False], "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"),
    **_like([1, [1, 2], ["full_attention"]], "eos_token_id", "layer_types", "max_window_layers", "hidden_act"),
    **_like(["float32", "bfloat16", "float16", "torch.float32"], "dtype", "torch_dtype"),
    **_like([{}, "x"], "text_config", "transformers_weights"),
    **_like([], "rope_scaling", "rope_parameters"),
    "quantization_config": [],
}


def _any(draw: random.Random, usual: list[Any]) -> Any:
    return draw.choice(usual) if usual and draw.random() < 0.4 else draw.choice(VALUES)


def _table(draw: random.Random, keys: dict[str, list[Any]]) -> dict[str, Any]:
    table = {key: draw.choice(usual) for key, usual in keys.items() if draw.random() < 0.7}
    for key in draw.sample(sorted(keys), draw.randint(0, 2)):
        table[key] = _any(draw, keys[key])
    return table


def _config(draw: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    for key in draw.sample(sorted(KEYS), draw.choice([1, 1, 2, 3])):
        if key.startswith("rope_") and key != "rope_theta" and draw.random() < 0.8:
            raw[key] = _table(draw, ROPE)
            raw.pop("rope_parameters" if key == "rope_scaling" else "rope_scaling", None)
        elif key == "quantization_config" and draw.random() < 0.8:
            raw[key] = _table(draw, QUANTIZATION)
        elif draw.random() < 0.1:
            raw.pop(key, None)
        else:
            raw[key] = _any(draw, KEYS[key])
    return raw


def _generation(draw: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    names = ["eos_token_id", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"]
    return raw | {name: _any(draw, [1, 0.5]) for name in draw.sample(names, 2)}


def _index(draw: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    if draw.random() < 0.2:
        raw["weight_map"] = _any(draw, [])
    else:
        for name in draw.sample(sorted(raw["weight_map"]), draw.choice([1, 2])):
            raw["weight_map"][name] = _any(draw, ["nowhere.safetensors", "config.json", "./m.safetensors"])
    return raw


def _header(draw: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    for name in draw.sample(sorted(raw), draw.choice([1, 2])):
        entry = raw[name]
        field = draw.choice(["dtype", "shape", "data_offsets", "all"])
        if field == "all" or not isinstance(entry, dict):
            raw[name] = _any(draw, [])
        elif field == "dtype":
            entry[field] = _any(draw, ["F32", "BF16", "F16", "I8", "F8_E4M3", "F4", "C64", "I32", "BOOL"])
        elif field in entry:
            numbers = entry[field]
            if draw.random() < 0.3:
                numbers = draw.sample(numbers, len(numbers))
            else:
                numbers[draw.randrange(len(numbers))] = _any(draw, [0, 4, 64, 128])
            entry[field] = numbers
    return raw


def _bytes(draw: random.Random, content: bytes) -> bytes:
    """Torn, longer, or with some bytes changed."""
    kind = draw.randrange(4)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    if kind == 1:
        return content + draw.randbytes(draw.randrange(1, 100))
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 4, 40])):
        damaged[draw.randrange(min(len(damaged), 4000))] = draw.randrange(256)
    return bytes(damaged)


def _in_header(content: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _in_json(content: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    return json.dumps(change(json.loads(content))).encode()


MUTATIONS: dict[str, tuple[str, Callable[[random.Random, bytes], bytes]]] = {
    "config": ("config.json", lambda draw, content: _in_json(content, lambda raw: _config(draw, raw))),
    "config, torn": ("config.json", _bytes),
    "generation": (
        "generation_config.json",
        lambda draw, content: _in_json(content, lambda raw: _generation(draw, raw)),
    ),
    "index": (INDEX, lambda draw, content: _in_json(content, lambda raw: _index(draw, raw))),
    "index, torn": (INDEX, _bytes),
    "header": (FILE, lambda draw, content: _in_header(content, lambda raw: _header(draw, raw))),
    "header, torn": (FILE, _bytes),
}


@contextmanager
def _within_bounds() -> Iterator[None]:
    """Whatever takes too long ends in an error, and so does what takes too much memory."""

    def give_up(*_: object) -> None:
        raise TimeoutError("reading this checkpoint does not end")

    before, previous = _peak_bytes(), signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert _peak_bytes() - before < MOST_GROWN_BYTES


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _load(folder: Path) -> None:
    """All that comes before an engine serves this checkpoint, and a prompt."""
    config = EngineConfig(model=str(folder), prefill="P2", decode="T2", kv_cache_memory_bytes=1 << 24)
    check_defaults("auto", config)
    checkpoint = resolve_checkpoint(str(folder))
    shape = shape_of(checkpoint, config)
    fit_host(config, fit_model(config, shape, "cpu"), "cpu", list)
    if whole_bytes(shape, Plan(Layout(), Layout())) < MOST_MODEL_BYTES:
        assert LocalModel(folder, Layout()).logits([5, 3, 2]).shape[1] >= shape.vocab


@pytest.mark.parametrize("kind", MUTATIONS)
def test_any_checkpoint_loads_or_is_refused(kind: str, tmp_path: Path) -> None:
    name, mutate = MUTATIONS[kind]
    folder = write_tiny_checkpoint(
        tmp_path,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn=32,
        vocab=64,
        max_position=256,
        rope={"rope_type": "default", "rope_theta": 1e4},
    )
    if name == INDEX:
        weight_map = dict.fromkeys(stored_tensors(folder), "m.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / FILE).rename(folder / "m.safetensors")
    path = folder / name
    sound = path.read_bytes()
    loaded = 0
    with _within_bounds():
        for seed in range(NUM_MUTATIONS):
            path.write_bytes(mutate(random.Random(seed), sound))
            try:
                with torch.no_grad():
                    _load(folder)
                loaded += 1
            except ConfigError as error:
                assert len(str(error)) < 2 * MOST_CHARS, seed
            except BaseException as error:
                error.add_note(f"mutation {seed} of {kind}: {path.read_bytes()[:2000]!r}")
                raise
    assert 0 < loaded < NUM_MUTATIONS
