# Sourced by the other scripts: where the repository and its virtual environment are.
#   SEESAW_VENV  folder of the environment (default: .venv in the repository)
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$(realpath -m "${SEESAW_VENV:-$root/.venv}")"
python="$venv/bin/python"
