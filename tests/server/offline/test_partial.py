"""What is kept of an output, and how it comes to its end."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.job import Finished
from seesaw.server.batches.objects import RequestCounts
from seesaw.server.offline import partial
from seesaw.server.offline.partial import Partial
from seesaw.server.offline.source import Source, check_source, has_results
from tests.server.offline.harness import requests, write

NUM_ROWS = 10
LINES = [b'{"custom_id":"row-%d","response":%d}\n' % (row, row) for row in range(NUM_ROWS)]


def source(folder: Path, num_rows: int = NUM_ROWS) -> Source:
    path = write(folder / "in.jsonl", requests(map(str, range(num_rows))))
    return check_source(path, 100, 1000, threading.Event())


def results(*rows: int) -> list[Finished]:
    return [Finished(row, row % 5 == 0, LINES[row], 1) for row in rows]


def test_rows_are_kept_once_and_written_in_order(tmp_path: Path) -> None:
    made, output = source(tmp_path), tmp_path / "out.jsonl"
    kept = Partial(tmp_path / "p", made, "m")
    kept.keep(results(7, 0, 3))
    kept.keep(results(0, 4, 4))
    assert kept.counts == RequestCounts(NUM_ROWS, 3, 1)
    kept.close()
    kept = Partial(tmp_path / "p", made, "m")
    assert kept.counts == RequestCounts(NUM_ROWS, 3, 1) and not kept.is_complete
    assert [row.number for row in kept.unfinished()] == [1, 2, 5, 6, 8, 9]
    kept.keep(results(9, 8, 6, 5, 2, 1))
    assert kept.is_complete
    kept.finish(output)
    kept.close()
    assert output.read_bytes() == b"".join(LINES)
    assert has_results(output, made)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("cut", ["replace", "unlink", "rmtree"])
def test_an_end_that_is_cut_off_is_come_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    """Before the output has its name, before what it is made of counts for nothing, and before that is removed."""

    def copy_first(act: Callable[..., object]) -> Callable[..., object]:
        def acting(*arguments: object, **options: object) -> object:
            monkeypatch.undo()
            shutil.copytree(tmp_path / "at", tmp_path / "copy")
            return act(*arguments, **options)

        return acting

    made = source(tmp_path)
    (tmp_path / "at").mkdir()
    kept = Partial(tmp_path / "at" / "p", made, "m")
    kept.keep(results(*range(NUM_ROWS)))
    owner = {"replace": os, "unlink": Path, "rmtree": shutil}[cut]
    monkeypatch.setattr(owner, cut, copy_first(getattr(owner, cut)))
    kept.finish(tmp_path / "at" / "out.jsonl")
    kept.close()

    folder, output = tmp_path / "copy" / "p", tmp_path / "copy" / "out.jsonl"
    assert output.exists() == (cut != "replace")
    assert partial.database(folder).exists() == (cut != "rmtree")
    if cut != "rmtree":
        again = Partial(folder, made, "m")
        assert again.is_complete
        again.finish(output)
        again.close()
    assert output.read_bytes() == b"".join(LINES)


def test_a_result_that_is_torn_is_none(tmp_path: Path) -> None:
    made = source(tmp_path)
    kept = Partial(tmp_path / "p", made, "m")
    kept.keep(results(1, 2))
    kept.close()
    log = tmp_path / "p" / "results.log"
    log.write_bytes(log.read_bytes()[:-1])
    kept = Partial(tmp_path / "p", made, "m")
    assert kept.counts == RequestCounts(NUM_ROWS, 1, 0)
    assert log.read_bytes() == LINES[1]
    kept.close()


def test_it_belongs_to_one_process_input_and_model(tmp_path: Path) -> None:
    made = source(tmp_path)
    kept = Partial(tmp_path / "p", made, "m")
    with pytest.raises(ConfigError, match="another run writes to"):
        Partial(tmp_path / "p", made, "m")
    kept.close()
    with pytest.raises(ConfigError, match="of another model"):
        Partial(tmp_path / "p", made, "n")
    with pytest.raises(ConfigError, match="of another input"):
        Partial(tmp_path / "p", source(tmp_path, NUM_ROWS + 1), "m")
    Partial(tmp_path / "p", made, "m").close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        Partial(tmp_path / "file", made, "m")


def test_an_input_that_changes_is_noticed(tmp_path: Path) -> None:
    made = source(tmp_path)
    kept = Partial(tmp_path / "p", made, "m")
    made.path.write_bytes(b"{\n" * NUM_ROWS)
    with pytest.raises(ConfigError, match="has changed"):
        list(kept.unfinished())
    kept.close()
