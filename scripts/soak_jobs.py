"""What the soak asks for, in which forms, and what is right of an answer. Used by `soak.py` and `soak_client.py`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seesaw.clients.datasets import Sample

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
SCHEMA_TOKENS = 200  # enough for what the schema allows
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "b"]}, "list": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4}},
    "required": ["name", "list"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Form:
    """A way to ask for what follows a conversation's first turn."""

    path: str
    options: dict[str, Any] = field(default_factory=dict)


FORMS = {
    "completion": Form(COMPLETIONS),
    "chat": Form(CHATS),
    "logprobs": Form(COMPLETIONS, {"logprobs": 3}),
    "several": Form(COMPLETIONS, {"n": 3}),
    "sampled": Form(CHATS, {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5}),
    "schema": Form(CHATS, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}),
}


@dataclass(frozen=True)
class Job:
    """One request. `cut_after`: hang up after so many chunks, with far more tokens asked for."""

    sample: Sample
    max_tokens: int
    cut_after: int | None = None
    form: str = "completion"

    @property
    def path(self) -> str:
        return FORMS[self.form].path

    def body(self, model: str) -> dict[str, Any]:
        """Streamed, with the usage so far in each chunk."""
        prompt = self.sample.prompt
        is_chat = self.path == CHATS
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        asked |= {"model": model, "max_tokens": self.max_tokens, "temperature": 0, "ignore_eos": self.form != "schema"}
        asked |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        return asked | FORMS[self.form].options


@dataclass
class Outcome:
    """What a client saw of its request. Tokens are the server's, from the usage that it streams."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_logprobs: int = 0
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None

    def take(self, chunk: dict[str, Any]) -> None:
        """A chunk of the stream came. Raises ValueError if it is an error."""
        if "error" in chunk:
            raise ValueError(f"error in the stream: {chunk['error'].get('message')}")
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.completion_tokens = usage["completion_tokens"]
        for choice in chunk["choices"]:
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            self.num_logprobs += len((choice.get("logprobs") or {}).get("tokens", ()))
            self.text += choice.get("text") or choice.get("delta", {}).get("content") or ""


def make_jobs(samples: list[Sample], forms: Sequence[str], num_cut: int, context: int, seed: int) -> list[Job]:
    """A job for each conversation in each form, shuffled if there are several. `num_cut` of them ask for all that the
    context has room for, to be cut early."""
    rng = random.Random(seed)
    wanted = [(sample, form) for form in forms for sample in samples]
    if len(forms) > 1:
        rng.shuffle(wanted)
    cut = set(rng.sample(range(len(wanted)), num_cut))
    jobs = []
    for i, (sample, form) in enumerate(wanted):
        # What a chat's template adds to the prompt is not known here.
        room = context - sample.prompt_tokens if FORMS[form].path == COMPLETIONS else context // 4
        if i in cut:
            jobs.append(Job(sample, room, rng.randint(1, 8), form))
        else:
            jobs.append(Job(sample, SCHEMA_TOKENS if form == "schema" else min(sample.output_tokens, room), None, form))
    return jobs


def discrepancies(job: Job, outcome: Outcome) -> list[str]:
    """What is wrong with an answer, each beginning with a verb."""
    if outcome.error:
        return [f"failed: {outcome.error}"]
    found = []
    if job.path == COMPLETIONS and outcome.prompt_tokens != job.sample.prompt_tokens:
        found.append(f"had {job.sample.prompt_tokens} prompt tokens, counted {outcome.prompt_tokens}")
    if job.form == "logprobs" and outcome.num_logprobs != outcome.completion_tokens:
        found.append(f"got logprobs of {outcome.num_logprobs} of {outcome.completion_tokens} tokens")
    if job.cut_after is not None:
        return found
    if job.form == "schema" and outcome.finish_reason == "stop":  # a random model may fill its tokens with spaces
        if not _fits_schema(outcome.text):
            found.append(f"ended with {outcome.text!r}, which its schema does not allow")
        return found
    expected = job.max_tokens * FORMS[job.form].options.get("n", 1)
    if outcome.completion_tokens != expected:
        found.append(f"got {outcome.completion_tokens} of {expected} tokens")
    if outcome.finish_reason != "length":
        found.append(f"ended with finish_reason {outcome.finish_reason!r}, not 'length'")
    return found


def _fits_schema(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return set(value) == {"name", "list"} and value["name"] in "ab" and set(value["list"]) <= {1, 2}
