"""Which GPUs there are, and what they have free before anything is on them. Called by `engine.executor.processes`.

Asking takes torch and may make a CUDA context; the engine process has neither. So a process that ends at once asks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from seesaw.engine.awake import waits
from seesaw.engine.device.choice import Gpus, find_gpus
from seesaw.engine.executor.fork_server import fork_server, start_forked
from seesaw.engine.executor.ranks import GRACE_S
from seesaw.engine.supervision import end_children, follow_parent
from seesaw.engine.values.errors import EngineDeadError


def found_gpus(timeout_s: float) -> Gpus:
    """Those that torch can use. Raises EngineDeadError if that process ends or gets stuck instead."""
    gpus: Gpus = _ask(find_gpus, (), "the GPUs", "looked for", timeout_s)
    return gpus


def free_device_bytes(num_devices: int, timeout_s: float) -> list[int]:
    """By device. Raises EngineDeadError if that process ends or gets stuck instead."""
    free_bytes: list[int] = _ask(_measure, (num_devices,), "the GPUs' free memory", "measured", timeout_s)
    return free_bytes


def _ask(question: Callable[..., Any], args: tuple[object, ...], what: str, done: str, timeout_s: float) -> Any:
    context = fork_server()
    answers, asked = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, args, asked), name="gpus", daemon=True)
    start_forked(process, timeout_s)
    asked.close()  # so that the process's end is the pipe's
    answer = None
    try:
        if not any(map(answers.poll, waits(timeout_s))):
            raise EngineDeadError(f"{what} could not be {done} within {timeout_s:g} s")
        answer = answers.recv()
    except EOFError:
        raise EngineDeadError(f"{what} could not be {done}; the reason is on stderr") from None
    finally:
        answers.close()
        process.join(GRACE_S)
        if answer is None:  # else it ends by itself, though nobody hears of it while the fork server is stopped
            end_children([process], 0.0)
    return answer


def _answer(question: Callable[..., Any], args: tuple[object, ...], answer: Connection) -> None:
    follow_parent()
    found = question(*args)
    with suppress(BrokenPipeError):  # whoever asked waits no longer, if this process was stopped meanwhile
        answer.send(found)


def _measure(num_devices: int) -> list[int]:
    import torch  # the fork server has it

    return [int(torch.cuda.mem_get_info(device)[0]) for device in range(num_devices)]
