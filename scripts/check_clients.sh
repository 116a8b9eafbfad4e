#!/usr/bin/env bash
# Do the clients that people use work with Seesaw? Serves SmolLM2 on the CPU, runs openai, langchain-openai, litellm,
# instructor and lm-eval against it, and prints a table. lm-eval's scores are compared with transformers' on the same items.
#   scripts/check_clients.sh                        all of it: some minutes, and at first some more for the clients
#   scripts/check_clients.sh CLIENT ...             only some: openai, batches, langchain, litellm, instructor, lm_eval
# Variables:
#   SEESAW_PYTHON          an interpreter that has Seesaw (default: the one that scripts/setup makes)
#   SEESAW_CLIENTS_PYTHON  one that has the clients (default: one in ~/.cache/seesaw, made by scripts/clients.txt)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cache="${SEESAW_CACHE:-$HOME/.cache/seesaw}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism; more threads only contend

die() {
    echo "check_clients: error: $*" >&2
    exit 1
}

if [[ -n "${SEESAW_PYTHON:-}" ]]; then
    python="$SEESAW_PYTHON"
else
    "$root/scripts/setup"
fi

if [[ -n "${SEESAW_CLIENTS_PYTHON:-}" ]]; then
    clients="$SEESAW_CLIENTS_PYTHON"
else
    clients="$cache/clients/bin/python"
    wanted="$root/scripts/clients.txt"
    if ! cmp -s "$wanted" "$cache/clients/installed.txt"; then
        echo "check_clients: installing the clients in $cache/clients" >&2
        "$python" -m venv --clear "$cache/clients"
        pip=("$clients" -m pip --disable-pip-version-check --quiet --quiet install)
        # Of the CPU build, as in scripts/setup: what no other package's wish then replaces.
        "${pip[@]}" ${SEESAW_TORCH_INDEX_URL:+--index-url "$SEESAW_TORCH_INDEX_URL"} torch==2.13.0 &&
            "${pip[@]}" --requirement "$wanted" || die "could not install the clients; pip's reason is above"
        cp "$wanted" "$cache/clients/installed.txt"
    fi
fi

export PYTHONPATH="$root" # Seesaw need not be installed for this
model="$("$python" "$root/scripts/fetch_default_model.py")"
name=SmolLM2-135M-Instruct
folder="$(mktemp -d)"
server=

stop() { # the server's exit code
    local code=0
    if [[ -n "$server" ]]; then
        kill -TERM "$server" 2>/dev/null || true
        timeout 60 tail --pid="$server" -f /dev/null || kill -KILL "$server" || true
        wait "$server" || code=$?
        server=
    fi
    return "$code"
}

finish() {
    stop || true
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Its log goes to a file: the table is what is to be seen. The template is SmolLM2's own, and reads tools.
"$python" -m seesaw.server.cli serve "$model" --served-model-name "$name" --port 0 --device cpu --prefill P2 --decode T2 \
    --max-num-batched-tokens 512 --data-dir "$folder/data" --enable-auto-tool-choice --tool-call-parser hermes \
    --chat-template "$root/scripts/smollm2_tools.jinja" >"$folder/out" 2>"$folder/log" &
server=$!
until url="$(grep -so 'http://[^ ]*/v1$' "$folder/out" | head -n 1)" && [[ -n "$url" ]]; do
    kill -0 "$server" 2>/dev/null || { cat "$folder/log" >&2; die "the server did not start"; }
    sleep 0.5
done

failed=0
"$clients" "$root/scripts/check_clients.py" --url "${url%/v1}" --model "$name" --folder "$model" "$@" || failed=$?
stop || { code=$?; tail -n 20 "$folder/log" >&2; die "the server ended with exit code $code after SIGTERM, not 0"; }
exit "$failed"
