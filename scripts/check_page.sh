#!/usr/bin/env bash
# Does the page at / work in a browser? Opens it in Chromium without a window, clicks, types, and watches tokens arrive.
#   scripts/check_page.sh           about a minute
#   scripts/check_page.sh FOLDER    and keep pictures of what was seen there
# Variables:
#   SEESAW_BROWSER  a Chromium or Chrome (default: the first of chromium, chromium-browser, google-chrome on the PATH)
#   SEESAW_PYTHON   an interpreter that has Seesaw and its tests' packages (default: the one that scripts/setup makes)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
browser="${SEESAW_BROWSER:-$(command -v chromium chromium-browser google-chrome | head -n 1 || true)}"
if [[ -z "$browser" ]]; then
    echo "check_page: error: there is no Chromium: install one, or name it with SEESAW_BROWSER" >&2
    exit 2
fi
if [[ -n "${SEESAW_PYTHON:-}" ]]; then
    python="$SEESAW_PYTHON"
else
    "$root/scripts/setup"
fi
if (($#)); then
    mkdir -p "$1"
    SEESAW_PICTURES="$(realpath "$1")"
    export SEESAW_PICTURES
fi
cd "$root"
SEESAW_BROWSER="$browser" HF_HUB_OFFLINE=1 PYTHONPATH="$root" exec "$python" -m pytest -q tests/e2e/test_page.py
