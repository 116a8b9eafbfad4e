"""Every family against transformers, in every layout, with ranks as threads. Biases and norms are random, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.model.config_json import read_shape, shape_from_config
from seesaw.engine.model.families import FAMILIES, family
from seesaw.engine.model.linear import Linear
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.loader import CheckpointSource
from seesaw.engine.weights.modes import ArenaWeights
from tests.engine.model.test_decoder import LAYOUTS, TOKENS
from tests.families import MODELS, WINDOW
from tests.tiny import CPU, LocalModel, layout_error, reference_greedy, reference_logits, write_tiny_checkpoint

FEW_KV_HEADS = {"llama_with_biases": 1, "mistral": 2, "qwen2": 2, "qwen3": 1, "qwen3_with_biases": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    models = MODELS | {f"{name}, few": {**MODELS[name], "kv_heads": few} for name, few in FEW_KV_HEADS.items()}
    return {
        name: write_tiny_checkpoint(root / name, seed=seed, **options)
        for seed, (name, options) in enumerate(models.items())
    }


def test_every_family_is_here() -> None:
    assert {options["family"] for options in MODELS.values()} == {each.model_type for each in FAMILIES}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_logits_equal_transformers(folders: dict[str, Path], model: str, layout: str) -> None:
    assert layout_error(folders[model], [Layout.parse(layout)], TOKENS) < 1e-4


@pytest.mark.parametrize("layout", ["T2", "T4", "T2P2"])
@pytest.mark.parametrize("model", FEW_KV_HEADS)
def test_fewer_kv_heads_than_shards(folders: dict[str, Path], model: str, layout: str) -> None:
    assert layout_error(folders[f"{model}, few"], [Layout.parse(layout)], TOKENS) < 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_three_shards_and_seven_layers(tmp_path: Path, model: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, layers=7, heads=12, kv_heads=6, **MODELS[model])
    assert layout_error(folder, [Layout.parse(text) for text in ("T3", "P3")], TOKENS) < 1e-4


@pytest.mark.parametrize(("layout", "other"), [("P4", "T4"), ("T2P2", "T4"), ("D2P2", "T4")])
@pytest.mark.parametrize("model", [*MODELS, *(f"{name}, few" for name in FEW_KV_HEADS)])
def test_ranks_with_several_slices(folders: dict[str, Path], model: str, layout: str, other: str) -> None:
    """A bias of each slice's rows, and copies of a KV head of which one is kept."""
    cut = Plan(Layout.parse(layout), Layout.parse(other))
    local = LocalModel(folders[model], cut.prefill, plan=cut)
    torch.testing.assert_close(local.logits(TOKENS), reference_logits(folders[model], TOKENS), atol=1e-4, rtol=0)
    extents = local.geometry.extents(cut.prefill)
    assert [rank.num_kv_heads for rank in local.ranks] == [len(extents[i].slices) for i in range(len(local.ranks))]


@pytest.mark.parametrize("model", MODELS)
def test_each_weight_of_a_layer_shows(folders: dict[str, Path], model: str) -> None:
    """Without any of its vectors or biases, or with another matrix, the logits are far from right."""
    folder, one = folders[model], Layout()
    arena = rank_arena(read_shape(folder), Plan(one, one), one, 0)
    right = reference_logits(folder, TOKENS)

    def logits(name: str, field: str) -> torch.Tensor:
        def stage(rank: int) -> StageWeights:
            weights = ArenaWeights([arena], CheckpointSource(folder), CPU).stage(0)
            value = weights.layers[1][name]
            tensor = getattr(value, field) if isinstance(value, Linear) else value
            tensor.fill_(1.0 if field == "scales" else 0.0)
            return weights

        return LocalModel(folder, one, stage=stage).logits(TOKENS)

    layer = ArenaWeights([arena], CheckpointSource(folder), CPU).stage(0).layers[1]
    damages = [(name, "scales") for name, value in layer.items() if not isinstance(value, Linear)]
    linears = {name: value for name, value in layer.items() if isinstance(value, Linear)}
    damages += [(name, "data") for name in linears]
    damages += [(name, "bias") for name, value in linears.items() if value.bias is not None]
    for damage in damages:
        assert float((logits(*damage) - right).abs().max()) > 1e-2, damage


@pytest.mark.parametrize(
    ("model_type", "config", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 0}, None),
        ("qwen2", {"use_sliding_window": True}, None),  # from the 28th layer on, of four
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, None),
        ("qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 4, "sliding_window": 8}, 8),
    ],
)
def test_which_window_a_config_means(model_type: str, config: dict[str, Any], window: int | None) -> None:
    """As transformers reads it."""
    from transformers import AutoConfig

    sizes = {name: 4 for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")}
    sizes["num_key_value_heads"] = 4
    raw = {"model_type": model_type, "hidden_size": 32, **sizes, **config}
    assert shape_from_config(raw, "config.json").sliding_window == window
    theirs = AutoConfig.for_model(**raw)
    kinds = set(getattr(theirs, "layer_types", None) or ["sliding_attention"])
    assert (theirs.sliding_window if kinds == {"sliding_attention"} else None) == window


def test_a_window_of_some_layers_is_refused() -> None:
    raw = {"num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 8}
    with pytest.raises(ConfigError, match=r"a sliding window to 1 of 4 layers.*set use_sliding_window to false"):
        family("qwen2").options(raw)


@pytest.mark.parametrize("window", [0, 10**30, float("inf"), 8.5, "8"])
def test_windows_that_cannot_be(window: Any) -> None:
    with pytest.raises(ConfigError, match="sliding_window must be a whole number from 1"):
        family("mistral").options({"sliding_window": window})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"layer_types": []}, "layer_types must be"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types must be"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types must be"),
        ({"layer_types": [[]] * 4}, "layer_types must be"),
        ({"max_window_layers": float("inf")}, "max_window_layers must be a finite number"),
        ({"max_window_layers": 10**30, "layer_types": 5}, "layer_types must be"),
    ],
)
def test_layers_in_a_window_that_cannot_be(config: dict[str, Any], says: str) -> None:
    raw = {"num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}
    with pytest.raises(ConfigError, match=says):
        family("qwen2").options(raw | config)
    assert family("qwen2").options(raw | {"max_window_layers": 10**30})["sliding_window"] is None
    assert family("qwen2").options(raw | {"max_window_layers": -1})["sliding_window"] == 8


def greedy(local: LocalModel, cuts: list[int], count: int) -> list[int]:
    """The prompt in chunks of these lengths, then `count` tokens by one each, over scattered blocks."""
    table = [11, 2, 15, 0, 7, 9, 4, 13, 1, 6, 14, 3, 8, 5, 10, 12]
    start = 0
    for length in cuts:
        logits = local.forward([(start, TOKENS[start : start + length])], [table])
        start += length
    assert start == len(TOKENS)
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(local.forward([(len(TOKENS) + len(tokens) - 1, tokens[-1:])], [table])[-1].argmax()))
    return tokens


@pytest.mark.parametrize("cuts", [[37], [5, 9, 1, 20, 2], [8, 8, 8, 8, 5]], ids=str)
@pytest.mark.parametrize("layout", ["T1", "T2P2"])
@pytest.mark.parametrize("model", ["mistral_in_a_window", "qwen2_in_a_window"])
def test_a_sliding_window_slides(folders: dict[str, Path], model: str, layout: str, cuts: list[int]) -> None:
    """In chunks, and token by token, far behind the window: as transformers, whose cache forgets."""
    folder, chosen = folders[model], Layout.parse(layout)
    expected, gaps = reference_greedy(folder, TOKENS, 16)
    assert min(gaps) > 20 * layout_error(folder, [chosen], TOKENS)  # so that rounding cannot decide
    assert greedy(LocalModel(folder, chosen, num_blocks=16), cuts, 16) == expected


def test_the_window_counts(folders: dict[str, Path]) -> None:
    """A token that has left the window does not matter to those behind it in one layer, but through several."""
    folder = folders["mistral_in_a_window"]
    changed = [(TOKENS[0] + 1) % 211, *TOKENS[1:]]
    deepest = 4 * (WINDOW - 1)  # layers
    old, new = (LocalModel(folder, Layout()).logits(tokens) for tokens in (TOKENS, changed))
    assert torch.equal(old[deepest + 1 :], new[deepest + 1 :]) and not torch.equal(old[deepest], new[deepest])
