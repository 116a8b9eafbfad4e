"""The version that `seesaw --version`, `seesaw.__version__` and `/version` show."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def seesaw_version() -> str:
    try:
        return version("seesaw-llm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
