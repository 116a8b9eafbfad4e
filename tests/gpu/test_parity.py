"""Logits and tokens on CUDA in half precision against transformers: as near to float32 as transformers itself is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.model.quantization import FP8, Quantization
from seesaw.engine.ops.base import BatchInputs, GraphOps
from seesaw.engine.ops.capability import attention_backends, capability_of
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import AttentionBackend, EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.worker.graphs import DecodeGraphs
from tests.engine.drive import greedy, random_prompts, running
from tests.families import MODELS
from tests.gpu import one_gpu
from tests.gpu.reference import CUDA, Reference
from tests.quantized import write_blocks
from tests.tiny import LocalModel, write_tiny_checkpoint

pytestmark = pytest.mark.gpu

VOCAB = 1999


def _checkpoint(folder: Path, dtype: str, **changes: Any) -> Path:
    sizes = {
        "layers": 6,
        "heads": 8,
        "kv_heads": 4,
        "hidden": 512,
        "head_dim": 64,
        "ffn": 1408,
        "vocab": VOCAB,
        "std": 0.06,
        "max_position": 2048,
    }
    return write_tiny_checkpoint(folder, dtype=dtype, **{**sizes, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("llama"), "bfloat16")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder, torch.bfloat16)


@pytest.fixture(scope="module")
def in_float16(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(_checkpoint(tmp_path_factory.mktemp("llama"), "float16"), torch.float16)


@pytest.mark.parametrize("layout", ["T1", "T2", "T4", "P2", "T2P2", "P4"])
@pytest.mark.parametrize("length", [30, 900])
def test_logits_of_every_layout(folder: Path, reference: Reference, layout: str, length: int) -> None:
    tokens = random_prompts(seed=1, count=1, longest=1, vocab=VOCAB)[0]
    tokens = [(7919 * i + tokens[0]) % VOCAB for i in range(length)]
    with torch.inference_mode():
        model = LocalModel(folder, Layout.parse(layout), block_size=16, device=CUDA)
        reference.check_logits(model.logits(tokens), tokens)


@pytest.mark.parametrize("layout", ["T1", "T2P2"])
def test_logits_in_float16(in_float16: Reference, layout: str) -> None:
    tokens = [(7919 * i) % VOCAB for i in range(900)]
    with torch.inference_mode():
        model = LocalModel(in_float16.folder, Layout.parse(layout), block_size=16, device=CUDA)
        in_float16.check_logits(model.logits(tokens), tokens)


@pytest.mark.parametrize("layout", ["T1", "T2P2"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_family(name: str, layout: str, tmp_path: Path) -> None:
    """A prompt in chunks, then token by token, with seven query heads on each KV head, as Qwen2.5 has them."""
    folder = _checkpoint(
        tmp_path, "bfloat16", **{**MODELS[name], "heads": 14, "kv_heads": 2, "hidden": 448, "head_dim": 64}
    )
    tokens = [(7919 * i) % VOCAB for i in range(300)]
    cuts = [0, 150, 290, *range(291, 301)]
    with torch.inference_mode():
        model = LocalModel(folder, Layout.parse(layout), block_size=16, device=CUDA)
        parts = [model.forward([(start, tokens[start:stop])], [list(range(19))]) for start, stop in pairwise(cuts)]
        Reference(folder, torch.bfloat16).check_logits(torch.cat(parts), tokens)


@pytest.mark.parametrize(("kv", "backend"), [("auto", "auto"), ("fp8", "auto"), ("fp8", "fa2")])
@pytest.mark.parametrize("checkpoint", ["float", "blocks"])
@pytest.mark.parametrize("layout", ["T1", "T2P2"])
def test_fp8_is_as_near_as_its_emulation(
    layout: str, checkpoint: str, kv: str, backend: AttentionBackend, tmp_path: Path
) -> None:
    """A prompt in chunks, then token by token: on the GPU at most a tenth further from float32 than in plain torch."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of compute capability 8.9")
    folder = floats = _checkpoint(tmp_path / "floats", "bfloat16", ffn=1024)
    changes: dict[str, Any] = {"kv_cache_dtype": FP8 if kv == "fp8" else None}
    if checkpoint == "blocks":
        folder = write_blocks(floats, tmp_path / "blocks")
    else:
        changes["quantization"] = Quantization()
    tokens = [(7919 * i) % VOCAB for i in range(300)]
    cuts = [0, 150, 290, *range(291, 301)]
    exact = Reference(floats, torch.bfloat16).logits(tokens)
    errors = []
    with torch.inference_mode():
        ways: list[tuple[torch.device, AttentionBackend]] = [(CUDA, backend), (torch.device("cpu"), "auto")]
        for device, attention in ways:
            model = LocalModel(
                folder, Layout.parse(layout), block_size=16, device=device, changes=changes, attention_backend=attention
            )
            parts = [model.forward([(start, tokens[start:stop])], [list(range(19))]) for start, stop in pairwise(cuts)]
            errors.append(float((torch.cat(parts).to(CUDA) - exact).norm()))
    assert errors[0] <= 1.1 * errors[1], errors


def test_slices_of_a_plan(folder: Path, reference: Reference) -> None:
    """P4 as cut for P4->T4: a rank holds four slices of its layers."""
    plan = Plan(Layout.parse("P4"), Layout.parse("T4"))
    tokens = [(31 * i) % VOCAB for i in range(200)]
    with torch.inference_mode():
        model = LocalModel(folder, plan.prefill, plan=plan, block_size=16, device=CUDA)
        reference.check_logits(model.logits(tokens), tokens)


def test_graphs_compute_what_eager_computes(folder: Path) -> None:
    with torch.inference_mode():
        model = LocalModel(folder, Layout(), block_size=16, num_blocks=64, device=CUDA)
        prompts = [[(31 * i + 7 * n) % VOCAB for i in range(20 + 9 * n)] for n in range(5)]
        tables = [list(range(10 * n, 10 * n + 10)) for n in range(5)]
        model.forward([(0, prompt) for prompt in prompts], tables)
        llama, ops = model.ranks[0], model._ops[0]
        assert isinstance(ops, GraphOps)
        kv = list(model.pools[0].unbind(1))
        graphs = DecodeGraphs(llama, ops, kv, padding_block=63, max_rows=8, max_blocks=10, is_first=True)
        graphs.capture()
        for rows in (1, 3, 5, 2):
            batch = BatchInputs(
                query_lens=torch.ones(rows, dtype=torch.int32),
                context_lens=torch.tensor([len(prompt) for prompt in prompts[:rows]], dtype=torch.int32),
                tables=torch.tensor(tables[:rows], dtype=torch.int32),
            )
            tokens = torch.tensor([prompt[-1] for prompt in prompts[:rows]], device=CUDA)
            eager = llama.layers(llama.embed(tokens), ops.plan(batch, llama.num_heads, llama.num_kv_heads), kv)
            assert graphs.fit(batch)
            graphs.plan(batch)
            torch.testing.assert_close(graphs.replay(tokens), eager, atol=0.03, rtol=0.02)


def _engine_config(folder: Path, **changes: Any) -> EngineConfig:
    small = {"max_model_len": 512, "num_device_blocks": 90, "max_num_batched_tokens": 128, "max_num_seqs": 12}
    return EngineConfig(model=str(folder), device="cuda", **{**small, **changes})


def test_the_engine_on_one_gpu(folder: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preemptions, chunks, graphs, and greedy beside sampled requests; every pool starts as NaN."""
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    prompts = random_prompts(seed=3, count=24, longest=300, vocab=VOCAB)
    requests = {f"g{i}": (prompt, greedy(40)) for i, prompt in enumerate(prompts)}
    drawn = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=11, ignore_eos=True)
    requests |= {f"s{i}": (prompts[0], drawn) for i in range(2)}
    error = reference.error(prompts[1])
    with running(_engine_config(folder)) as engine:
        tokens = engine.generate(requests)
        again = engine.generate({"s": (prompts[0], drawn)})
        stats = engine.core.stats()
    for i, prompt in enumerate(prompts):
        assert len(tokens[f"g{i}"][0]) == 40
        reference.check_greedy(prompt, tokens[f"g{i}"][0], error)
    assert stats.preemptions > 0 and stats.device_blocks_used == 0
    # Rounding differs between batches, so that equal seeds may part somewhere; not at once.
    assert tokens["s0"][0][:4] == tokens["s1"][0][:4] == again["s"][0][:4]


def _check_plan(reference: Reference, plan: str, weights: str, error: float | None = None, **settings: Any) -> None:
    """Prompts in several chunks, some of which begin alike, swaps and changes of layout; every pool and reloaded arena
    starts as NaN.

    `error`: of the logits, if it is not that of the reference's dtype.
    """
    prefill, _, decode = plan.partition("->")
    prompts = random_prompts(seed=4, count=40, longest=300, vocab=VOCAB)
    common = prompts[0][:100]
    prompts = [common + prompt if i % 4 == 3 else prompt for i, prompt in enumerate(prompts)]
    requests = {f"g{i}": (prompt, greedy(24)) for i, prompt in enumerate(prompts)}
    error = reference.error(prompts[1]) if error is None else error
    plain = {"weights": weights, "num_host_blocks": 200, "policy": "paper", "surge_min_tokens": 0}
    config = _engine_config(reference.folder, prefill=prefill, decode=decode, **plain, **settings)
    with running(config) as engine:
        tokens = engine.generate(requests)
        stats = engine.core.stats()
    for i, prompt in enumerate(prompts):
        assert len(tokens[f"g{i}"][0]) == 24
        reference.check_greedy(prompt, tokens[f"g{i}"][0], error)
    assert stats.device_blocks_used == stats.host_blocks_used == 0
    assert sum(stats.prefix_cache_hits.values()) > 0
    if decode:
        assert sum(stats.transitions.values()) >= 2 and stats.swap_bytes["in"] > 0


PLANS = [
    ("T2", "auto"),
    ("P2", "auto"),
    ("P2->T2", "reload"),
    ("P2->T2", "resident"),
    ("T2->P2", "reload"),
    ("D2->T2", "reload"),
]


PLANS_OF_FOUR = [("P4->T4", "reload"), ("P4->T2P2", "resident")]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    monkeypatch.setenv("SEESAW_POISON_WEIGHTS", "1")


def test_a_static_layout_in_float16(in_float16: Reference, poison: None) -> None:
    _check_plan(in_float16, "T1", "auto")


@pytest.mark.parametrize("backend", ["fa2", "fa3"])
def test_a_forced_attention_backend(reference: Reference, poison: None, backend: str) -> None:
    if backend not in attention_backends(capability_of(CUDA)):
        with pytest.raises(ConfigError, match=r"attention_backend fa3 needs compute capability 9\.0"):
            _check_plan(reference, "T1", "auto", attention_backend=backend)
        return
    _check_plan(reference, "T1", "auto", attention_backend=backend)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_sums_by_nccl_on_two_gpus(reference: Reference, poison: None) -> None:
    _check_plan(reference, "T2", "auto", custom_all_reduce="off")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("plan", "weights"), PLANS)
def test_plans_on_two_gpus(reference: Reference, plan: str, weights: str, poison: None) -> None:
    _check_plan(reference, plan, weights)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize(("plan", "weights"), [("T2", "auto"), ("P2->T2", "reload"), ("D2->T2", "resident")])
def test_plans_in_8_bits(
    reference: Reference, plan: str, weights: str, gpus: int, poison: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and KV, with the error that they have in plain torch."""
    if torch.cuda.get_device_capability() < (8, 9) or torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs of compute capability 8.9")
    if gpus == 1:
        one_gpu.use(monkeypatch)
    changes = {"kv_cache_dtype": FP8, "quantization": Quantization()}
    tokens = random_prompts(seed=4, count=2, longest=300, vocab=VOCAB)[1]
    with torch.inference_mode():
        plain = LocalModel(reference.folder, Layout(), block_size=16, device=torch.device("cpu"), changes=changes)
        error = float((plain.logits(tokens).to(CUDA) - reference.logits(tokens)).abs().max())
    _check_plan(reference, plan, weights, error, quantization="fp8", kv_cache_dtype="fp8")


@pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four CUDA devices")
@pytest.mark.parametrize(("plan", "weights"), [("T4", "auto"), ("P4", "auto"), *PLANS_OF_FOUR])
def test_plans_on_four_gpus(reference: Reference, plan: str, weights: str, poison: None) -> None:
    _check_plan(reference, plan, weights)


@pytest.mark.parametrize(("plan", "weights"), [*PLANS, *PLANS_OF_FOUR])
def test_plans_on_one_gpu(
    reference: Reference, plan: str, weights: str, poison: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_gpu.use(monkeypatch)
    _check_plan(reference, plan, weights)
