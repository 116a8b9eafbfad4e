"""The engine's configuration: one frozen dataclass, validated in one place.

The CLI derives its flags, and a config file its keys, from these fields (`server.cli`), so a name, a
default and a help text exist once. Everything that can be checked without the checkpoint is checked
here; what needs the model's sizes, or the host's, is `engine.sizing`'s to check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
QuantizationMode = Literal["auto", "fp8"]
KVCacheDtype = Literal["auto", "fp8"]
LoadFormat = Literal["safetensors", "dummy"]
WeightsMode = Literal["auto", "resident", "reload"]
Device = Literal["auto", "cpu", "cuda"]
AttentionBackend = Literal["auto", "fa2", "fa3"]
CustomAllReduce = Literal["auto", "off"]
ExecutorName = Literal["processes", "simulated"]


YEAR_S = 365 * 86400
_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


def _option(default: Any, help: str, *, least: float = 0, most: float = math.inf) -> Any:
    """A setting. `least` and `most` bound it where it is a number."""
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True)
class EngineConfig:
    """All that the engine, its workers and `seesaw.LLM` need to know. Layouts are written as in `P4`, `T2P2`."""

    model: str = _option("", "checkpoint folder (config.json and *.safetensors) or hub name")
    tokenizer: str = _option("", "tokenizer folder or hub name (default: the model's)")
    dtype: Dtype = _option("auto", "auto is the checkpoint's")
    quantization: QuantizationMode = _option(
        "auto", "fp8 rounds linear layers to 8 bits (e4m3) while they are read; auto keeps what the checkpoint holds"
    )
    shape: str = _option(
        "", "folder whose config.json gives the sizes of dummy weights and simulated models (default: the model's)"
    )
    load_format: LoadFormat = _option("safetensors", "dummy makes random weights of the right shapes")
    device: Device = _option("auto", "auto is cuda where there is a GPU")
    attention_backend: AttentionBackend = _option(
        "auto",
        "FlashAttention 2 or 3 for prompts on GPUs; 3 exists for compute capability 9.0 alone (H100, H200), where auto "
        "takes it for long chunks, and decodes over a KV cache in 8 bits by XQA's kernels",
    )
    custom_all_reduce: CustomAllReduce = _option(
        "auto",
        "how tensor shards on GPUs add up: auto is in memory that they share, where NVLink connects all of a stage; "
        "off is always by NCCL",
    )
    executor: ExecutorName = _option(
        "processes", "simulated computes nothing, on a virtual clock (for tests and planning); a server answers at once"
    )
    host_profile: str = _option(
        "",
        "simulated: file with a host's rates, as `seesaw bench limits --output-json` saves them and configs/hosts/ has "
        "some (default: round figures, of no host)",
    )
    simulated_step_s: float = _option(
        0.0, "simulated: real time of a forward step, to load the server at a known rate (0: as fast as it can)"
    )

    prefill: str = _option("T1", "layout of the prefill phase, e.g. P4")
    decode: str = _option("", "layout of the decode phase, e.g. T4 (default: the prefill layout, never switching)")
    tail: str = _option("", "optional layout for the last few sequences, e.g. T4")
    weights: WeightsMode = _option(
        "auto",
        "how a transition gets its weights: all layouts resident, or reload from the host copy; auto is resident where "
        "that leaves enough GPU memory for KV: the pool asked for, else half of what reload would leave",
    )

    max_model_len: int = _option(0, "longest prompt plus output in tokens (default: the model's context)")
    block_size: int = _option(16, "tokens in a KV block", least=1, most=4096)
    kv_cache_dtype: KVCacheDtype = _option(
        "auto",
        "fp8 keeps K and V in 8 bits (e4m3) in both pools: more tokens in the same room; auto is the model's dtype",
    )
    kv_cache_memory_bytes: int = _option(
        0, "KV pool of each device (default: what is free on a GPU, 1 GiB on the CPU, 4 GiB simulated)"
    )
    num_device_blocks: int = _option(0, "KV blocks of each device pool; overrides kv_cache_memory_bytes")
    host_kv_bytes: int = _option(4 * GIB, "shared host KV pool, used when layouts differ")
    num_host_blocks: int = _option(0, "KV blocks of the host pool; overrides host_kv_bytes")

    enable_prefix_caching: bool = _option(
        True,
        "keep the KV of what was computed, on devices and host, until its blocks are needed, for prompts that begin so",
    )
    max_num_seqs: int = _option(256, "most sequences decoding at once in a replica", least=1, most=16384)
    max_num_batched_tokens: int = _option(
        2048, "most tokens in one forward step; longer prompts are chunked", least=1, most=1 << 20
    )
    max_queued_requests: int = _option(
        16384, "most requests waiting for their prefill; more are refused with 503", least=1
    )

    scheduling_policy: Literal["fcfs", "priority"] = _option(
        "fcfs", "who is served first: whoever came first, or the lowest `priority` (others may starve)"
    )
    policy: Literal["cost", "paper"] = _option(
        "cost", "when to change layout: by measured times, or as the paper does, by full and empty pools"
    )
    surge_min_tokens: int = _option(
        -1,
        "paper's policy: fewer waiting prompt tokens are prefilled in the decode layout (-1: four steps full of them; "
        "0: none)",
        least=-1,
    )
    tail_max_seqs: int = _option(
        8, "paper's policy: with nothing waiting and at most so many sequences left, use the tail layout"
    )
    max_stall_s: float = _option(60.0, "longest time that running sequences stand still for a prefill phase")
    max_wait_s: float = _option(
        60.0,
        "a waiting prompt goes before sequences on the host, or ends a decode phase, when none has begun for so long",
    )

    seed: int = _option(0, "seed of requests that bring none, and of dummy weights", most=(1 << 31) - 1)
    trace: str = _option("", "file for a timeline in Chrome's trace format, which Perfetto opens (default: none)")
    step_timeout_s: float = _option(300.0, "a step that takes longer counts as a dead worker", least=0.1, most=YEAR_S)
    start_timeout_s: float = _option(1800.0, "longest time for workers to load and warm up", least=0.1, most=YEAR_S)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if get_origin(hints[f.name]) is Literal and value not in get_args(hints[f.name]):
                raise ConfigError(f"{f.name} must be one of {', '.join(get_args(hints[f.name]))}, not {value!r}")
            if (kind := _KINDS.get(hints[f.name])) is not None and (
                not isinstance(value, kind[0]) or (isinstance(value, bool) and kind[0] is not bool)
            ):
                raise ConfigError(f"{f.name} must be {kind[1]}, not {value!r}")
            if hints[f.name] in (int, float):
                least, most = f.metadata["least"], f.metadata["most"]
                if not (least <= value <= most and value != math.inf):
                    bound = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                    raise ConfigError(f"{f.name} must be {bound}, not {value}")
        if self.max_model_len == 1:
            raise ConfigError("max_model_len must be at least 2, for one prompt token and one output token")
        _ = self.plan  # raises for layouts that cannot be

    @property
    def surge_threshold_tokens(self) -> int:
        """What `surge_min_tokens` stands for."""
        return 4 * self.max_num_batched_tokens if self.surge_min_tokens < 0 else self.surge_min_tokens

    @property
    def communication_timeout_s(self) -> float:
        """When torch.distributed gives up on a peer, by killing the worker or with a traceback.

        What decides is the executor: it gives the start `start_timeout_s` and a step `step_timeout_s`, from before the
        workers' first operation, and says which worker it waited for. So this comes later than both.
        """
        return max(self.start_timeout_s, self.step_timeout_s) + 60.0

    @property
    def shape_source(self) -> str:
        """The checkpoint folder or hub name whose config.json holds."""
        needs_weights = self.load_format != "dummy" and self.executor != "simulated"
        return self.model if needs_weights else self.shape or self.model

    @cached_property
    def plan(self) -> Plan:
        prefill = Layout.parse(self.prefill)
        return Plan(
            prefill=prefill,
            decode=Layout.parse(self.decode) if self.decode else prefill,
            tail=Layout.parse(self.tail) if self.tail else None,
        )
