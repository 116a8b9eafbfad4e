"""How many weights a model's products have, as its family says them: arithmetic, no torch.

What steps cost is counted from these. What the weights take in bytes is `engine.weights.placement`'s.
"""

from __future__ import annotations

from functools import cache

from seesaw.engine.model.families import family
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.spec import LinearSpec, ending


def layer_linears(shape: ModelShape) -> list[LinearSpec]:
    """The matrix products of a decoder layer."""
    return [spec for spec in family(shape.family).layer_specs(shape) if isinstance(spec, LinearSpec)]


@cache
def layer_params(shape: ModelShape) -> int:
    """Weights of a decoder layer's matrix products."""
    return sum(linear.num_params for linear in layer_linears(shape))


@cache
def head_params(shape: ModelShape) -> int:
    """Weights of the head's, and of the embedding."""
    _, head = ending(shape)
    return head.num_params
