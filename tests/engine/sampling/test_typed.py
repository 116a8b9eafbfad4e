"""Sampling of other types than its fields have: refused by name, or numpy's numbers made plain."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.sampling.typed import typed
from seesaw.engine.values.errors import RequestError


def test_all_that_fits_stays() -> None:
    params = SamplingParams(
        seed=1,
        stop_token_ids=(1,),
        logit_bias={1: 2.0},
        bad_words_token_ids=((1, 2),),
        structured_outputs=StructuredOutputs.of(choice=["a"]),
        reasoning=Reasoning((1,)),
        stop=["a"],
        bad_words=["b"],
    )
    assert typed(params) == params
    assert typed(SamplingParams(stop="ab")).stop == "ab"


def test_numbers_of_numpy_become_plain_ones() -> None:
    given: dict[str, Any] = {
        "temperature": np.float64(0.5),
        "top_p": np.float32(0.5),
        "seed": np.int64(3),
        "stop_token_ids": np.array([4]),
        "ignore_eos": np.True_,
        "logit_bias": {np.int64(5): np.float16(1)},
    }
    params = typed(SamplingParams(**given))
    assert params == SamplingParams(
        temperature=0.5, top_p=0.5, seed=3, stop_token_ids=(4,), ignore_eos=True, logit_bias={5: 1.0}, bad_words=[]
    )
    msgspec.msgpack.encode(params)  # which takes no other numbers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 2.5),
        ("temperature", "hot"),
        ("ignore_eos", 1),
        ("seed", "a"),
        ("stop", 5),
        ("stop_token_ids", 5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {1: "a"}),
        ("bad_words", [1]),
        ("structured_outputs", {"choice": ["a"]}),
        ("structured_outputs", "a"),
    ],
)
def test_another_type_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as refused:
        typed(SamplingParams(**{field: value}))
    assert refused.value.param == field


def test_what_is_no_sampling() -> None:
    wrong: Any = "greedy"
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams, not str"):
        typed(wrong)
