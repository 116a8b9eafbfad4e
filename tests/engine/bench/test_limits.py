"""What `seesaw bench limits` prints and saves, from ceilings that were measured elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from seesaw.engine.bench import limits
from seesaw.engine.bench.bounds import Host, bound
from seesaw.engine.bench.workload import parse_workload
from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from tests.tiny import tiny_shape

REPOSITORY = Path(__file__).parents[3]

MEASURED = {
    "device": "a GPU",
    "gpus": 2,
    "matmul_flops_per_s": 7e14,
    "matmul_burst_flops_per_s": 8e14,
    "memory_bytes_per_s": 3e12,
    "host_to_device_bytes_per_s": 55e9,
    "device_to_host_bytes_per_s": 54e9,
    "links": {"sum": {"16384": 20e-6, "131072": 30e-6}, "send": {"16384": 10e-6}},
}


def test_floors_and_bounds_of_each_layout() -> None:
    profile = HostProfile.from_json(MEASURED)
    host = Host(tiny_shape(), profile, max_num_seqs=4, max_num_batched_tokens=64)
    layouts = [Layout(tp=2), Layout(pp=2)]
    workloads = [parse_workload("8x10:20"), parse_workload("3x30:1")]
    found = MEASURED | {
        "floors": limits.floors(host.shape, layouts, profile),
        "bounds": limits.bounds(host, layouts, workloads),
    }
    assert json.loads(json.dumps(found))["bounds"][1]["layout"] == "P2"
    assert [(row["layout"], row["workload"]) for row in found["bounds"]] == [
        (layout, load.name) for load in workloads for layout in ("T2", "P2")
    ]
    expected = bound(host, Plan(layouts[0], layouts[0]), workloads[0].jobs)
    assert found["bounds"][0]["total_s"] == expected.total_s
    assert all(row["links_s"] > 0 for row in found["floors"])
    text = limits.table(found)
    assert "700 TFLOP/s sustained" in text and "128 KiB 30 us" in text
    assert sum("8x10:20" in line for line in text.splitlines()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU to measure")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match="measures GPUs, and torch "):
        limits.main(["some/model"], "seesaw bench limits")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-num-batched-tokens", "0", "max_num_batched_tokens must be"),
        ("--max-num-seqs", "0", "max_num_seqs must be"),
        ("--output-json", "no/such/folder.json", "cannot write --output-json"),
        ("--output-json", ".", "cannot write --output-json"),
    ],
)
def test_what_cannot_be_is_refused_before_it_measures(
    flag: str, value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("it is too late now"))
    with pytest.raises(ConfigError, match=says):
        limits.main(["some/model", flag, value], "seesaw bench limits")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "configs/llama3-8b-1xh100.json",
            "is a config: give the folder that its `shape` names, configs/models/llama3-8b",
        ),
        ("configs/models/llama3-8b/config.json", "is a file: give the folder of a model"),
        ("configs/models/llama3-9b", "there is no folder configs/models/llama3-9b"),
        ("configs", "no config.json in configs"),
        ("~nobody-of-this-name/model", "there is no folder ~nobody-of-this-name/model"),
        ("x" * 300, "there is no folder xxx"),
    ],
)
def test_the_model_is_looked_at_before_gpus(model: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("it is too late now"))
    with pytest.raises(ConfigError, match=says):
        limits.main([model], "seesaw bench limits")


def test_layouts_are_looked_at_before_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("it is too late now"))
    with pytest.raises(ConfigError, match="choose a T degree that divides 32"):
        limits.main(["configs/models/llama3-8b", "--layouts", "T2,T3"], "seesaw bench limits")


def test_a_gpu_without_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.chdir(REPOSITORY)
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "a GPU",
        "get_device_capability": (9, 0),
        "current_device": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    monkeypatch.setattr(limits, "measure_device", measure)
    with pytest.raises(
        ConfigError, match=r"cuda:0 ran out of memory for what is measured \(3\.00 GiB free\): free some"
    ):
        limits.main(["configs/models/llama3-8b"], "seesaw bench limits")
