"""Positions of tokens: coordinates on a grid or on a line, and which tokens have none."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.named_tuples import changed

__all__ = ["Geometry", "grid_geometry", "line_geometry"]


class Geometry(NamedTuple):
    """Positions of a token sequence.

    Attributes:
        coordinates: ``[1 or B, N, D]`` float32. On a grid, D is 2: (y, x) in units of patches, measured from the center of the
            grid. They are whole or half numbers, so they are exact in every floating-point dtype for grids with sides up to
            256. Zero for prefix tokens, which have no position. On a line, D is 1: the index of the token, counted from the
            first one. It does not change when tokens are appended.
        is_patch: ``[N]`` float32, 1 for patches and 0 for prefix tokens (class token, registers).
        num_prefix_tokens: Number of tokens before the patches.
        grid_size: (height, width) in patches of the grid that the patches come from. (1, longest) on a line.
        position_embeddings: ``[1 or B, N, C]`` position vectors that are kept separate from the tokens and never added to
            them. Zero for prefix tokens. None if the model has no such positions.
    """

    coordinates: Tensor
    is_patch: Tensor
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    position_embeddings: Tensor | None = None


def grid_geometry(height: int, width: int, num_prefix_tokens: int, like: Tensor) -> Geometry:
    """Return the geometry of a ``height x width`` grid in row-major order, after ``num_prefix_tokens`` prefix tokens.

    Args:
        height: Number of rows of the grid, in patches.
        width: Number of columns of the grid, in patches.
        num_prefix_tokens: Number of class and register tokens before the patches. They have no position.
        like: Any tensor on the target device.

    Example:
        >>> geometry = grid_geometry(1, 2, num_prefix_tokens=1, like=torch.empty(0))
        >>> geometry.coordinates.tolist(), geometry.is_patch.tolist()
        ([[[0.0, 0.0], [0.0, -0.5], [0.0, 0.5]]], [0.0, 1.0, 1.0])
    """
    y = torch.arange(height, device=like.device, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, device=like.device, dtype=torch.float32) - (width - 1) / 2
    grid = torch.stack([y[:, None].expand(height, width), x[None, :].expand(height, width)], dim=-1)
    patches = grid.reshape(1, height * width, 2)
    prefix = torch.zeros(1, num_prefix_tokens, 2, device=like.device, dtype=torch.float32)
    is_patch = torch.ones(num_prefix_tokens + height * width, device=like.device, dtype=torch.float32)
    is_patch[:num_prefix_tokens] = 0.0
    return Geometry(torch.cat([prefix, patches], dim=1), is_patch, num_prefix_tokens, (height, width), None)


def line_geometry(length: int, like: Tensor, start: int = 0, longest: int = 1) -> Geometry:
    """Return the geometry of ``length`` tokens on a line, with indices from ``start`` on.

    Args:
        length: Number of tokens.
        like: Any tensor on the target device.
        start: Index of the first token. It is the number of tokens before it, for decoding with a cache.
        longest: Number of tokens that the model is made for. A longer line is possible for most members.

    Example:
        >>> geometry = line_geometry(3, like=torch.empty(0), start=2, longest=8)
        >>> geometry.coordinates.tolist(), geometry.grid_size
        ([[[2.0], [3.0], [4.0]]], (1, 8))
    """
    coordinates = torch.arange(start, start + length, device=like.device, dtype=torch.float32)[None, :, None]
    return Geometry(coordinates, torch.ones_like(coordinates[0, :, 0]), 0, (1, max(longest, start + length)), None)


def _take(table: Tensor, index: Tensor) -> Tensor:
    """Return rows ``index`` (``[B, K]``) of ``table`` (``[1 or B, N, C]``)."""
    table = table.expand(index.shape[0], -1, -1)
    return table.gather(1, index.unsqueeze(-1).expand(-1, -1, table.shape[2]))


def take_tokens(geometry: Geometry, index: Tensor | slice) -> Geometry:
    """Return the geometry of some tokens, the same tokens in all samples.

    Args:
        geometry: Geometry of all tokens.
        index: ``[K]`` indices of tokens, or a slice.
    """
    embeddings = geometry.position_embeddings
    return changed(
        geometry,
        coordinates=geometry.coordinates[:, index],
        is_patch=geometry.is_patch[index],
        position_embeddings=None if embeddings is None else embeddings[:, index],
    )


def keep_patches(geometry: Geometry, keep: Tensor) -> Geometry:
    """Return the geometry of the tokens that patch dropout has kept.

    Args:
        geometry: Geometry of all tokens.
        keep: ``[B, K]`` indices into the patches (prefix tokens not counted), as timm's
            ``PatchDropoutWithIndices`` returns them. Prefix tokens are always kept.
    """
    num_prefix = geometry.num_prefix_tokens
    prefix = torch.arange(num_prefix, device=keep.device).expand(keep.shape[0], -1)
    index = torch.cat([prefix, keep + num_prefix], dim=1)
    embeddings = geometry.position_embeddings
    return Geometry(
        _take(geometry.coordinates, index),
        geometry.is_patch[: index.shape[1]],
        num_prefix,
        geometry.grid_size,
        None if embeddings is None else _take(embeddings, index),
    )
