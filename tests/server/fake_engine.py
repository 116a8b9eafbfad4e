"""An engine that speaks `engine.wire.messages` and says what a test tells it to; nothing is computed.

`FakeEngine` runs in the test's event loop, so a test knows at every moment what has been said. As a program
(`FakeProcess`) it is a whole engine process for `server.service`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq
import zmq.asyncio

from seesaw.engine.main_module import main_left_out
from seesaw.engine.supervision import follow_parent
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import (
    Abort,
    Add,
    CachedPrompt,
    Dead,
    EngineInfo,
    FinishReason,
    FromEngine,
    Output,
    Outputs,
    Ping,
    Pong,
    Progress,
    Ready,
    Stats,
    Stop,
    ToEngine,
)
from tests.patience import PATIENCE_S

M = TypeVar("M")
Script = Callable[[Add], list[Output]]

INFO = EngineInfo(
    model="fake/model",
    prefill="P2",
    decode="T2",
    tail="",
    dtype="float32",
    device="cpu",
    max_model_len=64,
    vocab_size=256,
    block_size=16,
    device_blocks=100,
    device_block_bytes=1 << 16,
    host_blocks=200,
    host_block_bytes=1 << 16,
    weights="resident",
)


def answer(text: str) -> Script:
    """Every sequence says `text`, a byte a token and a message, for at most max_tokens; then it stops. Of tokens that
    are to be told of it knows that they are sure."""

    def script(add: Add) -> list[Output]:
        data = text.encode()
        shown = data[: add.sampling.max_tokens]
        reason = FinishReason.LENGTH if len(shown) < len(data) else FinishReason.STOP
        sure, sampling = TokenLogprobs(0.0, 1, [], []), add.sampling
        of_token = [] if sampling.logprobs is None else [sure]
        of_prompt = [] if sampling.prompt_logprobs is None else [sure] * (len(add.prompt) - 1)
        return [
            Output(
                add.id,
                index,
                [token],
                reason if at == len(shown) - 1 else None,
                None,
                of_token,
                of_prompt if at == index == 0 else [],
            )
            for at, token in enumerate(shown)
            for index in range(add.sampling.n)
        ]

    return script


class FakeEngine:
    """The engine's end of the line. Answers pings unless `silent`, and requests if it has a `script`."""

    def __init__(self, to_engine: str, from_engine: str, script: Script | None = None) -> None:
        self.script = script
        self.silent = False
        self.is_stuck = False  # it takes messages and never says that it has handled them
        self.num_cached_tokens = 0  # of every prompt, which answers are told with
        self.stats = Stats(phase="decode", device_blocks_used=25, device_blocks_total=100)
        self.received: list[ToEngine] = []
        self._unread: list[ToEngine] = []
        self._arrived = asyncio.Condition()
        self._context = zmq.asyncio.Context()
        self._receiver = self._context.socket(zmq.PULL)
        self._sender = self._context.socket(zmq.PUSH)
        self._receiver.connect(to_engine)
        self._sender.connect(from_engine)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._task = asyncio.create_task(self._run())

    async def send(self, *messages: FromEngine) -> None:
        for message in messages:
            await self._sender.send(msgspec.msgpack.encode(message))

    async def say(self, id: str, text: str | bytes, finish: FinishReason | None = None, index: int = 0) -> None:
        """One message with these bytes as tokens."""
        data = text.encode() if isinstance(text, str) else text
        await self.send(Outputs([Output(id, index, list(data), finish)]))

    async def expect(self, kind: type[M], timeout_s: float | None = PATIENCE_S) -> M:
        """The next message of this kind; those of other kinds before it are passed over."""
        async with asyncio.timeout(timeout_s), self._arrived:
            while True:
                while self._unread:
                    message = self._unread.pop(0)
                    if isinstance(message, kind):
                        return message
                await self._arrived.wait()

    async def _run(self) -> None:
        while True:
            message = self._decoder.decode(await self._receiver.recv())
            match message:
                case Ping(nonce=nonce) if not self.silent:
                    await self.send(Pong(nonce, self.stats))
                case Add() if self.script is not None:
                    if self.num_cached_tokens:
                        await self.send(Outputs(cached=[CachedPrompt(message.id, self.num_cached_tokens)]))
                    for output in self.script(message):
                        await self.send(Outputs([output]))
            if not self.is_stuck:
                await self.send(Outputs(handled=len(self.received) + 1))
            async with self._arrived:
                self.received.append(message)
                self._unread.append(message)
                self._arrived.notify_all()

    def flush(self) -> None:
        """What was said is on its way when this returns; nothing more can be said."""
        self._context.destroy(linger=int(PATIENCE_S * 1000))

    async def close(self, linger_s: float = 0.0) -> None:
        """`linger_s`: for somebody to take what was sent; nobody may be there any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=int(1000 * linger_s))


class FakeProcess:
    """`engine.process.EngineProcess` for tests: its behaviour follows the model's name, or the next part of it after a
    comma if it is started again.

    `refuse`: dies of a ConfigError; `crash`: ends without a word before it is ready; `slow`: never ready; `mute`:
    answers nothing; otherwise: answers every request with its prompt, but never ends one that begins with `hang`. All
    end themselves when a request begins with `die`.
    """

    num_started = 0

    def __init__(self, config: EngineConfig) -> None:
        self.run_dir = tempfile.mkdtemp(prefix="seesaw-fake-")
        self.send_address = f"ipc://{self.run_dir}/down"
        self.receive_address = f"ipc://{self.run_dir}/up"
        context = multiprocessing.get_context("spawn")
        behaviours = config.model.split(",")
        behaviour = behaviours[min(FakeProcess.num_started, len(behaviours) - 1)]
        FakeProcess.num_started += 1
        arguments = config.model, behaviour, self.send_address, self.receive_address
        self.process = context.Process(target=run_process, args=arguments)
        with main_left_out():  # as of a real one: imports take most of a start
            self.process.start()

    def close(self, timeout_s: float) -> None:
        print(f"the fake engine has {timeout_s:g} s to end", flush=True)
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def kill(self) -> None:
        self.close(0.0)


def run_process(model: str, behaviour: str, to_engine: str, from_engine: str) -> None:
    follow_parent()
    asyncio.run(_process(model, behaviour, to_engine, from_engine))


async def _process(model: str, behaviour: str, to_engine: str, from_engine: str) -> None:
    def script(add: Add) -> list[Output]:
        prompt = bytes(add.prompt)
        if prompt.startswith(b"die"):
            engine.flush()  # what it said of others is no part of what is lost
            os._exit(9)
        if behaviour == "mute":
            return []
        ended = None if prompt.startswith(b"hang") else FinishReason.STOP
        return [Output(add.id, 0, add.prompt, ended)]

    if behaviour == "crash":
        os._exit(9)
    engine = FakeEngine(to_engine, from_engine, script)
    await engine.send(Progress("loading nothing"))
    if behaviour == "refuse":
        await engine.send(Dead("the model is not to my taste: choose another", is_config=True))
        return await engine.close(linger_s=PATIENCE_S)
    if behaviour != "slow":
        await engine.send(Ready(msgspec.structs.replace(INFO, model=model)))
    await engine.expect(Stop, timeout_s=None)
    await engine.close()


def short_dir() -> Path:
    """A folder whose path is short enough for a Unix socket's name."""
    return Path(tempfile.mkdtemp(prefix="seesaw-test-"))


__all__ = ["INFO", "Abort", "FakeEngine", "FakeProcess", "Script", "answer", "short_dir"]
