"""The weights of one stage, as the model computes with them. Made by `engine.weights.arena`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from seesaw.engine.model.linear import Linear
from seesaw.engine.parallel.moves import Span

Operands = Mapping[str, Linear | torch.Tensor]
"""A decoder layer's weights by the names that its family gives them. Rows and columns run through the rank's slices."""


@dataclass(frozen=True)
class StageWeights:
    """What a rank holds in one layout: views, whose addresses never change. Ends it does not hold are None."""

    num_slices: int  # of the whole model
    slices: Span  # this rank's
    layers: list[Operands]
    embed: torch.Tensor | None  # [n * vocabulary rows of a slice, hidden]
    norm: torch.Tensor | None  # [hidden]
    head: Linear | None  # as embed
