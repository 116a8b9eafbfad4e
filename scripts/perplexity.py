"""The price of 8 bits: a model's perplexity on real texts, with its numbers kept in several ways.

    python scripts/perplexity.py [--model MODEL] [--dtype DTYPE] [--prefill LAYOUT] [--texts FILE] [--num-texts 50]

Texts are the first question and answer of ShareGPT's conversations (default: what `scripts/fetch_sharegpt.py` keeps).
Each way has an engine of its own, and reads the same tokens.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # Seesaw need not be installed for this

from fetch_default_model import default_model  # noqa: E402

from seesaw import LLM, SamplingParams  # noqa: E402
from seesaw.clients.datasets import read_pairs  # noqa: E402
from seesaw.engine.text.prompt import TokensPrompt  # noqa: E402
from seesaw.engine.text.tokenizer import load_tokenizer  # noqa: E402

CACHE = Path(os.environ.get("SEESAW_CACHE") or Path.home() / ".cache" / "seesaw")
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "fp8 weights": {"quantization": "fp8"},
    "fp8 KV": {"kv_cache_dtype": "fp8"},
    "both": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="default: SmolLM2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prefill", default="T1")
    parser.add_argument("--texts", type=Path, default=CACHE / "sharegpt.jsonl")
    parser.add_argument("--num-texts", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a text; longer ones are cut")
    args = parser.parse_args()
    texts = [f"{question}\n{answer}" for question, answer in islice(read_pairs(args.texts), args.num_texts)]
    model = args.model or str(default_model())
    token_lists = load_tokenizer(model).encode(texts)
    prompts: list[TokensPrompt] = [{"prompt_token_ids": tokens[: args.max_tokens]} for tokens in token_lists]
    first = 0.0
    for way, numbers in WAYS.items():
        began_s = time.monotonic()
        with LLM(model, dtype=args.dtype, prefill=args.prefill, max_model_len=args.max_tokens + 1, **numbers) as llm:
            perplexity, count = measure(llm, prompts)
        first = first or perplexity
        took_s = time.monotonic() - began_s
        print(f"{way:12} {perplexity:8.3f} over {count} tokens, {perplexity / first:.4f} x, {took_s:.0f} s", flush=True)


def measure(llm: LLM, prompts: list[TokensPrompt]) -> tuple[float, int]:
    """Perplexity, and of how many tokens: all of a text but its first."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    total, count = 0.0, 0
    for result in llm.generate(prompts, params):
        behind_first = [told.logprob for told in result.prompt_logprobs if told is not None]
        total += sum(behind_first)
        count += len(behind_first)
    return math.exp(-total / count), count


if __name__ == "__main__":
    main()
