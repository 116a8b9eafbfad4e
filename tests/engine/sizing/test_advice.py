"""The line about a host pool that is smaller than what decode has room for."""

from __future__ import annotations

import pytest

from seesaw.engine.executor import make_executor
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.wording import GIB


def said(**options: object) -> list[str]:
    """Of a simulated host with Llama-3-70B in 30 GiB of each of four GPUs: 24576 blocks, of 5 MiB on the host."""
    given: dict[str, object] = {
        "executor": "simulated",
        "shape": "configs/models/llama3-70b",
        "prefill": "P4",
        "decode": "T4",
        "kv_cache_memory_bytes": 30 * GIB,
    }
    lines: list[str] = []
    make_executor(EngineConfig(**given | options), lines.append).close()  # type: ignore[arg-type]
    return lines


def test_too_small_a_host_pool_names_both_sizes_and_the_option() -> None:
    [line] = said()
    assert line == (
        "the host KV pool holds 13104 tokens and the device pools together 393216: "
        "prefill phases will be short and transitions many; raise --host-kv-bytes to 120GiB"
    )
    [line] = said(num_host_blocks=1000)
    assert line.endswith("raise --num-host-blocks to 24576")
    [line] = said(decode="D2T2", host_kv_bytes=59 * GIB)  # half as many blocks in each of twice as many pools
    assert "together 393216" in line


@pytest.mark.parametrize(
    "options",
    [
        {"host_kv_bytes": 60 * GIB},
        {"decode": "D2T2", "host_kv_bytes": 60 * GIB},
        {"max_num_seqs": 3, "max_model_len": 4096},  # 12288 tokens at most are in use
        {"decode": "P4", "tail": "T4"},  # has no prefill phases
        {"decode": "P4"},
    ],
)
def test_nothing_is_said_where_it_would_not_help(options: dict[str, object]) -> None:
    assert said(**options) == []
