"""`seesaw` with a fake engine for `seesaw batch run`; run by test_signals as a program."""

from __future__ import annotations

import sys

from seesaw.server import cli
from seesaw.server.entry import interruptible
from seesaw.server.offline import run
from tests.server.offline.harness import FakeStart

if __name__ == "__main__":
    run.EngineProcess = FakeStart  # type: ignore[misc, assignment]
    sys.exit(interruptible(cli.main))
