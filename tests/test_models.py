"""Every model in configs/models: as large as its maker says, and served on a simulated host in plans that divide it."""

from __future__ import annotations

from pathlib import Path

import document_config
import pytest

from seesaw.engine.bench.offline import run_workloads
from seesaw.engine.bench.workload import Job
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.counts import head_params, layer_params
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.spec import LinearSpec
from seesaw.engine.sizing.fit import check_early
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.placement import weight_specs, whole_bytes

MODELS = document_config.CONFIGS / "models"
# What the hub says of each checkpoint, and plans that divide it.
PARAMETERS = {
    "codellama-34b": (33_743_970_304, ["P4->T4"]),
    "llama2-7b": (6_738_415_616, ["P2->T2"]),
    "llama2-70b": (68_976_648_192, ["P8->T4P2"]),
    "llama3-8b": (8_030_261_248, ["T1"]),
    "llama3-70b": (70_553_706_496, ["P4->T4"]),
    "llama3.2-1b": (1_235_814_400, ["T1", "P2->T2", "P4->T2P2"]),
    "mistral-7b-v0.1": (7_241_732_096, ["T1", "P2->T2"]),
    "mistral-7b-v0.3": (7_248_023_552, ["T4", "D2P2->T4"]),
    "qwen2.5-0.5b": (494_032_768, ["T2", "P2->T2", "D4->P4"]),
    "qwen2.5-7b": (7_615_616_512, ["P2->T2", "P4->T4"]),
    "qwen3-0.6b": (596_049_920, ["T1", "P4->T2P2"]),
    "qwen3-8b": (8_190_735_360, ["P2->T2", "P8->T4P2->T8"]),
    "qwen3-32b": (32_762_123_264, ["P4->T4", "D2P4->T8"]),
}


def shape_of(name: str) -> ModelShape:
    return read_shape(MODELS / name)


def config_of(name: str, plan: str) -> EngineConfig:
    prefill, decode, tail = [*plan.split("->"), "", ""][:3]
    return EngineConfig(
        model=str(MODELS / name),
        load_format="dummy",
        executor="simulated",
        prefill=prefill,
        decode=decode,
        tail=tail,
        max_model_len=2048,
        policy="paper",
        surge_min_tokens=0,
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_as_many_parameters_as_its_checkpoint(name: str) -> None:
    shape = shape_of(name)
    expected, _ = PARAMETERS[name]
    linears, others = 0, 0
    for layer in range(shape.num_layers + 2):
        for spec in weight_specs(shape, layer):
            if not isinstance(spec, LinearSpec):
                others += spec.size
            elif not (spec.name == "head" and shape.tied):
                linears += spec.num_params
                others += spec.out_size(1) if spec.bias else 0
    assert linears + others == expected
    # What steps are counted by is the same weights, and what is placed is no more than these and their alignment.
    assert linears == shape.num_layers * layer_params(shape) + head_params(shape) * (1 if shape.tied else 2)
    plan = config_of(name, "T1").plan
    assert 2 * expected <= whole_bytes(shape, plan) <= 2 * expected + (shape.num_layers + 2) * 16 * 256


@pytest.mark.parametrize(("name", "plan"), [(name, plan) for name, (_, plans) in PARAMETERS.items() for plan in plans])
def test_it_is_served(name: str, plan: str) -> None:
    config = config_of(name, plan)
    [result] = run_workloads(config, [[Job(300, 8)] * 12])
    assert result.stats.generation_tokens == 12 * 8
    assert bool(result.stats.transitions) == (not config.plan.is_static)


@pytest.mark.parametrize(
    ("name", "plan", "says"),
    [
        ("qwen2.5-0.5b", "T4", "splits 14 attention heads in 4, .* choose a T degree that divides 14"),
        ("qwen2.5-0.5b", "P7->T7", "splits 4864 ffn columns in 7, .* choose a T degree that divides 4864"),
        ("qwen2.5-7b", "P8->T8", "splits 28 attention heads in 8"),
        ("llama3.2-1b", "P32->T32", "has 32 stages but the model has 16 layers"),
        ("qwen3-32b", "T128", "splits 64 attention heads in 128"),
        ("qwen3-0.6b", "P3->T3", "splits 16 attention heads in 3"),
    ],
)
def test_what_does_not_divide_is_one_sentence(name: str, plan: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_early(config_of(name, plan))


def test_every_model_is_here() -> None:
    made = {path.name for path in Path(MODELS).iterdir() if path.is_dir()}
    assert made - {"llama3-15b"} == set(PARAMETERS)  # the paper's, which nobody has published


def test_what_their_families_say() -> None:
    assert shape_of("mistral-7b-v0.1").sliding_window == 4096
    assert all(shape_of(name).sliding_window is None for name in PARAMETERS if name != "mistral-7b-v0.1")
    assert (shape_of("qwen2.5-7b").qkv_bias, shape_of("qwen2.5-7b").o_bias) == (True, False)
    assert (shape_of("qwen3-0.6b").qk_norm, shape_of("qwen3-0.6b").head_dim) == (True, 128)
    assert shape_of("llama3.2-1b").rope.kind == "llama3"
