"""Where results come from."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from seesaw.clients import provenance


def test_a_command_is_as_a_shell_takes_it_without_its_secrets() -> None:
    argv = ["--header", "Authorization=Bearer k", "X-A=b", "--label", "a b", "--base-url=http://me:pw@host/x"]
    argv += ["--hf-token", "hf_1", "--header=X=y", "--num-prompts", "3"]
    assert provenance.command("seesaw bench serve", argv) == (
        "seesaw bench serve --header 'Authorization=***' 'X-A=***' --label 'a b' '--base-url=http://***@host/x' "
        "--hf-token '***' '--header=X=***' --num-prompts 3"
    )


def test_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 3\n")
    monkeypatch.setattr(provenance, "GPUS", tmp_path)
    assert platform.node() in provenance.host() and ", 2 x NVIDIA L4, " in provenance.host()
    monkeypatch.setattr(provenance, "GPUS", tmp_path / "none")
    assert "NVIDIA" not in provenance.host()
