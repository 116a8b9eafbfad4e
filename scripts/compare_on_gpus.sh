#!/usr/bin/env bash
# Two layouts against each of them alone on this host's GPUs, at the lengths of ShareGPT and arXiv-summarization: the
# tables of docs/performance.md. Weights and prompts are random; every system of a row runs on the same machine.
#   scripts/compare_on_gpus.sh OUT ROW ...      writes OUT/ROW-SYSTEM.json and .log, and prints a table for each row
#   rows: c2, c4 (NCCL with so many channels: slow links), nvlink; seed-c4 (the artifact's experiment);
#     prefix-c2 (prompts that begin alike, with more prefixes than a device's pool holds)
# Variables: SEESAW_PYTHON (default: the interpreter of scripts/setup), SYSTEMS (default: "P2->T2 T2 P2"),
#   WORKLOADS (default: of the row), OPTIONS (more flags for `seesaw bench offline`)
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root" || exit
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
out="$1"
shift
mkdir -p "$out"
data=configs/lengths

for row in "$@"; do
    config=(--model configs/models/codellama-34b --kv-cache-memory-bytes 6GiB --host-kv-bytes 64GiB --block-size 32
        --max-num-seqs 512 --max-num-batched-tokens 8192)
    links=(--custom-all-reduce off)
    case "$row" in
        c2 | c4) loads="4x16:4 1000x$data/sharegpt.csv 150x$data/arxiv.csv" ;;
        nvlink) loads="4x16:4 300x$data/sharegpt.csv 80x$data/arxiv.csv 64x2048:1" links=() ;;
        prefix-c2) loads="4x16:4 400x1500+50:64@80" ;;
        # Pools as large as 22 GiB cards leave beside the weights, and steps as the artifact's.
        seed-c4)
            loads="4x16:4 1000x$data/sharegpt.csv 150x$data/arxiv.csv"
            config=(configs/llama2-7b-2xl4.json --num-device-blocks 0 --kv-cache-memory-bytes 13GiB --num-host-blocks 0
                --host-kv-bytes 64GiB)
            ;;
        *)
            echo "compare_on_gpus: error: there is no row $row: choose from c2, c4, nvlink, seed-c4, prefix-c2" >&2
            exit 2
            ;;
    esac
    workloads=()
    for load in ${WORKLOADS:-$loads}; do workloads+=(--workload "$load"); done
    (
        if [[ "$row" == *c[0-9] ]]; then export NCCL_MIN_NCHANNELS=1 NCCL_MAX_NCHANNELS="${row##*c}"; fi
        for system in ${SYSTEMS:-P2->T2 T2 P2}; do
            echo "== $row $system $(date +%T)"
            "${SEESAW_PYTHON:-$python}" -m seesaw.server.cli bench offline "${config[@]}" "${links[@]}" --dummy-weights --max-model-len 4096 \
                --prefill "${system%%->*}" --decode "${system##*->}" "${workloads[@]}" ${OPTIONS:-} \
                --output-json "$out/$row-$system.json" >"$out/$row-$system.log" 2>&1 || tail -n 5 "$out/$row-$system.log"
            grep -E " measured: |change of layout: |^[PT][0-9].*x|requests |transitions |decode T|prefill P" "$out/$row-$system.log"
        done
    )
done
