"""The process that workers are forked from beside what the program has of its own."""

from __future__ import annotations

import multiprocessing

import pytest

from seesaw.engine.executor.fork_server import fork_server
from seesaw.engine.values.errors import ConfigError


def test_a_process_that_may_have_no_children_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="ProcessPoolExecutor"):
        fork_server()
