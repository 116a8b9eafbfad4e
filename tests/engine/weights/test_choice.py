"""`weights: auto` on GPUs of known sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.kv.geometry import KVGeometry
from engine.model.shapes import read_shape
from engine.weights.choice import WORKSPACE_BYTES, choose_mode
from engine.wording import GIB

MODELS = Path(__file__).parents[3] / "configs" / "models"


def choose(model: str, free_gib: list[float], *, max_model_len: int = 4096, **options: object) -> str:
    config = EngineConfig(**options)  # type: ignore[arg-type]
    geometry = KVGeometry(read_shape(MODELS / model), config.plan, config.block_size)
    return choose_mode(config, geometry, max_model_len, [int(free * GIB) for free in free_gib])


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
