"""The library's filters on pictures: the kernels of the attention layers, with identity projections, on pixels and patches."""

import functools
import math
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core.bandwidths import at_least_float32
from .core.filters import SoftmaxFilter, WindowedFilter, log_weights
from .core.geometry import grid_geometry, take_tokens
from .core.kernels import GaussianRange
from .core.positions import SpatialGaussian
from .core.terms import product
from .utils.checks import check_number

_BAND = 32, 1 << 18  # rows filtered at a time, at least, and values of their features: they stay in a processor's cache
_TILE = 32  # side of the squares of pixels that see the whole image at a time


def _no_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps the type of the picture where autocast is on: a filter's bandwidths may need all its bits."""

    @functools.wraps(function)
    def exact(picture: Tensor, *arguments: Any) -> Tensor:
        with torch.autocast(picture.device.type, enabled=False):
            return function(picture, *arguments)

    return exact


def bilateral_filter(image: Tensor, range_bandwidth: float, spatial_bandwidth: float, window_size: int | None = None) -> Tensor:
    """Bilateral filter: each pixel becomes a mean of pixels, weighted by likeness and nearness.

    ``w_ij = exp(-|y_i - y_j|^2 / h_r^2 - |p_i - p_j|^2 / h_s^2)`` (Tomasi and Manduchi 1998), the squared difference summed
    over channels, weights normalized over the pixels there are: no padding at the border.

    Args:
        image: ``[C, H, W]`` or ``[B, C, H, W]``, floating point, of any range.
        range_bandwidth: h_r in units of the image's values; sqrt(2) times kornia's ``sigma_color`` with
            ``color_distance_type="l2"``, and for one channel scikit-image's ``sigma_color`` (which divides distances by the
            number of channels).
        spatial_bandwidth: h_s in pixels, sqrt(2) times ``sigma_space`` or ``sigma_spatial``.
        window_size: Odd side of the window around each pixel; None for the whole image, which takes time ``(H W)^2``.

    Returns:
        The filtered image, in shape and type of ``image`` (half precision is computed in float32); differentiable in it.
        Memory is a few images, and for the whole image one of 16 to 24 channels for every tile of 32 x 32 pixels in turn;
        with a gradient to come, that for each place of the window, or for each tile.

    Raises:
        TypeError: ``image`` is not floating point: what a bandwidth means would hang on a hidden rescaling. Divide by 255.
            Or a bandwidth is no number.
        ValueError: NaN or infinity in the image, a bandwidth that is not positive and finite or vanishes beside the values, or
            a window that is even or reaches beyond the image from its far side: more than ``2 max(H, W) - 1``.
    """
    batch, unit, largest = _in_unit(at_least_float32(_check_image(image)))
    _check_bandwidth("range_bandwidth", range_bandwidth, batch.dtype, largest)
    _check_bandwidth("spatial_bandwidth", spatial_bandwidth, batch.dtype)
    kernel = _range_kernel(batch, range_bandwidth / unit)
    if window_size is None:
        space = _space(batch, spatial_bandwidth, (batch.shape[2], batch.shape[3]))
        return _like(image, unit, _filter_whole(batch, batch, kernel, space))
    _check_window("window_size", window_size, batch)
    space = _space(batch, spatial_bandwidth, (window_size, window_size))
    geometry, center = grid_geometry(window_size, window_size, 0, batch), window_size**2 // 2
    row = log_weights(space(take_tokens(geometry, slice(center, center + 1)), geometry, batch))
    window = (row - row.amax()).reshape(1, window_size, window_size)
    return _like(image, unit, _filter_windows(batch, 1, kernel, window))


def non_local_means(image: Tensor, range_bandwidth: float, patch_size: int, window_size: int | None = None) -> Tensor:
    """Non-local means: each pixel becomes a mean of pixels, weighted by how alike the patches around them are.

    ``w_ij = exp(-|P_i - P_j|^2 / h_r^2)`` (Buades, Coll and Morel 2005), the squared difference summed over the values of a
    patch, each counted alike; patches are continued beyond the border by reflection.

    Args:
        image: ``[C, H, W]`` or ``[B, C, H, W]``, floating point, of any range.
        range_bandwidth: h_r in units of the image's values; scikit-image's ``h`` times the root of the number of values in a
            patch.
        patch_size: Odd side of the patches.
        window_size: Odd side of the window around each pixel; None for the whole image, which takes time ``(H W)^2``.

    Returns:
        The filtered image, in shape and type of ``image``; differentiable in it.

    Raises:
        TypeError: ``image`` is not floating point.
        ValueError: As `bilateral_filter`, and for a patch that is even or more than ``2 min(H, W) - 1``.
    """
    batch, unit, largest = _in_unit(at_least_float32(_check_image(image)))
    _check_bandwidth("range_bandwidth", range_bandwidth, batch.dtype, largest)
    _check_window("patch_size", patch_size, batch)
    kernel = _range_kernel(batch, range_bandwidth / unit)
    if window_size is None:
        return _like(image, unit, _filter_whole(_unfold(_pad(batch, patch_size), patch_size), batch, kernel, None))
    _check_window("window_size", window_size, batch)
    window = batch.new_zeros(1, window_size, window_size)
    return _like(image, unit, _filter_windows(batch, patch_size, kernel, window))


@_no_autocast
def _filter_windows(batch: Tensor, patch_size: int, kernel: GaussianRange, window: Tensor) -> Tensor:
    """Band by band of rows, each with the rows around it that its windows reach."""
    reach, height, width = window.shape[1] // 2, batch.shape[2], batch.shape[3]
    padded = _pad(batch, patch_size)
    rows = max(_BAND[0], _BAND[1] // (width * batch.shape[1] * patch_size**2))
    bands = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - reach), min(height, bottom + reach)
        features = _tokens(_unfold(padded[:, :, first : last + patch_size - 1], patch_size))
        values = _tokens(batch[:, :, first:last])
        smoothed = WindowedFilter(window, (last - first, width))(kernel(features, features)).apply(values)
        bands.append(_picture(smoothed, (last - first, width))[:, :, top - first : bottom - first])
    return torch.cat(bands, dim=2)


@_no_autocast
def _filter_whole(features: Tensor, batch: Tensor, kernel: GaussianRange, space: SpatialGaussian | None) -> Tensor:
    """Tile by tile of pixels that see the whole image, fused.

    Places are measured from the tile: so those near it, where the weights are, are small numbers, and precise.
    """
    height, width = batch.shape[2], batch.shape[3]
    y, v = _tokens(features), _tokens(batch)
    filter, geometry = SoftmaxFilter(), grid_geometry(height, width, 0, batch)
    tiles, smoothed = list(_tiles(height, width, batch.device)), []
    for index in tiles:
        terms = kernel(y[:, :, index], y)
        if space is not None:
            p = geometry.coordinates
            near = geometry._replace(coordinates=p - (p[:, index[:1]] + p[:, index[-1:]]) / 2)
            terms = product(space(take_tokens(near, index), near, batch), terms)
        smoothed.append(filter(terms).apply(v))
    return _picture(torch.cat(smoothed, dim=2)[:, :, torch.cat(tiles).argsort()], (height, width))


def _tiles(height: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of the pixels of each tile."""
    grid = torch.arange(height * width, device=device).reshape(height, width)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield grid[top : top + _TILE, left : left + _TILE].flatten()


def _range_kernel(batch: Tensor, range_bandwidth: float) -> GaussianRange:
    tiny = torch.finfo(batch.dtype).tiny
    return GaussianRange(1, 1, range_bandwidth, learned=False, floor=tiny, device=batch.device, dtype=batch.dtype)


def _space(batch: Tensor, spatial_bandwidth: float, grid_size: tuple[int, int]) -> SpatialGaussian:
    floor = min(0.25, spatial_bandwidth / 2)
    return SpatialGaussian(1, grid_size, spatial_bandwidth, learned=False, floor=floor, device=batch.device, dtype=batch.dtype)


def _tokens(picture: Tensor) -> Tensor:
    """``[B, C, H, W]`` to one head of tokens, ``[B, 1, H W, C]``."""
    return picture.flatten(2).transpose(1, 2)[:, None]


def _picture(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens[:, 0].transpose(1, 2).unflatten(2, size)


def _pad(batch: Tensor, patch_size: int) -> Tensor:
    radius = patch_size // 2
    return F.pad(batch, (radius, radius, radius, radius), mode="reflect") if radius else batch


def _unfold(padded: Tensor, patch_size: int) -> Tensor:
    """Patches around each pixel, ``[B, C p^2, H, W]``, of a padded picture."""
    if patch_size == 1:
        return padded
    size = (padded.shape[2] - patch_size + 1, padded.shape[3] - patch_size + 1)
    return F.unfold(padded, patch_size).unflatten(2, size)


def _in_unit(batch: Tensor) -> tuple[Tensor, float, float]:
    """Pictures divided by a unit, the unit, and the largest size of a value; the unit is 1 unless squares would overflow.

    The filters depend on ratios of values and bandwidth alone, and a power of two divides without rounding.
    """
    largest = batch.detach().abs().max().item() if batch.numel() else 0.0
    if largest <= torch.finfo(batch.dtype).max ** 0.25:
        return batch, 1.0, largest
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)  # values are below 2 in it
    return batch / unit, unit, largest


def _like(image: Tensor, unit: float, result: Tensor) -> Tensor:
    """A filtered batch in the unit, shape and type of the picture given."""
    if unit != 1.0:
        below = 2 - torch.finfo(result.dtype).eps  # a mean that is rounded up must not leave the type
        result = result.clamp(-below, below) * unit
    return result.reshape(image.shape).to(image.dtype)


def _check_image(image: Tensor) -> Tensor:
    """``image`` as a batch."""
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image is a {type(image).__name__}, but must be a tensor [C, H, W] or [B, C, H, W]; for an array of pixels "
            "[H, W, C] give torch.from_numpy(image).movedim(-1, 0)."
        )
    if not image.is_floating_point():
        raise TypeError(
            f"image is {image.dtype}, but must be floating point, so that bandwidths have a unit; give image.float() / 255 and "
            "bandwidths for values in [0, 1]."
        )
    if image.dim() not in (3, 4) or 0 in image.shape[-3:]:
        raise ValueError(f"image has the shape {list(image.shape)}, but must be [C, H, W] or [B, C, H, W], and not empty.")
    broken = int((~image.isfinite()).sum())
    if broken:
        raise ValueError(f"image holds {broken} values that are NaN or infinite; fill them in first, each would spread.")
    return image.reshape(-1, *image.shape[-3:])


def _check_bandwidth(name: str, value: float, dtype: torch.dtype, largest: float = 1.0) -> None:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} is {value!r}, but must be a number; filters on pictures have no learned bandwidths.")
    check_number(name, value)
    # its inverse square, times squares of coordinates or values, must be finite
    smallest = 1e6 * torch.finfo(dtype).max ** -0.5 * max(1.0, largest)
    if not (math.isfinite(value) and value >= smallest):
        beside = f" for values up to {largest:.3g}" if largest > 1 else ""
        raise ValueError(f"{name} is {value}, but must be positive and finite, at least {smallest:.1g} in {dtype}{beside}.")


def _check_window(name: str, size: int, batch: Tensor) -> None:
    # patches are continued by reflection, which needs them to fit; windows are cut off, and may fit along one side only
    side = min(batch.shape[-2:]) if name == "patch_size" else max(batch.shape[-2:])
    if not isinstance(size, Integral) or isinstance(size, bool):
        raise TypeError(f"{name} is {size!r}, but must be one odd whole number, for both sides, as 5.")
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{name} is {size}, but must be an odd whole number, so that it has a center; try {max(size, 0) // 2 * 2 + 1}."
        )
    if size > 2 * side - 1:
        raise ValueError(
            f"{name} is {size}, but at most {2 * side - 1} fits an image of {batch.shape[-2]} x {batch.shape[-1]}; "
            f"{'give None for the whole image' if name == 'window_size' else 'give a smaller one'}."
        )
