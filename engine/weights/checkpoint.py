"""Finding a checkpoint: a folder, or a hub name that is fetched. No torch; whoever reads it is `engine.weights.loader`.

Used by `engine.sizing.model`, for the sizes alone, and by the executor, for the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seesaw.engine.hub import find_model
from seesaw.engine.model.checkpoint_files import StoredTensor, stored_tensors
from seesaw.engine.values.config import LoadFormat
from seesaw.engine.values.errors import ConfigError


@dataclass(frozen=True)
class Checkpoint:
    """Read once, by the executor, and passed on to the workers."""

    folder: Path
    tensors: Mapping[str, StoredTensor] | None  # None: its weights are not read


def resolve_checkpoint(model: str, load_format: LoadFormat = "safetensors") -> Checkpoint:
    """A checkpoint on this host: an existing folder, or a hub name, which is downloaded if it is not cached.

    Raises ConfigError if there is none, or if it lacks what `load_format` needs (dummy: only config.json), or if its
    files contradict each other.
    """
    if not model:
        raise ConfigError("no model given: name a checkpoint folder or a hub name")
    weights = ["*.safetensors"] if load_format == "safetensors" else []
    folder = find_model(model, ["*.json", "tokenizer*", "*.jinja", *weights], "weights" if weights else "config.json")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no config.json in {folder}: give a checkpoint folder or a hub name")
    return Checkpoint(folder, stored_tensors(folder) if load_format == "safetensors" else None)
