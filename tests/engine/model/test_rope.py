"""Rotary positions of every kind against transformers: frequencies, factors, logits, and which context is served."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.model.config_json import read_shape, shape_from_config
from seesaw.engine.model.rope import inverse_frequencies
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.values.errors import ConfigError
from tests.tiny import layout_error, write_tiny_checkpoint

SIZES = {
    "model_type": "llama",
    "num_attention_heads": 2,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}


def shape_of(**config: Any) -> ModelShape:
    return shape_from_config(json.loads(json.dumps(SIZES | config)), "config.json")


def random_config(draw: random.Random, kind: str) -> dict[str, Any]:
    """A rope of this kind, with or without what may be left out, as transformers 5 or 4 writes it."""

    def maybe(key: str, *values: Any) -> dict[str, Any]:
        return {key: draw.choice(values)} if draw.random() < 0.5 else {}

    table: dict[str, Any] = {}
    if kind != "default":
        table["factor"] = draw.choice([1.0, 1.5, 2, 4.0, 8.0, 32.0, 40.0])
    if kind == "llama3":
        table |= {"low_freq_factor": draw.choice([1.0, 2.0]), "high_freq_factor": draw.choice([4.0, 5.5, 32.0])}
    if kind in ("llama3", "yarn"):
        table |= maybe("original_max_position_embeddings", 64, 1024, 2048, 4000)
    if kind == "yarn":
        table |= (
            maybe("attention_factor", 0.7, 1.0, 1.3) | maybe("beta_fast", 16, 32.0, 60) | maybe("beta_slow", 1, 2.5)
        )
        table |= maybe("mscale", 0.707, 1.0, 1.5) | maybe("mscale_all_dim", 0.5, 0.707, 1.0) | maybe("truncate", False)
    head_dim = draw.choice([16, 64, 80, 128, 256])
    config: dict[str, Any] = {"head_dim": head_dim, "hidden_size": 2 * head_dim}
    theta = maybe("rope_theta", 500.0, 10000.0, 500000, 1000000.0)
    if draw.random() < 0.5:
        return config | {"rope_parameters": {"rope_type": kind} | table | theta}
    if kind == "yarn" and draw.random() < 0.2:
        config |= {"original_max_position_embeddings": table.pop("original_max_position_embeddings", 512)}
    return config | theta | {"rope_scaling": {draw.choice(["type", "rope_type"]): kind} | table}


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn", "llama3"])
def test_frequencies_and_factor_are_transformers(kind: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    draw = random.Random(kind)
    for _ in range(100):
        config = random_config(draw, kind)
        theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(SIZES | config))))
        shape, factor = shape_of(**config), theirs.attention_scaling
        torch.testing.assert_close(inverse_frequencies(shape), theirs.inv_freq, rtol=1e-6, atol=0, msg=str(config))
        assert shape.rope.attention_factor == pytest.approx(factor, rel=1e-12), config


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "trained", "served"),
    [
        ({"rope_type": "default"}, 64, 64),
        ({"rope_type": "linear", "factor": 4.0}, 16, 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 64),
        (YARN, 64, 64),
        (YARN, 16, 64),
        (YARN | {"attention_factor": 0.8}, 16, 64),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 4, "truncate": False}, 32, 64),
        (LLAMA3 | {"original_max_position_embeddings": 16}, 64, 64),
    ],
    ids=["default", "linear", "dynamic", "yarn", "short yarn", "yarn, scaled", "yarn, all", "llama3"],
)
def test_logits_through_the_whole_context(rope: dict[str, Any], trained: int, served: int, tmp_path: Path) -> None:
    """Behind the context that the model was trained for, too, where one is served."""
    folder = write_tiny_checkpoint(tmp_path, layers=2, max_position=trained, rope=rope | {"rope_theta": 300.0})
    assert read_shape(folder).max_position == served
    tokens = torch.randint(0, 211, (served,), generator=torch.Generator().manual_seed(2)).tolist()
    assert layout_error(folder, [Layout(), Layout(tp=2)], tokens) < 1e-4


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 10240),
        ({"rope_scaling": {"type": "dynamic", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 1000}}, 4096),
        ({"rope_scaling": LLAMA3}, 4096),
    ],
)
def test_the_context_is_vllms(config: dict[str, Any], context: int) -> None:
    assert shape_of(**config).max_position == context


LINEAR = {"rope_type": "linear", "factor": 2.0}


def test_one_place_said_twice_is_no_contradiction() -> None:
    one = shape_of(rope_parameters=LINEAR | {"rope_theta": 500.0})
    assert one == shape_of(rope_theta=500, rope_scaling={"type": "linear", "factor": 2})
    assert one == shape_of(rope_theta=500, rope_scaling=LINEAR | {"type": "linear"}, rope_parameters=LINEAR)
    assert one == shape_of(rope_scaling=None, rope_parameters=LINEAR | {"rope_theta": 500.0, "type": "linear"})
    assert one == shape_of(rope_scaling={}, partial_rotary_factor=1.0, rope_parameters=LINEAR | {"rope_theta": 500})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "that differ: keep"),
        ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 5e5}}, "that differ: keep"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}}, "one rope_theta in rope_parameters and another"),
        ({"rope_scaling": LINEAR | {"type": "yarn"}}, "a rope_type and a type that differ in rope_scaling"),
        (
            {"original_max_position_embeddings": 32, "rope_scaling": YARN},
            "one original_max_position_embeddings among its rope scaling and another",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling 'longrope': only default, linear, dynamic, yarn"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, "multimodal positions"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"partial_rotary_factor": 0.25}, "a part of each head"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "of its own for full_attention"),
        ({"rope_scaling": {"type": "linear"}}, "lacks the key rope_scaling.factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0}},
            "rope_scaling.factor must be a finite number of at least 1",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 1e9}}, "lower the factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": "4"}}, "rope_scaling.factor must be a finite number"),
        (
            {"rope_scaling": YARN | {"attention_factor": float("nan")}},
            "attention_factor must be a finite number above 0",
        ),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings must be"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate must be true or false"),
        ({"rope_scaling": YARN | {"beta_fast": 1e-310}}, "beta_fast must be 0 or at least 1e-09, not 1e-310"),
        ({"rope_scaling": YARN | {"beta_slow": 1e-310}}, "beta_slow must be 0 or at least"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor must be above low_freq_factor"),
        ({"rope_theta": 0}, "rope_theta must be a finite number above 1"),
        ({"rope_theta": float("inf")}, "rope_theta must be a finite number above 1"),
        ({"rope_parameters": [1]}, "rope_parameters must be a table"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be a whole number"),
    ],
)
def test_what_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        shape_of(**config)
    assert says in str(raised.value) and str(raised.value).startswith("config.json "), raised.value
