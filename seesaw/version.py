"""The version that `seesaw --version`, `seesaw.__version__`, `/version` and results show."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of


def seesaw_version() -> str:
    try:
        return version_of("seesaw-llm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
