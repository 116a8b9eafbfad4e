"""The HTTP server's configuration. `server.cli` derives flags and config-file keys from these fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from seesaw.engine.values.errors import ConfigError

KIB, MIB = 1 << 10, 1 << 20

ToolCallParser = Literal["none", "hermes", "llama3_json", "mistral", "pythonic"]
ReasoningParser = Literal["none", "deepseek_r1", "qwen3"]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ServerConfig:
    """All that the server needs to know beside `engine.values.config.EngineConfig`."""

    host: str = _option("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = _option(8000, "port to listen on; 0 takes a free one")
    uds: str = _option("", "path of a Unix socket to listen on instead of a port")
    root_path: str = _option("", "path below which a proxy shows this server, such as /llm")
    ssl_certfile: str = _option("", "certificate chain; serves HTTPS with it")
    ssl_keyfile: str = _option("", "private key of the certificate, unless its file holds it")
    ssl_ca_certs: str = _option("", "certificates of the authorities that clients' own certificates come from")
    ssl_cert_reqs: Literal["none", "optional", "required"] = _option(
        "none", "whether clients must show a certificate of their own"
    )
    allowed_origins: tuple[str, ...] = _option(
        (), "origin whose pages may call this server from browsers (CORS), * for all; may be given several times"
    )
    allowed_methods: tuple[str, ...] = _option((), "methods that such pages may use (default: all)")
    allowed_headers: tuple[str, ...] = _option((), "headers that such pages may send (default: all)")
    allow_credentials: bool = _option(False, "let such pages send cookies and other credentials")

    served_model_name: tuple[str, ...] = _option(
        (), "model name that clients use; of several, answers have the first (default: the model as given)"
    )
    api_key: tuple[str, ...] = _option(
        (),
        "key that clients of /v1, /tokenize, /detokenize, /tokenizer_info, /status and /reset_prefix_cache must send; "
        "may be given several times (default: $SEESAW_API_KEY, else none)",
    )

    chat_template: str = _option(
        "", "Jinja chat template, as a file or as the template itself (default: the tokenizer's)"
    )
    trust_request_chat_template: bool = _option(False, "let clients bring chat templates of their own")
    enable_auto_tool_choice: bool = _option(
        False, "let the model decide about tool calls, and look for them in its answers with --tool-call-parser"
    )
    tool_call_parser: ToolCallParser = _option("none", "how the model writes tool calls")
    reasoning_parser: ReasoningParser = _option("none", "how the model parts reasoning from its answer")
    generation_config: str = _option(
        "auto",
        "sampling for what requests leave out: auto takes the model's generation_config.json, vllm OpenAI's defaults, "
        "a path another such file",
    )

    enable_tokenizer_info_endpoint: bool = _option(
        False, "serve /tokenizer_info: the tokenizer's configuration and the chat template, for clients that ask for it"
    )
    health_timeout_s: float = _option(10.0, "/health says 503 if the engine's loop does not turn within this time")
    shutdown_timeout_s: float = _option(
        0.0, "after SIGTERM, time for requests in flight to end before they are aborted"
    )
    engine_timeout_s: float = _option(
        60.0, "an engine that leaves a ping unanswered for so long while requests run is ended, and counts as dead"
    )
    restart_engine: int = _option(
        0,
        "how many times an engine that died is started again before its death ends the server; requests of which "
        "nothing was generated wait for it",
    )
    keep_alive_s: float = _option(5.0, "an idle connection is closed after this time")
    sse_keep_alive_s: float = _option(
        0.0, "a stream in which nothing came for so long sends a comment, so that no proxy cuts it; 0 sends none"
    )
    max_queued_tokens: int = _option(
        8 * MIB, "most tokens of prompts that wait for their prefill; more are refused with 503"
    )
    max_prompts: int = _option(2048, "most prompts in one request")
    max_body_bytes: int = _option(16 * MIB, "largest request body, and largest line of a batch's input")
    max_total_body_bytes: int = _option(
        256 * MIB, "most bytes of the bodies of all requests in progress; what comes beyond is refused with 503"
    )
    max_header_bytes: int = _option(64 * KIB, "largest head of a request")
    max_connections: int = _option(
        8192, "most connections, fewer where the process may open fewer files; more are closed with 503"
    )
    header_timeout_s: float = _option(10.0, "a client whose request's head is not here within this time is cut off")
    body_timeout_s: float = _option(60.0, "the same of the body")
    send_timeout_s: float = _option(300.0, "a client that takes nothing of its answer for so long is cut off")

    data_dir: str = _option(
        "", "folder to keep files and batches in; without it there are no /v1/files and no /v1/batches (default: none)"
    )
    max_file_bytes: int = _option(2048 * MIB, "largest file that may be uploaded")
    max_batch_rows: int = _option(1_000_000, "most requests in a batch")

    page: bool = _option(True, "serve a page at / that shows what the server does, and /status, which has its numbers")
    disable_fastapi_docs: bool = _option(False, "serve no /docs and no /openapi.json")
    log_level: Literal["debug", "info", "warning", "error"] = _option("info", "what to log on stderr")
    access_log: bool = _option(False, "log every HTTP request")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, not {self.port}")
        for name in ("health_timeout_s", "engine_timeout_s", "header_timeout_s", "body_timeout_s", "send_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a positive number of seconds, not {getattr(self, name)}")
        if self.restart_engine < 0:
            raise ConfigError(f"restart_engine must be 0 or a number of times, not {self.restart_engine}")
        for name in ("shutdown_timeout_s", "keep_alive_s", "sse_keep_alive_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or a number of seconds, not {getattr(self, name)}")
        for name in (
            *("max_queued_tokens", "max_prompts", "max_connections"),
            *("max_body_bytes", "max_total_body_bytes", "max_header_bytes"),
            *("max_file_bytes", "max_batch_rows"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if bool(self.root_path) != self.root_path.startswith("/") or self.root_path.endswith("/"):
            raise ConfigError(f"root_path must begin with a slash and not end with one, not {self.root_path!r}")
        if not self.ssl_certfile and (self.ssl_keyfile or self.ssl_ca_certs or self.ssl_cert_reqs != "none"):
            raise ConfigError("TLS needs a certificate: name one with ssl_certfile")
        if self.ssl_cert_reqs != "none" and not self.ssl_ca_certs:
            raise ConfigError("ssl_cert_reqs needs certificates to check clients by: name them with ssl_ca_certs")
        if self.uds and self.ssl_certfile:
            raise ConfigError("uds and ssl_certfile exclude each other: leave one out")
        if "" in self.served_model_name:
            raise ConfigError("served_model_name must not be empty: leave it out for the model as given")
        if "" in self.api_key:
            raise ConfigError("api_key must not be empty: leave it out to serve everyone")
        if self.enable_auto_tool_choice and self.tool_call_parser == "none":
            raise ConfigError("enable_auto_tool_choice needs a tool_call_parser: name the model's, such as hermes")
