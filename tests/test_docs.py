"""What the documents point to exists: files, flags and scripts."""

import dataclasses
import re
from pathlib import Path

import pytest

from engine.values.config import EngineConfig
from server.config import ServerConfig

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files(path):
    text = path.read_text()
    named = re.findall(r"\b(?:server|engine|clients|configs|scripts|docs)/[\w./-]*\w", text)
    named += [str(path.parent.relative_to(REPOSITORY) / link) for link in re.findall(r"\]\(([^):]+)\)", text)]
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_flags():
    flags = set(re.findall(r"^\| (`--.*?) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE))
    named = {flag for cell in flags for flag in re.findall(r"--([\w-]+)", cell)}
    fields = {f.name.replace("_", "-") for config in (EngineConfig, ServerConfig) for f in dataclasses.fields(config)}
    assert len(named) > 10
    assert named <= fields
