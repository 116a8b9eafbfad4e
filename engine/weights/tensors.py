"""The tensors of a Llama as the model uses them: those of one stage, as views. Used by the arena and the model.

What weights there are, how they are cut and how many bytes they take is `engine.weights.placement`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.parallel.moves import Span


class LayerWeights(NamedTuple):
    """A decoder layer's weights for n slices. `qkv` and `gate_up` are used as `x @ W.T`, `o` and `down` as `x @ W`."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [n * (q, k and v rows of a slice), hidden]
    o: torch.Tensor  # [n * heads * head_dim, hidden]
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [n * (gate, then up rows of a slice), hidden]
    down: torch.Tensor  # [n * ffn, hidden]


@dataclass(frozen=True)
class StageWeights:
    """What a rank holds in one layout: views, whose addresses never change. Ends it does not hold are None."""

    num_slices: int  # of the whole model
    slices: Span  # this rank's
    layers: list[LayerWeights]
    embed: torch.Tensor | None  # [n * vocabulary rows of a slice, hidden]
    norm: torch.Tensor | None  # [hidden]
    head: torch.Tensor | None  # as embed
