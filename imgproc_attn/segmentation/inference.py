"""Inference on images of any size: whole, in sliding windows, at several scales.

Only strips of the logits are held in memory, never all of them.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.contract import check_evaluation_mode, check_logits
from ..utils.checks import check_flag, check_number, check_whole

Segments = Callable[[Tensor], Tensor]  # images [B, C, H, W] to logits [B, classes, H, W]

__all__ = ["SlidingWindow", "SlidingWindowModel", "classes_of", "segment", "sliding_strips", "window_starts"]

ROWS = 64  # number of rows that are processed at a time


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along a side.

    Windows begin every ``stride`` pixels. The last one ends at the end of the side. A window that covers the side is the
    only one.

    Raises:
        TypeError: A size is not a whole number.
        ValueError: The window or the stride is not positive, or the stride is larger than the window.

    Example:
        >>> window_starts(100, window=40, stride=25)
        [0, 25, 50, 60]
    """
    check_windows(window, stride)
    if size <= window:
        return [0]
    return [*range(0, size - window, stride), size - window]


def check_windows(window: int | None, stride: int | None) -> None:
    """Check that windows cover an image without gaps.

    Raises:
        TypeError: The window or the stride is not a whole number.
        ValueError: The window or the stride is not positive, the stride is larger than the window, or there is a stride
            without a window.
    """
    for name, value in (("window", window), ("stride", stride)):
        if value is not None:
            check_whole(f"The {name}", value)
    if window is not None and window < 1:
        raise ValueError(f"The window must be at least 1, got {window}. Give its side in pixels, or None for whole images.")
    if stride is not None and window is None:
        raise ValueError(f"The stride must be left out without a window, got {stride}. Give the window too.")
    if stride is not None and window is not None and not 0 < stride <= window:
        raise ValueError(
            f"The stride must be from 1 to the window, {window}, got {stride}. Choose one in this range, so that windows "
            "leave no gaps."
        )


def sliding_strips(
    model: Segments, image: Tensor, window: int, stride: int, batch_size: int = 2
) -> Iterator[tuple[int, Tensor]]:
    """Yield the logits of an image in strips of rows, from the top. They are averaged where windows overlap.

    Memory holds the rows of one window: ``classes x window x width`` values. A window that is larger than the image covers
    the whole image.

    Args:
        model: Maps normalized images to logits.
        image: ``[C, H, W]``.
        window: Side of the windows in pixels.
        stride: Distance between windows in pixels.
        batch_size: Number of windows per forward pass.

    Yields:
        The index of the first row, and logits ``[classes, rows, W]``.

    Raises:
        TypeError: As `window_starts`.
        ValueError: As `window_starts`.
        FloatingPointError: Some logits are not finite.

    Example:
        >>> model = lambda images: images[:, :2]  # two classes
        >>> [(row, tuple(strip.shape)) for row, strip in sliding_strips(model, torch.rand(3, 12, 16), window=8, stride=4)]
        [(0, (2, 4, 16)), (4, (2, 4, 16)), (8, (2, 4, 16))]
    """
    for row, strip in _strips(model, image, window, stride, batch_size):
        if strip is not None:
            yield row, strip


def _strips(
    model: Segments, image: Tensor, window: int, stride: int, batch_size: int, mirrored: int | None = None
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield what `sliding_strips` yields, and None instead of logits before each next row of windows.

    When None is yielded, hardly any memory is held. Several of these generators wait for each other, and a waiting generator
    keeps all tensors that have a name here. Along the axis ``mirrored``, windows are placed as in the mirrored image.
    """
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    tops = _from_the_end(tops) if mirrored == -2 else tops
    lefts = _from_the_end(lefts) if mirrored == -1 else lefts
    rows, end = min(window, height), 0
    bands: deque[Band] = deque()  # rows that are not finished; finished bands are released
    for top, after in zip(tops, [*tops[1:], height]):
        for part in (lefts[i : i + batch_size] for i in range(0, len(lefts), batch_size)):
            windows = torch.stack([image[:, top : top + window, left : left + window] for left in part])
            logits = _logits(model, windows)
            # In half precision, sums would be inexact and classes would tie.
            logits = logits if logits.dtype == torch.float64 else logits.float()
            _check_finite(logits)
            if len(tops) == len(lefts) == 1:
                yield 0, logits[0]
                return
            for first in range(end, top + rows, ROWS):
                few = min(ROWS, top + rows - first)
                bands.append(Band(first, logits.new_zeros(logits.shape[1], few, width), logits.new_zeros(few, width)))
            end = top + rows
            _add_windows(bands, logits, top, part)
            del windows, logits
        while bands and bands[0].first < after:
            first, total, times = bands.popleft()
            few = min(len(times), after - first)
            if few < len(times):
                bands.appendleft(Band(after, total[:, few:], times[few:]))
            yield first, total[:, :few] / times[:few].clone()  # The backward pass needs the present values, so they are copied.
            del total, times
        yield after, None


def _from_the_end(starts: list[int]) -> list[int]:
    """Return the first pixels of the same windows, counted from the other end of the side."""
    return [starts[-1] - start for start in reversed(starts)]


class Band(NamedTuple):
    """Band of rows of an image.

    Attributes:
        first: Index of the first row.
        total: ``[classes, rows, width]``, sums of logits.
        times: ``[rows, width]``, number of windows in each sum.
    """

    first: int
    total: Tensor
    times: Tensor


def _add_windows(bands: Iterable[Band], logits: Tensor, top: int, lefts: Sequence[int]) -> None:
    """Add the logits ``[B, classes, rows, columns]`` of windows that begin in row ``top`` and columns ``lefts``."""
    for band in bands:
        inside = slice(band.first - top, band.first - top + len(band.times))
        for window, left in zip(logits, lefts):
            band.total[:, :, left : left + logits.shape[-1]] += window[:, inside]
            band.times[:, left : left + logits.shape[-1]] += 1


def check_scales(scales: Sequence[float]) -> None:
    """Check that scales are factors of the image size.

    Raises:
        TypeError: The scales are not a sequence of numbers.
        ValueError: There is no scale, or some are not positive and finite.
    """
    if not isinstance(scales, Sequence):
        raise TypeError(f"The scales must be a sequence of numbers, got {scales!r}. Give (1.0,) for one.")
    for scale in scales:
        check_number("A scale", scale)
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"The scales must be one or more positive, finite factors of the size, got {tuple(scales)}. Give (1.0,) for the "
            "original size."
        )


def _logits(model: Segments, images: Tensor) -> Tensor:
    """Return the logits ``[B, classes, H, W]`` of images ``[B, C, H, W]``.

    Raises:
        TypeError: As `check_logits`.
        ValueError: As `check_logits`, or the logits do not have the size of the images.
    """
    logits = check_logits(model(images), images, 4)
    if logits.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"The model must return logits of the images' {images.shape[-2]} x {images.shape[-1]} pixels, got "
            f"{logits.shape[-2]} x {logits.shape[-1]}. Enlarge them in the model, with F.interpolate(logits, size=...)."
        )
    return logits


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise FloatingPointError(
            "The logits must be finite, got inf or nan. Check the weights, or use a precision that does not overflow."
        )


@dataclass(frozen=True)
class SlidingWindow:
    """Settings of sliding windows.

    Args:
        window: Side of the windows in pixels; None for the whole image.
        stride: Distance between windows in pixels. Default: ``window``.

    Raises:
        TypeError: As `window_starts`.
        ValueError: As `window_starts`, or a stride without a window.

    Example:
        >>> SlidingWindow(512)
        SlidingWindow(window=512, stride=512)
    """

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        check_windows(self.window, self.stride)
        object.__setattr__(self, "stride", self.stride or self.window)

    def over(self, model: nn.Module) -> nn.Module:
        """Return the model with these sliding windows."""
        return SlidingWindowModel(model, self.window, self.stride)


class SlidingWindowModel(nn.Module):
    """Segmentation model that sees images of any size through sliding windows. It is differentiable.

    Args:
        model: Maps normalized images to logits.
        window: Side of the windows in pixels; None for whole images.
        stride: Distance between windows in pixels. Default: ``window``.

    Example:
        >>> model = SlidingWindowModel(nn.Conv2d(3, 2, 1), window=8, stride=4)
        >>> model(torch.rand(1, 3, 12, 20)).shape
        torch.Size([1, 2, 12, 20])
    """

    def __init__(self, model: nn.Module, window: int | None = None, stride: int | None = None) -> None:
        super().__init__()
        check_windows(window, stride)
        self.model, self.window, self.stride = model, window, stride
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, classes, H, W]``."""
        if self.window is None:
            return self.model(images)
        window, stride = self.window, self.stride or self.window
        strips = [[logits for _, logits in sliding_strips(self.model, image, window, stride)] for image in images]
        return torch.stack([torch.cat(parts, dim=1) for parts in strips])


@torch.no_grad()
def segment(
    model: Segments,
    image: Tensor,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 2,
    size: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Predict the class of each pixel of an image, on average over several views if asked for.

    With one view, memory holds one strip of windows across the shorter side. With several views, it holds:

    - the strip of one view,
    - for each view, the rows that its strips share,
    - the sum of probabilities of rows that not all views have finished, about one strip of the smallest scale.

    Args:
        model: Model in evaluation mode that maps normalized images to logits.
        image: ``[C, H, W]``, normalized.
        window: Side of sliding windows in pixels; None for the whole image at once.
        stride: Distance between windows in pixels. Default: ``window``.
        batch_size: Number of windows per forward pass.
        size: (height, width) of the result. Logits are interpolated bilinearly to it. Default: the size of the image.
        scales: Factors of the image size. Probabilities are averaged over them.
        flip: Whether to average also over the mirrored image at each scale.

    Returns:
        Class numbers ``[H, W]``, or of shape ``size``.

    Raises:
        TypeError: A setting has the wrong type; or as `check_logits`.
        ValueError: The model is in training mode. The image is not floating point ``[C, H, W]``. A window, stride, scale or
            size is out of its range; or as `check_logits`.
        FloatingPointError: Some logits are not finite.

    Example:
        >>> model = nn.Conv2d(3, 5, 1).eval()
        >>> segment(model, torch.rand(3, 40, 60), window=32, stride=16, flip=True).shape
        torch.Size([40, 60])
    """
    check_evaluation_mode(model)
    check_scales(scales)
    check_windows(window, stride)
    check_flag("flip", flip)
    for side in (batch_size, *(size or ())):
        if check_whole("batch_size, and each side of size,", side) < 1:
            raise ValueError(f"batch_size, and each side of size, must be at least 1, got {side}.")
    if not image.is_floating_point() or image.ndim != 3 or not image.numel():
        raise ValueError(
            f"The image must be floating point [channels, height, width], got {image.dtype} of shape {list(image.shape)}. "
            "Give one image, normalized as the model expects."
        )
    size = size or (image.shape[-2], image.shape[-1])
    transposed = window is not None and image.shape[-1] > image.shape[-2]
    if transposed:
        model, image, size = partial(_transposed, model), image.mT, (size[1], size[0])
    views = [(scale, axis) for scale in scales for axis in (None, *[-2 if transposed else -1] * flip)]
    streams = [_view(model, image, window, stride, batch_size, size, *view) for view in views]
    bands = (band for band in streams[0] if band is not None) if len(streams) == 1 else _mean_probabilities(streams, size[0])
    classes = torch.cat([band.argmax(dim=0) for band in bands])
    return classes.mT if transposed else classes


def _transposed(model: Segments, images: Tensor) -> Tensor:
    """Return the transposed logits of transposed images."""
    return _logits(model, images.mT).mT


def _mirrored(model: Segments, axis: int, images: Tensor) -> Tensor:
    """Return the logits of mirrored images, mirrored back."""
    return _logits(model, images.flip(axis)).flip(axis)


def _view(
    model: Segments,
    image: Tensor,
    window: int | None,
    stride: int | None,
    batch_size: int,
    size: tuple[int, int],
    scale: float,
    mirrored: int | None,
) -> Iterator[Tensor | None]:
    """Yield the logits ``[classes, rows, width]`` of one view, interpolated to ``size``, from the top; None as in `_strips`.

    The windows of a mirrored view are mirrored one by one, so that its strips come in the same order as those of other views.
    """
    if scale != 1:
        sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size=sides, mode="bilinear", antialias=scale < 1)[0]
    height, width = image.shape[-2:]
    side = window or max(height, width)
    model = model if mirrored is None else partial(_mirrored, model, mirrored)
    strips = _strips(model, image, side, stride or side, batch_size, mirrored)
    yield from _bands(strips, (height, width), size)


def _mean_probabilities(streams: Sequence[Iterator[Tensor | None]], height: int) -> Iterator[Tensor]:
    """Yield the sum of the probabilities of several streams of logits, in blocks of rows.

    Each stream has ``height`` rows. The stream that is furthest behind is advanced to the next point at which it holds
    hardly any memory. The sum has the same largest class as the mean.
    """
    blocks: dict[int, Tensor] = {}
    rows, done = [0] * len(streams), 0
    while done < height:
        behind = min(range(len(streams)), key=rows.__getitem__)
        for band in streams[behind]:
            if band is None:
                break
            _add(blocks, rows[behind], band.softmax(dim=0), height)
            rows[behind] += band.shape[1]
            del band
        while done < height and min(rows) >= min(done + ROWS, height):
            yield blocks.pop(done // ROWS)
            done += ROWS


def _add(blocks: dict[int, Tensor], row: int, band: Tensor, height: int) -> None:
    """Add a band of rows to blocks of `ROWS` rows. Blocks are created when they are needed."""
    while band.shape[1]:
        block, offset = divmod(row, ROWS)
        part = band[:, : ROWS - offset]
        if block not in blocks:
            blocks[block] = band.new_zeros(band.shape[0], min(ROWS, height - block * ROWS), band.shape[2])
        blocks[block][:, offset : offset + part.shape[1]] += part
        row, band = row + part.shape[1], band[:, part.shape[1] :]


def classes_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the classes ``[B, height, width]`` of logits ``[B, classes, h, w]`` after bilinear interpolation to ``size``.

    This equals ``F.interpolate`` followed by ``argmax``, but works on bands of rows to save memory.

    Example:
        >>> classes_of(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), (1, 4))
        tensor([[[0, 0, 1, 1]]])
    """
    shape = (logits.shape[-2], logits.shape[-1])
    streams = [_bands([(0, one)], shape, size) for one in logits]
    return torch.stack([torch.cat([b.argmax(dim=0) for b in bands if b is not None]) for bands in streams])


def _bands(
    strips: Iterable[tuple[int, Tensor | None]], shape: tuple[int, int], size: tuple[int, int]
) -> Iterator[Tensor | None]:
    """Yield logits of ``shape`` that come in strips, interpolated to ``size``. No strip is held longer than it is needed."""
    positions = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (shape[0] / size[0]) - 0.5).clamp(0, shape[0] - 1)
    done = 0
    before: Tensor | None = None  # the last row of the strip above; its lower neighbor is in the current strip
    for top, logits in strips:
        if logits is None or shape == size:
            yield from [None] if logits is None else logits.split(ROWS, dim=1)
            continue
        last = top + logits.shape[1] - 1
        end = size[0] if last == shape[0] - 1 else int((positions < last).sum())
        yield from _lines_between(top, logits, before, positions[done:end], size[1])
        done = max(done, end)
        before = logits[:, -1:].clone() if last < shape[0] - 1 else None
        del logits


def _lines_between(top: int, logits: Tensor, before: Tensor | None, positions: Tensor, width: int) -> Iterator[Tensor]:
    """Yield the rows at ``positions`` of a strip, in bands.

    Rows above the first row of the strip are interpolated between that row and the row ``before`` it.
    """
    above = int((positions < top).sum())
    parts = [(logits, top, positions[above:])]
    if before is not None:
        parts.insert(0, (torch.cat([before, logits[:, :1]], dim=1), top - 1, positions[:above]))
    for lines, first, chosen in parts:
        for part in chosen.split(ROWS):
            if len(part):
                yield _band(lines, part - first, width)


def _band(lines: Tensor, positions: Tensor, width: int) -> Tensor:
    """Interpolate rows ``[classes, rows, width]`` between lines of logits ``[classes, n, w]``."""
    above = positions.long()
    some = lines[:, int(above[0]) : int(above[-1]) + 2]
    wide = F.interpolate(some[None], size=(some.shape[1], width), mode="bilinear")[0]
    above = above - above[0]
    below, share = (above + 1).clamp_max(some.shape[1] - 1), (positions - positions.long()).to(wide)[:, None]
    return torch.lerp(wide[:, above], wide[:, below], share)
