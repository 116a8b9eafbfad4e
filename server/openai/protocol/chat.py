"""What `/v1/chat/completions` takes, beside what all requests for text have (`generation`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from seesaw.engine.sampling.params import MAX_LOGPROBS
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import Body
from seesaw.server.openai.protocol.generation import UNSUPPORTED, GenerationRequest
from seesaw.server.openai.protocol.messages import Message


class Function(Body):
    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool that the model may call; templates are given it as it came."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function


class ChatRequest(GenerationRequest):
    """The body of a request."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED | {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "thinking_token_budget": (),
        "web_search_options": (),
    }

    prompt_param: ClassVar[str] = "messages"  # what errors about the prompt name

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    # Beyond OpenAI's, as in vLLM:
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    echo: bool = False
    include_reasoning: bool = True
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def token_limit(self) -> tuple[int | None, str]:
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return self.max_tokens, "max_tokens"

    @property
    def num_top_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def parts_logprobs(self) -> bool:
        """Whether only tokens of the answer's text are told of, and not those of reasoning and calls."""
        return False

    @property
    def begins_message(self) -> bool:
        """Whether the model is to begin a message of its own."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @property
    def may_call(self) -> bool:
        """Whether calls of tools are looked for in the answer."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def must_call(self) -> list[Function]:
        """The functions of which the answer must be a call; none if it may be a text."""
        if self.tool_choice in (None, "none", "auto"):
            return []
        functions = [tool.function for tool in self.tools or ()]
        return functions if self.chosen is None else [each for each in functions if each.name == self.chosen]

    @property
    def chosen(self) -> str | None:
        """The function that the client has chosen by its name."""
        match self.tool_choice:
            case {"type": "function", "function": {"name": str(name)}}:
                return name
        return None

    @property
    def role(self) -> str:
        """Of the answer."""
        return "assistant" if self.begins_message else self.messages[-1].role

    @property
    def echoed(self) -> str:
        """What the answer's text begins with: what it continues, if that is asked for."""
        last = self.messages[-1]
        return last.content or "" if self.echo and last.role == self.role else ""

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise RequestError(
                f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {self.top_logprobs}.", "top_logprobs"
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
        if self.tool_choice not in (None, "auto", "none", "required") and self.chosen is None:
            raise RequestError("tool_choice must be auto, none, required, or name a function.", "tool_choice")
        if self.tool_choice in (None, "none"):
            return
        if not self.tools:
            raise RequestError("tool_choice needs tools: give some.", "tool_choice")
        if self.chosen is not None and not self.must_call:
            raise RequestError("tool_choice must name a function that is among the tools.", "tool_choice")
        if self.must_call and self.structured is not None:
            raise RequestError(
                f"{self.structured[1]} and a tool_choice that forces a call exclude one another: choose one.",
                "tool_choice",
            )

    def conversation(self) -> list[dict[str, Any]]:
        """The messages for a chat template."""
        return [message.model_dump() for message in self.messages]

    def tool_schemas(self) -> list[dict[str, Any]]:
        """The tools for a chat template."""
        return [tool.model_dump(exclude_unset=True) | {"type": tool.type} for tool in self.tools or ()]
