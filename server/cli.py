"""The command line of `seesaw`, which starts in `server.entry`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, SeesawError
from seesaw.server.config import ServerConfig
from seesaw.server.entry import complain, interruptible
from seesaw.server.settings import Parser, add_flags, help_text, read_configs
from seesaw.version import seesaw_version

# Tools of a command: modules whose `main(argv, prog)` reads its own flags and returns the exit code.
BENCH_TOOLS = {
    "serve": ("seesaw.clients.load_test", "load a running server over HTTP"),
    "report": ("seesaw.clients.report", "make an HTML page of results and traces"),
    "offline": (
        "seesaw.server.bench",
        "run requests through the engine without HTTP, in one plan of layouts or several",
    ),
    "limits": ("seesaw.engine.bench.limits", "what this host can do at most, and each step's floor"),
}
BATCH_TOOLS = {
    "run": ("seesaw.server.offline.run", "answer a file of requests without a server, as often cut off as need be"),
}
TOOLS = {"bench": BENCH_TOOLS, "batch": BATCH_TOOLS}
OF_OTHERS = {"run-batch": "batch run", "bench throughput": "bench offline", "bench latency": "bench offline"}  # vLLM's


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 2 for what its user can fix, 1 for a death.

    A server that was ready ends the process itself.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        parser = make_parser()
        if not argv:
            parser.print_help(sys.stderr)
            return 2
        for theirs in (argv[0], " ".join(argv[:2])):
            if theirs in OF_OTHERS:
                raise ConfigError(f"there is no `seesaw {theirs}`: it is `seesaw {OF_OTHERS[theirs]}`")
        arguments = vars(parser.parse_args(argv))
        command = arguments.pop("command")
        if command in TOOLS:
            return _run_tool(command, **arguments)
        engine, server = read_configs(arguments)
        from seesaw.engine.supervision import exit_now
        from seesaw.server.service import serve

        exit_now(serve(engine, server))
    except ConfigError as error:
        complain(f"seesaw: error: {error}")
        return 2
    except SeesawError as error:
        complain(f"seesaw: error: {error}")
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The whole command line's; what it parses holds only what was given. Raises ConfigError."""
    parser = Parser(prog="seesaw", description="LLM server that re-shards between prefill and decode.")
    parser.add_argument("--version", action="version", version=f"seesaw {seesaw_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model over an OpenAI-compatible HTTP API",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # so that what was not given does not override the config file
    )
    serve.add_argument("model", nargs="?", metavar="MODEL", help=help_text("model"))
    serve.add_argument("--config", metavar="FILE", help='JSON file with the same settings, e.g. {"max_num_seqs": 64}')
    add_flags(serve, "engine", EngineConfig, without="model")
    add_flags(serve, "server", ServerConfig)
    for command, what in (("bench", "measure"), ("batch", "work off files")):
        tools = TOOLS[command]
        told = "; ".join(f"{tool}: {text}" for tool, (_, text) in tools.items())
        group = commands.add_parser(command, help=f"{what}: {told}")
        group.add_argument("tool", choices=tools, metavar=f"{{{','.join(tools)}}}")
        rest = group.add_argument(
            "arguments", nargs=argparse.REMAINDER, metavar="...", help=f"see `seesaw {command} TOOL --help`"
        )
        rest.required = False
    return parser


def _run_tool(command: str, tool: str, arguments: list[str]) -> int:
    module = importlib.import_module(TOOLS[command][tool][0])
    code = module.main(arguments, prog=f"seesaw {command} {tool}")
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(interruptible(main))
