"""The log's beginning."""

from __future__ import annotations

import logging

import pytest

from seesaw.engine.logs import start_log


@pytest.mark.parametrize(("level", "tells"), [("DEBUG", logging.WARNING), ("ERROR", logging.ERROR)])
def test_torch_has_no_last_word(level: str, tells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger("torch"), "level", logging.NOTSET)
    start_log("%(message)s", level)
    assert logging.root.getEffectiveLevel() == logging.getLevelName(level)
    assert logging.getLogger("torch._subclasses.fake_tensor").getEffectiveLevel() == tells
