"""Relative position buckets of T5: a learned log-weight per head and range of distances on a line."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.checks import check_whole
from .geometry import Geometry
from .terms import Terms

__all__ = ["RelativeBuckets"]


class RelativeBuckets(nn.Module):
    """Learned log-weight per head and bucket of distances on a line (T5, arXiv 1910.10683).

    Half of the buckets hold one distance each. The others grow logarithmically up to ``max_distance``, and the last one holds
    all larger distances. Causal models use all buckets for the past. Other models use half of them for later tokens.

    The log-weights are dense. They cost memory and time ``H x N^2``, and half precision rounds them. Unlike T5, scores keep
    their factor ``1 / sqrt(d)``, and the table starts at zero, so that all distances count the same.

    Args:
        num_heads: Number of heads.
        grid_size: (1, longest) of the line.
        is_causal: Whether tokens see earlier tokens only.
        num_buckets: Number of buckets.
        max_distance: Distance in tokens from which on all are in one bucket.

    Raises:
        TypeError: ``num_buckets`` or ``max_distance`` is not a whole number.
        ValueError: The grid has several rows, ``num_buckets`` is odd or too small, or ``max_distance`` is too small for it.

    Example:
        >>> RelativeBuckets(num_heads=4, grid_size=(1, 1024), is_causal=True).bucket_of_distance[[0, 15, 16, 40, 128]].tolist()
        [0, 15, 16, 23, 31]
    """

    bucket_of_distance: Tensor

    def __init__(
        self,
        num_heads: int,
        grid_size: tuple[int, int],
        is_causal: bool = False,
        num_buckets: int = 32,
        max_distance: int = 128,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if grid_size[0] != 1:
            raise ValueError(
                f"relative_buckets: tokens must lie on a line, got a grid of {grid_size[0]} x {grid_size[1]}. Use "
                "positions='relative_table' for images."
            )
        directions = 1 if is_causal else 2
        if check_whole("relative_buckets: num_buckets", num_buckets) % (2 * directions) or num_buckets < 1:
            raise ValueError(
                f"relative_buckets: num_buckets must be a positive multiple of {2 * directions}, got {num_buckets}. Give 32."
            )
        count = num_buckets // directions
        if check_whole("relative_buckets: max_distance", max_distance) <= count // 2:
            raise ValueError(
                f"relative_buckets: max_distance must be larger than {count // 2}, the number of exact buckets, got "
                f"{max_distance}. Give a larger one, or fewer buckets."
            )
        self.is_causal = is_causal
        self.count = count
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.empty(num_heads, num_buckets, device=device, dtype=dtype))
        index = torch.empty(max_distance + 1, dtype=torch.long, device=device)
        self.register_buffer("bucket_of_distance", index, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the table to zeros, so that all distances count the same, and compute the bucket of each distance."""
        nn.init.zeros_(self.table)
        buckets = [_bucket(distance, self.count, self.max_distance) for distance in range(self.max_distance + 1)]
        self.bucket_of_distance.copy_(torch.tensor(buckets))

    def forward(self, query: Geometry, key: Geometry, like: Tensor) -> Terms:
        return Terms(biases=[BucketBias(self.table, self.bucket_of_distance, self.is_causal, query, key, like)])

    def extra_repr(self) -> str:
        return f"num_buckets={self.table.shape[1]}, max_distance={self.max_distance}, is_causal={self.is_causal}"


class BucketBias(NamedTuple):
    """Log-weights that are looked up by the bucket of the distance of two tokens.

    Attributes:
        table: Log-weights per bucket, ``[H, num_buckets]``.
        bucket_of_distance: Bucket of the distances 0, 1, and so on. Larger distances have the last one.
        is_causal: Whether the buckets are for earlier tokens only.
        query: Positions of the queries.
        key: Positions of the keys.
        like: A tensor of the dtype that the filter computes in.
    """

    table: Tensor
    bucket_of_distance: Tensor
    is_causal: bool
    query: Geometry
    key: Geometry
    like: Tensor

    def dense(self) -> Tensor:
        return _look_up_buckets(*self)


def _bucket(distance: int, count: int, max_distance: int) -> int:
    """Return the bucket of a distance among ``count`` buckets of one direction."""
    exact = count // 2
    if distance < exact:
        return distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return min(exact + int(share * (count - exact)), count - 1)


def _look_up_buckets(
    table: Tensor, bucket_of_distance: Tensor, is_causal: bool, query: Geometry, key: Geometry, like: Tensor
) -> Tensor:
    offset = (query.coordinates[..., -1][:, :, None] - key.coordinates[..., -1][:, None]).long()  # p_i - p_j
    distance = offset.clamp(min=0) if is_causal else offset.abs()
    index = bucket_of_distance[distance.clamp(max=bucket_of_distance.shape[0] - 1)]
    if not is_causal:
        index = index + (offset < 0) * (table.shape[1] // 2)
    both = query.is_patch[:, None] * key.is_patch  # a prefix token has log-weight 0 with every token
    return (table[:, index].transpose(0, 1) * both).to(like.dtype)


torch.fx.wrap("_look_up_buckets")
