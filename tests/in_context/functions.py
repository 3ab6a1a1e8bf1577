"""Random functions for the tests."""

import torch

from imgproc_attn.in_context import RegressionSequences, separate


def drawn(problem, count=2000):
    """x ``[count, n, d]`` and y ``[count, n]``."""
    sequences = RegressionSequences(problem, count, "test")
    tokens, y = (torch.stack(parts) for parts in zip(*(sequences[i] for i in range(count))))
    return separate(tokens)[0], y
