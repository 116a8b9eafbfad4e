"""What fits GPUs of known sizes: the way of `weights: auto`, and what is refused with which advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.quantization import Kind, Quantization
from seesaw.engine.sizing.gpus import RESERVE_BYTES, WORKSPACE_BYTES, check_gpus, choose_way, gpu_blocks
from seesaw.engine.sizing.model import as_asked
from seesaw.engine.sizing.pools import needed_blocks
from seesaw.engine.sizing.weights import WeightsWay, device_weight_bytes
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB
from tests.tiny import tiny_shape

MODELS = Path(__file__).parents[3] / "configs" / "models"


def choose(model: str, free_gib: list[float], *, max_model_len: int = 4096, **options: object) -> str:
    config = EngineConfig(**options)  # type: ignore[arg-type]
    geometry = KVGeometry(read_shape(MODELS / model), config.plan, config.block_size)
    return choose_way(config, geometry, max_model_len, [int(free * GIB) for free in free_gib])


@pytest.mark.parametrize(
    ("model", "plan", "free_gib", "mode"),
    [
        ("llama3-70b", ("P4", "T4"), 78.0, "reload"),  # 33 GiB of weights in each layout: 42 GiB of KV, or 8
        ("llama3-70b", ("P4", "T4"), 139.0, "resident"),  # 103 GiB of KV, or 69
        ("llama3-8b", ("P2", "T2"), 78.0, "resident"),
        ("llama2-7b", ("P2", "T2"), 23.0, "resident"),  # 12.7 GiB of KV, or 6.4
        ("llama2-7b", ("P2", "T2"), 22.0, "reload"),  # 11.7 or 5.4
    ],
)
def test_resident_leaves_half_of_the_room_for_kv(model: str, plan: tuple[str, str], free_gib: float, mode: str) -> None:
    prefill, decode = plan
    assert choose(model, [free_gib] * int(prefill[1:]), prefill=prefill, decode=decode) == mode


def test_the_fullest_gpu_decides() -> None:
    assert choose("llama3-8b", [78.0, 78.0], prefill="P2", decode="T2") == "resident"
    assert choose("llama3-8b", [78.0, 18.0], prefill="P2", decode="T2") == "reload"


def test_a_pool_that_is_asked_for_is_enough() -> None:
    """A rank of 8B in two has 7.5 GiB of weights in each layout; a block of 16 tokens takes 1 MiB of it."""
    layouts = {"prefill": "P2", "decode": "T2"}
    room = WORKSPACE_BYTES / GIB + 15.1
    assert choose("llama3-8b", [room] * 2, **layouts) == "reload"
    assert choose("llama3-8b", [room + 1.0] * 2, **layouts, kv_cache_memory_bytes=GIB) == "resident"
    assert choose("llama3-8b", [room + 1.0] * 2, **layouts, num_device_blocks=1024) == "resident"
    assert choose("llama3-8b", [room + 1.0] * 2, **layouts, num_device_blocks=2048) == "reload"


def test_the_longest_sequences_must_fit() -> None:
    layouts = {"prefill": "P4", "decode": "T4"}
    assert choose("llama3-70b", [139.0] * 4, **layouts, max_model_len=8192) == "resident"
    assert choose("llama3-70b", [139.0] * 4, **layouts, max_model_len=1 << 20) == "reload"


def fit_of(model: str, **options: object) -> tuple[EngineConfig, KVGeometry]:
    config = EngineConfig(**options)  # type: ignore[arg-type]
    return config, KVGeometry(as_asked(read_shape(MODELS / model), config), config.plan, config.block_size)


def refusal(model: str, free_gib: float, way: WeightsWay = "static", context: int = 4096, **options: object) -> str:
    """Why GPUs with so much free are refused; empty if they are not."""
    config, geometry = fit_of(model, **options)
    try:
        check_gpus(config, geometry, context, way, [int(free_gib * GIB)] * config.plan.world_size)
    except ConfigError as error:
        return str(error)
    return ""


def test_weights_that_do_not_fit_name_layouts_that_do() -> None:
    assert refusal("llama3-70b", 78.0, prefill="T1") == (
        "rank 0's GPU has 78.00 GiB free but the weights of plan T1 take 131.42 GiB of it, and steps 2.00 GiB: "
        "give each replica more GPUs (T2 or P2 at least) or choose a smaller model"
    )
    assert refusal("llama3-70b", 78.0, prefill="T2") == refusal("llama3-70b", 78.0, prefill="P2") == ""
    assert "(T2 or P2 at least)" in refusal("llama3-70b", 78.0, prefill="D2")
    # Three stages would do, of which one has the head; 64 heads do not go in three.
    assert "(T4 or P3 at least)" in refusal("llama3-70b", 50.0, prefill="T2")
    assert "use GPUs that have more memory free" in refusal("llama3-70b", 3.0, prefill="T4")
    assert "use GPUs that have more memory free" in refusal("llama3-70b", 1.0, prefill="T4")


def test_8_bits_take_half() -> None:
    """70B on one GPU of 80 GB; and of the same pool's bytes, twice the blocks."""
    assert refusal("llama3-70b", 78.0, prefill="T1", quantization="fp8") == ""
    assert "the weights of plan T1 take 67." in refusal("llama3-70b", 60.0, prefill="T1", quantization="fp8")
    fits = {"num_device_blocks": 5000, "kv_cache_dtype": "fp8"}
    assert refusal("llama3-8b", 20.5, **fits) == "" and refusal("llama3-8b", 20.5, num_device_blocks=5000)


@pytest.mark.parametrize(
    ("sizes", "kind", "says"),
    [
        (
            {"ffn": 40, "head_dim": 16},
            "float",
            "leaves 64 x 40 of mlp.down_proj to a GPU, and fp8 needs",
        ),
        ({"ffn": 96, "head_dim": 5}, "channel", "of self_attn.o_proj"),
        ({"ffn": 48, "head_dim": 16}, "blocks", "multiples of 16 in blocks of 32: use a smaller T"),
        ({"ffn": 96, "head_dim": 16}, "blocks", ""),
    ],
)
def test_products_that_tensor_cores_do_not_take(sizes: dict[str, int], kind: Kind, says: str) -> None:
    shape = replace(tiny_shape(**sizes), quantization=Quantization(kind))
    config = EngineConfig(num_device_blocks=100)
    geometry = KVGeometry(shape, config.plan, config.block_size)
    try:
        check_gpus(config, geometry, 512, "static", [8 * GIB])
        refused = ""
    except ConfigError as error:
        refused = str(error)
    assert says in refused and bool(says) == bool(refused)


def test_all_layouts_at_once_may_be_too_much() -> None:
    plan = {"prefill": "P4", "decode": "T4"}
    assert "use --weights reload, more GPUs" in refusal("llama3-70b", 60.0, "resident", **plan)
    assert refusal("llama3-70b", 60.0, "reload", **plan) == ""
    assert "give each replica more GPUs" in refusal("llama3-70b", 30.0, "resident", **plan)


def test_a_pool_that_is_asked_for_must_fit_beside_the_weights() -> None:
    """8B takes 15 GiB, and a block of 16 tokens 2 MiB; one more block is for padding."""
    assert refusal("llama3-8b", 20.0, num_device_blocks=4000) == (
        "rank 0's GPU has 5.04 GiB for KV beside the weights but the pool that is asked for takes 7.81 GiB: "
        "lower --num-device-blocks to at most 2580, or leave it out"
    )
    assert refusal("llama3-8b", 20.0, num_device_blocks=2580) == ""
    assert refusal("llama3-8b", 20.0, num_device_blocks=2581)
    assert "lower --kv-cache-memory-bytes to at most 5160MiB" in refusal(
        "llama3-8b", 20.0, kv_cache_memory_bytes=8 * GIB
    )
    assert refusal("llama3-8b", 20.0, kv_cache_memory_bytes=5160 << 20) == ""
    assert refusal("llama3-8b", 20.0, kv_cache_memory_bytes=5162 << 20)


def test_the_least_pool_must_fit_beside_weights_and_steps() -> None:
    assert refusal("llama3-8b", 17.5, context=4096) == ""
    text = refusal("llama3-8b", 17.5, context=8192)
    assert "has 0.54 GiB for KV beside the weights" in text
    assert "max_model_len 8192 needs 1.00 GiB: lower --max-model-len to at most 4" in text
    most = int(text.split("at most ")[1].split()[0])
    assert refusal("llama3-8b", 17.5, context=most) == ""
    assert refusal("llama3-8b", 17.5, context=most + 1)


def test_a_pool_takes_what_the_largest_step_leaves() -> None:
    config, geometry = fit_of("llama3-8b", prefill="P3")
    for rank in range(3):  # 11, 11 and 10 layers; strides are the rank's own
        stride = geometry.device_block_bytes(rank)
        blocks = gpu_blocks(config, geometry, 4096, rank, 40 * GIB, 3 * GIB)
        assert geometry.device_pool_bytes(rank, blocks) <= 40 * GIB - 3 * GIB - RESERVE_BYTES
        assert geometry.device_pool_bytes(rank, blocks) + stride > 40 * GIB - 3 * GIB - RESERVE_BYTES
    with pytest.raises(ConfigError, match=r"beside the weights and the largest step but max_model_len 4096 needs"):
        gpu_blocks(config, geometry, 4096, 0, 5 * GIB, 3 * GIB)


def test_a_pool_that_is_asked_for_needs_no_reserve_but_the_largest_step() -> None:
    config, geometry = fit_of("llama3-8b", num_device_blocks=2000)
    pool = geometry.device_pool_bytes(0, 2000)
    assert gpu_blocks(config, geometry, 4096, 0, pool + GIB, GIB) == 2000
    with pytest.raises(ConfigError, match="lower --num-device-blocks to at most 1999, or leave it out"):
        gpu_blocks(config, geometry, 4096, 0, pool + GIB - 1, GIB)


@pytest.mark.parametrize("plan", [("T1", ""), ("P2", "T2"), ("P3", ""), ("T2P2", "P4")])
def test_what_is_refused_at_once_would_be_refused_by_the_worker(plan: tuple[str, str]) -> None:
    """Else the early check could refuse what works."""
    config, geometry = fit_of("llama3-8b", prefill=plan[0], decode=plan[1])
    way: WeightsWay = "reload" if plan[1] else "static"
    weights = device_weight_bytes(geometry, way)
    for free in range(2 * GIB, 24 * GIB, GIB // 8):
        try:
            check_gpus(config, geometry, 4096, way, [free] * len(weights))
        except ConfigError:
            with pytest.raises(ConfigError):
                for rank, size in enumerate(weights):
                    gpu_blocks(config, geometry, 4096, rank, free - size, 0)
        else:
            assert all(
                gpu_blocks(config, geometry, 4096, rank, free - size, 0) >= needed_blocks(geometry, 4096)
                for rank, size in enumerate(weights)
            )
