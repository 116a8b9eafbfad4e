"""What does not fit is one sentence that says what to change, at every door and of every executor, before it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from seesaw import LLM
from seesaw.engine.bench.offline import run_workloads
from seesaw.engine.bench.workload import Job
from seesaw.engine.executor import check_executor, make_executor, processes
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.kv import room
from seesaw.engine.kv.segment import Segment
from seesaw.engine.process import EngineProcess
from seesaw.engine.sizing.model import DEFAULT_SHAPE, find_shape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB
from seesaw.server import cli

MODELS = Path(__file__).parents[3] / "configs" / "models"
EXECUTORS: dict[str, dict[str, object]] = {
    "simulated": {"executor": "simulated"},
    "cpu": {"device": "cpu", "load_format": "dummy"},
}
TWO = {"prefill": "P2", "decode": "T2"}
FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "context": ({"max_model_len": 100_000}, "longer than the model's context of 8192 tokens: use at most 8192"),
    "heads": ({"prefill": "T3"}, "choose a T degree that divides 32"),
    "layers": ({"prefill": "P99"}, "use P32 or less"),
    "device blocks": ({"num_device_blocks": 10}, "at most 160 or raise --num-device-blocks to at least 512"),
    "device bytes": ({"kv_cache_memory_bytes": GIB // 2}, "raise --kv-cache-memory-bytes to at least 1GiB"),
    "two layouts": ({**TWO, "num_device_blocks": 511}, "at most 8176 or raise --num-device-blocks to at least 512"),
    "no device block": ({"kv_cache_memory_bytes": 100}, "needs 512: raise --kv-cache-memory-bytes to at least 1GiB"),
    "host blocks": ({**TWO, "num_host_blocks": 10}, "at most 160 or raise --num-host-blocks to at least 512"),
    "host bytes": ({**TWO, "host_kv_bytes": GIB // 2}, "raise --host-kv-bytes to at least 1GiB"),
    "no host block": ({**TWO, "host_kv_bytes": 100}, "raise --host-kv-bytes to at least 2MiB"),
    "folder": ({"shape": "/none"}, "there is no folder /none"),
}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((Ranks, "start"), (EngineProcess, "start"), (Segment, "create")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("it is too late now"))


def flags(options: dict[str, object]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def raised(start: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as refused:
        start()
    return str(refused.value)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ")
    return line


def told_at(door: str, given: dict[str, object], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence by which a door refuses these settings."""
    options: dict[str, Any] = {"model": "m", **given}
    match door:
        case "serve":
            return printed(capsys, "serve", options.pop("model"), *flags(options))
        case "bench":
            constant = {"dataset": "constant", "input_len": 9, "output_len": 9}
            return printed(capsys, "bench", "offline", *flags(options | constant))
        case "llm":
            return raised(lambda: LLM(**options, skip_tokenizer=True))
        case "executor":
            return raised(lambda: make_executor(EngineConfig(**options)))
        case "check":
            return raised(lambda: check_executor(EngineConfig(**options)))
        case _:
            return raised(lambda: list(run_workloads(EngineConfig(**options), [[Job(9, 9)]])))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("door", ["serve", "bench", "llm", "executor", "check", "workloads"])
def test_faults_at_doors(door: str, fault: str, executor: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, sentence = FAULTS[fault]
    told = told_at(door, {"shape": str(MODELS / "llama3-8b"), **EXECUTORS[executor], **given}, capsys)
    assert sentence in told and "\n" not in told


HOSTS = MODELS.parent / "hosts"
FP8_FAULTS: dict[str, tuple[str, dict[str, object], str]] = {
    "weights on A10": ("8xa10", {"quantization": "fp8"}, "this GPU has 8.6: use a checkpoint that is not quantized"),
    "weights on A100": ("8xa100-pcie", {"quantization": "fp8"}, "fp8 weights need compute capability 8.9 or newer"),
    "KV on A100": ("8xa100-nvlink", {"kv_cache_dtype": "fp8"}, "this GPU has 8.0: use --kv-cache-dtype auto"),
    "float16": ("8xl4", {"quantization": "fp8", "dtype": "float16"}, "the dtype is float16: use --dtype bfloat16"),
}


@pytest.mark.parametrize("fault", FP8_FAULTS)
@pytest.mark.parametrize("door", ["serve", "bench", "llm", "executor", "check", "workloads"])
def test_a_simulated_host_refuses_what_its_gpus_would(
    door: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host, given, sentence = FP8_FAULTS[fault]
    options = {"executor": "simulated", "host_profile": str(HOSTS / f"{host}.json"), **given}
    assert sentence in told_at(door, {"shape": str(MODELS / "llama3-8b"), **options}, capsys)


@pytest.mark.parametrize("host", [None, *sorted(path.stem for path in HOSTS.glob("*.json"))])
def test_simulated_hosts_run_what_their_gpus_can(host: str | None) -> None:
    profile = str(HOSTS / f"{host}.json") if host else ""
    newer = host is None or "l4" in host or "h100" in host
    half = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if newer else {}
    for given in (half, {"quantization": "fp8", "dtype": "float32"}):  # in float32 our plain operators run
        options = {"shape": str(MODELS / "llama3-8b"), "executor": "simulated", "host_profile": profile, **given}
        check_executor(EngineConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["context", "heads", "device blocks", "host bytes"])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_hub_name_is_resolved_and_refused_without_its_weights(
    executor: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(MODELS / "llama3-8b")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    given, sentence = FAULTS[fault]
    options = {**EXECUTORS[executor], "load_format": "safetensors", "model": "meta/llama", **given}
    assert sentence in raised(lambda: make_executor(EngineConfig(**options)))  # type: ignore[arg-type]
    assert asked and not any("*.safetensors" in patterns for patterns in asked)


def test_a_simulated_host_takes_hub_names_home_folders_and_dtypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(MODELS / "llama3-70b"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(MODELS / "llama2-7b")
    for options, layers, num_bytes in (
        ({"model": "meta/llama"}, 80, 2),
        ({"model": "~/model"}, 32, 2),
        ({"shape": "~/model", "dtype": "float32"}, 32, 4),
        ({"dtype": "float32"}, DEFAULT_SHAPE.num_layers, 4),
    ):
        config = EngineConfig(**{"executor": "simulated", "max_model_len": 512} | options)  # type: ignore[arg-type]
        has = make_executor(config).capacity
        assert has.shape == find_shape(config)
        assert (has.shape.num_layers, has.shape.dtype_bytes) == (layers, num_bytes)


def test_a_default_pool_that_is_too_small_is_said_before_the_weights_are_loaded() -> None:
    """On the CPU it is 1 GiB: 204 blocks of 70B, which has 5 MiB a block."""
    options = {"shape": str(MODELS / "llama3-70b"), "device": "cpu", "load_format": "dummy", "model": "m"}
    sentence = "has 204 blocks of 16 tokens but max_model_len 8192 needs 512: lower --max-model-len to at most 3264 or"
    assert sentence in raised(lambda: LLM(**options, skip_tokenizer=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [check_executor, make_executor])
def test_too_little_host_memory_is_said_before_it_is_taken(
    start: Callable[[EngineConfig], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": "m", "shape": str(MODELS / "llama3-8b"), "num_device_blocks": 1024, "host_kv_bytes": 2 * GIB}
    config = EngineConfig(**EXECUTORS["cpu"] | TWO | options)  # type: ignore[arg-type]
    monkeypatch.setattr(room, "_read", lambda path: "MemAvailable: 1024 kB\n" if "meminfo" in str(path) else "")
    assert "this host leaves 1.0 MiB of memory but plan P2->T2 on the CPU (weights" in raised(lambda: start(config))
    monkeypatch.setattr(room, "_read", lambda path: "")
    monkeypatch.setenv("SEESAW_SHM_DIR", "/none")
    sentence = "there is no /none for the host KV pool: mount a tmpfs there"
    assert raised(lambda: start(config)) == sentence


def test_no_system_of_a_comparison_runs_if_the_last_one_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "choose_device", lambda *_: "cuda")
    monkeypatch.setattr(processes, "free_device_bytes", lambda num, timeout_s: [78 * GIB] * num)
    options = {"model": "m", "shape": str(MODELS / "llama3-70b"), "load_format": "dummy", "prefill": "T2"}
    arguments = flags(options | {"dataset": "constant", "input_len": 9, "output_len": 9, "against": "P2,T1"})
    assert "the weights of plan T1 take" in printed(capsys, "bench", "offline", *arguments)


GPU_FAULTS: dict[str, tuple[int, dict[str, object], str]] = {
    "weights": (78, {}, "give each replica more GPUs (T2 or P2 at least) or choose a smaller model"),
    "resident": (78, {"prefill": "P2", "decode": "T2", "weights": "resident"}, "use --weights reload"),
    "blocks": (78, {"prefill": "T2", "num_device_blocks": 8000}, "lower --num-device-blocks to at most 5033,"),
    "bytes": (78, {"prefill": "T2", "kv_cache_memory_bytes": 20 * GIB}, "lower --kv-cache-memory-bytes to at most 12"),
    "context": (68, {"prefill": "T2"}, "max_model_len 8192 needs 1.25 GiB: lower --max-model-len to at"),
}


@pytest.mark.parametrize("fault", GPU_FAULTS)
@pytest.mark.parametrize("check", [False, True])
def test_what_gpus_do_not_hold_is_refused_before_a_worker_starts(
    fault: str, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama-3-70B on GPUs that have so many GiB free, in every plan, static ones too."""
    free_gib, given, sentence = GPU_FAULTS[fault]
    monkeypatch.setattr(processes, "choose_device", lambda *_: "cuda")
    monkeypatch.setattr(processes, "free_device_bytes", lambda num, timeout_s: [free_gib * GIB] * num)
    options = {"shape": str(MODELS / "llama3-70b"), "load_format": "dummy", "model": "m", **given}
    start = check_executor if check else make_executor
    assert sentence in raised(lambda: start(EngineConfig(**options)))  # type: ignore[arg-type, operator]


def test_nothing_of_it_imports_torch() -> None:
    names = "fit, gpus, host_memory, model, pools, weights, advice"
    script = f"import sys; from engine.sizing import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
