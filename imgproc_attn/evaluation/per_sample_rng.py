"""Random numbers that belong to a sample: the same whatever the batch it comes in."""

from collections.abc import Callable

import torch
from torch import Tensor


def draw_per_sample(
    images: Tensor,
    sample_ids: Tensor | None,
    key: tuple[int, ...],
    sample: Callable[[tuple[int, ...], torch.Generator], Tensor],
) -> Tensor:
    """One draw an image, from a generator keyed by ``(*key, id)``.

    Args:
        images: ``[B, C, H, W]``; the draws have its shape, type and device.
        sample_ids: ``[B]`` ids of the images in their data set. Default: 0 to B - 1.
        key: Seed, and what else tells draws apart (restart, step).
        sample: What to draw, from the shape of one image and a CPU generator.
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
    """One 63-bit seed of several numbers (splitmix64's mixing): neighboring ids must not give related draws."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
