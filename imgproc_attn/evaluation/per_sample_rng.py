"""Random numbers per sample, which do not depend on the batch that the sample is in."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["draw_per_sample", "mix_seeds"]


def draw_per_sample(
    images: Tensor,
    sample_ids: Tensor | None,
    key: tuple[int, ...],
    sample: Callable[[tuple[int, ...], torch.Generator], Tensor],
) -> Tensor:
    """Return one draw per image, from a generator seeded with ``(*key, id)``.

    Args:
        images: ``[B, C, H, W]``; the random numbers have its dtype and device.
        sample_ids: ``[B]`` ids of the images in their data set. Default: 0 to B - 1.
        key: Seed and other numbers that select the random numbers (restart, step).
        sample: Function that draws for one image, from its shape ``(C, H, W)`` and a CPU generator.

    Example:
        >>> noise = draw_per_sample(torch.zeros(2, 3, 8, 8), None, (0,), lambda shape, g: torch.randn(shape, generator=g))
        >>> noise.shape
        torch.Size([2, 3, 8, 8])
    """
    ids = range(len(images)) if sample_ids is None else sample_ids.tolist()
    generator = torch.Generator()
    draws = []
    for i in ids:
        generator.manual_seed(mix_seeds(*key, int(i)))
        draws.append(sample(tuple(images.shape[1:]), generator))
    if not draws:
        return torch.empty_like(images)
    return torch.stack(draws).to(device=images.device, dtype=images.dtype)


def mix_seeds(*numbers: int) -> int:
    """Return one 63-bit seed for several numbers, by the mixing function of splitmix64.

    The mixing makes draws of neighboring ids independent.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
