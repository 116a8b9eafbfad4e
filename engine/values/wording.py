"""How people write numbers: sizes in the units that flags take, nouns that agree with their count."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1024))
}


def as_size(num_bytes: int) -> str:
    """Bytes for a reader: `1.50 GiB`, `3.2 MiB`, `700 bytes`."""
    if num_bytes >= GIB // 8:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB" if num_bytes >= MIB // 8 else f"{num_bytes} bytes"


def at_least(num_bytes: int) -> str:
    """The least size that flags take in whole units and that holds so many bytes: `12GiB`, `700MiB`, `64KiB`."""
    unit, name = (GIB, "GiB") if num_bytes % GIB == 0 or num_bytes > 16 * GIB else (MIB, "MiB")
    if num_bytes < MIB:
        unit, name = KIB, "KiB"
    return f"{-(-num_bytes // unit)}{name}"


def parse_bytes(text: str) -> int:
    """Bytes from `4GiB`, `512M` (as MiB), `1.5 GB` or a plain number. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise ValueError(f"{text!r} is not a size")
    return int(float(match[1]) * UNITS[match[2]]) if "." in match[1] else int(match[1]) * UNITS[match[2]]


def count(number: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
