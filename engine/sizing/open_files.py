"""Whether this process may have enough files open: sockets to ranks, pipes, segments, weights. Called by `fit`."""

from __future__ import annotations

import resource

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError

OWN = 128  # the engine has about 30 open, a server or a worker about 40; connections come on top
FOR_EACH_RANK = 8


def check_open_files(config: EngineConfig) -> None:
    """Raise ConfigError if the limit is too low. Processes that are started have the same one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OWN + FOR_EACH_RANK * config.plan.world_size
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ConfigError(
            f"a process may have {limit} files open, and {config.plan} needs at least {needed}: "
            f"raise the limit, as with `ulimit -n {max(1024, needed)}`"
        )
