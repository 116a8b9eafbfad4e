"""Real workers on the CPU: hand-written commands against transformers, and how processes die."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import psutil
import pytest

from seesaw.engine import awake
from seesaw.engine.executor import ranks
from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.run_folder import make_run_dir, remove_run_dir
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.supervision import end_children
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.engine.wire.commands import Chunk, Command, Report, SlotInit, Swap, TableUpdate, Transition
from tests.engine.forwards import make_forward
from tests.families import MODELS
from tests.patience import PATIENCE_S
from tests.shm import named_segments
from tests.tiny import reference_greedy, write_tiny_checkpoint

pytestmark = pytest.mark.processes

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
PROMPTS = [[(7 * i + 3) % 211 for i in range(23)], [(11 * i + 5) % 211 for i in range(9)]]
SIZES: dict[str, Any] = {"layers": 5, "kv_heads": 2}
BLOCKS = 12  # enough for 48 tokens a sequence


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), **SIZES)


def make_config(checkpoint: Path, prefill: str, decode: str = "", **options: object) -> EngineConfig:
    base: dict[str, object] = {
        "model": str(checkpoint),
        "device": "cpu",
        "max_model_len": 96,
        "block_size": 4,
        "num_device_blocks": 64,
        "num_host_blocks": 40,
        "max_num_seqs": 2,
        "start_timeout_s": PATIENCE_S,
        "step_timeout_s": PATIENCE_S,
    }
    return EngineConfig(prefill=prefill, decode=decode, **{**base, **options})  # type: ignore[arg-type]


class Driver:
    """Submits commands by hand and waits for every rank's report."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self.executor = executor
        self.next_id = 0
        self.reports: dict[int, list[Report]] = {}

    def submit(self, command: Command) -> None:
        self.reports[command.id] = []  # type: ignore[union-attr]
        self.executor.submit(command)

    def id(self) -> int:
        self.next_id += 1
        return self.next_id

    def forward(
        self,
        layout: int,
        chunks: list[Chunk],
        tables: list[TableUpdate] | None = None,
        inits: list[SlotInit] | None = None,
        replica: int = 0,
    ) -> int:
        self.submit(make_forward(step := self.id(), layout, chunks, tables, inits, replica))
        return step

    def wait(self, ranks: int) -> None:
        """Until each command so far was reported by `ranks` ranks."""
        while any(len(reports) < ranks for reports in self.reports.values()):
            assert self.executor.wait_handle().poll(int(1000 * PATIENCE_S)), "no report came"
            for report in self.executor.collect():
                self.reports[report.id].append(report)

    def tokens(self, step: int) -> list[int]:
        [tokens] = [report.tokens for report in self.reports[step] if report.tokens]
        return tokens

    def finish(self, command: Command, ranks: int) -> list[Report]:
        self.submit(command)
        self.wait(ranks)
        return self.reports[command.id]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "prefill", "decode", "weights"),
    [
        ("llama", "P2", "T2", "resident"),
        ("llama", "T2", "P2", "reload"),
        ("llama", "T4", "P4", "reload"),
        ("llama_with_biases", "T4", "P4", "resident"),
        ("mistral_in_a_window", "P2", "T2", "reload"),
        ("qwen2", "P4", "T4", "reload"),
        ("qwen3", "T2P2", "P4", "reload"),
    ],
)
def test_tokens_equal_the_reference_through_both_layouts(
    model: str, prefill: str, decode: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path, **{**SIZES, **MODELS.get(model, {})})
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    monkeypatch.setenv("SEESAW_POISON_WEIGHTS", "1")
    executor = ProcessExecutor(make_config(checkpoint, prefill, decode, weights=weights))
    try:
        world = executor._plan.world_size
        assert executor.capacity.weights == weights
        assert (executor.capacity.num_device_blocks, executor.capacity.num_host_blocks) == (64, 40)
        got = drive(Driver(executor), world)
    finally:
        executor.close()
    for prompt, tokens in zip(PROMPTS, got, strict=True):
        expected, gaps = reference_greedy(checkpoint, prompt, len(tokens))
        assert min(gaps) > 1e-3, "the reference is undecided: choose another prompt"
        assert tokens == expected


def drive(driver: Driver, world: int) -> list[list[int]]:
    """Chunked prefill, decode with steps in flight, swap, transition, decode; back again, decode."""
    a, b = PROMPTS
    got: list[list[int]] = [[], []]
    inits = [SlotInit(2, GREEDY), SlotInit(1, GREEDY)]
    tables = [TableUpdate(2, 0, list(range(40, 40 + BLOCKS))), TableUpdate(1, 0, list(range(BLOCKS, 0, -1)))]
    driver.finish(Transition(driver.id(), 0), world)  # from the decode layout, where an engine starts
    steps = [
        driver.forward(0, [Chunk(2, 0, a[:8], False), Chunk(1, 0, b, True)], tables, inits),
        driver.forward(0, [Chunk(1, 9, [~1], True), Chunk(2, 8, a[8:16], False)]),
        driver.forward(0, [Chunk(2, 16, a[16:], True)]),
        driver.forward(0, [Chunk(1, 10, [~1], True), Chunk(2, 23, [~2], True)]),
    ]
    driver.wait(world)
    got[1] += [driver.tokens(steps[0])[0], driver.tokens(steps[1])[0], driver.tokens(steps[3])[0]]
    got[0] += [driver.tokens(steps[2])[0], driver.tokens(steps[3])[1]]

    for layout, device_a, device_b in ((1, 5, 30), (0, 30, 5)):
        old_a, old_b = (range(40, 40 + BLOCKS), range(BLOCKS, 0, -1)) if layout else (range(5, 17), range(30, 42))
        host = [(7 * i) % 40 for i in range(2 * BLOCKS)]
        driver.finish(Swap(driver.id(), 1 - layout, 0, True, [*old_a, *old_b], host), world)
        reports = driver.finish(Transition(driver.id(), layout), world)
        assert sorted(report.rank for report in reports) == list(range(world))
        new = [*range(device_a, device_a + BLOCKS), *range(device_b, device_b + BLOCKS)]
        driver.finish(Swap(driver.id(), layout, 0, False, new, host), world)
        # The slots swap owners too, and the first inputs after a transition are ids.
        slots = (1, 2) if layout else (2, 1)
        positions = [len(prompt) + len(tokens) - 1 for prompt, tokens in zip(PROMPTS, got, strict=True)]
        tables = [TableUpdate(slots[0], 0, new[:BLOCKS]), TableUpdate(slots[1], 0, new[BLOCKS:])]
        first = [Chunk(slots[i], positions[i], [got[i][-1]], True) for i in (0, 1)]
        steps = [driver.forward(layout, first, tables, [SlotInit(slot, GREEDY) for slot in slots])]
        for step in (1, 2, 3):
            chunks = [Chunk(slots[i], positions[i] + step, [~slots[i]], True) for i in (0, 1)]
            steps.append(driver.forward(layout, chunks))
        driver.wait(world)
        for step in steps:
            for i in (0, 1):
                got[i].append(driver.tokens(step)[i])
    return got


def test_replicas_work_apart_and_meet_in_one_layout(checkpoint: Path) -> None:
    executor = ProcessExecutor(make_config(checkpoint, "D2", "T2"))
    try:
        driver = Driver(executor)
        driver.finish(Transition(driver.id(), 0), 2)
        steps = [
            driver.forward(
                0,
                [Chunk(0, 0, prompt, True)],
                [TableUpdate(0, 0, list(range(BLOCKS)))],
                [SlotInit(0, GREEDY)],
                replica=replica,
            )
            for replica, prompt in enumerate(PROMPTS)
        ]
        driver.wait(1)
        first = [driver.tokens(step)[0] for step in steps]
        host = [list(range(BLOCKS)), list(range(20, 20 + BLOCKS))]
        for replica in (0, 1):
            driver.submit(Swap(driver.id(), 0, replica, True, list(range(BLOCKS)), host[replica]))
        driver.wait(1)
        executor.submit(Transition(driver.id(), 1))
        driver.reports = {driver.next_id: []}
        driver.wait(2)
        driver.finish(Swap(driver.id(), 1, 0, False, list(range(2 * BLOCKS)), host[0] + host[1]), 2)
        step = driver.forward(
            1,
            [Chunk(slot, len(prompt), [first[slot]], True) for slot, prompt in enumerate(PROMPTS)],
            [TableUpdate(slot, 0, list(range(slot * BLOCKS, (slot + 1) * BLOCKS))) for slot in (0, 1)],
            [SlotInit(slot, GREEDY) for slot in (0, 1)],
        )
        driver.wait(2)
        second = driver.tokens(step)
    finally:
        executor.close()
    assert [list(pair) for pair in zip(first, second, strict=True)] == [
        reference_greedy(checkpoint, prompt, 2)[0] for prompt in PROMPTS
    ]


@pytest.fixture
def executor(checkpoint: Path) -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(make_config(checkpoint, "P2", "T2"))
    yield executor
    executor.close()


def pids(executor: ProcessExecutor) -> list[int]:
    return [process.pid for process in executor._ranks._processes if process.pid is not None]


def await_end(pidfds: list[int]) -> bool:
    """Whether all these processes end; zombies that nobody reaps have ended."""
    for pidfd in pidfds:
        if not select.select([pidfd], [], [], PATIENCE_S)[0]:
            return False
        os.close(pidfd)
    return True


def test_a_killed_worker_wakes_the_poller_and_says_who(executor: ProcessExecutor) -> None:
    pidfd = os.pidfd_open(pids(executor)[1])
    os.kill(pids(executor)[1], signal.SIGKILL)
    assert await_end([pidfd])
    executor.submit(Swap(1, 0, 0, False, [], []))  # never blocks, not even on a worker that is gone
    with pytest.raises(EngineDeadError, match="rank 1 was killed by SIGKILL"):
        while executor.wait_handle().poll(int(1000 * PATIENCE_S)):  # rank 0's report of the swap may come first
            executor.collect()
    with pytest.raises(EngineDeadError):  # and from then on
        executor.submit(Transition(2, 1))


def test_an_impossible_command_ends_the_engine_with_its_reason(executor: ProcessExecutor) -> None:
    executor.submit(Swap(1, 0, 0, True, [64], [0]))
    assert executor.wait_handle().poll(int(1000 * PATIENCE_S))
    with pytest.raises(EngineDeadError, match="device blocks 64 to 64, the pool has 64"):
        executor.collect()


@pytest.fixture
def graces(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long workers were given to end by themselves."""
    given: list[float] = []

    def end(children: Sequence[BaseProcess], grace_s: float) -> None:
        given.append(grace_s)
        end_children(children, grace_s)

    monkeypatch.setattr(ranks, "end_children", end)
    return given


def test_a_step_that_takes_too_long_is_a_dead_worker(checkpoint: Path, graces: list[float]) -> None:
    executor = ProcessExecutor(make_config(checkpoint, "P1", step_timeout_s=0.1))
    try:
        os.kill(pids(executor)[0], signal.SIGSTOP)
        executor.submit(Transition(1, 0))
        with pytest.raises(EngineDeadError, match=r"ranks \[0\] did not finish step 1 within 0.1 s"):
            while not executor.wait_handle().poll(20):
                executor.collect()
        with pytest.raises(EngineDeadError):  # and from then on
            executor.submit(Transition(2, 0))
        os.kill(pids(executor)[0], signal.SIGCONT)
    finally:
        executor.close()
    assert graces == [0.0]  # it does not listen, and clients wait


def test_a_host_that_stood_still_fails_no_step(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = ProcessExecutor(make_config(checkpoint, "P1", step_timeout_s=60.0))
    try:
        worker = pids(executor)[0]
        os.kill(worker, signal.SIGSTOP)
        executor.submit(Transition(1, 0))
        executor.collect()
        slept_s = 86400.0
        monkeypatch.setattr(awake, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept_s))
        assert executor.collect() == []
        os.kill(worker, signal.SIGCONT)
        while not (reports := executor.collect()):
            assert executor.wait_handle().poll(int(1000 * PATIENCE_S))
        assert reports[0].id == 1
    finally:
        executor.close()


def test_close_leaves_nothing(checkpoint: Path) -> None:
    executor = ProcessExecutor(make_config(checkpoint, "P2", "T2"))
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [link for link in links if link.startswith("/dev/shm")]
    pidfds = [os.pidfd_open(pid) for pid in pids(executor)]
    run_dir = executor._ranks.run_dir
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert named_segments(map(psutil.Process, [os.getpid(), *pids(executor)])) == set()
    executor.close()
    executor.close()
    assert await_end(pidfds)
    assert not run_dir.exists()


def test_death_before_ready(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[Ranks] = []
    start = Ranks.start

    def start_and_kill(self: Ranks, specs: object) -> None:
        start(self, specs)  # type: ignore[arg-type]
        ranks.append(self)
        pid = self._processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Ranks, "start", start_and_kill)
    with pytest.raises(EngineDeadError, match="rank 0 was killed by SIGKILL"):
        ProcessExecutor(make_config(checkpoint, "P2", "T2"))
    assert not ranks[0].run_dir.exists()


def test_a_start_that_hangs_in_a_collective_ends_by_the_engines_own_bound(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before torch's: nobody ends by itself, and the message says which ranks were waited for."""
    start = Ranks.start

    def start_and_stop(self: Ranks, specs: object) -> None:
        start(self, specs)  # type: ignore[arg-type]
        pid = self._processes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    monkeypatch.setattr(Ranks, "start", start_and_stop)
    config = make_config(checkpoint, "T2", start_timeout_s=1.0, step_timeout_s=1.0)
    assert config.communication_timeout_s > config.start_timeout_s + 30
    with pytest.raises(EngineDeadError, match=r"ranks \[0, 1\] were not ready within 1 s: .* raise --start-timeout-s"):
        ProcessExecutor(config)


def test_a_start_that_is_interrupted_does_not_wait(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, graces: list[float]
) -> None:
    def interrupted(self: Ranks, timeout_s: float) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Ranks, "wait", interrupted)
    with pytest.raises(SystemExit):
        ProcessExecutor(make_config(checkpoint, "P2", "T2"))
    assert graces == [0.0]


def test_a_process_that_never_closes_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "from tests.engine.executor.test_processes import make_config; from pathlib import Path; "
        "from engine.executor.processes import ProcessExecutor; "
        f"executor = ProcessExecutor(make_config(Path({str(checkpoint)!r}), 'P2', 'T2')); "
        "print(executor._ranks.run_dir)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert not Path(done.stdout.strip()).exists()


def test_what_a_worker_finds_wrong_with_the_checkpoint_is_a_config_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = write_tiny_checkpoint(tmp_path)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=r"no tensor model\.layers\.2\.mlp\.up_proj\.weight"):
        ProcessExecutor(make_config(broken, "P2", "T2"))


def test_a_hubs_files_say_more_than_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are read before the weights are fetched, and again after: dtype, and a head that is not tied."""
    folder, cache = write_tiny_checkpoint(tmp_path / "model", layers=2, dtype="float16"), tmp_path / "cache"
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    cache.mkdir()
    (cache / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        if "*.safetensors" in allow_patterns:
            shutil.copy(folder / "model.safetensors", cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    executor = ProcessExecutor(make_config(Path("some/llama"), "P2", "T2"))
    shape = executor.capacity.shape
    executor.close()
    assert (shape.dtype, shape.tied) == ("float16", False)


def test_what_the_device_cannot_do_is_a_config_error(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"attention_backend fa3 is for GPUs in half precision.*float32 on cpu"):
        ProcessExecutor(make_config(checkpoint, "T2", attention_backend="fa3"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 513}, "longer than the model's context of 512"),
        ({"prefill": "P8"}, "has 8 stages but the model has 5 layers"),
        ({"num_device_blocks": 10}, "raise --num-device-blocks to at least 24"),
        ({"num_host_blocks": 10}, "raise --num-host-blocks to at least 24"),
        ({"num_host_blocks": 0, "host_kv_bytes": 100}, "does not hold one KV block"),
    ],
)
def test_bad_configurations_start_no_worker(checkpoint: Path, options: dict[str, object], message: str) -> None:
    chosen = {"prefill": "P2", "decode": "T2", **options}
    if chosen["prefill"] == "P8":
        chosen["decode"] = "T8"
    with pytest.raises(ConfigError, match=message):
        ProcessExecutor(make_config(checkpoint, **chosen))  # type: ignore[arg-type]


def test_killing_the_engine_process_ends_its_workers(checkpoint: Path) -> None:
    """The next one that starts removes its files, while those of the living stay."""
    config = "from tests.engine.executor.test_processes import make_config; from pathlib import Path; "
    script = (
        f"{config} from engine.executor.processes import ProcessExecutor; import signal; "
        f"executor = ProcessExecutor(make_config(Path({str(checkpoint)!r}), 'P2', 'T2')); "
        "print(executor._ranks.run_dir, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        run_dir = Path(engine.stdout.readline().strip())
        assert run_dir.is_dir()
        children = psutil.Process(engine.pid).children(recursive=True)
        assert len(children) >= 4  # two workers, the fork server, the resource tracker
        pidfds = [os.pidfd_open(child.pid) for child in children]
        engine.kill()
    assert await_end(pidfds)
    living, another = make_run_dir(), make_run_dir()
    assert living.is_dir() and not run_dir.exists()
    remove_run_dir(living)
    remove_run_dir(another)
