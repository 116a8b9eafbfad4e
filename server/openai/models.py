"""`/v1/models`: the one model that is served. Clients read its name and context length here."""

from __future__ import annotations

import time
from typing import Any

from engine.messages import EngineInfo
from server.http.errors import ModelNotFoundError


class Models:
    """Handlers of `/v1/models`, and the check of a request's `model`."""

    def __init__(self, name: str, info: EngineInfo) -> None:
        self.name = name
        self._accepted = {name, info.model}
        self._card = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "seesaw",
            "root": info.model,
            "parent": None,
            "max_model_len": info.max_model_len,
        }

    async def list(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card]}

    async def retrieve(self, model: str) -> dict[str, Any]:
        self.check(model)
        return self._card

    def check(self, model: str | None) -> None:
        """Raise ModelNotFoundError unless the name is ours, the checkpoint's path, or empty."""
        if model and model not in self._accepted:
            raise ModelNotFoundError(f"The model {model[:100]!r} does not exist; {self.name!r} does.", "model")
