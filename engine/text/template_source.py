"""A chat template as text: where the operator's comes from, whether it is one, and what it reads. Nothing is rendered,
and nothing slow is imported, so all of it can be known before an engine starts. Used by the server and by `seesaw.LLM`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from seesaw.engine.values.errors import ConfigError


def read_template(choice: str) -> str | None:
    """The template of a path, or that `choice` is itself; None if it is empty. Raises ConfigError."""
    if not choice:
        return None
    text, name = choice, "the chat template"
    if "{" not in choice:
        path = Path(choice).expanduser()
        try:
            text, name = path.read_text(), f"the chat template {path}"
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the chat template {choice} ({error}): give a file, or the template itself"
            ) from None
    try:
        _ENVIRONMENT.compile(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{name} has a syntax error in line {error.lineno}: {error}") from None
    except Exception as error:  # a break outside of a loop, too deep a nesting, too long a number
        raise ConfigError(f"{name} cannot be compiled: {error}") from None
    return text


@lru_cache(maxsize=16)
def reads(template: str, variable: str) -> bool:
    """Whether a template uses this variable. One that is no Jinja may use any."""
    try:
        return variable in meta.find_undeclared_variables(_ENVIRONMENT.parse(template))
    except Exception:  # as above
        return True


class _Generation(Extension):
    """transformers' own tag, which marks what the model has written."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# What transformers renders with knows the same language.
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
