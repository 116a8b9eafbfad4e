"""The form that a request asks its texts to have: OpenAI's `response_format`, vLLM's `structured_outputs` and the
`guided_` parameters that it had before. All of them become one `StructuredOutputs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field

from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import Body

# vLLM's, beside the forms: what they ask for changes the text, and False asks for nothing.
_OPTIONS = ("disable_additional_properties", "disable_any_whitespace", "structural_tag", "whitespace_pattern")

MAX_FORM_CHARS = 1 << 20

Schema = dict[str, Any] | bool


class JsonSchema(Body):
    """OpenAI's wrapping of a schema. `strict` makes no difference: every schema is enforced."""

    name: str | None = None
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: str
    json_schema: JsonSchema | None = None


class StructuredOutputsBody(Body):
    """vLLM's: exactly one of the forms."""

    model_config = ConfigDict(extra="allow")

    json_: Schema | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StructuredRequest(Body):
    """The parameters, as fields of a request's body."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def structured(self) -> tuple[StructuredOutputs, str] | None:
        """The form, and the parameter that asks for it; None for any text. Raises RequestError.

        Whether it can be enforced is not known before it is compiled: see `Grammars.validate`.
        """
        forms = [*_of_response_format(self.response_format), *_of_body(self.structured_outputs)]
        forms += _forms("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        for form, param in forms:
            if form.num_chars > MAX_FORM_CHARS:
                raise RequestError(f"{param} has more than {MAX_FORM_CHARS} characters: simplify it.", param)
        if len(forms) > 1:
            names = " and ".join(param for _, param in forms)
            raise RequestError(f"{names} ask for several forms of one text: choose one.", forms[0][1].split(".")[0])
        return (forms[0][0], forms[0][1].split(".")[0]) if forms else None


_Form = tuple[StructuredOutputs, str]


def _of_response_format(asked: ResponseFormat | None) -> Iterator[_Form]:
    match asked:
        case None | ResponseFormat(type="text"):
            return
        case ResponseFormat(type="json_object"):
            yield StructuredOutputs("json_object"), "response_format"
        case ResponseFormat(type="json_schema", json_schema=JsonSchema(schema_=schema)):
            yield _of_schema(schema), "response_format"
        case ResponseFormat(type="json_schema"):
            raise RequestError("response_format of type json_schema needs a json_schema.", "response_format")
        case _:
            raise RequestError("response_format.type must be text, json_object or json_schema.", "response_format")


def _of_body(asked: StructuredOutputsBody | None) -> list[_Form]:
    if asked is None:
        return []
    for name in _OPTIONS:
        if (asked.model_extra or {}).get(name):
            raise RequestError(f"structured_outputs.{name} is not supported: leave it out.", "structured_outputs")
    forms = _forms("structured_outputs.", asked.json_, asked.regex, asked.choice, asked.grammar)
    if asked.json_object:
        forms.append((StructuredOutputs("json_object"), "structured_outputs.json_object"))
    if not forms:
        raise RequestError(
            "structured_outputs needs one of json, regex, choice, grammar and json_object.", "structured_outputs"
        )
    return forms


def _forms(
    prefix: str, schema: Schema | str | None, regex: str | None, choices: list[str] | None, grammar: str | None
) -> list[_Form]:
    forms = []
    if schema is not None:
        forms.append((_of_schema(schema), prefix + "json"))
    if regex is not None:
        forms.append((StructuredOutputs("regex", regex), prefix + "regex"))
    if choices is not None:
        forms.append((StructuredOutputs("choice", choices=tuple(choices)), prefix + "choice"))
    if grammar is not None:
        forms.append((StructuredOutputs("grammar", grammar), prefix + "grammar"))
    return forms


def _of_schema(schema: Schema | str) -> StructuredOutputs:
    return StructuredOutputs("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
