"""What the soak asks for in each form, and what it finds wrong with answers."""

from __future__ import annotations

import pytest
from soak_jobs import CHATS, FORMS, Job, Outcome, discrepancies, make_jobs

from seesaw.clients.datasets import Sample

SAMPLES = [Sample(f"prompt {number}", 2 + number, 5 + number) for number in range(20)]


def test_every_conversation_is_asked_for_in_every_form_and_some_are_cut() -> None:
    jobs = make_jobs(SAMPLES, list(FORMS), num_cut=7, context=100, seed=0)
    assert {(job.sample.prompt, job.form) for job in jobs} == {(s.prompt, form) for s in SAMPLES for form in FORMS}
    assert sum(job.cut_after is not None for job in jobs) == 7
    for job in jobs:
        body = job.body("m")
        assert ("messages" in body) == (job.path == CHATS) != ("prompt" in body)
        assert body.items() >= FORMS[job.form].options.items()


@pytest.mark.parametrize(
    ("form", "outcome", "sentences"),
    [
        ("completion", Outcome(2, 5, finish_reason="length"), []),
        ("completion", Outcome(3, 4, finish_reason="stop"), ["had 2 prompt", "got 4 of 5", "ended with finish_reason"]),
        ("completion", Outcome(error="it broke"), ["failed: it broke"]),
        ("chat", Outcome(9, 5, finish_reason="length"), []),
        ("several", Outcome(2, 15, finish_reason="length"), []),
        ("several", Outcome(2, 5, finish_reason="length"), ["got 5 of 15"]),
        ("logprobs", Outcome(2, 5, 5, finish_reason="length"), []),
        ("logprobs", Outcome(2, 5, 4, finish_reason="length"), ["got logprobs of 4 of 5"]),
        ("schema", Outcome(9, 7, text='{"name": "b", "list": [1, 2]}', finish_reason="stop"), []),
        ("schema", Outcome(9, 7, text='{"name": "c", "list": []}', finish_reason="stop"), ["ended with"]),
        ("schema", Outcome(9, 7, text='{"name": ', finish_reason="stop"), ["ended with"]),
        ("schema", Outcome(9, 4, text="{", finish_reason="length"), ["got 4 of 5"]),
    ],
)
def test_what_is_wrong_with_an_answer(form: str, outcome: Outcome, sentences: list[str]) -> None:
    found = discrepancies(Job(SAMPLES[0], 5, None, form), outcome)
    assert len(found) == len(sentences)
    assert all(line.startswith(sentence) for line, sentence in zip(found, sentences, strict=True)), found


def test_chunks_make_an_outcome() -> None:
    outcome = Outcome()
    outcome.take({"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "usage": None})
    outcome.take({"choices": [{"text": "b", "finish_reason": "stop", "logprobs": {"tokens": ["x", "y"]}}]})
    outcome.take({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert outcome == Outcome(3, 4, 2, "ab", "stop")
    with pytest.raises(ValueError, match="it broke"):
        outcome.take({"error": {"message": "it broke"}})
