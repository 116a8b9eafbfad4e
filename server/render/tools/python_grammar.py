"""Calls in Python's syntax as a grammar, from the JSON schemas of their arguments. Used by `forced`.

Knows the keywords that tools' schemas are made of; others are refused. Properties come in the schema's order, and none
but those that it describes.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Sequence
from typing import Any

from seesaw.engine.values.errors import RequestError

Schema = dict[str, Any] | bool

_NAME = re.compile(r"[A-Za-z_][\w.]{0,255}", re.ASCII)
_NOTES = frozenset(
    (
        *("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples"),
        *("readOnly", "strict", "title", "writeOnly"),
    )
)
_SCALARS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"),
}
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
# In Python as in JSON, but for a string's escapes; white space would need a grammar of its own inside of another.
_OPTIONS = {"whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"'}
# JSON's numbers may have any size, and those that no double holds are no literals to pass on.
_INTEGER, _NUMBER = r"/-?(0|[1-9][0-9]{0,17})/", r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?/"


class PythonGrammar:
    """Collects the rules that its expressions need. Raises RequestError for what it cannot express."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of rules, by what they say
        self._root: Schema = True
        self._references: dict[str, str] = {}

    @property
    def rules(self) -> list[str]:
        return [f"{name}: {body}" for name, body in self._rules.items()]

    def call(self, name: str, parameters: dict[str, Any]) -> str:
        """The expression of a call with keyword arguments."""
        if not _NAME.fullmatch(name):
            raise RequestError(f"The pythonic format cannot call a tool named {name!r}.", "tools")
        self._root, self._references = parameters, {}
        parameters = self._resolved(parameters)
        self._refuse_others(parameters, ("type", "properties", "required", "additionalProperties"))
        arguments = []
        for argument, schema in parameters.get("properties", {}).items():
            if not _NAME.fullmatch(argument) or "." in argument or keyword.iskeyword(argument):
                raise RequestError(f"The pythonic format has no argument named {argument!r}.", "tools")
            arguments.append((argument, f"{_literal(argument + '=')} {self._value(schema)}"))
        listed = self._listed(arguments, parameters.get("required", []))
        return f"{_literal(name + '(')} {listed} {_literal(')')}"

    def _value(self, schema: Schema) -> str:
        """The expression of a value, in brackets where it needs them."""
        if schema is False:
            raise RequestError("A tool's schema allows no value where it is false.", "tools")
        if schema is True or not schema.keys() - _NOTES:
            return self._anything()
        if "$ref" in schema:
            self._refuse_others(schema, ("$ref",))
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            self._refuse_others(schema, ("anyOf",))
            return _either([self._value(each) for each in schema["anyOf"]])
        if "const" in schema or "enum" in schema:
            self._refuse_others(schema, ("type", "const", "enum"))
            return _either([_literal(_python(each)) for each in schema.get("enum", [schema.get("const")])])
        types = schema.get("type")
        if isinstance(types, list):
            return _either([self._of_type(each, schema) for each in types])
        return self._of_type(types, schema)

    def _of_type(self, type_: Any, schema: dict[str, Any]) -> str:
        match type_:
            case "boolean":
                return self._rule('"True" | "False"')
            case "null":
                return '"None"'
            case "array":
                self._refuse_others(schema, ("type", "items", "minItems", "maxItems"), schema["type"])
                return self._array(schema)
            case "object":
                self._refuse_others(schema, ("type", "properties", "required", "additionalProperties"), schema["type"])
                return self._object(schema)
            case "string" | "integer" | "number":
                self._refuse_others(schema, ("type", *_SCALARS[type_]), schema["type"])
                limits = {key: schema[key] for key in _SCALARS[type_] if key in schema}
                if not limits and type_ != "string":
                    return self._rule(_INTEGER if type_ == "integer" else _NUMBER)
                return self._rule(f"%json {json.dumps({'type': type_, 'x-guidance': _OPTIONS} | limits)}")
        self._refuse_others(schema, ("type",), [])
        raise RequestError("A tool's schema needs a type, an enum, a const, anyOf or $ref for each value.", "tools")

    def _array(self, schema: dict[str, Any]) -> str:
        item = self._value(schema.get("items", True))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not isinstance(least, int) or not (most is None or (isinstance(most, int) and most >= least >= 0)):
            raise RequestError("minItems and maxItems of a tool's schema must be integers in order.", "tools")
        if most == 0:
            return '"[]"'
        more = f'(", " {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        items = f"{item} {more}"
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _object(self, schema: dict[str, Any]) -> str:
        named = schema.get("properties", {})
        if not named:
            if schema.get("required"):
                raise RequestError("A tool's schema must describe the properties that it requires.", "tools")
            others = schema.get("additionalProperties", True)
            if others is False:
                return '"{}"'
            pair = f'{self._value({"type": "string"})} ": " {self._value(others)}'
            return self._rule(f'"{{" ({pair} (", " {pair})*)? "}}"')
        pairs = [(name, f"{_literal(json.dumps(name) + ': ')} {self._value(each)}") for name, each in named.items()]
        return self._rule(f'"{{" {self._listed(pairs, schema.get("required", []))} "}}"')

    def _listed(self, parts: Sequence[tuple[str, str]], required: Sequence[str]) -> str:
        """Named parts in their order, with commas between those that are there."""
        needed = set(required)
        if missing := needed - {name for name, _ in parts}:
            raise RequestError(f"A tool's schema requires {min(missing)!r} and does not describe it.", "tools")
        num_optional_first = next((i for i, (name, _) in enumerate(parts) if name in needed), len(parts))
        # From the end: what may follow after some part, and what if there was none before.
        following = first = self._rule('""')
        for index, (name, part) in reversed([*enumerate(parts)]):
            after, before = following, first
            following = self._rule(f'", " {part} {after}' if name in needed else f'(", " {part})? {after}')
            if index <= num_optional_first:
                first = self._rule(f"{part} {after}" if name in needed else f"{part} {after} | {before}")
        return first

    def _anything(self) -> str:
        if "anything" not in self._rules:
            self._rules["anything"] = ""  # it holds itself
            types = [{"type": each} for each in _TYPES]
            self._rules["anything"] = " | ".join(map(self._value, types))
        return "anything"

    def _reference(self, reference: Any) -> str:
        if reference not in self._references:
            name = self._references[reference] = f"reference_{len(self._rules)}"
            self._rules[name] = ""  # it may hold itself
            self._rules[name] = self._value(self._resolved({"$ref": reference}))
        return self._references[reference]

    def _resolved(self, schema: dict[str, Any]) -> Any:
        """What it refers to, if it does no more than that."""
        reference = schema.get("$ref")
        if reference is None:
            return schema
        found: Any = self._root
        try:
            for step in reference.removeprefix("#").split("/")[1:]:
                found = found[step.replace("~1", "/").replace("~0", "~")]
        except (AttributeError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict | bool) or found is schema:
            raise RequestError(f"A tool's schema refers to {str(reference)[:100]!r}, which is not there.", "tools")
        return found

    def _rule(self, body: str) -> str:
        """The name of the rule that says so."""
        if body not in self._names:
            name = self._names[body] = f"part_{len(self._rules)}"
            self._rules[name] = body
        return self._names[body]

    def _refuse_others(self, schema: dict[str, Any], known: Sequence[str], types: Any = None) -> None:
        """Refuse keywords that are not known here, unless they are another type's of several."""
        elsewhere = {*_SCALARS["string"], *_SCALARS["integer"], *("items", "minItems", "maxItems")} | {
            *("properties", "required", "additionalProperties")
        }
        allowed = _NOTES.union(known, elsewhere if isinstance(types, list) else ())
        if others := schema.keys() - allowed:
            raise RequestError(f"The pythonic format does not support {min(others)} in a tool's schema.", "tools")


def _either(expressions: list[str]) -> str:
    if not expressions:
        raise RequestError("A tool's schema allows no value where it has no alternative.", "tools")
    return f"({' | '.join(expressions)})"


def _python(value: Any) -> str:
    """A value of JSON as a literal of Python's, in the spelling that the grammar has for it."""
    match value:
        case True | False | None:
            return str(value)
        case list():
            return f"[{', '.join(map(_python, value))}]"
        case dict():
            return f"{{{', '.join(f'{json.dumps(key)}: {_python(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    return json.dumps(text)
