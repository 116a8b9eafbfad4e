"""Ids are of one form, and two processes never make the same."""

from __future__ import annotations

import os
import random
import re

from seesaw.server.ids import unique_id


def test_all_differ_and_have_one_form() -> None:
    random.seed(0)
    ids = [unique_id() for _ in range(1000)]
    random.seed(0)
    ids += [unique_id() for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)


def test_a_fork_makes_others() -> None:
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.write(writing, unique_id().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100).decode() != unique_id()
    os.close(reading)
    os.close(writing)
