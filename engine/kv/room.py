"""What the host has left for shared memory and for processes: its tmpfs, the memory limits of its cgroups, its RAM.

Asked by `engine.sizing` before anything starts, and by `engine.kv.segment` for each segment; imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB, as_size


def shm_folder() -> Path:
    """The tmpfs that holds segments. SEESAW_SHM_DIR overrides it, for tests."""
    return Path(os.environ.get("SEESAW_SHM_DIR", "/dev/shm"))


def check_room(num_bytes: int, what: str) -> None:
    """Raise ConfigError unless the tmpfs, the cgroup and the host have `num_bytes` left."""
    folder = shm_folder()
    try:
        stat = os.statvfs(folder)
    except OSError:
        raise ConfigError(f"there is no {folder} for {what}: mount a tmpfs there") from None
    if stat.f_bavail * stat.f_frsize < num_bytes:
        raise too_small(num_bytes, what)
    check_memory(
        num_bytes,
        what,
        "raise the limit, lower --host-kv-bytes (--num-host-blocks, where that is set), or use one layout, which needs "
        "no host memory",
    )


def check_memory(num_bytes: int, what: str, instead: str) -> None:
    """Raise ConfigError, proposing to do something else `instead`, unless cgroup and host have `num_bytes` left."""
    for limit, room in (("the container's memory limit", _cgroup_room_bytes()), ("this host", _host_room_bytes())):
        if room is not None and room < num_bytes:
            raise ConfigError(
                f"{limit} leaves {as_size(room)} of memory but {what} would take {as_size(num_bytes)}: {instead}"
            )


def too_small(num_bytes: int, what: str) -> ConfigError:
    """The error for a tmpfs without `num_bytes` of room."""
    folder = shm_folder()
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    used = stat.f_blocks * stat.f_frsize - free
    gib = -(-(used + num_bytes) // GIB)
    return ConfigError(
        f"{folder} has {as_size(free)} free but {what} would take {as_size(num_bytes)}: enlarge it "
        f"(as root: mount -o remount,size={gib}g {folder}; docker: --shm-size={gib}g) "
        "or lower --host-kv-bytes (--num-host-blocks, where that is set)"
    )


def _host_room_bytes() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def _cgroup_room_bytes() -> int | None:
    """What the memory limit of this process's cgroup and of those above it leaves; None without a limit."""
    rooms = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, usage, cache = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"
        elif controllers == "memory":  # version 1
            root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_cache"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            limit_text = _read(folder / limit).strip()
            if limit_text.isdigit():
                rooms.append(int(limit_text) - int(_read(folder / usage) or 0) + _reclaimable_bytes(folder, cache))
            if folder == root:
                break
    return max(0, min(rooms)) if rooms else None


def _reclaimable_bytes(folder: Path, cache: str) -> int:
    """Page cache that the kernel drops under pressure: counted as used, yet room. tmpfs pages are not."""
    fields = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines())
    shmem = "shmem" if cache == "file" else "total_shmem"
    return max(0, int(fields.get(cache, 0)) - int(fields.get(shmem, 0)))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
