"""What a form of the output costs: the same greedy streams plain and with a JSON schema, in turns, in one engine.

    python scripts/structured_speed.py [--model MODEL] [--prefill LAYOUT] [--streams 32] [--tokens 64] [--rounds 5]

Every stream has all its tokens in both: the schema is of a text that is as long as may be. Prints tokens/s of each
round, and of decoding alone by the fastest eighth of its steps, which other work on the machine slows least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # Seesaw need not be installed for this

from fetch_default_model import default_model  # noqa: E402

from seesaw import LLM, SamplingParams, StructuredOutputs  # noqa: E402

NOTE = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1},
        "notes": {"type": "array", "items": NOTE, "minItems": 200},
    },
    "required": ["name", "age", "tags", "notes"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="default: SmolLM2")
    parser.add_argument("--prefill", default="T1")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    prompts = [f"Person {i}, as JSON:\n" for i in range(args.streams)]
    forms = {"plain": None, "schema": StructuredOutputs.of(json=json.dumps(SCHEMA))}
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    steps_s: dict[str, list[float]] = {name: [] for name in forms}
    with LLM(args.model or str(default_model()), prefill=args.prefill, max_model_len=1024) as llm:
        for round in range(args.rounds + 1):
            for name, form in forms.items():
                params = SamplingParams(args.tokens, temperature=0.0, ignore_eos=True, structured_outputs=form)
                began_s = time.monotonic()
                outputs = [result.outputs[0] for result in llm.generate(prompts, params)]
                took_s = time.monotonic() - began_s
                assert all(len(output.token_ids) == args.tokens for output in outputs)
                if round:  # the first one compiles the grammar, and wakes the caches
                    speeds[name].append(args.streams * args.tokens / took_s)
                    print(f"round {round}: {name} {speeds[name][-1]:.0f} tokens/s", flush=True)
                    all_begun_s = max(output.token_times_s[0] for output in outputs)
                    times_s = [time_s for time_s in outputs[-1].token_times_s if time_s >= all_begun_s]
                    steps_s[name] += [later - earlier for earlier, later in pairwise(times_s)]
    plain, schema = (statistics.median(speeds[name]) for name in forms)
    print(f"medians: plain {plain:.0f}, schema {schema:.0f} tokens/s, which is {schema / plain:.2f}")
    plain, schema = (args.streams / statistics.quantiles(steps_s[name], n=8)[0] for name in forms)
    print(f"fastest steps: plain {plain:.0f}, schema {schema:.0f} tokens/s, which is {schema / plain:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
