"""Files and batches as OpenAI shows them, which is also how the store keeps them (`server.batches.store`)."""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from pydantic import BaseModel, Field

from seesaw.engine.values.errors import RequestError

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED = ("failed", "completed", "expired", "cancelled")
ENDPOINTS = ("/v1/completions", "/v1/chat/completions")

MAX_METADATA = 16
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class File(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int  # Unix seconds
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, frozen=True):
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


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

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


class BatchList(msgspec.Struct, frozen=True):
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class BatchRequest(BaseModel):
    """The body of a request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = Field(default=None, max_length=MAX_METADATA)

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
