"""`/v1/models`: the one model that is served, by each of its names. Clients read its context length here."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.config import ServerConfig
from seesaw.server.http.errors import ModelNotFoundError


class ModelCard(TypedDict):
    id: str
    object: str
    created: int  # Unix seconds
    owned_by: str
    root: str  # the checkpoint
    parent: None
    max_model_len: int  # tokens


class ModelList(TypedDict):
    object: str
    data: list[ModelCard]


class Models:
    """Handlers of `/v1/models`, and the check of a request's `model`."""

    def __init__(self, names: Sequence[str], info: EngineInfo) -> None:
        """Of several names, answers have the first."""
        self.name = names[0]
        created = int(time.time())
        self._cards: dict[str, ModelCard] = {
            name: {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "seesaw",
                "root": info.model,
                "parent": None,
                "max_model_len": info.max_model_len,
            }
            for name in names
        }
        self._known = {*names, info.model, info.model.rstrip("/")}
        self._listed = " and ".join(map(repr, names))

    async def list(self) -> ModelList:
        return {"object": "list", "data": [*self._cards.values()]}

    async def retrieve(self, model: str) -> ModelCard | ModelList:
        """Without a name (`/v1/models/`), all."""
        if not model:
            return await self.list()
        self.check(model)
        return self._cards.get(model.rstrip("/"), self._cards[self.name])

    def check(self, model: str | None) -> None:
        """Raise ModelNotFoundError unless the name is ours, the checkpoint's path as it was given, or empty."""
        if model and not {model, model.rstrip("/")} & self._known:
            does = "does" if len(self._cards) == 1 else "do"
            raise ModelNotFoundError(f"The model {model[:100]!r} does not exist; {self._listed} {does}.", "model")


def model_names(config: ServerConfig, info: EngineInfo) -> tuple[str, ...]:
    """The names that clients use and read."""
    if config.served_model_name or not info.model:
        return config.served_model_name or ("simulated",)
    folder = Path(info.model).expanduser()
    if not folder.is_dir():
        return (info.model,)
    # Not resolved: of a link, its own name is meant.
    folder = Path(os.path.abspath(folder))
    hub_name = re.fullmatch("models--(.+)", folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    return (hub_name[1].replace("--", "/") if hub_name else folder.name or info.model,)
