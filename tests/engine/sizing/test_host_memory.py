"""The memory that a plan takes on CPUs, against hosts of other sizes than this one. None of it is allocated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seesaw.engine.device import choice
from seesaw.engine.device.choice import Gpus
from seesaw.engine.executor import processes
from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.kv import room
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.segment import Segment
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.sizing.host_memory import WORKER_BYTES, check_host_memory, cpu_memory_bytes
from seesaw.engine.sizing.weights import WeightsWay
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB

CONFIGS = Path(__file__).parents[3] / "configs"


def geometry_of(config: EngineConfig, model: str) -> KVGeometry:
    return KVGeometry(read_shape(CONFIGS / "models" / model, config.dtype), config.plan, config.block_size)


def needs_gib(model: str, way: WeightsWay, **options: object) -> dict[str, float]:
    config = EngineConfig(**options)  # type: ignore[arg-type]
    needs = cpu_memory_bytes(config, geometry_of(config, model), way)
    return {what: round(num_bytes / GIB, 1) for what, num_bytes in needs.items()}


def set_host(monkeypatch: pytest.MonkeyPatch, gib: float, limit_gib: float | None = None) -> None:
    files = {"/proc/meminfo": f"MemAvailable: {int(gib * GIB) >> 10} kB\n"}
    if limit_gib is not None:
        files |= {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": f"{int(limit_gib * GIB)}\n"}
    monkeypatch.setattr(room, "_read", lambda path: files.get(str(path), ""))


def test_what_a_plan_takes() -> None:
    """7B is 12.6 GiB in 16 bits, for each layout or store. A block of 16 tokens is 8 MiB, half of it on each rank."""
    workers = 2 * WORKER_BYTES / GIB
    layouts = {"prefill": "P2", "decode": "T2", "num_device_blocks": 500, "num_host_blocks": 1250}
    pools = {"device KV pools": 3.9, "host KV pool": 9.8, "workers": workers}
    assert needs_gib("llama2-7b", "resident", **layouts) == {"weights": 25.1, **pools}
    assert needs_gib("llama2-7b", "reload", **layouts) == {"weights": 25.1, **pools}
    static = needs_gib("llama2-7b", "static", prefill="T2")
    assert static == {"weights": 12.6, "device KV pools": 2.0, "host KV pool": 0.0, "workers": workers}


def test_a_vocabulary_takes_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config.json may ask for any."""
    config = EngineConfig(prefill="D2", decode="D2")
    for vocab, gib in ((32_000, 0.0), (10**8, 2 * 256 * 4e8 / GIB)):
        shape = replace(read_shape(CONFIGS / "models" / "llama2-7b"), vocab=vocab)
        needs = cpu_memory_bytes(config, KVGeometry(shape, config.plan, config.block_size), "static")
        assert needs["workers"] / GIB == pytest.approx(2 * WORKER_BYTES / GIB + gib, abs=0.1)
    set_host(monkeypatch, 99)
    with pytest.raises(ConfigError, match="lower --max-num-seqs, --kv-cache-memory-bytes, choose"):
        check_host_memory(config, KVGeometry(shape, config.plan, config.block_size), "static", "cpu")


def test_pools_are_as_large_as_asked_for_and_as_the_fullest_rank_allows() -> None:
    """32 layers in 3 stages are 11, 11 and 10: a stride of 5.5 MiB, so 1 GiB holds 186 blocks (of 15.5 MiB in all)."""
    assert needs_gib("llama2-7b", "static", prefill="P3")["device KV pools"] == round(187 * 16 / 1024, 1)
    assert needs_gib("llama2-7b", "static", prefill="P3", kv_cache_memory_bytes=2 * GIB)["device KV pools"] == 5.8


@pytest.mark.parametrize(("host_gib", "limit_gib", "who"), [(20, None, "this host"), (99, 20, "container's")])
def test_too_little_is_one_sentence_before_anything_is_taken(
    host_gib: float, limit_gib: float | None, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment of the README, on a host without GPUs."""

    def never(*_: object) -> None:
        raise AssertionError("memory is taken")

    monkeypatch.setattr(Segment, "create", never)
    monkeypatch.setattr(Ranks, "start", never)
    monkeypatch.setattr(processes, "found_gpus", lambda timeout_s: Gpus(0, ""))
    monkeypatch.setattr(choice, "has_nvidia_device", lambda: False)
    set_host(monkeypatch, host_gib, limit_gib)
    file = json.loads((CONFIGS / "llama2-7b-2xl4.json").read_text())
    settings = {name: value for name, value in file.items() if name[0] != "$"} | {"load_format": "dummy"}
    said: list[str] = []
    with pytest.raises(ConfigError) as refused:
        ProcessExecutor(EngineConfig(**settings | {"shape": str(CONFIGS / settings["shape"])}), said.append)
    text = str(refused.value)
    assert who in text and "plan P2->T2 on the CPU (weights 25.1" in text
    assert "lower --num-device-blocks or --num-host-blocks" in text
    assert said == ["this host has no GPU that torch can use: running on the CPU"]


def test_what_fits_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(prefill="T2", kv_cache_memory_bytes=GIB)
    geometry = geometry_of(config, "llama2-7b")
    needed = sum(cpu_memory_bytes(config, geometry, "static").values()) / GIB
    set_host(monkeypatch, needed + 0.01)
    check_host_memory(config, geometry, "static", "cpu")
    set_host(monkeypatch, needed - 0.01)
    with pytest.raises(ConfigError, match="lower --kv-cache-memory-bytes, choose"):
        check_host_memory(config, geometry, "static", "cpu")
