"""Options that people know from vLLM and SGLang and that are named otherwise here.

Used by `server.settings` for flags and keys of a config file, and by `engine.llm` for keyword arguments. Options that
have the same name here need no word, and what is like one of ours is found by likeness.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB, at_least

# What is part of a layout here.
LAYOUTS = {
    **dict.fromkeys(("tensor_parallel_size", "tp_size", "tp", "num_shard"), "T"),
    **dict.fromkeys(("pipeline_parallel_size", "pp_size", "pp"), "P"),
    **dict.fromkeys(("data_parallel_size", "dp_size", "dp"), "D"),
}
Value = str | int | bool | None

# What to write instead, and an example of its value where that is another one.
_DEVICE_POOL = "give each device's KV pool its size", "kv_cache_memory_bytes", 20 * GIB
_HOST_POOL = "give the host's KV pool its size", "host_kv_bytes", 64 * GIB
_DEFAULTS = "write it to a file and name that", "generation_config", "generation_config.json"
INSTEAD: dict[str, tuple[str, str, Value]] = {
    "tokenizer_path": ("use", "tokenizer", None),
    **dict.fromkeys(("context_length", "ctx_size", "n_ctx", "max_seq_len"), ("use", "max_model_len", None)),
    **dict.fromkeys(("gpu_memory_utilization", "mem_fraction_static", "max_total_tokens"), _DEVICE_POOL),
    "num_gpu_blocks_override": ("use", "num_device_blocks", None),
    "page_size": ("use", "block_size", None),
    **dict.fromkeys(("swap_space", "kv_offloading_size", "enable_hierarchical_cache"), _HOST_POOL),
    **dict.fromkeys(("hicache_size", "hicache_ratio"), _HOST_POOL),
    **dict.fromkeys(("max_running_requests", "parallel"), ("use", "max_num_seqs", None)),
    **dict.fromkeys(
        ("chunked_prefill_size", "max_prefill_tokens", "max_batch_prefill_tokens"),
        ("use", "max_num_batched_tokens", None),
    ),
    **dict.fromkeys(("max_num_queued_reqs", "max_concurrent_requests"), ("use", "max_queued_requests", None)),
    "max_num_queued_tokens": ("use", "max_queued_tokens", None),
    "h11_max_incomplete_event_size": ("use", "max_header_bytes", None),
    "limit_concurrency": ("use", "max_connections", None),
    "timeout_keep_alive": ("use", "keep_alive_s", None),
    "schedule_policy": ("use", "scheduling_policy", None),
    "disable_radix_cache": ("write it", "enable_prefix_caching", False),
    **dict.fromkeys(("decode_attention_backend", "prefill_attention_backend"), ("use", "attention_backend", None)),
    **dict.fromkeys(("watchdog_timeout", "dist_timeout"), ("use", "step_timeout_s", None)),
    "shutdown_timeout": ("use", "shutdown_timeout_s", None),
    "sse_keep_alive_interval": ("use", "sse_keep_alive_s", None),
    "random_seed": ("use", "seed", None),
    **dict.fromkeys(("uvicorn_log_level", "log_level_http", "log_config_file"), ("use", "log_level", None)),
    **dict.fromkeys(("enable_log_requests", "log_requests"), ("write it", "access_log", True)),
    **dict.fromkeys(("override_generation_config", "preferred_sampling_params"), _DEFAULTS),
    "disable_custom_all_reduce": ("choose how shards add up", "custom_all_reduce", "off"),
}
_ALWAYS = "it is always done, so leave it out"
_NEVER = "it is never done, so leave it out"
_UNKNOWN = "there is nothing like it yet, so leave it out"
_ONE_HOST = "an engine runs on one host, so leave it out"
_REQUESTS = "requests say it, or the checkpoint's generation_config.json"
_CONFIG_JSON = "change the checkpoint's config.json"
_ONE_WAY = "there is one way here and nothing to choose, so leave it out"
_TEXT_TO_TEXT = "models that continue a text are all there are, so leave it out"
NOTHING = {
    **dict.fromkeys(("enable_chunked_prefill", "enable_mixed_chunk", "async_scheduling"), _ALWAYS),
    **dict.fromkeys(("enable_request_id_headers", "enable_metrics", "enable_server_load_tracking"), _ALWAYS),
    **dict.fromkeys(("enable_prompt_tokens_details", "enable_cache_report"), _ALWAYS),
    **dict.fromkeys(("trust_remote_code", "disable_log_requests", "no_enable_log_requests"), _NEVER),
    **dict.fromkeys(("disable_uvicorn_access_log", "enable_ssl_refresh", "disable_log_stats"), _NEVER),
    **dict.fromkeys(("enforce_eager", "disable_cuda_graph", "enable_torch_compile", "compilation_config"), _UNKNOWN),
    **dict.fromkeys(
        ("enable_lora", "lora_modules", "lora_paths", "speculative_config", "speculative_algorithm"), _UNKNOWN
    ),
    **dict.fromkeys(("cpu_offload_gb", "revision", "ep_size", "enable_expert_parallel"), _UNKNOWN),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port", "dist_init_addr"), _ONE_HOST),
    **dict.fromkeys(("distributed_executor_backend", "data_parallel_backend"), _ONE_HOST),
    **dict.fromkeys(("temperature", "top_p", "top_k", "max_tokens", "n_predict"), _REQUESTS),
    **dict.fromkeys(("hf_overrides", "rope_scaling", "rope_theta", "json_model_override_args"), _CONFIG_JSON),
    **dict.fromkeys(("cuda_graph_sizes", "cuda_graph_max_bs", "cuda_graph_bs", "max_seq_len_to_capture"), _ALWAYS),
    **dict.fromkeys(("enable_sleep_mode", "enable_eplb", "all2all_backend", "kv_transfer_config"), _UNKNOWN),
    **dict.fromkeys(("logits_processors", "middleware", "calculate_kv_scales", "code_revision"), _UNKNOWN),
    **dict.fromkeys(("tokenizer_revision", "api_server_count", "disaggregation_mode"), _UNKNOWN),
    **dict.fromkeys(("worker_use_ray", "headless", "data_parallel_size_local"), _ONE_HOST),
    **dict.fromkeys(("task", "runner", "convert", "is_embedding", "limit_mm_per_prompt"), _TEXT_TO_TEXT),
    **dict.fromkeys(("tokenizer_mode", "model_impl", "guided_decoding_backend", "grammar_backend"), _ONE_WAY),
    **dict.fromkeys(("max_num_partial_prefills", "long_prefill_token_threshold", "num_scheduler_steps"), _ONE_WAY),
    **dict.fromkeys(("stream_interval", "stream_output", "response_role", "max_logprobs"), _ONE_WAY),
    "download_dir": "set HF_HOME to it",
    "hf_token": "set HF_TOKEN to it",
    "threads": "set OMP_NUM_THREADS to it",
}
# What others call our values. It is taken as they are written in many a copied command.
_VALUES = {
    "dtype": {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"},
    "kv_cache_dtype": {"fp8_e4m3": "fp8"},
    "load_format": {"auto": "safetensors"},
}

_LIKENESS = 0.8  # of a misspelt name; what is less like it is another option

Write = Callable[[str, Value], str]
"""How one writes an option of ours, alone or with a value."""


def our_value(option: str, value: Any) -> Any:
    """A value of an option of ours by the name that it has here; what nobody names otherwise, as it is."""
    return _VALUES.get(option, {}).get(value, value) if isinstance(value, str) else value


def hint(name: str, value: str, known: Collection[str], write: Write) -> str:
    """What ends a message about an option that is not `known`: what to do instead of it with such a value, or which it
    may have meant; nothing if that cannot be said."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=_LIKENESS)
    instead = advice(name, value, write) or (f"did you mean {write(near[0], None)}?" if near else "")
    return f": {instead}" if instead else ""


def advice(name: str, value: str, write: Write) -> str | None:
    """What to do instead of an option with such a value; None if it is not known from elsewhere."""
    if name in LAYOUTS:
        layout = LAYOUTS[name] + (value if value.isdecimal() else "2")
        return f"write it as a layout, as in `{write('prefill', layout)}`"
    if name in INSTEAD:
        text, option, example = INSTEAD[name]
        return f"{text} {write(option, None)}" if example is None else f"{text}, as in `{write(option, example)}`"
    return NOTHING.get(name)


def as_flag(option: str, value: Value = None) -> str:
    name = option.replace("_", "-")
    match value:
        case None | True:
            return f"--{name}"
        case False:
            return f"--no-{name}"
        case _:
            return f"--{name} {at_least(value) if isinstance(value, int) else value}"


def as_key(option: str, value: Value = None) -> str:
    """Of a config file."""
    if value is None:
        return f'"{option}"'
    return f'"{option}": {json.dumps(_readable(value))}'


def as_keyword(option: str, value: Value = None) -> str:
    if value is None:
        return option
    return f"{option}={value if isinstance(value, bool) else json.dumps(_readable(value))}"


def _readable(value: Value) -> Value:
    """A size as people write it: every whole number of these examples is one."""
    return at_least(value) if type(value) is int else value


def check_keywords(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for a keyword argument that is not known, with what may have been meant."""
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no option {name}{hint(name, str(given[name]), known, as_keyword)}")
