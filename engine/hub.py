"""Where a model is: a local folder, or a hub name, which is fetched unless it is cached.

Used for weights (`engine.weights.loader`) and tokenizers (`engine.text.tokenizer`); imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from seesaw.engine.values.errors import ConfigError

logger = logging.getLogger(__name__)


# Mistral's own format of the same weights: as large, and not read.
_IGNORED = ["consolidated*"]


def find_model(model: str, patterns: Sequence[str], what: str, instead: str = "give a local folder") -> Path:
    """The local folder of a model. Of a hub name, only files that match `patterns` are fetched, for `what`.

    Raises ConfigError, proposing to do something else `instead`, if there is no folder or hub model of this name.
    """
    return local_folder(model) or _fetch(model, patterns, what, instead)


def local_folder(model: str) -> Path | None:
    """The folder of this name; None for a hub name. Raises ConfigError if it can be neither."""
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return folder
        is_path = folder.exists()
    except (OSError, RuntimeError):  # a name too long, or a home of nobody
        is_path = True
    if is_path or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"there is no folder {model}: give a checkpoint folder or a hub name")
    return None


def _fetch(model: str, patterns: Sequence[str], what: str, instead: str) -> Path:
    # Imported here: a local folder needs no hub, and it is slow to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    logging.getLogger("huggingface_hub").handlers.clear()  # it prints beside our own handler, so each line twice
    logger.info("asking the hub for the %s of %s", what, model)
    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns), ignore_patterns=_IGNORED))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(
            f"{model!r} is no folder and its {what} could not be fetched from the hub ({reason}): "
            f"check the name, the network and HF_TOKEN, or {instead}"
        ) from None
