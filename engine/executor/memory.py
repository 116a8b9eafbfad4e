"""What GPUs have free before anything is on them. Called by `engine.executor.processes`.

Asking makes a CUDA context, and the engine process owns no device: so a process that ends at once asks.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from seesaw.engine.awake import waits
from seesaw.engine.executor.fork_server import fork_server, start_forked
from seesaw.engine.executor.ranks import GRACE_S
from seesaw.engine.supervision import end_children, follow_parent
from seesaw.engine.values.errors import EngineDeadError


def free_device_bytes(num_devices: int, timeout_s: float) -> list[int]:
    """By device. Raises EngineDeadError if that process ends or gets stuck instead."""
    context = fork_server()
    answers, asked = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(num_devices, asked), name="memory", daemon=True)
    start_forked(process, timeout_s)
    asked.close()  # so that the process's end is the pipe's
    try:
        if not any(map(answers.poll, waits(timeout_s))):
            raise EngineDeadError(f"the GPUs' free memory was not measured within {timeout_s:g} s")
        free_bytes: list[int] = answers.recv()
        return free_bytes
    except EOFError:
        raise EngineDeadError("the GPUs' free memory could not be measured; the reason is on stderr") from None
    finally:
        answers.close()
        end_children([process], GRACE_S)


def _measure(num_devices: int, answer: Connection) -> None:
    follow_parent()
    import torch  # the fork server has it

    answer.send([int(torch.cuda.mem_get_info(device)[0]) for device in range(num_devices)])
