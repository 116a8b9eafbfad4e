"""What a flag's text may be, for argparse: each returns the value or says in a few words what it must be.

Called by `clients.arguments`. NaN is no number here: it passes every comparison that asks for too little or too much.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from seesaw.clients.errors import ClientError

MOST = 10_000_000  # tokens or requests: more is a slip of the keyboard, and would fill the memory first
LEAST_RATE = 1e-6  # below, times between requests leave what clocks can wait for


def integer(least: int, most: int = MOST) -> Callable[[str], int]:
    """Whole numbers between the two, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return value

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Numbers between the two, both included; infinity only if it is `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}, not {text!r}")
        return value

    return parse


LARGEST = 1e300  # for what must be finite
rate = number(LEAST_RATE)


def url(text: str) -> str:
    """Of a server, without the slash that it may end with."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"must be a URL such as http://127.0.0.1:8000, not {text!r}")
    return text.rstrip("/")


def path(text: str) -> str:
    """Of a URL."""
    if not re.fullmatch(r"/[\x21-\x7e]*", text):
        raise argparse.ArgumentTypeError(f"must be a path such as /v1/completions, not {text!r}")
    return text


def json_object(text: str) -> dict[str, Any]:
    """That is valid JSON, so without NaN."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object such as '{\"top_k\": 1}'")
    return value


def pairs(texts: list[str] | None, flag: str) -> dict[str, str]:
    """KEY=VALUE each. Raises ClientError."""
    for text in texts or ():
        if "=" not in text:
            raise ClientError(f"{flag} takes KEY=VALUE, not {text!r}")
    return {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in texts or ())}


def headers(texts: list[str] | None, flag: str) -> dict[str, str]:
    """KEY=VALUE each, that HTTP can carry. Raises ClientError."""
    given = pairs(texts, flag)
    for key, value in given.items():
        check_header(key, value, flag)
    return given


def check_header(key: str, value: str, source: str) -> None:
    """Raise ClientError for what HTTP cannot carry; `source` says where it comes from."""
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", key, re.ASCII) or not re.fullmatch(r"[\x20-\x7e\t]*", value):
        raise ClientError(f"{source}: a header is letters, digits and dashes, its value printable ASCII, not {key!r}")


def _refuse(constant: str) -> None:
    raise ValueError(constant)
