"""The soak itself, small: real conversations through a server of its own, some clients hanging up in mid-stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.model
def test_nothing_is_lost(smollm2: Path) -> None:
    flags = ["--num-requests", "16", "--concurrency", "8", "--max-prompt-tokens", "64", "--max-output-tokens", "16"]
    server = ["--policy", "paper", "--surge-min-tokens", "0", "--max-model-len", "512", "--num-host-blocks", "32"]
    server += ["--max-num-batched-tokens", "256", "--max-num-seqs", "8"]  # larger steps take long to time at the start
    command = [sys.executable, str(SCRIPT), *flags, "--cut", "3", "--", *server]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout
    assert "P2->T2" in result.stdout
