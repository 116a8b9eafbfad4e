#!/usr/bin/env bash
# Does Seesaw run well on this host's GPU? The GPU tests as they are, then as the oldest supported GPU would run them,
# then the speed of each attention backend that this GPU has.
#   scripts/check_gpu.sh                 all of it: some minutes, and some more where FlashInfer has to compile kernels
#   scripts/check_gpu.sh STAGE ...       only some stages: tests, portable, speed
# Variables:
#   SEESAW_PYTHON      an interpreter that has all that is needed (default: the one that scripts/setup makes)
#   SEESAW_TEST_MODEL  folder of SmolLM2, for the tests of a real model (default: they are left out)
#   CONFIG             whose model's shape is timed (default: configs/llama3-8b-1xh100.json)
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [[ -n "${SEESAW_PYTHON:-}" ]]; then
    python="$SEESAW_PYTHON"
else
    "$root/scripts/setup" || exit
fi
cd "$root" || exit
export HF_HUB_OFFLINE=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

failed=()
run() { # run STAGE COMMAND ...: a stage that fails does not keep the others from running
    local stage="$1" start="$SECONDS"
    shift
    echo "== $stage"
    "$@" || failed+=("$stage")
    echo "== $stage took $((SECONDS - start)) s"
}

(($#)) || set -- tests portable speed
for stage in "$@"; do
    case "$stage" in
        # Our own kernels are compiled for all other GPUs beside.
        tests) run tests "$python" -m pytest -q --durations=5 tests/gpu tests/engine/ops/test_kernels.py ;;
        portable) run portable env SEESAW_PORTABLE=1 "$python" -m pytest -q --durations=5 tests/gpu ;;
        speed) run speed "$python" scripts/attention_speed.py ${CONFIG:+"$CONFIG"} ;;
        *)
            echo "check_gpu: error: there is no stage $stage: choose from tests, portable, speed" >&2
            exit 2
            ;;
    esac
done
if ((${#failed[@]})); then
    echo "check_gpu: failed: ${failed[*]}" >&2
    exit 1
fi
