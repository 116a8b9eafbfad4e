"""Convert a Llama in llama.cpp's GGUF format to a Hugging Face checkpoint folder.

transformers reads a GGUF but cannot save it, and a package registry carries small Llamas only in that form.
Called by `fetch_default_model.py` and by hand:

    .venv/bin/python scripts/gguf_to_hf.py model.gguf folder --dtype float32 --pad-heads 12 4
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKEN_TYPE_CONTROL = 3  # llama.cpp's llama_token_type

GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class ConversionError(Exception):
    """The GGUF holds something that this converter does not know."""


class Llama:
    """A GGUF opened for reading: its metadata as attributes, its tensors in Hugging Face's names and row order."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        if self.metadata.get("general.architecture") != "llama":
            raise ConversionError(f"{path} is a {self.metadata.get('general.architecture')!r}, not a llama")
        self.num_layers: int = self.metadata["llama.block_count"]
        self.hidden: int = self.metadata["llama.embedding_length"]
        self.ffn: int = self.metadata["llama.feed_forward_length"]
        self.num_heads: int = self.metadata["llama.attention.head_count"]
        self.num_kv_heads: int = self.metadata.get("llama.attention.head_count_kv", self.num_heads)
        self.head_dim: int = self.metadata.get("llama.rope.dimension_count", self.hidden // self.num_heads)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All parameters, dequantised to float32."""
        tensors = {}
        for entry in self._reader.tensors:
            weight = np.array(dequantize(entry.data, entry.tensor_type), dtype=np.float32)
            name = hf_name(entry.name)
            if name.endswith("q_proj.weight"):
                weight = unpermute(weight, self.num_heads)
            elif name.endswith("k_proj.weight"):
                weight = unpermute(weight, self.num_kv_heads)
            tensors[name] = torch.from_numpy(np.ascontiguousarray(weight))
        return tensors


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    base, _, kind = name.rpartition(".")
    if base in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[base]}.{kind}"
    block, _, rest = base.partition(".")
    layer, _, part = rest.partition(".")
    if block != "blk" or part not in LAYER_NAMES:
        raise ConversionError(f"tensor {name!r} is not part of a Llama as this converter knows it")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def unpermute(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order of q and k `[heads * head_dim, hidden]`.

    It rotates neighbouring rows of a head; Hugging Face rotates row i with row i + head_dim / 2.
    """
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def pad_heads(tensors: dict[str, torch.Tensor], llama: Llama, num_heads: int, num_kv_heads: int) -> None:
    """Append zero heads, in place. A zero v makes a head's output zero, so the model computes the same."""
    if num_kv_heads < llama.num_kv_heads or num_heads * llama.num_kv_heads != llama.num_heads * num_kv_heads:
        raise ConversionError(
            f"cannot pad {llama.num_heads}/{llama.num_kv_heads} heads to {num_heads}/{num_kv_heads}: "
            "give at least as many, with the same number of query heads for each KV head"
        )
    wanted = {"q_proj": num_heads, "k_proj": num_kv_heads, "v_proj": num_kv_heads}
    for layer in range(llama.num_layers):
        prefix = f"model.layers.{layer}.self_attn."
        for part, heads in wanted.items():
            weight = tensors[f"{prefix}{part}.weight"]
            missing = heads * llama.head_dim - weight.shape[0]
            tensors[f"{prefix}{part}.weight"] = torch.nn.functional.pad(weight, (0, 0, 0, missing))
        weight = tensors[f"{prefix}o_proj.weight"]
        tensors[f"{prefix}o_proj.weight"] = torch.nn.functional.pad(
            weight, (0, num_heads * llama.head_dim - weight.shape[1])
        )
    llama.num_heads, llama.num_kv_heads = num_heads, num_kv_heads


def special_ids(llama: Llama) -> dict[str, int | None]:
    """The special token ids, as config.json and generation_config.json both name them."""
    get = llama.metadata.get
    return {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }


def model_config(llama: Llama, vocab: int, tied: bool, dtype: str) -> dict[str, Any]:
    """The content of config.json, in keys that transformers 4 and 5 both read."""
    get = llama.metadata.get
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": llama.hidden,
        "num_hidden_layers": llama.num_layers,
        "num_attention_heads": llama.num_heads,
        "num_key_value_heads": llama.num_kv_heads,
        "head_dim": llama.head_dim,
        "intermediate_size": llama.ffn,
        "vocab_size": vocab,
        "max_position_embeddings": get("llama.context_length"),
        # GGUF keeps it as a float32: 9.99999974e-06 was 1e-05
        "rms_norm_eps": float(f"{get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        **special_ids(llama),
    }


def tokenizer(llama: Llama) -> tuple[Tokenizer, dict[str, Any]]:
    """The byte-level BPE tokenizer and the content of tokenizer_config.json."""
    get = llama.metadata.get
    model, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in ("smollm", "gpt-2"):
        raise ConversionError(f"tokenizer {model!r} with pre-tokenizer {pre!r} is not known: only gpt2 with smollm is")
    tokens: list[str] = llama.metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in llama.metadata["tokenizer.ggml.merges"]]
    result = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    result.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    result.decoder = decoders.ByteLevel()
    types = llama.metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == TOKEN_TYPE_CONTROL]
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {
        "bos_token": get("tokenizer.ggml.bos_token_id"),
        "eos_token": get("tokenizer.ggml.eos_token_id"),
        "pad_token": get("tokenizer.ggml.padding_token_id"),
        "unk_token": get("tokenizer.ggml.unknown_token_id"),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": bool(get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": get("llama.context_length"),
        **{name: tokens[token_id] for name, token_id in named.items() if token_id is not None},
    }
    if template := get("tokenizer.chat_template"):
        config["chat_template"] = template
    return result, config


def convert(source: Path, target: Path, dtype: str, heads: tuple[int, int] | None = None) -> None:
    """Write the checkpoint of `source` to the folder `target`, which must exist.

    `heads` pads to so many query and KV heads. Raises ConversionError for what is not a known Llama.
    """
    llama = Llama(source)
    bpe, tokenizer_config = tokenizer(llama)
    tensors = llama.tensors()
    if heads:
        pad_heads(tensors, llama, *heads)
    vocab = tensors["model.embed_tokens.weight"].shape[0]
    config = model_config(llama, vocab, tied="lm_head.weight" not in tensors, dtype=dtype)
    cast = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    save_file(cast, target / "model.safetensors", metadata={"format": "pt"})
    bpe.save(str(target / "tokenizer.json"))
    for name, content in (
        ("config.json", config),
        ("generation_config.json", special_ids(llama)),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a Llama GGUF to a Hugging Face checkpoint folder.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--pad-heads", type=int, nargs=2, metavar=("QUERY", "KV"), help="append zero heads")
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    try:
        convert(args.source, args.target, args.dtype, tuple(args.pad_heads) if args.pad_heads else None)
    except ConversionError as error:
        sys.exit(f"gguf_to_hf: error: {error}")


if __name__ == "__main__":
    main()
