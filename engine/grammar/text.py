"""From `StructuredOutputs` to the grammar text that llguidance compiles. Used by `engine.grammar.grammars`.

A schema is either enforced or refused: llguidance refuses the keywords that it does not know how to enforce, and what
it would let slip is looked for here. Objects that do not say whether they are open are closed (`closed_schemas`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from seesaw.engine.grammar.closed_schemas import DATA, MAPS, closed
from seesaw.engine.grammar.descriptions import without_descriptions
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# What a form may take in characters, a schema without its descriptions: bounds a compilation's time and how deep it
# recurses. OpenAI's 128 tools of 100 properties each have some 700,000, compile in half a second and take 90 MB.
MAX_CHARS = 1 << 20

JSON_OPTIONS: JsonCompileOptions = {
    # A blank, or a new line and how far it is indented, as JSON is written. Small models that may write more do: empty
    # lines between all parts, until they run out of tokens.
    "whitespace_pattern": r"[ \t]|\r?\n[ \t]{0,64}",
    # No `\u0061`: so each string can be written in one way only, and no additional property can take, in
    # disguise, the name of one that the schema describes.
    "json_allowed_escapes": 'nrbtf\\"',
}

_EXACT = 2**53  # below which llguidance's numbers, which are doubles, hold every integer
# What llguidance takes for those of all scripts. As JavaScript has them, and with it a schema's `pattern`, and vLLM.
_ASCII_CLASSES = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_EMBEDDED_SCHEMA = re.compile(r"%json\s*")
_UNWRITABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u00|\x7f")  # in JSON: characters that only `\u` could escape


def grammar_text(spec: StructuredOutputs) -> str:
    """The grammar as llguidance takes it. Raises RequestError, without a `param`, if there can be none."""
    try:
        for text in (spec.text, *spec.choices):
            text.encode()
    except UnicodeEncodeError:
        raise RequestError("it holds half a surrogate pair, which no text can have") from None
    if spec.kind == "json_schema":
        spec = StructuredOutputs(spec.kind, _checked_schema(spec.text))
    if spec.num_chars > MAX_CHARS:
        raise RequestError(f"it takes {spec.num_chars} characters, more than {MAX_CHARS}")
    match spec.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(spec.text, overrides=JSON_OPTIONS)
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
        case "regex":
            ascii_only = _ESCAPE.sub(lambda escape: _ASCII_CLASSES.get(escape[0], escape[0]), spec.text)
            return LLMatcher.grammar_from_regex(ascii_only)
        case "choice":
            if not all(spec.choices) or not spec.choices:
                raise RequestError("there must be choices, and none of them empty")
            # One terminal: as alternatives of a rule, some thousand would be more than the parser follows at once.
            return LLMatcher.grammar_from_lark("start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, spec.choices)))
        case "grammar":
            return LLMatcher.grammar_from_lark(_as_lark(spec.text))


def _as_lark(grammar: str) -> str:
    """A grammar in Lark's syntax, of one in Lark's or GBNF's."""
    try:
        lark = any_to_lark(grammar)
    except Exception as error:  # that is what it raises, and RecursionError
        raise RequestError(f"it is neither Lark nor GBNF ({error})") from None
    for embedded in _EMBEDDED_SCHEMA.finditer(lark):
        try:
            schema, _ = json.JSONDecoder().raw_decode(lark, embedded.end())
        except (ValueError, RecursionError):
            raise RequestError("it embeds a schema that is no JSON, or nested too deeply") from None
        _check_schema(schema)
    return lark


def _checked_schema(text: str) -> str:
    """The schema, without descriptions and the options that llguidance would take from it: one of them ignores unknown
    keywords."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise RequestError(f"it is not valid JSON ({error})") from None
    except RecursionError:
        raise RequestError("it is nested too deeply") from None
    if schema is True:
        return "{}"
    if not isinstance(schema, dict):
        raise RequestError("a schema that allows something is an object or true")
    _check_schema(schema)
    try:
        bare = without_descriptions({key: value for key, value in schema.items() if key != "x-guidance"})
        return json.dumps(closed(bare))
    except RecursionError:
        raise RequestError("it is nested too deeply") from None


def _check_schema(root: Any) -> None:
    """Refuse what llguidance would take and not enforce to the letter."""
    values = [(root, True)]  # and whether they are schemas, or maps or lists of schemas
    while values:
        value, is_schema = values.pop()
        if isinstance(value, list):
            values += [(item, is_schema) for item in value]
        elif isinstance(value, int | float) and abs(value) >= _EXACT:
            # As a lower bound or constant near the end of 64 bits it even ends the process.
            raise RequestError("numbers of 2 to the 53rd and more are not supported")
        elif isinstance(value, dict):
            if is_schema:
                _check_keywords(value)
            for key, inner in value.items():
                if key in MAPS and isinstance(inner, dict):
                    values += [(each, is_schema) for each in inner.values()]
                else:
                    values.append((inner, is_schema and key not in DATA))


def _check_keywords(schema: dict[str, Any]) -> None:
    least, required, named = (schema.get(key) for key in ("minProperties", "required", "properties"))
    # A name may be written twice, which no grammar can rule out, and counts once.
    if isinstance(least, int | float) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise RequestError("minProperties above 1 is not supported unless so many properties are required")
    names = list(named) if isinstance(named, dict) else []
    if _UNWRITABLE.search(json.dumps([schema.get("const"), schema.get("enum"), names], ensure_ascii=False)):
        raise RequestError("control characters are not supported in const, enum and names of properties")
