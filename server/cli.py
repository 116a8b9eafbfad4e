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

# The tools of `seesaw bench`: modules whose `main(argv, prog)` reads its own flags and returns the exit code.
BENCH_TOOLS = {
    "serve": ("seesaw.clients.load_test", "load a running server over HTTP"),
    "report": ("seesaw.clients.report", "make an HTML page of results and traces"),
    "offline": (
        "seesaw.server.bench",
        "run requests through the engine without HTTP, in one plan of layouts or several",
    ),
    "limits": ("seesaw.engine.bench.limits", "what this host can do at most, and each step's floor"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 2 for what its user can fix, 1 for a death.

    A server that was ready ends the process itself.
    """
    try:
        arguments = vars(make_parser().parse_args(argv))
        if arguments.pop("command") == "bench":
            return _bench(**arguments)
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
    bench = commands.add_parser("bench", help="measure: " + "; ".join(f"{t}: {h}" for t, (_, h) in BENCH_TOOLS.items()))
    bench.add_argument("tool", choices=BENCH_TOOLS, metavar=f"{{{','.join(BENCH_TOOLS)}}}")
    rest = bench.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="see `seesaw bench TOOL --help`"
    )
    rest.required = False
    return parser


def _bench(tool: str, arguments: list[str]) -> int:
    module = importlib.import_module(BENCH_TOOLS[tool][0])
    code = module.main(arguments, prog=f"seesaw bench {tool}")
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(interruptible(main))
