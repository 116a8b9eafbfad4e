"""Reading `quantization_config` of a config.json: which 8-bit formats we run, and a sentence for the others.

The formats: compressed-tensors' float-quantized (llm-compressor's FP8 and FP8-dynamic), `fp8` in blocks of 128 x 128
(DeepSeek's and Qwen's own), and `fp8` with a scale for each tensor (AutoFP8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from seesaw.engine.model.quantization import BLOCK, Kind, Quantization
from seesaw.engine.values.errors import ConfigError

_STRATEGIES: dict[str, Kind] = {
    "tensor": "tensor",
    "channel": "channel",
    "block": "blocks",
}
_OURS = "use one in fp8 (compressed-tensors, or blocks of 128 x 128), or one in bfloat16 with --quantization fp8"


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization | None:
    """How a checkpoint keeps its linear layers; None if in floats. Raises ConfigError, naming the kind, for others."""
    said = config.get("quantization_config") or config.get("compression_config")
    if not said:
        return None
    if not isinstance(said, dict):
        raise ConfigError(f"{where} has a quantization_config that is no object: download the checkpoint again")
    kind = said.get("quant_method")
    if kind is None and any(key.startswith(("load_in_", "bnb_")) for key in said):
        kind = "bitsandbytes"  # older ones do not say so
    try:
        if kind == "fp8":
            return _fp8(said)
        if kind == "compressed-tensors":
            return _compressed_tensors(said)
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise ConfigError(f"{where} has a quantization_config ({kind}) that we cannot run ({error}): {_OURS}") from None
    raise ConfigError(
        f"{where} says that the weights are quantized ({kind or 'in no known way'}), which is not supported: {_OURS}"
    )


def _fp8(said: Mapping[str, Any]) -> Quantization:
    if said.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise ValueError(f"fmt {said['fmt']}")
    scheme = said.get("activation_scheme") or "dynamic"
    if scheme not in ("dynamic", "static"):
        raise ValueError(f"activation_scheme {scheme}")
    static = scheme == "static"
    ignored = _ignored(said.get("modules_to_not_convert") or said.get("ignored_layers"), _as_transformers)
    block = said.get("weight_block_size")
    if block is None:
        return Quantization("tensor", ignored, static)
    if list(block) != [BLOCK, BLOCK] or static:
        raise ValueError(f"weight_block_size {block}{' with static activations' if static else ''}")
    return Quantization("blocks", ignored)


def _ignored(said: Any, pattern: Callable[[str], str]) -> tuple[str, ...]:
    """What is listed, each as a pattern for the beginning of a layer's name. Raises re.error for one that is none."""
    if not isinstance(said or [], list) or not all(isinstance(entry, str) for entry in said or ()):
        raise ValueError(f"layers to leave out that are no list of names: {str(said)[:40]}")
    patterns = tuple(pattern(entry) for entry in said or ())
    for each in patterns:
        re.compile(each)
    return patterns


def _as_transformers(entry: str) -> str:
    """Of `fp8`, as its `should_convert_module`: a pattern up to a dot or the end of a name, or the end itself."""
    return rf"(?:{entry})(?:(?<=\.)|(?=\.|$))|.*{re.escape(entry)}$"


def _as_compressed_tensors(entry: str) -> str:
    """As its `match_name` and `_match_class`: a pattern behind `re:`, else a whole name or the class of the layers."""
    if entry.startswith("re:"):
        return entry.removeprefix("re:")
    return "" if entry in ("Linear", "Module") else rf"{re.escape(entry)}$"


def _compressed_tensors(said: Mapping[str, Any]) -> Quantization:
    form = said.get("format")
    groups = list(said["config_groups"].values())
    if form not in ("float-quantized", "naive-quantized") or len(groups) != 1:
        raise ValueError(f"format {form}, {len(groups)} groups")
    [group] = groups
    weights, activations = group["weights"], group.get("input_activations")
    if group.get("targets") != ["Linear"] or said.get("kv_cache_scheme"):
        raise ValueError("targets other than Linear, or a KV cache with scales of its own")
    for what, numbers in (("weights", weights), ("activations", activations)):
        if numbers is None or numbers["num_bits"] != 8 or numbers["type"] != "float":
            raise ValueError(f"{what} that are not in 8-bit floats")
    if weights.get("symmetric") is False or group.get("output_activations"):
        raise ValueError("zero points, or rounded outputs")
    if (said.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError("sparse weights")
    if (said.get("transform_config") or {}).get("config_groups"):
        raise ValueError("rotated weights, by its transform_config")
    strategy = weights["strategy"]
    if strategy not in _STRATEGIES or (strategy == "block" and list(weights["block_structure"]) != [BLOCK, BLOCK]):
        raise ValueError(f"weights by {strategy}")
    static = not activations.get("dynamic")
    if static and (activations.get("strategy") != "tensor" or strategy == "block"):
        raise ValueError(f"static activations by {activations.get('strategy')}")
    ignored = _ignored(said.get("ignore"), _as_compressed_tensors)
    return Quantization(_STRATEGIES[strategy], ignored, static, "weight_scale")
