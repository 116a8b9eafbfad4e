"""`seesaw` with `FakeProcess` for its engine; run by test_service as a program."""

from __future__ import annotations

import sys

from seesaw.server import cli, service
from seesaw.server.entry import interruptible
from tests.server.fake_engine import FakeProcess

if __name__ == "__main__":
    real = service.serve
    service.serve = lambda engine, server: real(engine, server, FakeProcess)  # type: ignore[assignment]
    sys.exit(interruptible(cli.main))
