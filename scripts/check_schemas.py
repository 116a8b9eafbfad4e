"""A model's answers at temperature 1 to a hundred JSON schemas: each parses and validates, unless it was cut by length.

    python scripts/check_schemas.py [--model MODEL] [--prefill LAYOUT] [--decode LAYOUT] [--max-tokens N] [--seed N]

Exits with 1 if one does not. A script, not a test: with SmolLM2 on two cores it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import jsonschema

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # Seesaw need not be installed for this

from fetch_default_model import default_model  # noqa: E402

from seesaw import LLM, SamplingParams, StructuredOutputs  # noqa: E402

SCHEMAS = ROOT / "tests" / "engine" / "grammar" / "schemas.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="default: SmolLM2")
    parser.add_argument("--prefill", default="T1")
    parser.add_argument("--decode", default="")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    schemas = json.loads(SCHEMAS.read_text())
    prompts = [f"Write JSON for {name}. Answer:\n" for name in schemas]
    params = [
        SamplingParams(
            max_tokens=args.max_tokens,
            seed=args.seed + i,
            structured_outputs=StructuredOutputs.of(json=json.dumps(schema)),
        )
        for i, schema in enumerate(schemas.values())
    ]
    with LLM(args.model or str(default_model()), prefill=args.prefill, decode=args.decode, max_model_len=1024) as llm:
        began_s = time.monotonic()
        results = llm.generate(prompts, params)
        took_s = time.monotonic() - began_s
    whole = cut = 0
    broken: list[str] = []
    for (name, schema), result in zip(schemas.items(), results, strict=True):
        output = result.outputs[0]
        if output.finish_reason == "length":
            cut += 1
            continue
        try:
            jsonschema.validate(json.loads(output.text), schema)
            whole += 1
        except (ValueError, jsonschema.ValidationError) as error:
            broken.append(f"{name}: {str(error).splitlines()[0]}: {output.text[:200]!r}")
    print(
        f"{len(schemas)} schemas in {took_s:.0f} s: {whole} answers validate, {cut} were cut, {len(broken)} are broken"
    )
    print("\n".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
