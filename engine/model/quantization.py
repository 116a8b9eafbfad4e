"""How a model's linear layers keep their numbers, as a value without torch. `engine.ops.fp8` has the numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

FP8 = "float8_e4m3fn"
BLOCK = 128  # rows, and columns, of the blocks that share a scale in a checkpoint


Kind = Literal["float", "tensor", "channel", "blocks"]


@dataclass(frozen=True)
class Quantization:
    """Linear layers in e4m3 with float32 scales; activations are rounded to e4m3 on their way, each token by itself.

    `checkpoint` is what it holds: `float` (rounded while it is read, with a scale for each output), or e4m3 with
    scales for each `tensor`, for each `channel` (output), or for `blocks` of 128 x 128.
    """

    checkpoint: Kind = "float"
    ignored: tuple[str, ...] = ()  # patterns: layers keep the model's dtype whose names begin with what one matches
    static: bool = False  # activations have the checkpoint's scale, one for each layer, instead of each token its own
    block_scales: str = "weight_scale_inv"  # what the checkpoint calls the scales of blocks

    def ignores(self, name: str) -> bool:
        return any(re.match(pattern, name) for pattern in self.ignored)

    def group(self, columns: int) -> int | None:
        """So many columns share a scale, where not all do: a block's, or what the borders of slices leave of it."""
        return math.gcd(BLOCK, columns) if self.checkpoint == "blocks" else None
