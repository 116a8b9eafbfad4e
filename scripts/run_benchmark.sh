#!/usr/bin/env bash
# The experiment of the paper's artifact in one line: the same requests in a plan of layouts and in static ones.
#   scripts/run_benchmark.sh                     SmolLM2-135M-Instruct on this CPU, ShareGPT, P2->T2 against T2 and P2;
#                                                in steps of 512 tokens
#   scripts/run_benchmark.sh CONFIG [FLAG ...]   any config, as in configs/llama2-7b-2xl4.json --against T2,P2
# The arguments go to `seesaw bench offline`, which explains them with --help, and fetches ShareGPT if no data is named.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$root/scripts/setup"

if [[ "${1:--}" == -* && "$*" != *--help* ]]; then
    model="$("$python" "$root/scripts/fetch_default_model.py")"
    requests=(--num-requests 40 --output-len 64)
    if [[ " $*" == *" --workload"* ]]; then requests=(); fi # it names its own
    set -- --model "$model" --prefill P2 --decode T2 --against T2,P2 "${requests[@]}" \
        --device cpu --max-num-batched-tokens 512 "$@" # flags that are given again win
fi
exec "$venv/bin/seesaw" bench offline "$@"
