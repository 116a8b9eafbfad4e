"""Sampling tokens from logits in plain torch. Used by `TorchOps.sample`; the noise keys by all operators.

A row's token is a pure function of its logits, its parameters and (seed, position): never of the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seesaw.engine.sampling.params import RowSampling

_NUCLEUS_TOKENS = 1024


def sample(logits: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor:
    """`[rows, vocab]` float32 logits to `[rows]` int64 tokens. `positions[i]` is that of row i's new token."""
    tokens = logits.argmax(dim=-1)  # the first of equals
    drawn = [i for i, row in enumerate(rows) if not row.is_greedy]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        scores = restrict(logits[index], [rows[i] for i in drawn])
        for score, i in zip(scores, drawn, strict=True):
            score.sub_(_log_exponential(score, rows[i].seed, positions[i]))
        tokens[index] = scores.argmax(dim=-1)
    return tokens


def best(
    logits: torch.Tensor, rows: list[RowSampling], positions: list[int], first_id: int, vocab: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Ops.best`; `logits` are float32."""
    scores = logits.clone()
    for i, row in enumerate(rows):
        if not row.is_greedy:
            noise = _log_exponential(logits.new_empty(vocab), row.seed, positions[i])[first_id:][: logits.shape[1]]
            scores[i].div_(row.temperature)[: len(noise)].sub_(noise)
    ids = scores.argmax(dim=-1)  # the first of equals
    return scores.gather(1, ids[:, None])[:, 0], ids + first_id


def restrict(logits: torch.Tensor, rows: list[RowSampling]) -> torch.Tensor:
    """Logits over temperature, with -inf wherever top-k, then top-p, then min-p forbids the token.

    Top-p keeps the fewest most likely tokens (of those that top-k left) whose mass reaches p, min-p those at
    least `min_p` times as likely as the likeliest. Tokens as likely as the last one kept stay too.
    """
    scores = logits / _column(logits, [row.temperature for row in rows])
    by_k = [i for i, row in enumerate(rows) if 0 < row.top_k < logits.shape[1]]
    if by_k:
        _mask_below(scores, by_k, _kth_score(scores[by_k], [rows[i].top_k for i in by_k]))
    by_p = [i for i, row in enumerate(rows) if row.top_p < 1.0]
    if by_p:
        _mask_below(scores, by_p, _nucleus_score(scores[by_p], _column(logits, [rows[i].top_p for i in by_p])))
    by_min = [i for i, row in enumerate(rows) if row.min_p > 0.0]
    if by_min:
        least = _column(logits, [rows[i].min_p for i in by_min]).log()
        _mask_below(scores, by_min, scores[by_min].amax(dim=-1, keepdim=True) + least)
    return scores


def _column(like: torch.Tensor, values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _mask_below(scores: torch.Tensor, rows: list[int], least: torch.Tensor) -> None:
    part = scores[rows]
    scores[rows] = part.masked_fill_(part < least, -torch.inf)


def _kth_score(scores: torch.Tensor, ks: list[int]) -> torch.Tensor:
    ranked = scores.topk(max(ks), dim=-1).values
    return ranked.gather(1, torch.tensor(ks, device=scores.device)[:, None] - 1)


def _nucleus_score(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least score in each row's nucleus."""
    vocab = scores.shape[1]
    total = scores.logsumexp(dim=-1, keepdim=True)
    # Ranking a whole vocabulary is dear, and nearly always the nucleus is among the first few.
    for width in (min(_NUCLEUS_TOKENS, vocab), vocab):
        ranked = scores.topk(width, dim=-1).values
        mass = (ranked - total).exp()
        through = mass.cumsum(dim=-1)
        if bool((through[:, -1:] >= top_p).all()):
            break
    size = (through - mass < top_p).sum(dim=-1, keepdim=True)
    return ranked.gather(1, size.clamp_min(1) - 1)


def _log_exponential(like: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    """Logs of exponential noise, one per token id: `argmax(logit - log(noise))` is a draw from the softmax."""
    generator = torch.Generator(device=like.device).manual_seed(int(noise_keys([seed], [position])[0]))
    noise = torch.empty_like(like).exponential_(generator=generator)
    return noise.clamp_min_(torch.finfo(torch.float32).tiny).log_()


def noise_keys(seeds: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """A 64-bit hash (splitmix64) of each pair, int64: neighbouring seeds and positions give unrelated noise.

    Its low half is as good as the whole: that is all the CPU generator uses.
    """
    x = np.array(seeds, dtype=np.int64).view(np.uint64)
    x = x ^ np.array(positions, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy((x ^ (x >> np.uint64(31))).view(np.int64))
