"""Token ids in a body, read piece by piece: one call for millions of them would stop all other threads meanwhile."""

from __future__ import annotations

import re

import msgspec

_PIECE_BYTES = 256 << 10  # a millisecond
_IS_LIST_OF_LISTS = re.compile(rb"\s*\[\s*\[")
_INNER_LIST = re.compile(rb"\[[^\[\]]*\]")
_OF_IDS = b"0123456789-[], \t\r\n"
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode

Ids = list[int] | list[list[int]]


def take_ids(body: bytes, name: str) -> tuple[Ids | None, bytes]:
    """The token ids that a field holds, a list or a list of lists, and the body with `[0]` in their place; None and the
    whole body if it holds none, or anything else. The body's size is bounded in all but numbers."""
    try:
        fields = _decode_fields(body)
        raw = bytes(fields.get(name, b""))
        if not raw.lstrip().startswith(b"[") or raw.translate(None, _OF_IDS):
            return None, body
        ids = _read_lists(raw) if _IS_LIST_OF_LISTS.match(raw) else _read_list(raw)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, too
        return None, body
    if not ids:
        return None, body
    fields[name] = msgspec.Raw(b"[0]")
    return ids, msgspec.json.encode(fields)


def _read_lists(raw: bytes) -> list[list[int]]:
    lists, end = [], raw.index(b"[") + 1
    for match in _INNER_LIST.finditer(raw, end):
        if raw[end : match.start()].strip(b" \t\r\n,"):
            raise ValueError("a number between lists, or a list in a list of lists")
        lists.append(_read_list(match[0]))
        end = match.end()
    if raw[end:].strip() != b"]":
        raise ValueError("something behind the last list")
    return lists


def _read_list(raw: bytes) -> list[int]:
    begin, end = raw.index(b"[") + 1, raw.rindex(b"]")
    ids: list[int] = []
    while end - begin > _PIECE_BYTES:
        comma = raw.rindex(b",", begin, begin + _PIECE_BYTES)
        ids += _decode_ids(b"[%b]" % raw[begin:comma])
        begin = comma + 1
    return ids + _decode_ids(b"[%b]" % raw[begin:end])
