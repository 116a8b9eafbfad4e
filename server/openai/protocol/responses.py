"""What `/v1/responses` takes: a chat in another shape, and the chat that it is."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field

from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import Body
from seesaw.server.openai.protocol.chat import ChatRequest, Tool
from seesaw.server.openai.protocol.generation import UNSUPPORTED, GenerationRequest
from seesaw.server.openai.protocol.input_items import InputItem, as_messages
from seesaw.server.openai.protocol.messages import Message

LOGPROBS = "message.output_text.logprobs"  # what clients include to be told of them
NO_STORE = "This server stores no responses: send the whole conversation as input."


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(Body):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_tool(self) -> Tool:
        """The same in the shape of chats."""
        return Tool.model_validate(
            {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}
        )


class ReasoningOptions(Body):
    effort: str | None = None
    summary: str | None = None


class TextOptions(Body):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(GenerationRequest):
    """The body of a request."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED | {
        "background": (False,),
        "logprobs": (False,),
        "prompt": (),
        "truncation": ("disabled",),
    }

    input: Annotated[
        list[InputItem],
        Field(min_length=1),
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    max_tool_calls: int | None = None  # of OpenAI's own tools, of which there are none
    # Beyond OpenAI's, as in vLLM:
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """A request that is a chat. Raises RequestError and pydantic's ValidationError."""
        request = super().parse(body)
        request.check()
        _ = request.chat
        return request

    def check(self) -> None:
        super().check()
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name) is not None:
                raise RequestError(NO_STORE, name)
        if self.max_tokens is not None:
            raise RequestError("max_tokens is max_output_tokens here: rename it.", "max_tokens")
        if self.n not in (None, 1):
            raise RequestError("n must be 1: a response has one answer.", "n")
        if self.top_logprobs and not self.includes_logprobs:
            raise RequestError(f"top_logprobs needs include to have {LOGPROBS}.", "top_logprobs")
        if self.text_format.get("type") not in ("text", "json_object", "json_schema"):
            raise RequestError("text.format.type must be text, json_object or json_schema.", "text.format")
        if self.text_format.get("type") == "json_schema" and not isinstance(
            self.text_format.get("schema"), dict | bool
        ):
            raise RequestError("text.format of type json_schema needs a schema, as an object.", "text.format.schema")

    @property
    def includes_logprobs(self) -> bool:
        """Whether the tokens of the answer's text are told of."""
        return LOGPROBS in (self.include or ())

    @property
    def text_format(self) -> dict[str, Any]:
        """What shape the answer's text shall have."""
        return (self.text and self.text.format) or {"type": "text"}

    @cached_property
    def chat(self) -> ChatRequest:
        """The chat that this is. Raises RequestError and pydantic's ValidationError, unless `parse` has made it."""
        messages = as_messages(self.input)
        if self.instructions:
            messages.insert(0, Message(role="system", content=self.instructions))
        same = {*GenerationRequest.model_fields, "parallel_tool_calls", "chat_template", "chat_template_kwargs"}
        return _Conversation(
            **{name: getattr(self, name) for name in self.model_fields_set & same - {"stream_options"}},
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.includes_logprobs,
            top_logprobs=self.top_logprobs,
            tools=[tool.as_tool() for tool in self.tools or ()],
            tool_choice=_named_function(self.tool_choice),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            continue_final_message=self.input[-1].is_unfinished,
            **self._response_format,
        )

    @property
    def _response_format(self) -> dict[str, Any]:
        """`text.format` as chats have it, who wrap a schema once more."""
        shape = self.text_format
        if shape.get("type") == "text":
            return {}
        if self.response_format is not None:
            raise RequestError("response_format is text.format here: give only that one.", "response_format")
        wrapped = {"json_schema": {**shape}} if shape.get("type") == "json_schema" else {}
        return {"response_format": {"type": shape.get("type"), **wrapped}}


class _Conversation(ChatRequest):
    """A chat whose errors name what the client sent."""

    prompt_param: ClassVar[str] = "input"

    @property
    def token_limit(self) -> tuple[int | None, str]:
        return self.max_completion_tokens, "max_output_tokens"

    @property
    def parts_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def structured(self) -> tuple[StructuredOutputs, str] | None:
        asked = super().structured
        if asked is not None and asked[1] == "response_format":
            return asked[0], "text.format"
        return asked


def _named_function(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A choice of a tool in the shape of chats, which name a function one level deeper."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
