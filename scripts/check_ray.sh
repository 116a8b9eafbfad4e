#!/usr/bin/env bash
# Do batches on a Ray cluster survive hosts that die, and do replicas serve? Starts clusters of two nodes on this host and
# runs the tests that need Ray, which CI skips: some minutes, and at first one more for Ray.
#   scripts/check_ray.sh [ARGUMENT ...]   arguments are pytest's, e.g. -k replicas
# Variables:
#   SEESAW_PYTHON      an interpreter that has Seesaw and its development tools (default: the one that scripts/setup makes)
#   SEESAW_RAY_PYTHON  one that has the extra `ray`, too (default: one in ~/.cache/seesaw, which adds it to the former)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cache="${SEESAW_CACHE:-$HOME/.cache/seesaw}"

die() {
    echo "check_ray: error: $*" >&2
    exit 1
}

if [[ -n "${SEESAW_RAY_PYTHON:-}" ]]; then
    ray="$SEESAW_RAY_PYTHON"
else
    if [[ -n "${SEESAW_PYTHON:-}" ]]; then
        python="$SEESAW_PYTHON"
    else
        "$root/scripts/setup"
    fi
    ray="$cache/ray/bin/python"
    wanted="$("$python" -c 'import sys, sysconfig, tomllib
extras = tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]
print(sysconfig.get_path("purelib"), *extras["ray"], sep="\n")' "$root/pyproject.toml")"
    if [[ "$wanted" != "$(cat "$cache/ray/installed.txt" 2>/dev/null)" ]]; then
        echo "check_ray: installing Ray in $cache/ray" >&2
        mapfile -t lines <<<"$wanted"
        "$python" -m venv --clear "$cache/ray"
        # What the other one has is there as it is, its build of torch above all.
        echo "${lines[0]}" >"$("$ray" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/seesaw.pth"
        "$ray" -m pip --disable-pip-version-check --quiet --quiet install "${lines[@]:1}" ||
            die "could not install Ray; pip's reason is above"
        echo "$wanted" >"$cache/ray/installed.txt"
    fi
fi

cd "$root"
export PYTHONPATH="$root" PATH="$(dirname "$ray"):$PATH" # the tests run the command `ray`
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_USAGE_STATS_ENABLED=0
exec "$ray" -m pytest -q -m ray "$@"
