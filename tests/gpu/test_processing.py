"""Logits are processed on a GPU as on the CPU: penalties, bias, bans, masks, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.ops.base import make_ops
from seesaw.engine.sampling.logprobs import Logprobs
from seesaw.engine.sampling.params import Processing, RowSampling, SamplingParams
from seesaw.engine.sampling.state import SamplerState
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.sampling.token_masks import mask_of
from seesaw.engine.wire.commands import Forward, SlotInit, TableUpdate
from tests.tiny import tiny_shape

pytestmark = pytest.mark.gpu

VOCAB, BLOCK, PROMPT = 5000, 16, 20
ASKED = [
    SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.3, logprobs=3),
    SamplingParams(logit_bias={7: 3.0, 4999: -2.0}, logprobs=0),
    SamplingParams(bad_words_token_ids=((3,), (5, 6), (1, 2, 9)), min_tokens=8, stop_token_ids=(11,)),
    SamplingParams(allowed_token_ids=tuple(range(100, 400)), prompt_logprobs=1),
    SamplingParams(structured_outputs=StructuredOutputs("regex", "a"), logprobs=20),
    SamplingParams(allowed_token_ids=(5,), bad_words_token_ids=((5,),)),
]


class Tables:
    block_size = BLOCK

    def blocks(self, slots: Sequence[int], width: int) -> torch.Tensor:
        return torch.tensor([[slot * 4 + i for i in range(width)] for slot in slots], dtype=torch.int32)

    def places(self, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        return torch.tensor([slot * 4 * BLOCK + at for slot, at in zip(slots, positions, strict=True)])

    def first_places(self, slot: int, count: int) -> torch.Tensor:
        return torch.arange(count) + slot * 4 * BLOCK


@dataclass
class Step:
    scores: torch.Tensor
    told: Logprobs


def processed(device: str, logits: torch.Tensor, tokens: list[int]) -> list[Step]:
    """Two steps, the second one behind what the first one sampled."""
    state = SamplerState(Tables(), len(ASKED), 4 * len(ASKED), VOCAB, torch.device(device))
    inits, tables = [], []
    for slot, params in enumerate(ASKED):
        processing = Processing.of(params, PROMPT, params.stop_token_ids, VOCAB)
        assert processing is not None
        processing.tokens.extend(tokens)
        inits.append(SlotInit(slot, RowSampling(0.0, 1.0, 0, 0.0, 0), processing))
        tables.append(TableUpdate(slot, 0, [4 * slot + i for i in range(3)]))
    state.update(Forward(1, 0, 0, [], tables, inits), samples=True)
    slots = list(range(len(ASKED)))
    masks = torch.from_numpy(mask_of(range(0, VOCAB, 3), VOCAB).view(np.int32))[None]
    steps: list[Step] = []
    inputs = torch.full((len(ASKED),), tokens[-1])
    for step in range(2):
        rows = state.rows(slots, [len(tokens) + step] * len(slots))
        scores = state.process(logits, rows, inputs, lambda: masks)
        best = scores.argmax(-1)
        state.sampled(best, rows)
        told = state.logprobs(logits, best, rows)
        assert told is not None
        if device == "cuda":
            torch.cuda.synchronize()
        steps.append(Step(scores.cpu(), told))
        inputs = torch.tensor([~slot for slot in slots])
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_processes_logits_as_the_cpu_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(len(ASKED), VOCAB, generator=generator) * 3).to(dtype)
    tokens = torch.randint(VOCAB, (30,), generator=generator).tolist()
    for want, got in zip(processed("cpu", logits, tokens), processed("cuda", logits.cuda(), tokens), strict=True):
        torch.testing.assert_close(got.scores, want.scores, atol=1e-3, rtol=1e-3, check_dtype=False)
        assert_same_tokens(got.told, want.told, logits)


def assert_same_tokens(got: Logprobs, want: Logprobs, logits: torch.Tensor) -> None:
    """The same values of the same tokens; of tokens that tie, which in bfloat16 many do, each device has its order, and
    tells of others if not all of them are told of."""
    assert got.places == want.places and got.tops == want.tops
    torch.testing.assert_close(got.values, want.values, atol=1e-3, rtol=1e-3)
    rows, ids = logits[list(want.places)], want.ids[:, 1:]
    ties = rows[:, None, :] == rows.gather(1, ids)[:, :, None]  # [told rows, told tokens, vocabulary]
    assert ties.gather(2, got.ids[:, 1:, None]).all()
    is_sole = ties.sum(-1) == 1
    assert is_sole.any() and torch.equal(got.ids[:, 1:][is_sole], ids[is_sole])
    assert all(len(set(row)) == len(row) for row in got.ids[:, 1:].tolist())
    assert torch.equal(got.ids[:, 0], want.ids[:, 0])  # the ranks: who ties counts, in whatever order


def test_processed_rows_are_sampled_by_the_gpus_operators() -> None:
    """Float32 logits with much of them forbidden, greedy and restricted."""
    shape: ModelShape = tiny_shape(dtype="bfloat16", head_dim=64, vocab=VOCAB)
    ops = make_ops(torch.device("cuda"), shape, BLOCK)
    scores = torch.full((3, VOCAB), -torch.inf, device="cuda")
    scores[0, 42] = scores[1, 17] = scores[2, 4999] = -3.0
    rows = [
        RowSampling(0.0, 1.0, 0, 0.0, 0),
        RowSampling(1.0, 1.0, 0, 0.0, 1),
        RowSampling(1.0, 0.9, 5, 0.1, 2),
    ]
    assert ops.sample(scores, rows, [1, 2, 3]).tolist() == [42, 17, 4999]
