"""What the documents point to exists: files, flags and scripts. `scripts/check_docs.py` runs what they show."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from check_docs import REPORT, STAND_INS, Workplace
from doc_commands import Command, commands
from soak import parse_args

from seesaw.clients import arguments
from seesaw.engine.bench import limits
from seesaw.engine.values.config import EngineConfig
from seesaw.server import bench, cli
from seesaw.server.config import ServerConfig
from seesaw.server.offline import run
from seesaw.server.ray.options import engine_resources, read_arguments
from seesaw.server.settings import read_configs

REPOSITORY = Path(__file__).parent.parent
NOT_SETTINGS = ("input_file", "output_file", "ray", "ray_engines")
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files(path):
    text = path.read_text()
    named = re.findall(r"\b(?:server|engine|clients|configs|scripts|docs)/[\w./-]*\w", text)
    named += [str(path.parent.relative_to(REPOSITORY) / link) for link in re.findall(r"\]\(([^):]+)\)", text)]
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_workplace(tmp_path):
    """The package of the copy is the copy's, not the checkout's."""
    Workplace(tmp_path)
    assert (tmp_path / "seesaw" / "engine").resolve() == tmp_path / "engine"
    assert (tmp_path / "engine" / "llm.py").read_text() == (REPOSITORY / "engine" / "llm.py").read_text()


def test_deployed_commands():
    """Those of deploy/, flags and values."""
    deploy = REPOSITORY / "deploy"
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]["seesaw"]["command"]
    deployment, _ = yaml.safe_load_all((deploy / "kubernetes.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [unit] = re.findall(r"^ExecStart=\S+/seesaw (.*)", (deploy / "seesaw.service").read_text(), re.MULTILINE)
    for command in (compose, container["args"], unit.split()):
        flags = vars(cli.make_parser().parse_args(command))
        assert flags.pop("command") == "serve"
        read_configs(flags)


def test_deployed_on_ray():
    """Arguments of applications, by name and value, and the job's command."""
    deploy = REPOSITORY / "deploy"
    service, job = yaml.safe_load_all((deploy / "kuberay.yaml").read_text())
    [worker] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [container] = worker["template"]["spec"]["containers"]
    for text in ((deploy / "ray-serve.yaml").read_text(), service["spec"]["serveConfigV2"]):
        [application] = yaml.safe_load(text)["applications"]
        module, _, function = application["import_path"].removeprefix("seesaw.").partition(":")
        assert f"def {function}(" in (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
        engine, _ = read_arguments(application["args"])
        assert engine_resources(engine) == {"num_gpus": container["resources"]["limits"]["nvidia.com/gpu"]}
        assert [each["name"] for each in application["deployments"]] == ["Seesaw"]
    program, *command = shlex.split(job["spec"]["entrypoint"])
    assert (program, command[:2]) == ("seesaw", ["batch", "run"])
    run.make_parser("batch run").parse_args(command[2:])


def test_flags():
    flags = set(re.findall(r"^\| (`--.*?) \|", (REPOSITORY / "docs" / "serving.md").read_text(), re.MULTILINE))
    named = {flag for cell in flags for flag in re.findall(r"--([\w-]+)", cell)}
    fields = {f.name.replace("_", "-") for config in (EngineConfig, ServerConfig) for f in dataclasses.fields(config)}
    assert len(named) > 10
    assert named <= fields


def test_what_a_report_is_of_was_made_above():
    shown = commands()
    [report] = [each for each in shown if each.is_one_of(REPORT)]
    named = {word for word in report.arguments_of(REPORT) if word.endswith(".json")}
    assert set(STAND_INS) <= named
    assert named <= {word for each in shown[: shown.index(report)] if each.language == "bash" for word in each.words}


def test_programs():
    programs = [command for command in commands() if command.language == "python"]
    assert programs
    for program in programs:
        compile(program.text, program.where, "exec")


@pytest.mark.parametrize(
    "command", [each for each in commands() if each.language == "bash"], ids=lambda each: each.where
)
def test_commands(command: Command, monkeypatch):
    """Flags, their values and the config files that they name."""
    monkeypatch.chdir(REPOSITORY)
    if (argv := command.arguments_of("scripts/serve", "seesaw serve")) is not None:
        flags = vars(cli.make_parser().parse_args(["serve", *argv]))
        del flags["command"]
        read_configs({"model": "the default one", **flags})
    elif (argv := command.arguments_of("scripts/run_benchmark.sh", "seesaw bench offline")) is not None:
        bench._config(bench._parse(argv if argv and argv[0][0] != "-" else ["--model", "m", *argv], "bench offline"))
    elif (argv := command.arguments_of("seesaw bench serve")) is not None:
        arguments.parse(argv, "bench serve")
    elif (argv := command.arguments_of("seesaw bench limits")) is not None:
        limits._parser("bench limits").parse_args(argv)
    elif (argv := command.arguments_of("seesaw batch run")) is not None:
        given = vars(run.make_parser("batch run").parse_args(argv))
        read_configs({name: value for name, value in given.items() if name not in NOT_SETTINGS})
    elif (argv := command.arguments_of("scripts/soak")) is not None:
        cli.make_parser().parse_args(["serve", *parse_args(argv).server_args])
    else:
        known = command.arguments_of("seesaw bench report") is not None
        assert known or command.arguments_of("seesaw") is None, "no parser is known for this command"
