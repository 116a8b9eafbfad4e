"""Flags, config files and their errors: nothing is started here."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import get_args

import pytest

import seesaw
from seesaw.engine.values import foreign_options, json_file
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.wording import GIB
from seesaw.server import cli, entry, settings
from seesaw.server.config import ReasoningParser, ServerConfig, ToolCallParser
from seesaw.server.render.reasoning import REASONING_PARSERS
from seesaw.server.render.tools import TOOL_PARSERS


def configs(*arguments: str) -> tuple[EngineConfig, ServerConfig]:
    given = vars(cli.make_parser().parse_args(["serve", *arguments]))
    given.pop("command")
    return settings.read_configs(given)


def write(folder: Path, values: object) -> str:
    path = folder / "x.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_defaults_are_the_dataclasses() -> None:
    assert configs("m") == (EngineConfig(model="m"), ServerConfig())


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"model": "m", "prefill": "P4", "decode": "T4", "port": 9, "max_stall_s": 2, "host_kv_bytes": "8GiB"}
    )
    engine, server = configs("--config", path, "--decode", "T2P2", "--api-key", "a", "--api-key", "b", "--access-log")
    assert (engine.model, engine.prefill, engine.decode) == ("m", "P4", "T2P2")
    assert (engine.max_stall_s, engine.host_kv_bytes) == (2, 8 * GIB)
    assert (server.port, server.api_key, server.access_log) == (9, ("a", "b"), True)
    assert configs("other", "--config", path)[0].model == "other"


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("4GiB", 4 * GIB), ("4g", 4 * GIB), ("512M", GIB // 2), ("1.5 GB", 1_500_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert configs("m", "--host-kv-bytes", text)[0].host_kv_bytes == size


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no model"),
        (["m", "--prefil", "P2"], "no flag --prefil: did you mean --prefill?; see `seesaw serve --help`"),
        (["m", "extra"], "no place for 'extra'; see"),
        (["m", "--served-model-name", "a", "b"], "'b': for another value write --served-model-name again; see"),
        (["m", "--tensor-parallel-size", "4"], "as in `--prefill T4`"),
        (["-tp", "4", "m"], "as in `--prefill T4`"),
        (["m", "--pipeline-parallel-size=3"], "as in `--prefill P3`"),
        (["m", "--data-parallel-size"], "as in `--prefill D2`"),
        (["--model", "m"], "there is no flag --model: name the model without a flag, as in `seesaw serve MODEL`"),
        (["--model=m"], "name the model without a flag"),
        (["m", "--gpu-memory-utilization", "0.9"], "KV pool its size, as in `--kv-cache-memory-bytes 20GiB`"),
        (["m", "--max-running-requests", "9"], "there is no flag --max-running-requests: use --max-num-seqs"),
        (["m", "--disable-custom-all-reduce"], "as in `--custom-all-reduce off`"),
        (["m", "--trust-remote-code"], "never done"),
        (["m", "--enable-lora=1"], "nothing like it yet"),
        (["m", "--disable-radix-cache"], "write it, as in `--no-enable-prefix-caching`"),
        (["m", "--enable-log-requests"], "write it, as in `--access-log`"),
        (["m", "--swap-space", "4"], "as in `--host-kv-bytes 64GiB`"),
        (["m", "--task", "generate"], "continue a text are all there are, so leave it out"),
        (["m", "--tail-wind", "x"], "there is no flag --tail-wind; see"),  # and not: did you mean --tail?
        (["m", "--scheduler-cls", "x"], "there is no flag --scheduler-cls; see"),
        (["m", "--shutdown-timeout-s", "inf"], "shutdown_timeout_s must be 0 or a number of seconds"),
        (["m", "--shutdown-timeout-s", "nan"], "shutdown_timeout_s must be"),
        (["m", "--health-timeout-s", "nan"], "health_timeout_s must be a positive number"),
        (["m", "--engine-timeout-s", "0"], "engine_timeout_s must be a positive number"),
        (["m", "--port", "many"], "--port must be a whole number, not 'many'"),
        (["m", "--port", "99999"], "between 0 and 65535"),
        (["m", "--host-kv-bytes", "4 apples"], "size such as 4GiB"),
        (["m", "--host-kv-bytes", "9" * 400 + ".5G"], "size such as 4GiB"),
        (["m", "--step-timeout-s", "1e9"], "step_timeout_s must be between 0.1 and 31536000"),
        (["m", "--attention-backend", "fa4"], "--attention-backend must be one of auto, fa2, fa3, not 'fa4'"),
        (["m", "--dtype", "int3"], "--dtype must be one of auto, float32"),
        (["m", "--prefill", "X4"], "layout 'X4'"),
        (["m", "--enable-auto-tool-choice"], "needs a tool_call_parser"),
        (["m", "--tool-call-parser", "gpt"], "--tool-call-parser must be one of none, hermes"),
        (["m", "--root-path", "llm"], "root_path must begin with a slash"),
        (["m", "--root-path", "/llm/"], "not end with one"),
        (["m", "--ssl-keyfile", "k"], "TLS needs a certificate"),
        (["m", "--ssl-certfile", "c", "--ssl-cert-reqs", "required"], "name them with ssl_ca_certs"),
        (["m", "--ssl-certfile", "c", "--uds", "s"], "exclude each other"),
        (["m", "--served-model-name", ""], "served_model_name must not be empty"),
        (["m", "--prefill", "P4", "--decode", "T2"], "choose layouts of one world size"),
        (["m", "--config", "/no/such/file"], "cannot read the config file"),
    ],
)
def test_bad_flags_are_one_sentence_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ") and part in line


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"prefil": "P4"}, "unknown key 'prefil' in the config file"),
        ({"prefil": "P4"}, 'did you mean "prefill"?'),
        ({"tensor_parallel_size": 4}, 'write it as a layout, as in `"prefill": "T4"`'),
        ({"gpu_memory_utilization": 0.9}, 'as in `"kv_cache_memory_bytes": "20GiB"`'),
        ({"disable_radix_cache": True}, 'write it, as in `"enable_prefix_caching": false`'),
        ({"port": "x"}, "port in "),
        ({"port": True}, "must be a whole number"),
        ({"api_key": [1]}, "text or a list of texts"),
        ([1], "holds no JSON object"),
        ({"access_log": "false"}, 'must be true or false, not "false"'),
        ({"access_log": "no"}, "must be true or false"),
        ({"access_log": "0"}, "must be true or false"),
        ({"access_log": 0}, "must be true or false, not 0"),
        ({"access_log": None}, "must be true or false, not null"),
        ({"port": "8000"}, 'must be a whole number, not "8000"'),
        ({"port": 80.5}, "must be a whole number, not 80.5"),
        ({"port": [80]}, "must be a whole number"),
        ({"max_num_seqs": float("inf")}, "must be a whole number, not Infinity"),
        ({"max_num_seqs": 10**400}, "max_num_seqs must be between 1 and"),
        ({"max_stall_s": "5"}, 'must be a number, not "5"'),
        ({"max_stall_s": False}, "must be a number, not false"),
        ({"max_stall_s": float("nan")}, "max_stall_s must be at least 0"),
        ({"max_stall_s": float("inf")}, "max_stall_s must be at least 0"),
        ({"max_stall_s": 10**400}, "must be a number"),
        ({"host_kv_bytes": "4 apples"}, "must be a size such as 4GiB"),
        ({"host_kv_bytes": "9" * 400 + ".5G"}, "must be a size such as 4GiB"),
        ({"host_kv_bytes": 1.5}, "must be a size such as 4GiB, not 1.5"),
        ({"host_kv_bytes": True}, "must be a size such as 4GiB, not true"),
        ({"host_kv_bytes": -1}, "host_kv_bytes must be at least 0"),
        ({"host": 5}, "must be text, not 5"),
        ({"model": {}}, "must be text, not {}"),
        ({"custom_all_reduce": False}, "must be one of auto, off, not false"),
        ({"dtype": []}, "must be one of auto, float32, bfloat16, float16, not []"),
    ],
)
def test_bad_config_files(tmp_path: Path, values: object, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "m", "--config", write(tmp_path, values)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ") and part in line


def test_advice_on_foreign_options_names_options_of_ours() -> None:
    foreign = {*foreign_options.INSTEAD, *foreign_options.LAYOUTS, *foreign_options.NOTHING, *settings.MODEL_FLAGS}
    assert foreign & settings.HINTS.keys() == {"model"}
    assert {option for _, option, _ in foreign_options.INSTEAD.values()} <= settings.HINTS.keys()


def test_values_may_have_the_names_that_others_give_them() -> None:
    names = {"dtype": "half", "kv_cache_dtype": "fp8_e4m3", "load_format": "auto"}
    flags = [word for name, value in names.items() for word in (f"--{name.replace('_', '-')}", value)]
    engine, _ = configs("m", *flags)
    assert (engine.dtype, engine.kv_cache_dtype, engine.load_format) == ("float16", "fp8", "safetensors")


def test_every_parser_has_a_flag() -> None:
    assert get_args(ToolCallParser) == ("none", *TOOL_PARSERS)
    assert get_args(ReasoningParser) == ("none", *REASONING_PARSERS)


def test_what_may_be_written_otherwise_in_a_config_file(tmp_path: Path) -> None:
    values = {"model": "m", "access_log": False, "port": 9e3, "host_kv_bytes": 8e9, "max_stall_s": 5, "api_key": "a"}
    engine, server = configs("--config", write(tmp_path, values))
    assert (server.access_log, server.port, server.api_key) == (False, 9000, ("a",))
    assert (engine.host_kv_bytes, engine.max_stall_s) == (8_000_000_000, 5.0)
    assert [type(value) for value in (server.port, engine.host_kv_bytes, engine.max_stall_s)] == [int, int, float]


def test_a_config_file_without_an_end_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    assert cli.main(["serve", "m", "--config", str(path)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_a_config_file_may_be_a_pipe_and_is_read_to_a_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"port": 9000}')
    os.close(writing)
    assert configs("m", "--config", f"/dev/fd/{reading}")[1].port == 9000  # as `--config <(...)` gives it
    os.close(reading)
    monkeypatch.setattr(json_file, "MOST_BYTES", 8)
    assert cli.main(["serve", "m", "--config", write(tmp_path, {"port": 9000})]) == 2
    assert "the config file" in (error := capsys.readouterr().err) and "has more than" in error


@pytest.mark.parametrize("key", ["max_num_seqs", "no_such_key"])
def test_a_deep_value_in_a_config_file_is_one_short_sentence(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep.json"
    for depth in (100, *range(600, 1000, 10)):  # at some of them it can be read, but not be written
        path.write_text(f'{{"{key}": {"[" * depth}{"]" * depth}}}')
        assert cli.main(["serve", "m", "--config", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("seesaw: error: ") and len(line) < 600


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.API_KEY_VARIABLE, "hidden")
    assert configs("m")[1].api_key == ("hidden",)
    assert configs("m", "--api-key", "flag")[1].api_key == ("flag",)


def test_a_taken_port_is_said_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "m", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"seesaw: error: cannot listen on 127.0.0.1 port {port} (") and "--port" in error


def test_files_that_cannot_be_used_are_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("{% if %}")
    for flag, value, part in (
        ("--chat-template", str(broken), "syntax error in line 1"),
        ("--chat-template", "{{ 1 | unheard_of }}", "syntax error"),
        ("--generation-config", str(broken), "is not valid JSON"),
        ("--generation-config", str(tmp_path / "nowhere"), "there is no"),
    ):
        # A port that cannot be taken would be the next error.
        assert cli.main(["serve", "m", "--load-format", "dummy", "--host", "256.0.0.1", flag, value]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("seesaw: error: ") and part in line


def test_every_setting_has_a_flag_and_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in (*EngineConfig.__dataclass_fields__, *ServerConfig.__dataclass_fields__):
        assert name == "model" or f"--{name.replace('_', '-')}" in shown
    flat = " ".join(shown.split())
    for part in (
        "dummy weights (default: 0)",
        "aborted (default: 0.0)",
        "(default: $SEESAW_API_KEY",
        "(default: 4GiB)",
    ):
        assert part in flat


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"seesaw {seesaw.__version__}\n"


def test_a_benchmark_without_a_name_is_told_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 2
    assert "are required: {serve,report,offline,limits}; see" in capsys.readouterr().err


def test_commands_of_others_are_told_what_they_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    for theirs, ours in (("run-batch -i a", "batch run"), ("bench throughput --model m", "bench offline")):
        assert cli.main(theirs.split()) == 2
        assert f"it is `seesaw {ours}`" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert "serve a model over" in capsys.readouterr().err


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str], prog: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("seesaw.clients.report.main", interrupted)
    monkeypatch.setattr("sys.argv", ["seesaw", "bench", "report"])
    assert entry.main() == 130
    assert capsys.readouterr().err == "seesaw: interrupted\n"
