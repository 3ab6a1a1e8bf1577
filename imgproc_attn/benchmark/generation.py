"""One new token of a language model with a cache, compared with the same model without one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..language import create_model
from ..utils.progress import progress_bar
from .timing import WARM_UP_ROUNDS, measure, summarize, synchronizer

__all__ = ["LANGUAGE_MODELS", "benchmark_generation"]

LANGUAGE_MODELS = ("gpt2_lm_base", "bilateral_lm_base", "twicing_lm_base", "bilateral_untied_lm_base")


class GenerationWork:
    """The most likely token after a random prompt.

    Args:
        name: Name of a language model.
        tokens: Number of tokens of the prompt.
        rounds: Largest number of calls of `cached`. Each call leaves one more token in the cache.
        device: Device of the model.
        dtype: Dtype of the model.
    """

    def __init__(self, name: str, tokens: int, rounds: int, device: str, dtype: torch.dtype) -> None:
        self._model = create_model(name, context=tokens + rounds, device=device, dtype=dtype).eval()
        self._prompt = torch.randint(self._model.vocab_size, (1, tokens), device=device)
        self._cache = self._model.new_cache()
        with torch.no_grad():
            self._model.forward_features(self._prompt[:, :-1], self._cache)

    @torch.no_grad()
    def cached(self) -> Tensor:
        """Return the next token ``[1]``, computed from the last token of the prompt and a cache of the tokens before."""
        logits: Tensor = self._model(self._prompt[:, -1:], self._cache)
        return logits[:, -1].argmax(dim=-1)

    def uncached(self) -> Tensor:
        """Return the next token ``[1]``, computed from the whole prompt."""
        return self._model.generate(self._prompt, 1, temperature=0, use_cache=False)[:, -1]


def benchmark_generation(
    runs: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    names: Sequence[str] = LANGUAGE_MODELS,
    tokens: int = 1000,
) -> list[dict[str, Any]]:
    """Time one new token after ``tokens`` tokens with a cache, and without: then the model computes all tokens again."""
    rows, rounds = [], runs + WARM_UP_ROUNDS
    with progress_bar(len(names) * rounds, "rounds", "generation") as bar:
        for name in names:
            bar.set_postfix_str(name)
            work = GenerationWork(name, tokens, rounds, device, dtype)
            times = measure({"without": work.uncached, "with": work.cached}, runs, synchronizer(device), bar)
            without, cached = summarize(times, "without")
            rows.append({**cached, "name": name, "tokens": tokens, "uncached_median_s": without["median_s"]})
    return rows
