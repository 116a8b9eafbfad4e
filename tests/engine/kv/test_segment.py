from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from seesaw.engine.executor.fork_server import fork_server
from seesaw.engine.kv import room
from seesaw.engine.kv.room import check_room
from seesaw.engine.kv.segment import Segment, pieces
from seesaw.engine.values.errors import ConfigError
from tests.patience import PATIENCE_S


def test_mappings_share_memory_and_no_name_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_SHM_DIR", str(tmp_path))
    made = Segment.create(4096, "the test")
    assert os.listdir(tmp_path) == []
    first, second = made.map(), made.map()
    made.close()
    made.close()
    first[7] = 42
    assert first.numel() == 4096 and int(second[7]) == 42 and int(second.sum()) == 42


def test_a_sparse_one_takes_memory_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_SHM_DIR", str(tmp_path / "missing"))
    made = Segment.create_sparse(1 << 40)
    made.map()[-1] = 42
    assert int(made.map()[-1]) == 42 and int(made.map()[0]) == 0
    assert os.fstat(made.fd).st_blocks * 512 < 1 << 24
    made.close()


def _write(made: Segment) -> None:
    made.map()[3] = 9


@pytest.mark.processes
def test_a_child_process_maps_the_same_memory() -> None:
    made = Segment.create(4096, "the test")
    child = fork_server().Process(target=_write, args=(made,))
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    assert int(made.map()[3]) == 9
    made.close()


def test_too_small_a_tmpfs_names_the_flag_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=14, f_blocks=64, f_frsize=mib))
    with pytest.raises(ConfigError) as error:
        Segment.create(100 * mib, "the host KV pool")
    text = str(error.value)
    assert text.startswith("/dev/shm has 14.0 MiB free but the host KV pool would take 100.0 MiB: enlarge it")
    assert "mount -o remount,size=1g /dev/shm" in text and "--shm-size=1g" in text  # 50 are in use
    assert "--host-kv-bytes" in text


def test_room_that_goes_while_allocating_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"--shm-size=\d+g"):
        Segment.create(1 << 20, "the weight store")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_missing_tmpfs_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_SHM_DIR", "/nowhere")
    with pytest.raises(ConfigError, match="there is no /nowhere"):
        check_room(1, "the weight store")


CGROUPS = {
    "v2": {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/memory.max": "1000\n",
        "/sys/fs/cgroup/a/memory.current": "600\n",
        "/sys/fs/cgroup/a/memory.stat": "anon 1\nfile 300\nshmem 100\n",
        "/sys/fs/cgroup/a/b/memory.max": "max\n",
    },
    "v1": {
        "/proc/self/cgroup": "3:cpu:/x\n2:memory:/a\n",
        "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1000\n",
        "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": "600\n",
        "/sys/fs/cgroup/memory/a/memory.stat": "total_cache 300\ntotal_shmem 100\n",
    },
}


@pytest.mark.parametrize("version", CGROUPS)
def test_the_tightest_cgroup_above_counts_and_page_cache_is_room(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_read", lambda path: CGROUPS[version].get(str(path), ""))
    check_room(600, "the weight store")  # 1000 - 600 + (300 - 100)
    with pytest.raises(ConfigError, match="the container's memory limit leaves"):
        check_room(601, "the weight store")


def test_the_hosts_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_read", lambda path: {"/proc/meminfo": "MemAvailable: 1 kB\n"}.get(str(path), ""))
    with pytest.raises(ConfigError, match="this host leaves"):
        check_room(1025, "the weight store")


PAGE = os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("unit", [PAGE, 3 * PAGE, PAGE // 2 * 3, 256])
def test_pieces_end_where_no_copy_reaches_across(unit: int) -> None:
    """CUDA refuses a copy out of two registered pieces: of a host pool of 80 GiB, for instance, one block's."""
    num_bytes, most = 40 * 3 * PAGE + unit, 7 * PAGE
    cuts = range(0, num_bytes, unit)
    found = list(pieces(num_bytes, cuts, most))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])] and found[-1][1] == num_bytes
    assert all(start in cuts and start % PAGE == 0 and stop - start <= most for start, stop in found)
    assert len(found) <= 2 * num_bytes // most + 1


def test_a_piece_is_larger_where_nothing_can_be_cut() -> None:
    assert list(pieces(100 * PAGE, [0, PAGE, 90 * PAGE + 1, 95 * PAGE], 10 * PAGE)) == [
        (0, PAGE),
        (PAGE, 95 * PAGE),
        (95 * PAGE, 100 * PAGE),
    ]
    assert list(pieces(5, [], 2)) == [(0, 5)] and list(pieces(0, [0], 2)) == []
