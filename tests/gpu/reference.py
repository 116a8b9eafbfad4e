"""transformers on the GPU: what logits and tokens in half precision are compared with."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

CUDA = torch.device("cuda", 0)


class Reference:
    """A checkpoint's logits in float32, and in the half precision that is tested: the error that is allowed."""

    def __init__(self, folder: Path, half: torch.dtype) -> None:
        self.folder, self.half = folder, half

    @cached_property
    def _models(self) -> dict[torch.dtype, Any]:
        from transformers import AutoModelForCausalLM

        dtypes = (torch.float32, self.half)
        return {dtype: AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(CUDA) for dtype in dtypes}

    @torch.inference_mode()
    def logits(self, tokens: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`[len(tokens), vocab]` in float32, computed in `dtype`."""
        out: torch.Tensor = self._models[dtype](torch.tensor([tokens], device=CUDA)).logits[0].float()
        return out

    def error(self, tokens: list[int]) -> float:
        """How far a logit may be from float32's: twice as far as transformers' are at most."""
        return float((self.logits(tokens, self.half) - self.logits(tokens)).abs().max()) * 2

    def check_logits(self, got: torch.Tensor, tokens: list[int]) -> None:
        """As near to float32 as transformers in half precision, and the same best token wherever that is sure."""
        exact, theirs = self.logits(tokens), self.logits(tokens, self.half)
        error = (got - exact).norm()
        assert error <= 1.5 * (theirs - exact).norm()
        largest = (got - exact).abs().max()
        best = exact.topk(2).values
        sure = best[:, 0] - best[:, 1] > 2 * largest
        assert sure.any() and bool((got.argmax(-1) == exact.argmax(-1))[sure].all())

    def check_greedy(self, prompt: list[int], got: list[int], error: float) -> None:
        """Each token is float32's best after the same tokens, as far as logits that are wrong by `error` can tell."""
        logits = self.logits(prompt + got)[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(got, device=CUDA)[:, None])[:, 0]
        assert float((logits.amax(-1) - chosen).max()) <= 2 * error
