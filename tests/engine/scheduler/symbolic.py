"""A simulated host that really keeps track of KV, symbolically: the scheduler's strictest reader.

The "model": the KV of position p stands for all tokens up to p, and the next token is a function of it. A forward
looks its context up in the blocks it is given, so that a block that was freed too early, copied before it was
written, read in the wrong layout or shared wrongly gives other tokens than `reference`, or fails at once.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from seesaw.engine.cost.estimate import constant
from seesaw.engine.cost.times import Measured
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import AllocatePools, Command, Forward, Shutdown, Swap, Transition
from tests.engine.forwards import parts

VOCAB = 1009
SHAPE = ModelShape(
    num_layers=12,
    hidden=64,
    num_heads=12,
    num_kv_heads=12,
    head_dim=8,
    ffn=96,
    vocab=VOCAB,
    max_position=512,
    tied=False,
    dtype="float32",
)


def extend(state: int, token: int) -> int:
    return hash((state, token, "kv")) & 0xFFFFFFFFFFFF


def next_token(state: int) -> int:
    return state % VOCAB


def reference(prompt: list[int], max_tokens: int, eos: tuple[int, ...] = ()) -> list[int]:
    """What any correct schedule must give."""
    state = 0
    for token in prompt:
        state = extend(state, token)
    out: list[int] = []
    while len(out) < max_tokens:
        out.append(next_token(state))
        if out[-1] in eos:
            break
        state = extend(state, out[-1])
    return out


def measured(config: EngineConfig, **changes: float) -> Measured:
    """A small, slow host; `changes` are fields of `Measured`."""
    times = constant(config.plan, step_s=2e-3, token_s=20e-6, transition_s=0.5)
    rates = {"swap_out_bytes_per_s": 20e9, "swap_in_bytes_per_s": 20e9}
    return msgspec.structs.replace(times, **{**rates, **changes})


class Cell(NamedTuple):
    """KV of one position, as one layout's rectangles."""

    layout: int
    position: int
    state: int


class SymbolicExecutor(SimulatedExecutor):
    """Keeps both pools as symbols, and checks what the commands promise (`engine.wire.commands`)."""

    def __init__(
        self,
        config: EngineConfig,
        times: Measured | None = None,
        shape: ModelShape = SHAPE,
        turn_s: float = 0.0,
    ) -> None:
        super().__init__(config, shape, times or measured(config), turn_s=turn_s)
        self._block_size = config.block_size
        self._device: dict[tuple[int, int, int], Cell] = {}  # replica, block, offset
        self._host: dict[tuple[int, int], Cell] = {}  # block, offset
        self._tables: dict[tuple[int, int], list[int]] = {}
        self._slot_token: dict[tuple[int, int], int] = {}
        self._layout_now = self._plan.index(self._plan.first)
        self._forwards_in_flight = 0
        self._writing: dict[tuple[str, int, int], int] = {}  # blocks that swaps in flight write
        self.transitions = self.swaps = self.largest_in_flight = 0

    def submit(self, command: Command) -> None:
        match command:
            case Forward():
                assert command.layout == self._layout_now, "a forward in another layout than the current one"
                self._forwards_in_flight += 1
                self.largest_in_flight = max(self.largest_in_flight, self._forwards_in_flight)
            case Swap():
                if command.to_host:
                    names = [("host", -1, block) for block in command.host_blocks]
                else:
                    for block in command.host_blocks:
                        assert ("host", -1, block) not in self._writing, "swap-in of a block still being written"
                    names = [("device", command.replica, block) for block in command.device_blocks]
                for name in names:
                    assert name not in self._writing, f"{name} is written by two swaps at once"
                    self._writing[name] = command.id
            case Transition():
                assert self._forwards_in_flight == 0, "a transition while forwards are in flight"
                self.transitions += 1
                self._layout_now = command.layout
            case AllocatePools() | Shutdown():
                raise AssertionError(f"unexpected {command}")
        super().submit(command)

    def run_forward(self, forward: Forward) -> list[int]:
        self._forwards_in_flight -= 1
        replica = forward.replica
        for table in forward.tables:
            known = self._tables.setdefault((replica, table.slot), [])
            known[table.first :] = table.blocks
        # A prompt may share blocks that an earlier chunk of this very step writes: devices write before they read.
        tokens: dict[int, int] = {}
        chunks = parts(forward)
        assert len({chunk.slot for chunk in chunks}) == len(chunks), "one slot twice in a forward"
        for chunk in chunks:
            previous = self._cell(replica, chunk.slot, chunk.start - 1) if chunk.start else None
            assert chunk.start == 0 or previous is not None, "a chunk's context is not in its blocks"
            state = previous.state if previous else 0
            for position, token in enumerate(chunk.tokens, chunk.start):
                state = extend(state, token if token >= 0 else self._slot_token[replica, ~token])
                block = self._tables[replica, chunk.slot][position // self._block_size]
                assert ("device", replica, block) not in self._writing, "a forward writes a block being swapped in"
                self._device[replica, block, position % self._block_size] = Cell(forward.layout, position, state)
            self._check_context(replica, chunk.slot, chunk.start + len(chunk.tokens), forward.layout)
            if chunk.sample:
                tokens[chunk.slot] = next_token(state)
        for slot, token in tokens.items():
            self._slot_token[replica, slot] = token
        return [tokens[chunk.slot] for chunk in chunks if chunk.sample]

    def _cell(self, replica: int, slot: int, position: int) -> Cell | None:
        block = self._tables[replica, slot][position // self._block_size]
        cell = self._device.get((replica, block, position % self._block_size))
        return cell if cell is not None and cell.position == position else None

    def _check_context(self, replica: int, slot: int, length: int, layout: int) -> None:
        for position in range(length):
            cell = self._cell(replica, slot, position)
            assert cell is not None and cell.layout == layout, f"position {position} of slot {slot} is not there"

    def run_swap(self, swap: Swap) -> None:
        for device_block, host_block in zip(swap.device_blocks, swap.host_blocks, strict=True):
            for offset in range(self._block_size):
                device, host = (swap.replica, device_block, offset), (host_block, offset)
                if swap.to_host:
                    cell = self._device.get(device)
                    # Read through another layout's rectangles, the bytes mean nothing.
                    self._put(self._host, host, cell if cell and cell.layout == swap.layout else None)
                else:
                    cell = self._host.get(host)
                    self._put(self._device, device, cell and cell._replace(layout=swap.layout))
            written = ("host", -1, host_block) if swap.to_host else ("device", swap.replica, device_block)
            del self._writing[written]
        self.swaps += 1

    @staticmethod
    def _put(pool: dict, key: tuple, cell: Cell | None) -> None:  # type: ignore[type-arg]
        if cell is None:
            pool.pop(key, None)
        else:
            pool[key] = cell
