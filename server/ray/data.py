"""Rows through Ray Data: read beside the driver, answered by an actor for each engine, and given back as they come.

Used by `server.ray.batch`. What a row of Ray's holds is a chunk of ours (`server.ray.chunks`).
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

import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayError

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError, SeesawError
from seesaw.engine.values.wording import count
from seesaw.server.batches.inputs import Input
from seesaw.server.batches.job import Finished
from seesaw.server.config import ServerConfig
from seesaw.server.offline.engine import RowEngine
from seesaw.server.ray.chunks import CALLS, chunk_rows, chunks, pack, unpack_results, unpack_rows
from seesaw.server.ray.options import Cluster, engine_resources, num_fitting, told
from seesaw.version import seesaw_version

logger = logging.getLogger(__name__)

READ_AHEAD_CHUNKS = 64
CONNECT_TIMEOUT_S = 10.0
MAX_DEAD_STARTS = 3  # of engines, one after the other, before they count as what will never start
COLUMN = "chunk"


def answered(
    cluster: Cluster, engine: EngineConfig, server: ServerConfig, source: Input, done: bytes
) -> Iterator[list[Finished]]:
    """On the cluster that this process is connected to: results of the rows whose byte of `done` is 0, in any order.

    A row may come twice. While they are not asked for, Ray holds no more than its object store has room for. Raises
    ConfigError or EngineDeadError if the cluster cannot go on.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = MAX_DEAD_STARTS
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
                yield unpack_results(chunk.as_py())
    except RayError as error:
        raise _in_a_sentence(error) from error


def connect(cluster: Cluster, engine: EngineConfig, say: Callable[[str], None]) -> None:
    """To the cluster that is named, or else to one that runs here, or else to one that is started for this run."""
    if cluster.address.startswith("ray://"):
        raise ConfigError("--ray takes no Ray Client: run this on a node of the cluster, as with `ray job submit`")
    host, _, port = cluster.address.rpartition(":")
    try:
        if host:  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(cluster.address or None, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError among them
        where = cluster.address or os.environ.get("RAY_ADDRESS") or "this host"
        raise ConfigError(f"cannot connect to a Ray cluster at {where}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a run is said in a sentence
    needs = engine_resources(engine)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    room = num_fitting(nodes, needs)
    say(f"on a Ray cluster of {count(len(nodes), 'node')} with room for {count(room, 'engine')}, each of {told(needs)}")
    if not room:
        say("waiting for a node that has room: add one, choose smaller layouts, or --device cpu")


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
        yield _table(pack(chunk))


class Engine:
    """Holds an engine, and answers chunks of rows, several at once. Lives in an actor."""

    def __init__(self, engine: EngineConfig, server: ServerConfig, version: str) -> None:
        """`version`: of the driver's Seesaw, whose rows this is to read. Raises EngineDeadError."""
        self._host = socket.gethostname()
        self._has_answered = False
        # Told by the first call: what a constructor raises Ray tries again, and prints with all of its stack.
        self._wrong: ConfigError | None = None
        try:
            if version != seesaw_version():
                raise ConfigError(f"Seesaw is {seesaw_version()} there, and this run's {version}: install the same")
            self._engine = RowEngine(engine, server)
        except ConfigError as error:
            self._wrong = error

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        if self._wrong is not None:
            raise ConfigError(f"host {self._host}: {self._wrong}")
        [chunk] = batch[COLUMN]
        try:
            results = self._engine.answer_rows(unpack_rows(chunk.as_py()))
        except EngineDeadError as error:
            if self._has_answered:
                # As of a host that died: Ray starts the actor anew, and sends it what it had. An exception would end
                # the run, and a polite exit the retries.
                logger.error("%s", error)
                os._exit(1)
            raise EngineDeadError(f"host {self._host}, before it had answered a row: {error}") from None
        self._has_answered = True
        return _table(pack(results))


def _table(chunk: bytes) -> pyarrow.Table:
    return pyarrow.table({COLUMN: pyarrow.array([chunk], pyarrow.large_binary())})


def _in_a_sentence(error: RayError) -> SeesawError:
    """What an actor said that its user can read, or else what Ray says of it."""
    said = re.findall(r"(ConfigError|EngineDeadError): (.+)", str(error))
    if said:
        kind, sentence = said[-1]
        return ConfigError(sentence) if kind == "ConfigError" else EngineDeadError(sentence)
    return EngineDeadError(f"the Ray cluster could not go on: {str(error).strip().splitlines()[-1]}")
