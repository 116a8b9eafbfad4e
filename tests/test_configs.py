"""Every configuration that we ship is one that `seesaw serve --config` takes."""

from pathlib import Path

import pytest

from server.settings import read_configs

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_taken(path):
    engine, _ = read_configs({"config": str(path)})
    assert engine.model
    assert engine.plan.world_size > 1
