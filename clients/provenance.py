"""Where a result comes from: host, version and command. Kept in results by `clients.load_test` and `server.bench`,
shown by `clients.report`.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seesaw.version import seesaw_version

GPUS = Path("/proc/driver/nvidia/gpus")  # needs no CUDA, which would take memory of each
HIDDEN = "***"


def provenance(prog: str, argv: Sequence[str]) -> dict[str, str]:
    """Keys of a result; the client's host, where a server is measured."""
    return {"host": host(), "version": seesaw_version(), "command": command(prog, argv)}


def host() -> str:
    """Its name, processors, GPUs, system and Python."""
    processors = f"{os.cpu_count()} x {_processor()}"
    return ", ".join(
        [platform.node(), processors, *_gpus(), platform.platform(), f"Python {platform.python_version()}"]
    )


def command(prog: str, argv: Sequence[str]) -> str:
    """As a shell takes it, without what is secret: values of headers and tokens, and a URL's user."""
    hidden, flag = [], ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag = name
            word = f"{name}={_without_secret(name, value)}" if equals else word
        else:
            word = _without_secret(flag, word)
        hidden.append(word)
    return shlex.join([*prog.split(), *hidden])


def _without_secret(flag: str, value: str) -> str:
    if flag == "--header":
        return f"{value.partition('=')[0]}={HIDDEN}"
    if flag in ("--hf-token", "--api-key"):
        return HIDDEN
    return re.sub(r"(?<=://)[^/@]*@", f"{HIDDEN}@", value)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _gpus() -> list[str]:
    """Such as `8 x NVIDIA L4`."""
    try:
        texts = [path.read_text() for path in GPUS.glob("*/information")]
    except OSError:
        return []
    models = Counter(found[1].strip() for text in texts if (found := re.search(r"Model:\s*(.+)", text)))
    return [f"{count} x {model}" for model, count in models.items()]
