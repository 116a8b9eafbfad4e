"""The comparison of layouts on GPUs, as far as a host without any can run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_on_gpus.sh"


def test_every_system_of_a_row_is_measured(tmp_path: Path) -> None:
    env = os.environ | {"SEESAW_PYTHON": sys.executable, "WORKLOADS": "4x16:4", "OPTIONS": "--executor simulated"}
    done = subprocess.run([SCRIPT, tmp_path, "c2"], env=env, capture_output=True, text=True, check=True)
    for system in ("P2->T2", "T2", "P2"):
        assert f"== c2 {system} " in done.stdout
        assert json.loads((tmp_path / f"c2-{system}.json").read_text())
    assert done.stdout.count("requests ") == 3, done.stdout


def test_an_unknown_row_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, tmp_path, "c3"], capture_output=True, text=True)
    assert done.returncode == 2 and "choose from c2, c4" in done.stderr
