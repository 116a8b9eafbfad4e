"""Workers that run out of memory while they start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.values.errors import ConfigError
from tests.engine import mutants
from tests.engine.executor.test_processes import make_config
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("mutant", "sentence"),
    [
        ("no_memory_for_groups", "cpu ran out of memory for communication: lower --max-num-batched-tokens, or free"),
        ("no_memory_for_weights", "cpu ran out of memory for weights: use more devices (a larger T or P degree) or a"),
        ("no_memory_for_pools", "for KV and CUDA graphs: lower --num-device-blocks or --max-num-seqs, or use more"),
    ],
)
def test_it_is_one_sentence(tmp_path: Path, mutant: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its peers say, which it leaves alone in the middle of something."""
    checkpoint = write_tiny_checkpoint(tmp_path, layers=5, kv_heads=2)
    monkeypatch.setattr("seesaw.engine.executor.ranks.run_worker", getattr(mutants, mutant))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ProcessExecutor(make_config(checkpoint, "P2", "T2"))
