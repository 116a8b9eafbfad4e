"""What the engine sends to a rank: commands, in order, and masks for steps that the rank may have begun already."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np
import torch
import zmq

from seesaw.engine.wire.commands import Command, Masks, Shutdown


class StoppedError(Exception):
    """The rank was told to end while it waited."""


class Inbox:
    """Owned by the rank's one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, 0)  # bounded by the steps in flight
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(address)
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._later: deque[Command] = deque()  # came while a step waited for its masks
        self._masks: dict[int, Masks] = {}  # that no step has asked for yet

    def next(self) -> Command:
        """The next command; waits for it. Masks are none: a step asks for those it needs."""
        if self._later:
            return self._later.popleft()
        while isinstance(command := self._receive(), Masks):
            self._masks[command.id] = command
        return command

    def masks(self, id: int) -> torch.Tensor:
        """Of a step: int32 `[rows, words]`, on the host; waits for them.

        They follow from tokens of earlier steps, which this rank has reported. Raises StoppedError if it is to end
        instead.
        """
        while id not in self._masks:
            command = self._receive()
            if isinstance(command, Masks):
                self._masks[command.id] = command
            elif isinstance(command, Shutdown):
                raise StoppedError
            else:
                self._later.append(command)
        masks = self._masks.pop(id)
        return torch.from_numpy(np.frombuffer(masks.rows, np.int32).reshape(masks.num_rows, -1).copy())

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> Command:
        return self._decoder.decode(self._socket.recv())
