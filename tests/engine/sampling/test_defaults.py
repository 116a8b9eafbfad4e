"""Sampling defaults of a checkpoint: which file they come from, and what it may hold."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from seesaw.engine.sampling.defaults import SamplingDefaults, check_defaults, load_defaults
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError


def checkpoint(folder: Path, content: Any) -> EngineConfig:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return EngineConfig(model=str(folder))


def test_a_checkpoint_without_the_file_has_none(tmp_path: Path) -> None:
    assert load_defaults("auto", EngineConfig(model=str(tmp_path))) == SamplingDefaults()
    assert load_defaults("auto", EngineConfig(model="", executor="simulated")) == SamplingDefaults()


def test_the_checkpoints_file_another_and_neither(tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0, "max_new_tokens": 2048, "do_sample": True}
    engine = checkpoint(tmp_path, values | {"eos_token_id": [7, 8], "repetition_penalty": 1.05, "pad_token_id": 0})
    sampling = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    assert load_defaults("auto", engine) == SamplingDefaults(sampling, 2048)
    assert load_defaults("vllm", engine) == SamplingDefaults()
    (tmp_path / "other").mkdir()
    checkpoint(tmp_path / "other", {"top_k": 5, "repetition_penalty": 1.0})
    for path in (tmp_path / "other", tmp_path / "other" / "generation_config.json"):
        assert load_defaults(str(path), engine) == SamplingDefaults({"top_k": 5, "repetition_penalty": 1.0}, None)


def test_random_weights_ask_for_no_file(tmp_path: Path) -> None:
    engine = checkpoint(tmp_path, {"temperature": 0.6})
    assert load_defaults("auto", EngineConfig(model=engine.model, load_format="dummy")) == SamplingDefaults()


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 5},
        {"max_new_tokens": 0},
        {"max_new_tokens": math.inf},
    ],
)
def test_values_that_cannot_be(tmp_path: Path, content: Any) -> None:
    engine = checkpoint(tmp_path, content)
    for read in (load_defaults, check_defaults):
        with pytest.raises(ConfigError, match=r"generation_config\.json"):
            read("auto", engine)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    engine = EngineConfig(model=str(tmp_path))
    (tmp_path / "generation_config.json").write_text("{")
    for read in (load_defaults, check_defaults):
        with pytest.raises(ConfigError, match="is not valid JSON"):
            read("auto", engine)
        with pytest.raises(ConfigError, match="is not valid JSON"):
            read(str(tmp_path), EngineConfig(executor="simulated"))
        with pytest.raises(ConfigError, match="there is no"):
            read(str(tmp_path / "nowhere"), EngineConfig(executor="simulated"))


def test_a_first_check_asks_no_hub_and_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check_defaults("auto", checkpoint(tmp_path, {"temperature": 0.6, "repetition_penalty": 2}))
    monkeypatch.setattr("seesaw.engine.sampling.defaults.find_model", None)
    check_defaults("auto", EngineConfig(model="org/name"))
    check_defaults(str(tmp_path), EngineConfig(model="org/name"))
    assert not caplog.records
