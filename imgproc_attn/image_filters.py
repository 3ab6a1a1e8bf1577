"""Classical image filters, computed by the kernels of the attention layers on pixels and patches, without projections."""

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

__all__ = ["bilateral_filter", "non_local_means"]

# Smallest number of rows per band, and target number of feature values per band. Bands of this size fit the processor's cache.
_BAND = 32, 1 << 18
_TILE = 32  # side, in pixels, of the square tiles that a filter without a window computes at a time


def _no_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run ``function`` without autocast, because the bandwidths of a filter may need all bits of the image."""

    @functools.wraps(function)
    def exact(image: Tensor, *arguments: Any) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return function(image, *arguments)

    return exact


def bilateral_filter(image: Tensor, range_bandwidth: float, spatial_bandwidth: float, window_size: int | None = None) -> Tensor:
    """Filter an image with the bilateral filter: each pixel becomes a mean, weighted by similarity and closeness.

    The weights are ``w_ij = exp(-|y_i - y_j|^2 / h_r^2 - |p_i - p_j|^2 / h_s^2)`` (Tomasi and Manduchi 1998). The squared
    difference is summed over channels. Weights are normalized over the pixels inside the image, so there is no padding.

    Without a gradient, memory is a few images. A filter over the whole image also needs one image of 16 to 24 channels, for one
    tile of 32 x 32 pixels at a time. With a gradient, this memory is needed once per pixel of the window, or once per tile.

    Args:
        image: Image ``[C, H, W]`` or batch ``[B, C, H, W]`` in floating point, with values of any range.
        range_bandwidth: h_r in units of the values of the image. It is sqrt(2) times kornia's ``sigma_color`` with
            ``color_distance_type="l2"``. For one channel, it is also sqrt(2) times scikit-image's ``sigma_color``.
            (scikit-image divides distances by the number of channels.)
        spatial_bandwidth: h_s in pixels, sqrt(2) times ``sigma_space`` or ``sigma_spatial``.
        window_size: Odd side of the window around each pixel. None is the whole image, which takes time ``(H W)^2``.

    Returns:
        The filtered image, in the shape and dtype of ``image`` and differentiable. Half precision is computed in float32.

    Raises:
        TypeError: ``image`` is not floating point, or a bandwidth is not a number. (For integers, a bandwidth would depend on
            a hidden rescaling. Divide by 255.)
        ValueError: The image holds NaN or infinity; a bandwidth is not positive and finite, or too small for the values; or the
            window is even or larger than ``2 max(H, W) - 1``.

    Example:
        >>> image = torch.rand(3, 32, 32)
        >>> bilateral_filter(image, range_bandwidth=0.2, spatial_bandwidth=3.0, window_size=7).shape
        torch.Size([3, 32, 32])
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
    """Filter an image with non-local means: each pixel becomes a mean, weighted by the similarity of the patches.

    The weights are ``w_ij = exp(-|P_i - P_j|^2 / h_r^2)`` (Buades, Coll and Morel 2005). The squared difference is summed over
    all values of a patch, with equal weights. Beyond the border, patches are continued by reflection.

    Args:
        image: Image ``[C, H, W]`` or batch ``[B, C, H, W]`` in floating point, with values of any range.
        range_bandwidth: h_r in units of the values of the image. It is scikit-image's ``h`` times the root of the number of
            values in a patch.
        patch_size: Odd side of the patches.
        window_size: Odd side of the window around each pixel. None is the whole image, which takes time ``(H W)^2``.

    Returns:
        The filtered image, in the shape and dtype of ``image`` and differentiable.

    Raises:
        TypeError: ``image`` is not floating point, or the bandwidth is not a number.
        ValueError: As `bilateral_filter`, or the patch is even or larger than ``2 min(H, W) - 1``.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> non_local_means(image, range_bandwidth=0.7, patch_size=3, window_size=7).shape
        torch.Size([1, 3, 32, 32])
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
    """Filter in bands of rows. Each band includes the neighboring rows that its windows reach."""
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
        bands.append(_from_tokens(smoothed, (last - first, width))[:, :, top - first : bottom - first])
    return torch.cat(bands, dim=2)


@_no_autocast
def _filter_whole(features: Tensor, batch: Tensor, kernel: GaussianRange, space: SpatialGaussian | None) -> Tensor:
    """Filter in tiles of pixels that see the whole image, through fused attention.

    Positions are measured from the tile. Near the tile, where the weights are large, they are small numbers and thus precise.
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
    return _from_tokens(torch.cat(smoothed, dim=2)[:, :, torch.cat(tiles).argsort()], (height, width))


def _tiles(height: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the pixel indices of each tile."""
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


def _tokens(image: Tensor) -> Tensor:
    """Return an image ``[B, C, H, W]`` as one head of tokens, ``[B, 1, H W, C]``."""
    return image.flatten(2).transpose(1, 2)[:, None]


def _from_tokens(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one head of tokens ``[B, 1, H W, C]`` as an image ``[B, C, H, W]``."""
    return tokens[:, 0].transpose(1, 2).unflatten(2, size)


def _pad(batch: Tensor, patch_size: int) -> Tensor:
    radius = patch_size // 2
    return F.pad(batch, (radius, radius, radius, radius), mode="reflect") if radius else batch


def _unfold(padded: Tensor, patch_size: int) -> Tensor:
    """Return the patches around each pixel of a padded image, ``[B, C p^2, H, W]``."""
    if patch_size == 1:
        return padded
    size = (padded.shape[2] - patch_size + 1, padded.shape[3] - patch_size + 1)
    return F.unfold(padded, patch_size).unflatten(2, size)


def _in_unit(batch: Tensor) -> tuple[Tensor, float, float]:
    """Return images divided by a unit, the unit, and the largest absolute value. The unit is 1 unless squares would overflow.

    The filters depend only on ratios of values and bandwidth, and division by a power of two does not round.
    """
    largest = batch.detach().abs().max().item() if batch.numel() else 0.0
    if largest <= torch.finfo(batch.dtype).max ** 0.25:
        return batch, 1.0, largest
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)  # values are below 2 in it
    return batch / unit, unit, largest


def _like(image: Tensor, unit: float, result: Tensor) -> Tensor:
    """Return a filtered batch in the unit, shape and dtype of the original image."""
    if unit != 1.0:
        below = 2 - torch.finfo(result.dtype).eps  # a mean that is rounded up must not overflow the dtype
        result = result.clamp(-below, below) * unit
    return result.reshape(image.shape).to(image.dtype)


def _check_image(image: Tensor) -> Tensor:
    """Return ``image`` as a batch. Fail if it is not a finite image in floating point."""
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image must be a tensor [C, H, W] or [B, C, H, W], got {type(image).__name__}. For an array of pixels [H, W, C] "
            "give torch.from_numpy(image).movedim(-1, 0)."
        )
    if not image.is_floating_point():
        raise TypeError(
            f"image must be floating point, so that bandwidths have a unit, got {image.dtype}. Give image.float() / 255 and "
            "bandwidths for values in [0, 1]."
        )
    if image.dim() not in (3, 4) or 0 in image.shape[-3:]:
        raise ValueError(
            f"image must have the shape [C, H, W] or [B, C, H, W], not empty, got {list(image.shape)}. Reshape it."
        )
    broken = int((~image.isfinite()).sum())
    if broken:
        raise ValueError(
            f"image must be finite, got {broken} values that are NaN or infinite. Replace them, because each would spread."
        )
    return image.reshape(-1, *image.shape[-3:])


def _check_bandwidth(name: str, value: float, dtype: torch.dtype, largest: float = 1.0) -> None:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number, got {value!r}. Give a float: image filters have no learned bandwidths.")
    check_number(name, value)
    # The inverse square of the bandwidth, times squares of coordinates or values, must be finite.
    smallest = 1e6 * torch.finfo(dtype).max ** -0.5 * max(1.0, largest)
    if not (math.isfinite(value) and value >= smallest):
        value_range = f" for values up to {largest:.3g}" if largest > 1 else ""
        raise ValueError(
            f"{name} must be positive and finite, at least {smallest:.1g} in {dtype}{value_range}, got {value}. Enlarge it."
        )


def _check_window(name: str, size: int, batch: Tensor) -> None:
    # Reflection needs patches that fit both sides. Windows are cut off, so they may fit along one side only.
    side = min(batch.shape[-2:]) if name == "patch_size" else max(batch.shape[-2:])
    if not isinstance(size, Integral) or isinstance(size, bool):
        raise TypeError(f"{name} must be one odd whole number for both sides, got {size!r}. Give an int such as 5.")
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{name} must be an odd whole number, so that it has a center, got {size}. Try {max(size, 0) // 2 * 2 + 1}."
        )
    if size > 2 * side - 1:
        raise ValueError(
            f"{name} must be at most {2 * side - 1} for an image of {batch.shape[-2]} x {batch.shape[-1]}, got {size}. "
            f"{'Give None for the whole image' if name == 'window_size' else 'Give a smaller one'}."
        )
