"""Flags that people know from vLLM and SGLang and that are named otherwise here. Used by `server.settings`.

Flags that have the same name here need no word, and what is like one of ours is found by likeness.
"""

from __future__ import annotations

# What is part of a layout here.
LAYOUTS = {
    **dict.fromkeys(("--tensor-parallel-size", "--tp-size", "-tp"), "T"),
    **dict.fromkeys(("--pipeline-parallel-size", "--pp-size", "-pp"), "P"),
    **dict.fromkeys(("--data-parallel-size", "--dp-size", "-dp"), "D"),
}
_MODEL = "name the model without a flag, as in `seesaw serve MODEL`"
_DEVICE_POOL = "give each device's KV pool its size with --kv-cache-memory-bytes, as in `20GiB`"
_HOST_POOL = "give the host's KV pool its size with --host-kv-bytes, as in `64GiB`"
_ALWAYS = "it is always done, so leave the flag out"
_NEVER = "it is never done, so leave the flag out"
_UNKNOWN = "there is nothing like it yet, so leave it out"
# What to do instead.
ADVICE = {
    "--model": _MODEL,
    "--model-path": _MODEL,
    "--tokenizer-path": "use --tokenizer",
    "--context-length": "use --max-model-len",
    "--gpu-memory-utilization": _DEVICE_POOL,
    "--mem-fraction-static": _DEVICE_POOL,
    "--num-gpu-blocks-override": "use --num-device-blocks",
    "--page-size": "use --block-size",
    "--swap-space": _HOST_POOL,
    "--kv-offloading-size": _HOST_POOL,
    "--hicache-size": _HOST_POOL,
    "--max-running-requests": "use --max-num-seqs",
    "--chunked-prefill-size": "use --max-num-batched-tokens",
    "--max-num-queued-reqs": "use --max-queued-requests",
    "--shutdown-timeout": "use --shutdown-timeout-s",
    "--sse-keep-alive-interval": "use --sse-keep-alive-s",
    "--random-seed": "use --seed",
    "--uvicorn-log-level": "use --log-level",
    "--disable-custom-all-reduce": "write `--custom-all-reduce off`",
    "--enable-chunked-prefill": _ALWAYS,
    "--enable-request-id-headers": _ALWAYS,
    "--enable-metrics": _ALWAYS,
    "--trust-remote-code": _NEVER,
    "--disable-log-requests": _NEVER,
    "--no-enable-log-requests": _NEVER,
    "--disable-uvicorn-access-log": _NEVER,
    "--enforce-eager": _UNKNOWN,
    "--enable-prefix-caching": _UNKNOWN,
    "--enable-lora": _UNKNOWN,
    "--speculative-config": _UNKNOWN,
    "--cpu-offload-gb": _UNKNOWN,
}


def advice(flag: str, value: str = "") -> str | None:
    """What to do instead of such a flag with such a value; None if it is not known from elsewhere."""
    if flag in LAYOUTS:
        layout = LAYOUTS[flag] + (value if value.isdecimal() else "2")
        return f"write it as a layout, as in `--prefill {layout}`"
    return ADVICE.get(flag)
