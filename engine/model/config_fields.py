"""The values of a checkpoint's config.json, each checked before anything is computed from it. No torch.

Used by `engine.model.config_json` and `engine.model.rope_config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seesaw.engine.values.errors import ConfigError

MOST = 2**31 - 1  # what a size may be: larger ones are mistakes, and would be summed, allocated or waited for


class ConfigFields:
    """One table of a config.json. `null` counts as a key that is not there, as in transformers.

    All methods raise ConfigError: for a key that is missing and has no default, or for a value that cannot be.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, table: str = "") -> None:
        """`table` is the key under which these values are, if they are nested."""
        self.raw, self.where = raw, where
        self._prefix = f"{table}." if table else ""

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number from 1 on."""
        value = self._value(key, default)
        if not _is_number(value) or value != int(value) or not 1 <= value <= most:
            raise self.wrong(key, f"a whole number from 1 to {most}")
        return int(value)

    def number(
        self, key: str, default: float | None = None, *, least: float = -math.inf, above: float = -math.inf
    ) -> float:
        """A finite number, `least` or more, and more than `above`."""
        value = self._value(key, default)
        if not _is_number(value) or value < least or value <= above:
            bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
            raise self.wrong(key, f"a finite number{bound}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def table(self, key: str) -> ConfigFields:
        """A table within this one; an empty one if it is not there."""
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return ConfigFields(value, self.where, self._prefix + key)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """None, one or several."""
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(id, int) and not isinstance(id, bool) and 0 <= id <= MOST for id in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)

    def wrong(self, key: str, right: str) -> ConfigError:
        found = str(self.raw.get(key))[:40]
        return ConfigError(f"{self.where} has a value that cannot be: {self._prefix}{key} must be {right}, not {found}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.where} lacks the key {self._prefix}{key}")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not
