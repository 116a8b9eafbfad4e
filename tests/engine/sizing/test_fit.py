"""What is refused before anything starts."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from seesaw.engine.sizing.fit import check_early
from seesaw.engine.sizing.model import known_shape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError


def test_another_architecture_is_said_before_its_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="model_type 'gpt2', which is not supported: use a checkpoint of Llama"):
        check_early(EngineConfig(model=str(tmp_path)))


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(shape="configs/models/llama3-8b", load_format="dummy", prefill="P4", decode="T4")
    for limit in (1024, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        check_early(config)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (48, 4096))
    with pytest.raises(ConfigError, match=r"48 files open, and P4->T4 needs at least 160: .*`ulimit -n 1024`"):
        check_early(config)


def test_a_folder_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_early(EngineConfig(model="~/."))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"host_kv_bytes": 256 << 20}, "raise --host-kv-bytes to at least 1GiB"),
        ({"num_host_blocks": 100}, "raise --num-host-blocks to at least 512"),
        ({"num_device_blocks": 100}, "raise --num-device-blocks to at least 512"),
    ],
)
def test_pools_that_hold_no_longest_sequence(options: dict[str, int], flag: str) -> None:
    config = EngineConfig(shape="configs/models/llama3-8b", load_format="dummy", prefill="P2", decode="T2")
    check_early(config)
    with pytest.raises(ConfigError, match=flag):
        check_early(replace(config, **options))


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({}, "bfloat16"),
        ({"quantization": "fp8"}, "bfloat16 with fp8 weights"),
        ({"kv_cache_dtype": "fp8"}, "bfloat16 with fp8 KV"),
        ({"quantization": "fp8", "kv_cache_dtype": "fp8", "dtype": "float16"}, "float16 with fp8 weights and fp8 KV"),
    ],
)
def test_the_numbers_are_told(options: dict[str, str], dtypes: str) -> None:
    shape = known_shape(EngineConfig(executor="simulated", **options))  # type: ignore[arg-type]
    assert shape is not None and shape.dtypes == dtypes
