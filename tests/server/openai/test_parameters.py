"""What docs/serving.md says of parameters that are refused and ignored is what the protocol does."""

from __future__ import annotations

import re
from pathlib import Path

from seesaw.server.openai.protocol.chat import ChatRequest
from seesaw.server.openai.protocol.completions import CompletionRequest
from seesaw.server.openai.protocol.generation import IGNORED, UNSUPPORTED
from seesaw.server.openai.protocol.responses import ResponsesRequest

SERVING = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def told(pattern: str) -> set[str]:
    """The names in what the pattern's group finds."""
    found = re.search(pattern, SERVING)
    assert found is not None
    return set(re.findall(r"`(\w+)`", found[1]))


def test_the_readme_names_what_is_refused_and_what_is_ignored() -> None:
    assert told(r"\| all three \| (.*) \|") == UNSUPPORTED.keys()
    for word, request in (("chats", ChatRequest), ("completions", CompletionRequest), ("responses", ResponsesRequest)):
        assert told(rf"\| {word}, too \| (.*) \|") == request.unsupported.keys() - UNSUPPORTED.keys()
    assert told("Parameters nobody knows are ignored, and so are (.*); each") == IGNORED
