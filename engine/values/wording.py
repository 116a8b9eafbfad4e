"""How messages write numbers: sizes in the units that flags take, nouns that agree with their count."""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


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


def count(number: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
