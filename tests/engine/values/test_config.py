"""What a setting may be, also where no command line or file has looked at it before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"enable_prefix_caching": "no"}, "enable_prefix_caching must be true or false, not 'no'"),
        ({"enable_prefix_caching": 0}, "enable_prefix_caching must be true or false, not 0"),
        ({"max_num_seqs": "5"}, "max_num_seqs must be a whole number, not '5'"),
        ({"max_num_seqs": 5.0}, "max_num_seqs must be a whole number, not 5.0"),
        ({"max_num_seqs": True}, "max_num_seqs must be a whole number, not True"),
        ({"max_stall_s": "1"}, "max_stall_s must be a number, not '1'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be between 1 and 16384, not 0"),
    ],
)
def test_a_value_of_another_kind_is_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineConfig(**setting)
    assert str(refused.value) == says


def test_numbers_may_be_of_any_kind_that_counts() -> None:
    config = EngineConfig(max_num_seqs=np.int64(5), max_stall_s=1, max_wait_s=np.float32(2.5))  # type: ignore[arg-type]
    assert (config.max_num_seqs, config.max_stall_s, config.max_wait_s) == (5, 1, 2.5)
