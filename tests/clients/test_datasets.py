import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.clients import datasets
from seesaw.clients.datasets import Sample, iter_items, load_sharegpt, read_pairs


class Words:
    """A tokenizer that counts words."""

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())


def conversation(*turns: str) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": "human", "value": turn} for turn in turns]}


def words(count: int) -> str:
    return " ".join(["é"] * count)


def write(path: Path, items: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return path


@given(
    items=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=6),
    indent=st.sampled_from([None, 2]),
    data=st.data(),
)
def test_items_before_a_cut_survive(items, indent, data):
    text = json.dumps(items, indent=indent, ensure_ascii=False)
    cut = data.draw(st.integers(0, len(text)))
    got = list(iter_items(io.StringIO(text[:cut])))
    assert got == items[: len(got)]
    ends = [len(json.dumps(items[: i + 1], indent=indent, ensure_ascii=False).rstrip("]\n")) for i in range(len(items))]
    assert len(got) == sum(end <= cut for end in ends)


@pytest.mark.parametrize("read_chars", [1, 7, 1000])
def test_objects_across_reads(monkeypatch, read_chars):
    monkeypatch.setattr(datasets, "READ_CHARS", read_chars)
    items = [{"value": "a, [b] {c}" * n} for n in range(5)]
    assert list(iter_items(io.StringIO(json.dumps(items)))) == items
    assert list(iter_items(io.StringIO("\n".join(json.dumps(item) for item in items)))) == items


def test_file_cut_inside_a_character(tmp_path):
    whole = json.dumps([conversation("one", "two"), conversation("drei", "für")], ensure_ascii=False).encode()
    path = tmp_path / "cut.json"
    path.write_bytes(whole[: whole.index("ü".encode()) + 1])
    assert list(read_pairs(path)) == [("one", "two")]


def test_first_two_turns_of_conversations_that_have_them(tmp_path):
    items = [conversation("a", "b", "c"), conversation("alone"), conversation(), conversation("d", "e")]
    assert list(read_pairs(write(tmp_path / "x.json", items))) == [("a", "b"), ("d", "e")]


@pytest.mark.parametrize("bad", ["{'a': 1}", '{"a": 1 "b"}', '{"a": tru}', '{"a": "\\x"}', "nothing", '{"a": 1}}'])
@pytest.mark.parametrize("read_chars", [1, 1000])
def test_a_broken_object_is_named_with_its_place(monkeypatch, bad, read_chars):
    monkeypatch.setattr(datasets, "READ_CHARS", read_chars)
    text = f'[{{"value": 1}}, {bad}, {{"value": 3}}, {{"value": 4}}]'
    got = iter_items(io.StringIO(text))
    assert next(got) == {"value": 1}
    with pytest.raises(ValueError, match=r"item \d is broken at character (\d+)") as error:
        list(got)
    place = int(str(error.value).split("character ")[1].split(":")[0])
    assert text.index(bad) <= place <= text.index(bad) + len(bad)


def test_nesting_that_is_too_deep_is_named():
    with pytest.raises(ValueError, match="item 2, at character 11, is nested too deeply"):
        list(iter_items(io.StringIO('[{"a": 1}, ' + '{"a":' * 100_000)))


def test_an_array_within_an_object_ends_with_it():
    assert list(iter_items(io.StringIO(' {"b": 2}], "more": [{"c": 3}]}'), '[{"a": 1},')) == [{"a": 1}, {"b": 2}]


def test_conversations_in_other_shapes(tmp_path):
    turns = [
        [{"from": "human"}, {"value": "no question"}],
        ["as a", "string"],
        {"0": "a", "1": "dict"},
        [{"role": "user", "content": "as"}, {"role": "assistant", "content": "messages"}],
        [{"value": None}, {"value": 3}],
        [["list"], None],
        None,
        [{"value": "half \ud83d"}, {"value": "\ud83d\ude00 whole"}],
    ]
    path = tmp_path / "x.json"
    path.write_text("\ufeff" + json.dumps([{"conversations": each} for each in turns]), encoding="utf-8")
    assert list(read_pairs(path)) == [("as a", "string"), ("as", "messages"), ("half \ufffd", "\U0001f600 whole")]


def test_filter_and_limits(tmp_path):
    lengths = [(3, 50), (50, 3), (4, 4), (10, 30), (30, 10), (30, 11)]
    path = write(tmp_path / "x.json", [conversation(words(p), words(o)) for p, o in lengths])

    def drawn(num: int, **limits: int) -> set[tuple[int, int]]:
        return {(s.prompt_tokens, s.output_tokens) for s in load_sharegpt(path, Words(), num, **limits)}

    assert drawn(3, max_total_tokens=40) == {(4, 4), (10, 30), (30, 10)}
    assert drawn(2, max_total_tokens=40, max_prompt_tokens=10) == {(4, 4), (10, 30)}
    assert drawn(2, max_total_tokens=40, max_prompt_tokens=10, max_output_tokens=8) == {(4, 4), (10, 8)}
    with pytest.raises(ValueError, match="only 3 conversations that fit, of 4"):
        drawn(4, max_total_tokens=40)


def test_the_seed_decides(tmp_path):
    path = write(tmp_path / "x.json", [conversation(words(n), words(n)) for n in range(4, 40)])

    def draw(seed: int) -> list[Sample]:
        return load_sharegpt(path, Words(), 10, seed)

    assert draw(1) == draw(1) != draw(2)
    assert draw(1)[0].prompt == words(draw(1)[0].prompt_tokens)
