"""Files and batches as OpenAI shows them, which is also how the store keeps them (`server.batches.store`)."""

from __future__ import annotations

import re
from typing import Annotated, Generic, Literal, Self, TypeVar

import msgspec
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from seesaw.engine.values.errors import RequestError

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED = ("failed", "completed", "expired", "cancelled")
ENDPOINTS = ("/v1/completions", "/v1/chat/completions")

MAX_METADATA = 16
LEAST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 86400  # of files that do not stay until they are deleted
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ExpiresAfter(TypedDict):
    """When a file is deleted, from when it is made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_LIFE_S, le=LONGEST_LIFE_S)]


class File(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int  # Unix seconds, and so is the next one
    expires_at: int | None = None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


def expires_at(created_at: int, after: ExpiresAfter | None) -> int | None:
    """When a file is deleted; None: when somebody does so."""
    return None if after is None else created_at + after["seconds"]


class FileDeleted(msgspec.Struct, frozen=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchError(msgspec.Struct, frozen=True):
    code: str
    message: str
    param: str | None = None
    line: int | None = None  # of the input file, from 1


class BatchErrors(msgspec.Struct, frozen=True):
    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Times are Unix seconds, each of when the batch came into the status that it is named by."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


T = TypeVar("T", File, Batch)


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some of a list, the ids of its ends, and whether there are more."""

    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"

    @classmethod
    def of(cls, found: list[T], limit: int) -> Self:
        """Of so many that were found or one more."""
        data = found[:limit]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data, first, last, len(found) > limit)


class FileList(Page[File], frozen=True):
    """Of files."""


class BatchList(Page[Batch], frozen=True):
    """Of batches."""


class BatchRequest(BaseModel):
    """The body of a request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = Field(default=None, max_length=MAX_METADATA)
    output_expires_after: ExpiresAfter | None = None

    def check(self) -> None:
        """Raise RequestError for what no file could make right."""
        if self.endpoint not in ENDPOINTS:
            raise RequestError(f"endpoint must be one of {', '.join(ENDPOINTS)}.", "endpoint")
        for key, value in (self.metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise RequestError("metadata has keys of at most 64 characters and values of at most 512.", "metadata")
        if self.window_s < 1:
            raise RequestError("completion_window must be a time such as 24h, 30m or 7d.", "completion_window")

    @property
    def window_s(self) -> int:
        """Seconds until the batch expires; 0 if it is no time."""
        match = re.fullmatch(r"(\d{1,6})([smhd])", self.completion_window)
        return 0 if match is None else int(match[1]) * _UNITS_S[match[2]]
