"""`seesaw batch run`: answer a file of requests without a server; what is cut off goes on when it is run again.

`server.cli` hands over the arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from seesaw.engine.logs import start_log
from seesaw.engine.printing import print_in_background
from seesaw.engine.process import EngineProcess
from seesaw.engine.supervision import adopt_orphans, exit_now
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError, SeesawError
from seesaw.server.backend import StartEngine, check_settings
from seesaw.server.batches.committer import Committer
from seesaw.server.batches.job import Finished, Taken
from seesaw.server.config import ServerConfig
from seesaw.server.offline.engine import OfflineEngine, offline_engine
from seesaw.server.offline.files import check_files, find_output
from seesaw.server.offline.partial import Partial, database
from seesaw.server.offline.progress import Progress
from seesaw.server.offline.source import Source, check_source, has_results
from seesaw.server.ray.batch import answer_on_cluster
from seesaw.server.ray.options import Cluster
from seesaw.server.service import StopSignal
from seesaw.server.settings import Parser, add_flags, given_values, help_text, make_configs
from seesaw.server.threads import OneThread, in_daemon_thread

# What of a server's settings is about rows; a config file may have the others, too.
ROW_SETTINGS = (
    *("served_model_name", "chat_template", "trust_request_chat_template", "enable_auto_tool_choice"),
    *("tool_call_parser", "reasoning_parser", "generation_config", "engine_timeout_s", "restart_engine"),
    *("max_queued_tokens", "max_prompts", "max_body_bytes", "max_batch_rows", "log_level"),
)
_NO_METRICS = "nothing is served here, and stderr has the progress, so leave it out"
VLLM_FLAGS = {
    **dict.fromkeys(("enable_metrics", "host", "port", "url"), _NO_METRICS),
    **dict.fromkeys(("disable_log_stats", "enable_log_requests", "max_log_len"), "use --log-level"),
    "response_role": "answers have the role assistant, so leave it out",
}


def main(argv: Sequence[str], prog: str) -> int:
    """Run it and return the exit code: 128 and the number of the signal that ended it. Raises SeesawError."""
    parser = make_parser(prog)
    given = vars(parser.parse_args(argv))
    source, output = Path(given.pop("input_file")).expanduser(), Path(given.pop("output_file")).expanduser()
    output = find_output(output)
    folder = Path(given.pop("output_tmp_dir", output.parent)).expanduser() / f"{output.name}.partial"
    cluster = Cluster.parse(given.pop("ray"), given.pop("ray_engines", "")) if "ray" in given else None
    if "ray_engines" in given:
        raise ConfigError("--ray-engines needs --ray")
    values = given_values(given)
    engine, server = make_configs(values)
    start_log("%(asctime)s %(levelname)s %(name)s: %(message)s", server.log_level.upper())
    check_files(source, output, folder)
    if cluster is None:  # else they are for other hosts than this
        check_settings(engine, server)
    print_in_background()
    # The engine's lines would tear the bar, or say again what the run's own say.
    start_engine = partial(
        EngineProcess.start, log_level=server.log_level.upper() if "log_level" in values else "WARNING"
    )
    code = asyncio.run(Run(engine, server, source, output, folder, start_engine, cluster).run())
    if cluster is not None and code:
        exit_now(code)  # threads of Ray's are in the midst of it
    return code


def make_parser(prog: str) -> argparse.ArgumentParser:
    """What it parses holds only what was given."""
    parser = Parser(
        prog=prog,
        description="Answer a file of requests without a server. Run it again to go on with what was cut off.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.elsewhere = VLLM_FLAGS
    parser.add_argument("model", nargs="?", metavar="MODEL", help=help_text("model"))
    add = parser.add_argument_group("files: .jsonl, .jsonl.gz or .parquet").add_argument
    add("-i", "--input-file", required=True, metavar="FILE", help="requests, as OpenAI's batches have them")
    add("-o", "--output-file", required=True, metavar="FILE", help="results, in the order of the requests")
    add(
        "--output-tmp-dir",
        metavar="FOLDER",
        help="where results are kept until all are there, on a local disk (default: the output's folder)",
    )
    add = parser.add_argument_group("several hosts, through Ray").add_argument
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="answer on a Ray cluster, by an engine on each group of GPUs that is free (default address: $RAY_ADDRESS, "
        "else the cluster that this host is of)",
    )
    add("--ray-engines", metavar="N", help="so many engines, or the least and most as in 2-8 (default: what has room)")
    parser.add_argument("--config", metavar="FILE", help="JSON file with the same settings, as of `seesaw serve`")
    add_flags(parser, "engine", EngineConfig)
    add_flags(parser, "rows", ServerConfig, only=ROW_SETTINGS)
    return parser


class Run:
    """One run of the command."""

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        source: Path,
        output: Path,
        folder: Path,
        start_engine: StartEngine,
        cluster: Cluster | None = None,
    ) -> None:
        """`folder` keeps results until all are there. `cluster`: where engines are, instead of one here."""
        self._engine, self._server = engine, server
        self._source, self._output, self._folder = source, output, folder
        self._start_engine = start_engine
        self._cluster = cluster
        self._thread = OneThread("results")
        self._partial: Partial | None = None

    async def run(self) -> int:
        """Until all rows are answered (0), or a signal comes."""
        adopt_orphans()
        stop = StopSignal()
        working = asyncio.create_task(self._work())
        await asyncio.wait((working, stop.requested), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return 0
        _say("stopping; press Ctrl-C again to stop at once")
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        _say(f"stopped{self._how_far()}")
        return 128 + stop.requested.result()

    def _how_far(self) -> str:
        if self._partial is None:
            return ""
        counts = self._partial.counts
        done = counts.completed + counts.failed
        return f" with {done} of {counts.total} rows done: run the same command again to go on"

    async def _work(self) -> None:
        source = await self._check()
        if not database(self._folder).exists() and self._output.exists() and self._output.stat().st_size:
            if not await in_daemon_thread(lambda: has_results(self._output, source)):
                raise ConfigError(f"{self._output} is there already: remove it, or name another --output-file")
            _say(f"{self._output} has all {source.num_rows} results already: remove it to have new ones")
            return
        self._partial = await self._thread.run(partial(Partial, self._folder, source, self._engine.model))
        try:
            if not self._partial.is_complete:
                await self._answer(self._partial)
            await self._thread.run(partial(self._partial.finish, self._output))
        except EngineDeadError as error:
            raise EngineDeadError(f"{error}; stopped{self._how_far()}") from None
        except OSError as error:
            raise SeesawError(f"cannot write {self._output}: {error.strerror}; stopped{self._how_far()}") from None
        finally:
            await self._thread.run(self._partial.close)
            self._thread.close()

    async def _check(self) -> Source:
        stop = threading.Event()
        server = self._server
        try:
            return await in_daemon_thread(
                lambda: check_source(self._source, server.max_batch_rows, server.max_body_bytes, stop)
            )
        finally:
            stop.set()

    async def _answer(self, kept: Partial) -> None:
        if self._cluster is not None:
            await answer_on_cluster(self._cluster, self._engine, self._server, kept, self._thread, _say)
            return

        async with offline_engine(self._engine, self._server, _say, self._start_engine) as engine:
            progress = Progress(lambda: kept.counts, engine.stats, lambda: kept.trouble)
            showing = asyncio.create_task(progress.show_on())
            try:
                await self._feed(kept, engine)
            finally:
                showing.cancel()
                progress.close()
        _say(progress.line())

    async def _feed(self, kept: Partial, engine: OfflineEngine) -> None:
        def on_kept(taken: Taken) -> None:
            engine.keep(len(taken.finished), sum(each.request_bytes + len(each.line) for each in taken.finished))

        def take(finished: Finished) -> None:
            kept.job.finished.append(finished)
            committer.note(kept.job)

        committer = Committer(kept.store, self._thread, kept.path, on_kept)
        committer.start()
        try:
            await engine.answer(kept.job.number, kept.unfinished(), take)
            await committer.keep(kept.job)
        finally:
            await committer.close()


def _say(line: str) -> None:
    """On stderr, above a bar if there is one."""
    tqdm.write(f"seesaw: {line}", file=sys.stderr)
