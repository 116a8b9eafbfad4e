"""The shell scripts, with stand-ins for Python, pip and the server in a copy of the repository's skeleton."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = [path for path in (REPOSITORY / "scripts").iterdir() if path.suffix in ("", ".sh") and path.is_file()]
COMMANDS = [path for path in SCRIPTS if path.suffix == ""]

# Stands in for python3: makes environments of itself, logs what pip is asked for, and knows what is installed.
FAKE_PYTHON = """#!/usr/bin/env bash
log="$FAKE_HOME/log"; torch="$FAKE_HOME/torch"
case "$*" in
    --version) echo "Python 3.11.7" ;;
    *version_info*) [[ -z "$FAKE_OLD" ]] ;;
    *"import pip"*) ;;
    *'version("torch")'*) [[ -f "$torch" ]] && cat "$torch" ;;
    "-m venv"*) echo venv >>"$log"; mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*)
        echo "$*" >>"$log"
        [[ "$*" != *"$FAKE_FAILS"* || -z "$FAKE_FAILS" ]] || exit 1
        [[ "$*" != *" torch"* ]] || echo "$FAKE_TORCH" >"$torch"
        ;;
    *fetch_default_model.py) echo /cache/model ;;
    *) echo "python $*" ;;
esac
"""


@pytest.fixture
def skeleton(tmp_path):
    """A repository of scripts only, with the stand-ins first on its PATH."""
    (tmp_path / "repo" / "scripts").mkdir(parents=True)
    for path in SCRIPTS:
        shutil.copy(path, tmp_path / "repo" / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "repo")
    executable(tmp_path / "bin" / "python3", FAKE_PYTHON)
    executable(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    return tmp_path


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(skeleton, script, *arguments, **variables):
    environment = {
        "PATH": f"{skeleton / 'bin'}:{os.environ['PATH']}",
        "HOME": str(skeleton),
        "FAKE_HOME": str(skeleton),
        "FAKE_OLD": "",
        "FAKE_TORCH": "2.13.0+cpu",
        "FAKE_FAILS": "",
        **variables,
    }
    command = [skeleton / "repo" / "scripts" / script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=skeleton)


def log(skeleton):
    path = skeleton / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.replace("-m pip --disable-pip-version-check --quiet --quiet ", "pip ") for line in lines]


@pytest.mark.parametrize("path", [*SCRIPTS, REPOSITORY / ".ci" / "run"], ids=lambda path: path.name)
def test_syntax(path):
    result = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", [*COMMANDS, REPOSITORY / ".ci" / "run"], ids=lambda path: path.name)
def test_commands_can_be_run(path):
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")


def test_setup_installs_torch_first_and_pins_it_and_then_does_nothing(skeleton):
    venv = skeleton / "repo" / ".venv"
    result = run(skeleton, "setup")
    assert result.returncode == 0, result.stderr
    assert log(skeleton) == [
        "venv",
        "pip install --no-compile torch==2.13.0",
        (
            f"pip install --no-compile --constraint {venv}/constraints.txt --config-settings editable_mode=compat "
            f"--editable {skeleton}/repo[dev]"
        ),
    ]
    assert (venv / "constraints.txt").read_text() == "torch==2.13.0+cpu\n"
    again = run(skeleton, "setup")
    assert (again.returncode, again.stderr, log(skeleton)) == (0, "", [])


def test_setup_keeps_to_versions_that_are_named(skeleton):
    (skeleton / "versions.txt").write_text("# all\nnumpy==2.4.6\ntorch==2.13.0\n")
    assert run(skeleton, "setup", SEESAW_CONSTRAINTS="versions.txt").returncode == 0
    assert (skeleton / "repo/.venv/constraints.txt").read_text() == "# all\nnumpy==2.4.6\ntorch==2.13.0+cpu\n"
    (skeleton / "repo/pyproject.toml").write_text("# changed\n")
    missing = run(skeleton, "setup", SEESAW_CONSTRAINTS="none.txt")
    assert missing.returncode == 1 and "SEESAW_CONSTRAINTS must name a file" in missing.stderr


def test_setup_compiles_where_python_may_keep_nothing_that_it_compiles(skeleton):
    run(skeleton, "setup", PYTHONDONTWRITEBYTECODE="1")
    assert [line.split()[:3] for line in log(skeleton)[1:]] == [["pip", "install", "--compile"]] * 2


def test_setup_again_when_the_dependencies_change(skeleton):
    run(skeleton, "setup")
    log(skeleton)
    with (skeleton / "repo" / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert run(skeleton, "setup").returncode == 0
    (line,) = log(skeleton)  # torch and the environment stay
    assert "--editable" in line


def test_the_gpu_check_runs_every_stage_though_one_fails(skeleton):
    ending = '#!/usr/bin/env bash\necho "${SEESAW_PORTABLE:-as it is}: $*"\n[[ $* != *pytest* ]]\n'
    executable(skeleton / "interpreter", ending)
    result = run(skeleton, "check_gpu.sh", SEESAW_PYTHON=str(skeleton / "interpreter"))
    ran = [line for line in result.stdout.splitlines() if not line.startswith("==")]
    assert [line.partition(": ")[0] for line in ran] == ["as it is", "1", "as it is"]
    assert "pytest" in ran[0] and "pytest" in ran[1] and ran[2].endswith("attention_speed.py")
    assert (result.returncode, result.stderr) == (1, "check_gpu: failed: tests portable\n")
    again = run(skeleton, "check_gpu.sh", "speed", SEESAW_PYTHON=str(skeleton / "interpreter"), CONFIG="a b.json")
    assert again.returncode == 0 and "attention_speed.py a b.json" in again.stdout
    assert run(skeleton, "check_gpu.sh", "speeed", SEESAW_PYTHON="true").returncode == 2


FAKE_SERVER = """#!/usr/bin/env bash
case "$*" in
    *fetch_default_model.py) echo /cache/model ;;
    *serve*)
        [[ -z "$FAKE_FAILS" ]] || { echo broken >&2; exit 2; }
        trap 'echo stopped >>"$FAKE_HOME/log"; exit 0' TERM
        echo "serves at http://host:7/v1"
        while true; do sleep 0.05; done
        ;;
esac
"""


@pytest.mark.parametrize("code", [0, 1])
def test_the_clients_check_stops_its_server_whatever_they_find(skeleton, code):
    executable(skeleton / "server", FAKE_SERVER)
    executable(skeleton / "clients", f'#!/bin/sh\necho "$*"\nexit {code}\n')
    interpreters = {"SEESAW_PYTHON": str(skeleton / "server"), "SEESAW_CLIENTS_PYTHON": str(skeleton / "clients")}
    result = run(skeleton, "check_clients.sh", "openai", **interpreters)
    asked = "--url http://host:7 --model SmolLM2-135M-Instruct --folder /cache/model openai"
    assert result.stdout == f"{skeleton}/repo/scripts/check_clients.py {asked}\n"
    assert (result.returncode, log(skeleton)) == (code, ["stopped"])
    broken = run(skeleton, "check_clients.sh", FAKE_FAILS="1", **interpreters)
    assert broken.returncode == 1
    assert broken.stderr == "broken\ncheck_clients: error: the server did not start\n"


def test_setup_chooses_torch_by_the_machine(skeleton):
    executable(skeleton / "bin" / "nvidia-smi", "#!/bin/sh\necho GPU 0: some\n")
    venv = str(skeleton / "elsewhere")
    assert run(skeleton, "setup", SEESAW_VENV=venv, SEESAW_TORCH_INDEX_URL="file:///index").returncode == 0
    lines = log(skeleton)
    assert lines[1] == "pip install --no-compile --index-url file:///index torch==2.11.0"
    assert lines[-1].endswith("[dev,cuda]")
    assert (skeleton / "elsewhere" / "bin" / "python").exists()
    assert not (skeleton / "repo" / ".venv").exists()


def test_setup_again_when_a_gpu_appears_and_not_when_it_goes(skeleton):
    run(skeleton, "setup")
    log(skeleton)
    executable(skeleton / "bin" / "nvidia-smi", "#!/bin/sh\necho GPU 0: some\n")
    result = run(skeleton, "setup", FAKE_TORCH="2.11.0")
    assert "installing torch==2.11.0 in place of 2.13.0+cpu" in result.stderr
    torch, packages = log(skeleton)
    assert torch == "pip install --no-compile --force-reinstall torch==2.11.0" and packages.endswith("[dev,cuda]")
    assert run(skeleton, "setup").returncode == 0 and log(skeleton) == []
    executable(skeleton / "bin" / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert run(skeleton, "setup").returncode == 0 and log(skeleton) == []


def test_setup_that_failed_is_tried_again(skeleton):
    result = run(skeleton, "setup", FAKE_FAILS="--editable")
    assert result.returncode == 1
    assert "setup: error: could not install the packages" in result.stderr
    log(skeleton)
    assert run(skeleton, "setup").returncode == 0
    assert len(log(skeleton)) == 1


def test_setup_that_was_interrupted_is_not_complete(skeleton):
    run(skeleton, "setup")
    project = skeleton / "repo" / "pyproject.toml"
    before = project.read_text()
    project.write_text(before + "# changed\n")
    run(skeleton, "setup", FAKE_FAILS="--editable")
    project.write_text(before)
    log(skeleton)
    assert run(skeleton, "setup").returncode == 0
    assert len(log(skeleton)) == 1


def test_setup_keeps_a_cpu_torch_that_was_chosen_beside_a_gpu(skeleton):
    executable(skeleton / "bin" / "nvidia-smi", "#!/bin/sh\necho GPU 0: some\n")
    run(skeleton, "setup", SEESAW_TORCH_INDEX_URL="file:///cpu")
    log(skeleton)
    with (skeleton / "repo" / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    run(skeleton, "setup")
    (line,) = log(skeleton)
    assert "--editable" in line


def test_setup_does_not_wait_for_a_driver_that_hangs(skeleton):
    executable(skeleton / "bin" / "timeout", '#!/bin/sh\necho "$*" >>"$FAKE_HOME/asked"; exit 124\n')
    assert run(skeleton, "setup").returncode == 0
    assert "pip install --no-compile torch==2.13.0" in log(skeleton)
    assert set((skeleton / "asked").read_text().splitlines()) == {"10 nvidia-smi -L"}


def test_setup_with_an_old_python(skeleton):
    for name in ("python3.11", "python3.12", "python3.13"):
        executable(skeleton / "bin" / name, FAKE_PYTHON)
    result = run(skeleton, "setup", FAKE_OLD="1")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_serve_hands_its_arguments_on(skeleton):
    run(skeleton, "setup")
    expected = f"python {skeleton}/repo/scripts/serve_default.py --port 9 a/model\n"
    assert run(skeleton, "serve", "--port", "9", "a/model").stdout == expected


@pytest.mark.parametrize(
    ("arguments", "run_with"),
    [
        (
            ["--seed", "1"],
            (
                "--model /cache/model --prefill P2 --decode T2 --against T2,P2 --num-requests 40 --output-len 64 "
                "--device cpu --max-num-batched-tokens 512 --seed 1"
            ),
        ),
        (
            ["--workload", "4x8:8"],
            (
                "--model /cache/model --prefill P2 --decode T2 --against T2,P2 "
                "--device cpu --max-num-batched-tokens 512 --workload 4x8:8"
            ),
        ),
        (["x.json", "--against", "P2"], "x.json --against P2"),
        (["--help"], "--help"),
    ],
)
def test_what_the_benchmark_runs(skeleton, arguments, run_with):
    run(skeleton, "setup")
    executable(skeleton / "repo" / ".venv" / "bin" / "seesaw", '#!/bin/sh\necho "seesaw $*"\n')
    assert run(skeleton, "run_benchmark.sh", *arguments).stdout == f"seesaw bench offline {run_with}\n"


def test_test_runs_the_tests_and_the_checks(skeleton):
    lines = run(skeleton, "test").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["pytest", "ruff", "ruff", "mypy", "mypy", "pytest"]
    assert run(skeleton, "test", "-k", "one").stdout == "python -m pytest -k one\n"
