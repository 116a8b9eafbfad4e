"""What is allowed under a grammar holds to the specification; what cannot be enforced is refused."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from seesaw.engine.grammar import grammars as grammars_module
from seesaw.engine.grammar.grammars import Grammars
from seesaw.engine.grammar.matcher import MaskFiller, Matcher
from seesaw.engine.grammar.text import MAX_CHARS
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.sampling.token_masks import mask_words
from seesaw.engine.text.tokenizer import FastTokenizer
from seesaw.engine.values.errors import IntegrityError, RequestError
from tests.engine.grammar.walks import allowed, follow, walk
from tests.engine.text.tokenizers import byte_level, sentencepiece

VOCAB, EOS = 320, 300  # padded, as models' vocabularies are
SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parent / "schemas.json").read_text())


@cache
def grammars() -> Grammars:
    return Grammars("bytes", VOCAB, [EOS])


def matcher_of(spec: StructuredOutputs, *stop_token_ids: int) -> Matcher:
    return grammars().start(spec, "response_format").matcher(stop_token_ids)


def schema_of(schema: Any) -> StructuredOutputs:
    return StructuredOutputs("json_schema", json.dumps(schema))


def texts(spec: StructuredOutputs, count: int = 4) -> list[str]:
    return [bytes(walk(matcher_of(spec), VOCAB, {EOS}, seed)).decode() for seed in range(count)]


def refusal(spec: StructuredOutputs) -> str:
    with pytest.raises(RequestError) as caught:
        grammars().validate(spec, "response_format")
    assert caught.value.param == "response_format"
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400
    return message


def accepts(spec: StructuredOutputs, text: str) -> bool:
    matcher = matcher_of(spec)
    try:
        return follow(matcher, text.encode()).may_stop
    except IntegrityError:
        return False


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_under_a_schema_are_valid(name: str) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    for text in texts(schema_of(schema)):
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"if": {"type": "string"}, "then": {"minLength": 3}}, "if"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}}, "minProperties"),
        ({"anyOf": [{"properties": {"const": {"minProperties": 3}}}]}, "minProperties"),
        ({"type": "integer", "maximum": 2**53 + 1}, "numbers"),
        ({"enum": ["a", {"b": [-(2**63)]}]}, "numbers"),
        ({"enum": ["a", "\x01"]}, "control characters"),
        ({"const": {"\x7f": 1}}, "control characters"),
        ({"items": {"properties": {"\\\x01": {}}}}, "control characters"),
        ({"type": "object", "not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
        ({"type": "string", "pattern": "(a)\\1"}, "backreferences"),
        ({"type": "string", "pattern": "(a"}, "unclosed"),
        ({"type": "strin"}, "strin"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than"),
        ({"enum": []}, "anyOf is empty"),
        (False, "allows something"),
        (3, "object"),
        ([], "object"),
        ({"properties": 5}, "properties"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
    ],
)
def test_schemas_that_cannot_be_enforced_are_refused(schema: Any, reason: str) -> None:
    assert reason in refusal(schema_of(schema))


def test_schemas_that_are_none() -> None:
    assert "not valid JSON" in refusal(StructuredOutputs("json_schema", "{"))
    assert "characters" in refusal(StructuredOutputs("json_schema", json.dumps({"const": "x" * MAX_CHARS})))
    assert "surrogate" in refusal(StructuredOutputs("json_schema", '{"const": "\ud800"}'))


def test_nothing_that_is_deep_ends_the_process() -> None:
    deep = 100_000
    refusal(StructuredOutputs("json_schema", '{"items":' * deep + "true" + "}" * deep))
    refusal(StructuredOutputs("json_schema", '{"const":' + "[" * 10_000 + "]" * 10_000 + "}"))
    refusal(StructuredOutputs("json_schema", '{"items":' * 5_000 + "true" + "}" * 5_000))
    refusal(StructuredOutputs("regex", "(" * 10_000 + "a" + ")" * 10_000))
    refusal(StructuredOutputs("grammar", "start: " + "(" * 10_000 + '"a"' + ")" * 10_000))
    refusal(StructuredOutputs("grammar", "root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000))
    # Chains of references are not deep to a parser of JSON, but to what follows them.
    names = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(2500)} | {"d2500": {"type": "string"}}
    grammars().validate(schema_of({"$defs": names, "$ref": "#/$defs/d0"}))
    rules = "\n".join(f"a{i}: a{i + 1}" for i in range(5000))
    grammars().validate(StructuredOutputs("grammar", f'start: a0\n{rules}\na5000: "x"'))


def test_any_json_object() -> None:
    for text in texts(StructuredOutputs("json_object"), 20):
        assert isinstance(json.loads(text), dict)


def test_white_space_is_bounded() -> None:
    spec = StructuredOutputs("json_object")
    assert accepts(spec, '{\n        "a": [1,\t2]\r\n}')
    assert accepts(spec, '{ "a" : [\n] , "b": 1 }')
    for space in ("\n" + " " * 65, "\n\n", "  ", " \n"):
        assert not accepts(spec, "{" + space + "}")


def test_a_name_cannot_be_disguised_by_escapes() -> None:
    spec = schema_of(SCHEMAS["disguised name"])
    assert accepts(spec, '{"ab": 1, "x": "y"}')
    assert not accepts(spec, r'{"a\u0062": "x"}')


@pytest.mark.parametrize(
    "pattern", ["[a-z]{2,5}@[a-z]+\\.com", "^(yes|no)$", "\\d{3}-\\d{4}", "(?i)abc", "a|bcd|[^x]", "[äöü]+", "a.c"]
)
def test_a_regular_expression_is_matched_by_the_whole_text(pattern: str) -> None:
    for text in texts(StructuredOutputs("regex", pattern), 8):
        assert re.fullmatch(pattern, text)


def test_classes_of_a_regular_expression_are_ascii_as_those_of_a_schema() -> None:
    for spec in (
        StructuredOutputs("regex", r"\d[\d_]\w\D\W[^\d]\\d"),
        schema_of({"type": "string", "pattern": r"^\d[\d_]\w\D\W[^\d]\\d$"}),
    ):
        quote, backslash = ('"', r"\\") if spec.kind == "json_schema" else ("", "\\")
        assert accepts(spec, f"{quote}1_z\u0663\u00e9x{backslash}d{quote}")
        for wrong in ("\u0663_za x", "1\u0663za x", "1_\u00e9a x", "1_z1 x", "1_zaax", "1_za 1"):
            assert not accepts(spec, f"{quote}{wrong}{backslash}d{quote}")


def test_broken_regular_expressions() -> None:
    assert "unclosed group" in refusal(StructuredOutputs("regex", "(a"))
    assert "look-around" in refusal(StructuredOutputs("regex", "a(?!b)c"))
    assert "no text" in refusal(StructuredOutputs("regex", ""))


def test_choices() -> None:
    choices = ("yes", "yes, but", "no\n", 'a "quote"', "\\", "é", "a/b")
    spec = StructuredOutputs("choice", choices=choices)
    assert set(texts(spec, 60)) == set(choices)
    assert not accepts(spec, "ye")
    assert "choices" in refusal(StructuredOutputs("choice"))
    assert "empty" in refusal(StructuredOutputs("choice", choices=("a", "")))
    assert "surrogate" in refusal(StructuredOutputs("choice", choices=("\udfff",)))


LARK = """
start: sum
sum: NUMBER (("+" | "-") NUMBER)*
NUMBER: /[0-9]{1,3}/
"""
GBNF = """
root ::= number (("+" | "-") number)*
number ::= [0-9] [0-9]? [0-9]?
"""


@pytest.mark.parametrize("grammar", [LARK, GBNF])
def test_grammars(grammar: str) -> None:
    for text in texts(StructuredOutputs("grammar", grammar), 8):
        assert re.fullmatch(r"\d{1,3}([+-]\d{1,3})*", text)


def test_broken_grammars() -> None:
    assert "unknown name" in refusal(StructuredOutputs("grammar", "start: nowhere"))
    refusal(StructuredOutputs("grammar", "this is no grammar"))
    refusal(StructuredOutputs("grammar", ""))
    assert "numbers" in refusal(StructuredOutputs("grammar", f'start: %json {{"const": {-(2**63)}}}'))
    assert "no JSON" in refusal(StructuredOutputs("grammar", "start: %json {"))


def test_compilations_are_looked_up_and_never_waited_for() -> None:
    mine = Grammars("bytes", VOCAB, [EOS])
    spec = schema_of({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(400)}})
    began = time.perf_counter()
    compilation = mine.start(spec)
    assert time.perf_counter() - began < 0.1 and not compilation.is_done
    compilation.matcher()
    assert compilation.is_done and mine.start(spec).is_done
    broken = mine.start(StructuredOutputs("regex", "("))
    for param in ("guided_regex", "structured_outputs"):
        with pytest.raises(RequestError, match=param):
            mine.validate(StructuredOutputs("regex", "("), param)
    with pytest.raises(RequestError):
        broken.matcher()


def test_a_matcher_can_be_made_anew_from_its_tokens() -> None:
    spec = schema_of(SCHEMAS["nested objects"])
    text = list(b'{"user": {"name": "x", "addr')
    ahead = matcher_of(spec)
    for token in text:
        ahead.accept(token)
    again = follow(matcher_of(spec), text)
    assert allowed(again, VOCAB) == allowed(ahead, VOCAB) == [ord("e")]
    # Neither moves the other.
    again.accept(ord("e"))
    assert allowed(ahead, VOCAB) == [ord("e")]


def test_ends_come_where_the_text_may_end() -> None:
    matcher = matcher_of(StructuredOutputs("regex", "ab?"), 310, 97)
    assert allowed(matcher, VOCAB) == [97]  # what the text needs is asked to be an end: it is cut off there
    matcher.accept(97)
    assert matcher.is_over
    matcher = matcher_of(StructuredOutputs("regex", "ab?"), 310, 98, 1000)
    assert allowed(matcher, VOCAB) == [97]
    with pytest.raises(IntegrityError, match="end"):
        matcher.accept(310)
    with pytest.raises(IntegrityError, match="does not allow"):
        matcher.accept(98 + 1)
    assert not matcher.may_stop
    matcher.accept(97)
    assert allowed(matcher, VOCAB) == [98, EOS, 310] and matcher.may_stop and not matcher.is_over
    matcher.accept(98)
    assert matcher.is_over and allowed(matcher, VOCAB) == [98, EOS, 310]
    matcher.accept(EOS)  # again and again, where ends are ignored
    with pytest.raises(IntegrityError):
        matcher.accept(97)


@pytest.mark.parametrize("ends", [[300], [261, 300], [5000, 300]])
def test_a_text_may_end_with_an_id_that_the_tokenizer_lacks(ends: list[int], tmp_path: Path) -> None:
    """The padded part of a vocabulary, of which a config.json may name ids."""
    (tmp_path / "tokenizer.json").write_text(byte_level().as_json())
    matcher = Grammars(str(tmp_path), VOCAB, ends).start(StructuredOutputs("regex", "a"), "regex").matcher(())
    follow(matcher, b"a")
    assert set(allowed(matcher, VOCAB)) == {id for id in ends if id < VOCAB}


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("vocab", [384, 260])  # of the model: padded, and smaller than the tokenizer's
@pytest.mark.parametrize("eos_token_ids", [(), (5,)])
def test_tokenizers_of_both_kinds(
    make: Callable[[], FastTokenizer], vocab: int, eos_token_ids: tuple[int, ...], tmp_path: Path
) -> None:
    tokenizer, pattern = make(), "(cat| the cat|世界|ab| né)+"
    data = json.loads(tokenizer.as_json())
    if make is byte_level:  # where a grammar leaves one text only, it is encoded
        data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    else:
        data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    compilation = Grammars(str(tmp_path), vocab, eos_token_ids).start(StructuredOutputs("regex", pattern))
    used: set[int] = set()
    for seed in range(30):
        tokens = walk(compilation.matcher([6]), vocab, {6, *eos_token_ids}, seed)
        before = tokenizer.decode([99])  # SentencePiece drops the space that a whole text begins with
        assert re.fullmatch(pattern, tokenizer.decode([99, *tokens]).removeprefix(before))
        used.update(tokens)
    assert max(used) < min(vocab, tokenizer.vocab_size)
    assert used & {256, 257, 258, 259} if make is byte_level else 3 in used  # longer ones than bytes


def test_without_any_end_a_text_is_over_all_the_same() -> None:
    matcher = follow(Grammars("bytes", 256).start(StructuredOutputs("regex", "ab")).matcher(), b"ab")
    assert matcher.is_over and matcher.failure is None and allowed(matcher, 256) == []


def test_a_grammar_that_becomes_too_complex_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars_module, "_TRIES", 0)  # else it is refused
    rules = "\n".join(f'A{i}: /[ab]*/ & ~(A{i + 1} "c")' for i in range(2000))
    matcher = matcher_of(StructuredOutputs("grammar", f'start: A0\n{rules}\nA2000: "x"'))
    healthy = matcher_of(StructuredOutputs("regex", "a+"))
    rows = np.zeros((2, mask_words(VOCAB)), np.uint32)
    filler = MaskFiller(2)
    for _ in range(3):
        filler.fill_rows([matcher, healthy], rows)
        if matcher.failure:
            break
        matcher.accept(97)
    assert matcher.failure and "\n" not in matcher.failure
    assert not matcher.is_over and not rows[0].any()
    assert healthy.failure is None and rows[1].any()


def test_many_rows_are_filled_as_one_is() -> None:
    names = ("object", None, "array", "tree", "format date") * 5
    matchers = [matcher_of(schema_of(SCHEMAS[name])) if name else None for name in names]
    rows = np.zeros((len(matchers), mask_words(VOCAB)), np.uint32)
    MaskFiller(2).fill_rows(matchers, rows)
    for matcher, row in zip(matchers, rows, strict=True):
        alone = np.full(mask_words(VOCAB), 0xFFFFFFFF, np.uint32)
        if matcher is not None:
            matcher.fill(alone)
        assert (row == alone).all()


def test_what_fails_at_its_first_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot be followed"):
        matcher_of(StructuredOutputs("regex", "a{1000000}"))


def objects(num_properties: int) -> dict[str, Any]:
    named = {f"p{i}": {"type": "integer", "description": "what it is, " * 10} for i in range(num_properties)}
    return {"type": "object", "properties": named}


def test_a_schema_of_as_many_properties_as_openai_takes() -> None:
    schema = objects(5000)
    spec = schema_of(schema | {"required": [*schema["properties"]]})
    assert allowed(follow(matcher_of(spec), b'{"p0":1,"p1":2,"p'), VOCAB) == [ord("2")]


def test_the_limits_that_schemas_meet_are_named() -> None:
    matcher_of(schema_of(objects(500)))
    assert "more than 2000 ways" in refusal(schema_of(objects(501)))
    many = {f"o{i}": objects(400) for i in range(40)}
    assert "more than 65,525 parts" in refusal(schema_of({"type": "object", "properties": many}))


def test_what_is_kept_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Grammars("bytes", VOCAB, [EOS])
    first, second = (StructuredOutputs("regex", letter * 100) for letter in "ab")
    mine.validate(first)
    assert mine.start(first).is_done
    monkeypatch.setattr(grammars_module, "MAX_COMPILED_CHARS", 100)
    mine.validate(second)
    assert [*mine._compiled] == [second]


def test_masks_that_take_long_are_given_up_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seesaw.engine.grammar.matcher._SLOW_S", 0.0)
    slow, healthy = (matcher_of(StructuredOutputs("regex", regex)) for regex in ("a{20000}", "b+"))
    filler, rows = MaskFiller(2), np.zeros((2, mask_words(VOCAB)), np.uint32)
    for _ in range(5000):
        filler.fill_rows([slow, healthy], rows)
        assert rows[1].any() and healthy.failure is None
        if slow.failure is not None:
            break
        slow.accept(97)
        healthy.accept(98)
    assert slow.failure == "its grammar takes too long to follow"


def test_thousands_of_choices() -> None:
    """As alternatives of a rule, these passed the check and failed at their first token."""
    spec = StructuredOutputs("choice", choices=tuple(f"value-{i}" for i in range(5000)))
    assert bytes(walk(matcher_of(spec), VOCAB, {EOS}, seed=1)).decode() in spec.choices


def test_a_grammar_whose_tokens_take_ever_longer_is_given_up() -> None:
    """What the parser's own limits let pass would hold up the loop for seconds a token, with all of `n` sequences."""
    compilation = grammars().start(StructuredOutputs("grammar", 'start: e\ne: e e | "a" | e "a" e'), "guided_grammar")
    first, second = compilation.matcher(), compilation.matcher()
    second.accept(97)
    for _ in range(2000):
        first.accept(97)
        if first.failure is not None:
            break
    assert first.failure == second.failure == "its grammar takes too long to follow"
    second.accept(98)  # whatever was sampled


def test_a_tokenizer_that_grammars_cannot_follow_is_said_of_each_request(tmp_path: Path) -> None:
    """It has no decoder, so nobody knows which bytes its tokens are."""
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    core.save(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(str(tmp_path), VOCAB, [EOS])
    for _ in range(2):
        with pytest.raises(
            RequestError, match=r"response_format cannot be enforced: the tokenizer of .* is not of a kind"
        ):
            grammars.validate(StructuredOutputs("json_object"), "response_format")
