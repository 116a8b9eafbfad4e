"""Rows through Ray Data: read beside the driver, answered by an actor for each engine, and given back as they come.

Used by `server.ray.batch`. What a row of Ray's holds is a chunk of ours: Ray moves, retries and counts chunks, and a
chunk is small against what an engine has at once, so that little is lost with a host and engines end together.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayError

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError, SeesawError
from seesaw.server.batches.inputs import Input
from seesaw.server.batches.job import Finished
from seesaw.server.batches.jobs import ROWS_PER_SEQUENCE
from seesaw.server.batches.rows import Row, read_line
from seesaw.server.config import ServerConfig
from seesaw.server.offline.engine import RowEngine
from seesaw.server.ray.options import Cluster, engine_resources, num_fitting, told
from seesaw.version import seesaw_version

logger = logging.getLogger(__name__)

CALLS = 16  # chunks that an engine has at once; Ray has as many more on their way there
READ_AHEAD_CHUNKS = 64
CHUNK_BYTES = 1 << 20  # no further row beyond so many
COLUMN = "chunk"

Numbered = list[tuple[int, bytes]]  # rows and their lines

_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(Numbered).decode
_decode_results = msgspec.msgpack.Decoder(list[Finished]).decode


def answered(
    cluster: Cluster, engine: EngineConfig, server: ServerConfig, source: Input, done: bytes, say: Callable[[str], None]
) -> Iterator[list[Finished]]:
    """Results of the rows whose byte of `done` is 0, in any order; a row may come twice. While they are not asked for,
    Ray holds no more than its object store has room for.

    Raises ConfigError or EngineDeadError if the cluster cannot go on.
    """
    connect(cluster, engine, say)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each chunk is a block, and each block a task
    # Ray takes so many from a task at once, and ours is the only one that reads: two are too few for many engines.
    context._max_num_blocks_in_streaming_gen_buffer = READ_AHEAD_CHUNKS
    size = chunk_rows(engine)
    pool = cluster.pool(num_fitting(ray.nodes(), engine_resources(engine)), math.ceil(done.count(0) / size))
    rows = ray.data.read_datasource(Rows(source, done, size), num_cpus=0, override_num_blocks=1)
    results = rows.map_batches(
        Engine,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(engine, server, seesaw_version()),
        compute=ActorPoolStrategy(
            min_size=pool.least,
            max_size=pool.most,
            initial_size=pool.first,
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        ),
        **engine_resources(engine),
    )
    try:
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for chunk in table[COLUMN]:
                yield _decode_results(chunk.as_py())
    except RayError as error:
        raise _in_a_sentence(error) from error


def connect(cluster: Cluster, engine: EngineConfig, say: Callable[[str], None]) -> None:
    """To the cluster that is named, or else to one that runs here, or else to one that is started for this run."""
    if cluster.address.startswith("ray://"):
        raise ConfigError("--ray takes no Ray Client: run this on a node of the cluster, as with `ray job submit`")
    try:
        ray.init(cluster.address or None, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot connect to a Ray cluster at {cluster.address or 'this host'}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a run is said in a sentence
    needs = engine_resources(engine)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    say(
        f"on a Ray cluster of {len(nodes)} nodes with room for {num_fitting(nodes, needs)} engines ({told(needs)} each)"
    )


def disconnect() -> None:
    """End what this process has on the cluster. Idempotent."""
    ray.shutdown()


class Rows(Datasource):  # type: ignore[misc]
    """An input that was checked, as chunks of rows."""

    def __init__(self, source: Input, done: bytes, chunk_rows: int) -> None:
        super().__init__()
        self._source = source
        self._done = zlib.compress(done)
        self._chunk_rows = chunk_rows

    @property
    def supports_distributed_reads(self) -> bool:
        return False  # the file is where the driver is

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> Any:
        """One, which reads no further than Ray lets it. Whenever it is done again, it reads the same chunks."""
        read = partial(_read, self._source, self._done, self._chunk_rows)
        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]


def _read(source: Input, done: bytes, chunk_rows: int) -> Iterator[pyarrow.Table]:
    # A function of the module, which workers import: what is defined inside another one is sent with all that it uses.
    for chunk in chunks(source, zlib.decompress(done), chunk_rows):
        yield _table(_encode(chunk))


class Engine:
    """Holds an engine, and answers chunks of rows, several at once. Lives in an actor."""

    def __init__(self, engine: EngineConfig, server: ServerConfig, version: str) -> None:
        """`version`: of the driver's Seesaw, whose rows this is to read. Raises ConfigError or EngineDeadError."""
        if version != seesaw_version():
            here = f"host {socket.gethostname()} has Seesaw {seesaw_version()}"
            raise ConfigError(f"{here}, and this run's is {version}: install the same")
        self._engine = RowEngine(engine, server)
        self._has_answered = False

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        [chunk] = batch[COLUMN]
        rows = [Row(number, read_line(line), len(line)) for number, line in _decode_rows(chunk.as_py())]
        try:
            results = self._engine.answer_rows(rows)
        except EngineDeadError as error:
            if self._has_answered:
                # As of a host that died: Ray starts the actor anew, and sends it what it had. An exception would end
                # the run, and a polite exit the retries.
                logger.error("%s", error)
                os._exit(1)
            raise EngineDeadError(f"host {socket.gethostname()}, before it had answered a row: {error}") from None
        self._has_answered = True
        return _table(_encode(results))


def chunks(source: Input, done: bytes, most_rows: int) -> Iterator[Numbered]:
    """The rows that are not done, in order: so many at once, and no further one beyond CHUNK_BYTES."""
    chunk: Numbered = []
    size_bytes = 0
    for number, (_, line) in enumerate(source.lines()):
        if done[number]:
            continue
        chunk.append((number, line))
        size_bytes += len(line)
        if len(chunk) == most_rows or size_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def chunk_rows(engine: EngineConfig) -> int:
    """So that CALLS of them keep an engine full."""
    num_seqs = engine.max_num_seqs * max(layout.dp for layout in engine.plan.layouts)
    return math.ceil(ROWS_PER_SEQUENCE * num_seqs / CALLS)


def _table(chunk: bytes) -> pyarrow.Table:
    return pyarrow.table({COLUMN: pyarrow.array([chunk], pyarrow.large_binary())})


def _in_a_sentence(error: RayError) -> SeesawError:
    """What an actor said that its user can read, or else what Ray says of it."""
    said = re.findall(r"(ConfigError|EngineDeadError): (.+)", str(error))
    if said:
        kind, sentence = said[-1]
        return ConfigError(sentence) if kind == "ConfigError" else EngineDeadError(sentence)
    return EngineDeadError(f"the Ray cluster could not go on: {str(error).strip().splitlines()[-1]}")
