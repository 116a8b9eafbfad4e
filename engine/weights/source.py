"""Where weights come from: parts of tensors, by their names and shapes in a transformers checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from seesaw.engine.parallel.moves import Span


class Source(ABC):
    """Reads parts of a checkpoint's tensors, in any order. The same part is always the same numbers."""

    @abstractmethod
    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        """Entries `part` of dimension `dim` of the named tensor, whose whole shape is `shape`, but for ones at its end
        that it may have more or fewer of in the checkpoint; any float type.

        The result may be a view that is valid until the next call. Raises ConfigError, naming tensor and file,
        if it is missing or has another shape.
        """
