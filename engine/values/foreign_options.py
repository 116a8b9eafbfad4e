"""Options that people know from vLLM and SGLang and that are named otherwise here.

Used by `server.settings` for flags and keys of a config file, and by `engine.llm` for keyword arguments. Options that
have the same name here need no word, and what is like one of ours is found by likeness.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from engine.values.errors import ConfigError
from engine.values.wording import GIB, at_least

# What is part of a layout here.
LAYOUTS = {
    **dict.fromkeys(("tensor_parallel_size", "tp_size", "tp"), "T"),
    **dict.fromkeys(("pipeline_parallel_size", "pp_size", "pp"), "P"),
    **dict.fromkeys(("data_parallel_size", "dp_size", "dp"), "D"),
}
# What to write instead, and an example of its value where that is another one.
_DEVICE_POOL = "give each device's KV pool its size", "kv_cache_memory_bytes", 20 * GIB
_HOST_POOL = "give the host's KV pool its size", "host_kv_bytes", 64 * GIB
INSTEAD: dict[str, tuple[str, str, str | int | None]] = {
    "tokenizer_path": ("use", "tokenizer", None),
    "context_length": ("use", "max_model_len", None),
    "gpu_memory_utilization": _DEVICE_POOL,
    "mem_fraction_static": _DEVICE_POOL,
    "num_gpu_blocks_override": ("use", "num_device_blocks", None),
    "page_size": ("use", "block_size", None),
    "swap_space": _HOST_POOL,
    "kv_offloading_size": _HOST_POOL,
    "hicache_size": _HOST_POOL,
    "max_running_requests": ("use", "max_num_seqs", None),
    "chunked_prefill_size": ("use", "max_num_batched_tokens", None),
    "max_num_queued_reqs": ("use", "max_queued_requests", None),
    "max_num_queued_tokens": ("use", "max_queued_tokens", None),
    "h11_max_incomplete_event_size": ("use", "max_header_bytes", None),
    "limit_concurrency": ("use", "max_connections", None),
    "timeout_keep_alive": ("use", "keep_alive_s", None),
    "shutdown_timeout": ("use", "shutdown_timeout_s", None),
    "sse_keep_alive_interval": ("use", "sse_keep_alive_s", None),
    "random_seed": ("use", "seed", None),
    "uvicorn_log_level": ("use", "log_level", None),
    "disable_custom_all_reduce": ("choose how shards add up", "custom_all_reduce", "off"),
}
_ALWAYS = "it is always done, so leave it out"
_NEVER = "it is never done, so leave it out"
_UNKNOWN = "there is nothing like it yet, so leave it out"
NOTHING = {
    "enable_chunked_prefill": _ALWAYS,
    "enable_request_id_headers": _ALWAYS,
    "enable_metrics": _ALWAYS,
    "enable_prompt_tokens_details": _ALWAYS,
    "trust_remote_code": _NEVER,
    "disable_log_requests": _NEVER,
    "no_enable_log_requests": _NEVER,
    "disable_uvicorn_access_log": _NEVER,
    "enforce_eager": _UNKNOWN,
    "enable_lora": _UNKNOWN,
    "speculative_config": _UNKNOWN,
    "cpu_offload_gb": _UNKNOWN,
}

Write = Callable[[str, str | int | None], str]
"""How one writes an option of ours, alone or with a value."""


def advice(name: str, value: str, write: Write) -> str | None:
    """What to do instead of an option with such a value; None if it is not known from elsewhere."""
    if name in LAYOUTS:
        layout = LAYOUTS[name] + (value if value.isdecimal() else "2")
        return f"write it as a layout, as in `{write('prefill', layout)}`"
    if name in INSTEAD:
        text, option, example = INSTEAD[name]
        return f"{text} {write(option, None)}" if example is None else f"{text}, as in `{write(option, example)}`"
    return NOTHING.get(name)


def as_flag(option: str, value: str | int | None = None) -> str:
    flag = f"--{option.replace('_', '-')}"
    return flag if value is None else f"{flag} {at_least(value) if isinstance(value, int) else value}"


def as_keyword(option: str, value: str | int | None = None) -> str:
    return option if value is None else f"{option}={json.dumps(value)}"


def check_keywords(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for a keyword argument that is not known, with what may have been meant."""
    for name in given:
        if name not in known:
            near = [f"did you mean {match}?" for match in difflib.get_close_matches(name, known, n=1)]
            instead = advice(name, str(given[name]), as_keyword) or "".join(near)
            raise ConfigError(f"there is no option {name}" + (f": {instead}" if instead else ""))
