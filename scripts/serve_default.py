"""`seesaw serve`, with the default model if none is named. Run by `scripts/serve`; it becomes the server's process, so
that signals reach it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from seesaw.server.entry import interruptible  # alone: from here on Ctrl-C is one line

LAYOUTS = ("prefill", "decode", "tail")
# On a CPU a step of the usual 2048 tokens takes seconds, for which all running sequences stand still.
CPU_STEP_TOKENS = 512


def complete(arguments: list[str], model: Callable[[], Path]) -> list[str]:
    """The arguments for `seesaw serve`: as given, or with the default model (whose folder `model` returns) and what
    suits it."""
    from fetch_default_model import NAME

    from seesaw.engine.values.errors import ConfigError
    from seesaw.server.cli import make_parser
    from seesaw.server.settings import given_values

    try:
        flags = vars(make_parser().parse_args(["serve", *arguments]))
        del flags["command"]
        given = given_values(flags)
    except ConfigError:
        return arguments  # the server says what is wrong with them
    if given.get("model") or given.get("executor") == "simulated":
        return arguments
    added = [str(model())]
    if "served_model_name" not in given:
        added += ["--served-model-name", NAME]
    if not given.keys() & set(LAYOUTS):
        added += ["--prefill", "P2", "--decode", "T2"]
    if "device" not in given:
        added += ["--device", "cpu"]  # the model is for a first look, which every machine can give
    if "max_num_batched_tokens" not in given and given.get("device", "cpu") == "cpu":
        added += ["--max-num-batched-tokens", str(CPU_STEP_TOKENS)]
    return [*added, *arguments]


def main() -> int:
    """Become the server. Returns an exit code only if it cannot."""
    from fetch_default_model import default_model

    from seesaw.clients.wheels import FetchError

    try:
        arguments = complete(sys.argv[1:], default_model)
    except FetchError as error:
        print(f"serve: error: {error}", file=sys.stderr)
        return 1
    seesaw = Path(sys.executable).with_name("seesaw")
    os.execv(seesaw, [str(seesaw), "serve", *arguments])


if __name__ == "__main__":
    sys.exit(interruptible(main))
