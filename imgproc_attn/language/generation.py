"""Generation: sample the next token from the logits, append it, and repeat."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..utils.checks import check_number, check_whole

__all__ = ["sample"]


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row of logits.

    Args:
        logits: Logits ``[B, V]``.
        temperature: Divisor of the logits. 0 takes the largest logit.
        top_k: Draw from the ``top_k`` largest logits only. Default: all.
        top_p: Draw from the smallest set of tokens with at least this probability ("nucleus sampling", arXiv 1904.09751),
            after ``temperature`` and ``top_k``. Default: all.
        generator: Source of random numbers, on the device of the logits. Default: torch's.

    Returns:
        Token indices ``[B]``.

    Raises:
        TypeError: An argument is not a number.
        ValueError: ``temperature`` is negative or not finite, ``top_k`` is less than 1, or ``top_p`` is not in (0, 1].

    Example:
        >>> sample(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0).tolist()
        [1]
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    p = logits.softmax(dim=-1)
    if top_p is not None:
        sorted_p, order = p.sort(dim=-1, descending=True)
        sorted_p = sorted_p.masked_fill(sorted_p.cumsum(dim=-1) - sorted_p >= top_p, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, sorted_p)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Fail for arguments of `sample` that are out of range."""
    if not 0 <= check_number("temperature", temperature) < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}. Give 0 for the most likely token.")
    if top_k is not None and check_whole("top_k", top_k) < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}. Leave it out to draw from all tokens.")
    if top_p is not None and not 0 < check_number("top_p", top_p) <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}. Leave it out to draw from all tokens.")


def continue_tokens(
    ids: Tensor,
    max_new_tokens: int,
    next_logits: Callable[[Tensor], Tensor],
    draw: Callable[[Tensor], Tensor],
    stop: int | None,
) -> Tensor:
    """Append tokens to ``ids`` ``[B, N]`` until there are ``max_new_tokens`` more, or each row has the token ``stop``.

    Rows that end early are filled with ``stop``.
    """
    done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        token = draw(next_logits(ids)).to(ids.dtype)
        if stop is not None:
            token = token.masked_fill(done, stop)
            done |= token == stop
        ids = torch.cat([ids, token[:, None]], dim=1)
        if stop is not None and done.all():
            break
    return ids
