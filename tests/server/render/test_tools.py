"""Tool parsers: what they find, and that it does not depend on how the text was cut."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.server.render.events import CallPiece, Content, Event
from seesaw.server.render.tools import TOOL_PARSERS

Calls = list[tuple[str, str]]

HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
LLAMA = '{"name": "f", "parameters": {"a": 1}}'

# parser, text, content, calls
CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", "plain < text", "plain < text", []),
    ("hermes", HERMES, "", [("f", '{"a": 1}')]),
    ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n", "Let me see.", [("f", '{"a": 1}')] * 2),
    ("hermes", f"{HERMES}\nDone.", "Done.", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"arguments": {"a": [1, {"}": "]"}]}, "name": "g"}', "", [("g", '{"a": [1, {"}": "]"}]}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"q": "\\" } b"}}</tool_call>', "", [("f", '{"q": "\\" } b"}')]),
    ("hermes", '<tool_call>{"name": "f", "id": 7, "arguments": {}, "x": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "d\\u00e9j\\u00e0", "arguments": {}}</tool_call>', "", [("déjà", "{}")]),
    ("hermes", '<tool_call>{"name": "a\\ud800", "arguments": "\\udfff"}</tool_call>', "", [("a?", "?")]),
    ("hermes", "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    ("hermes", '<tool_call>{"name": "f"}</tool_call> x', '<tool_call>{"name": "f"}</tool_call> x', []),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}', '<tool_call>{"name": 5, "arguments": {}}', []),
    ("hermes", '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("hermes", f"<tool_call>{HERMES}", "<tool_call>", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),  # cut off by its length
    ("hermes", f"{HERMES.removesuffix('</tool_call>')}{HERMES}", "", [("f", '{"a": 1}')] * 2),
    ("hermes", "half a marker <tool_", "half a marker <tool_", []),
    ("llama3_json", LLAMA, "", [("f", '{"a": 1}')]),
    ("llama3_json", f"  <|python_tag|>{LLAMA}; {LLAMA};\n", "", [("f", '{"a": 1}')] * 2),
    ("llama3_json", f"{LLAMA} and more", "and more", [("f", '{"a": 1}')]),
    ("llama3_json", f"Sure: {LLAMA}", f"Sure: {LLAMA}", []),
    ("llama3_json", '{"answer": 42} {', '{"answer": 42} {', []),
    ("llama3_json", '{"name": "Ann", "age": 5}', '{"name": "Ann", "age": 5}', []),
    ("llama3_json", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama3_json", "", "", []),
    ("llama3_json", " \n", " \n", []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "", [("f", '{"a": 1}')]),
    (
        "mistral",
        'Yes. [TOOL_CALLS][{"name": "f", "arguments": {}}, {"arguments": {"b": "]"}, "name": "g"}]\n',
        "Yes.",
        [("f", "{}"), ("g", '{"b": "]"}')],
    ),
    ("mistral", '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[ARGS]{"b": {}}', "", [("f", '{"a": 1}'), ("g", '{"b": {}}')]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abc123[ARGS]{"a": 1}', "", [("f", '{"a": 1}')]),
    ("mistral", "[TOOL_CALLS]what now {", "[TOOL_CALLS]what now {", []),
    ("mistral", "[TOOL_CALLS][1, 2] [", "[TOOL_CALLS][1, 2] [", []),
    ("mistral", "see [1] and [2]", "see [1] and [2]", []),
    ("mistral", f"[TOOL_CALLS]{'x' * 600}", f"[TOOL_CALLS]{'x' * 600}", []),
    ("pythonic", '[f(a=1, b="x]"), g.h()]', "", [("f", '{"a": 1, "b": "x]"}'), ("g.h", "{}")]),
    ("pythonic", " [f(a={'k': [True, None, -1.5]}, c='it\\'s (')] ", "", [
        ("f", '{"a": {"k": [true, null, -1.5]}, "c": "it\'s ("}')
    ]),
    ("pythonic", "[f(a=1)] and more", "and more", [("f", '{"a": 1}')]),
    ("pythonic", "[f(a=1), oops", ", oops", [("f", '{"a": 1}')]),
    ("pythonic", "[1] is a source", "[1] is a source", []),
    ("pythonic", "[]", "[]", []),
    ("pythonic", "[f(1)]", "[f(1)]", []),
    ("pythonic", "[f(**x)]", "[f(**x)]", []),
    ("pythonic", "[f(a=g())]", "[f(a=g())]", []),
    ("pythonic", "[f(a=1e999)]", "[f(a=1e999)]", []),
    ("pythonic", f"[f(a={'[' * 5000}{']' * 5000})]", f"[f(a={'[' * 5000}{']' * 5000})]", []),
    ("pythonic", "[f(a='\\ud800')]", "", [("f", '{"a": "?"}')]),
    ("pythonic", "[f(a=1", "[f(a=1", []),
    ("pythonic", "hello [f()]", "hello [f()]", []),
]  # fmt: skip


def read(name: str, *pieces: str) -> tuple[str, Calls]:
    """The sum of all events: content, and each call's name and arguments."""
    parser = TOOL_PARSERS[name]()
    events: list[Event] = [event for piece in pieces for event in parser.push(piece)]
    events += parser.flush()
    content, calls = "", []
    for event in events:
        match event:
            case Content(text):
                content += text
            case CallPiece(index, str() as called, arguments):
                assert (index, arguments) == (len(calls), "")
                calls.append((called, ""))
            case CallPiece(index, None, arguments):
                assert index == len(calls) - 1 and arguments
                calls[-1] = calls[-1][0], calls[-1][1] + arguments
    assert parser.num_calls == len(calls)
    return content, calls


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_what_is_found(name: str, text: str, content: str, calls: Calls) -> None:
    assert read(name, text) == (content, calls)


@pytest.mark.parametrize(("name", "text", "content", "calls"), [case for case in CASES if len(case[1]) < 1000])
def test_texts_split_at_every_position_give_the_same(name: str, text: str, content: str, calls: Calls) -> None:
    for at in range(len(text) + 1):
        assert read(name, text[:at], text[at:]) == (content, calls), at
    assert read(name, *text) == (content, calls)


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '"name"', '"arguments"'),
    *("[", "]", "{", "}", "(", ")", ":", ",", ";", " ", "\n", '"', "\\", "'", "1", "null", "<", "é", "f", '"f"', "=1"),
    '"parameters"',
    *(HERMES, LLAMA, '[TOOL_CALLS]f{"a": 1}', '[f(a="x")]', '{"name": "f", "arguments": {"a": 1}}'),
]


@pytest.mark.parametrize("name", TOOL_PARSERS)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=12), cuts=st.lists(st.integers(0, 80), max_size=4))
def test_nothing_is_lost_and_no_cut_matters(name: str, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    whole = content, calls = read(name, text)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert read(name, *(text[a:b] for a, b in itertools.pairwise(edges))) == whole
    if not calls:
        assert content == text
    assert is_subsequence(content, text)


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(char in rest for char in part)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": ', "}</tool_call>"),
        ("llama3_json", '{"name": "f", "parameters": ', "}"),
        ("mistral", "[TOOL_CALLS]f", ""),
    ],
)
def test_arguments_are_passed_on_as_they_come(name: str, before: str, after: str) -> None:
    parser = TOOL_PARSERS[name]()
    assert parser.push(before + '{"a"') == [CallPiece(0, "f", ""), CallPiece(0, None, '{"a"')]
    assert parser.push(": 1, ") == [CallPiece(0, None, ": 1, ")]
    assert parser.push('"b": 2}' + after) == [CallPiece(0, None, '"b": 2}')]
    assert parser.flush() == []


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_ids_are_unlike_and_of_the_kind_that_templates_take(name: str) -> None:
    ids = {TOOL_PARSERS[name].make_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9]{9}" if name == "mistral" else r"call_\w{24}", id) for id in ids)


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_a_long_text_is_read_in_one_go(name: str) -> None:
    value = json.dumps({"a": "x" * 200_000})
    texts = {
        "hermes": f'<tool_call>{{"arguments": {value}, "name": "f"}}</tool_call>',
        "llama3_json": f'{{"parameters": {value}, "name": "f"}}',
        "mistral": f"[TOOL_CALLS]f{value}",
        "pythonic": f"[f(a={'x' * 200_000!r})]",
    }
    assert read(name, texts[name]) == ("", [("f", value)])
    broken = texts[name][:-10]
    assert sum(map(len, (read(name, broken)[0], *(call[1] for call in read(name, broken)[1])))) > 199_990
