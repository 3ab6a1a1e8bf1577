"""Inference on images of any size: whole, in windows, at several scales; memory holds strips, never all logits."""

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

ROWS = 64  # that are divided, interpolated or compared at a time


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride``, the last flush with the end; one window if it covers the side.

    Raises:
        ValueError: As `check_windows`.
    """
    check_windows(window, stride)
    if size <= window:
        return [0]
    return [*range(0, size - window, stride), size - window]


def check_windows(window: int | None, stride: int | None) -> None:
    """Refuse windows that cover no image.

    Raises:
        TypeError: A side or stride that is no whole number.
        ValueError: A side that is not positive; a stride that is not, that leaves gaps, or that has no windows.
    """
    for name, value in (("window", window), ("stride", stride)):
        if value is not None:
            check_whole(f"The {name}", value)
    if window is not None and window < 1:
        raise ValueError(f"The window must be at least 1, got {window}. Give its side in pixels, or None for whole images.")
    if stride is not None and window is None:
        raise ValueError(f"The stride is {stride}, but there are no windows; give the window too.")
    if stride is not None and window is not None and not 0 < stride <= window:
        raise ValueError(f"The stride is {stride}, but must be from 1 to the window, {window}: others leave gaps.")


def sliding_strips(
    model: Segments, image: Tensor, window: int, stride: int, batch_size: int = 2
) -> Iterator[tuple[int, Tensor]]:
    """Logits of an image by overlapping windows, averaged where they overlap, in strips of rows from the top.

    Memory holds the rows of one window: ``classes x window x width`` values. Windows larger than the image are all of it.

    Args:
        model: Maps normalized images to logits.
        image: ``[C, H, W]``.
        window: Side of the windows.
        stride: Between them.
        batch_size: Windows at a time.

    Yields:
        The first row, and logits ``[classes, rows, W]``.

    Raises:
        ValueError: As `window_starts`.
        FloatingPointError: Logits that are not finite.
    """
    for row, strip in _strips(model, image, window, stride, batch_size):
        if strip is not None:
            yield row, strip


def _strips(
    model: Segments, image: Tensor, window: int, stride: int, batch_size: int, mirrored: int | None = None
) -> Iterator[tuple[int, Tensor | None]]:
    """As `sliding_strips`; and nothing in the place of logits where hardly any memory is held, before the next windows.

    Many of these wait for each other: what a waiting one names is memory that it holds. Along the axis ``mirrored``, if any,
    windows lie as those of the mirrored image would.
    """
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    tops = _from_the_end(tops) if mirrored == -2 else tops
    lefts = _from_the_end(lefts) if mirrored == -1 else lefts
    rows, end = min(window, height), 0
    bands: deque[Band] = deque()  # of the rows that are not done; each is let go when it is
    for top, after in zip(tops, [*tops[1:], height]):
        for part in (lefts[i : i + batch_size] for i in range(0, len(lefts), batch_size)):
            seen = torch.stack([image[:, top : top + window, left : left + window] for left in part])
            found = _logits(model, seen)
            found = found if found.dtype == torch.float64 else found.float()  # halves would not add up, and tie
            _check_finite(found)
            if len(tops) == len(lefts) == 1:
                yield 0, found[0]
                return
            for first in range(end, top + rows, ROWS):
                few = min(ROWS, top + rows - first)
                bands.append(Band(first, found.new_zeros(found.shape[1], few, width), found.new_zeros(few, width)))
            end = top + rows
            _add_windows(bands, found, top, part)
            del seen, found
        while bands and bands[0].first < after:
            first, total, times = bands.popleft()
            few = min(len(times), after - first)
            if few < len(times):
                bands.appendleft(Band(after, total[:, few:], times[few:]))
            yield first, total[:, :few] / times[:few].clone()  # a backward pass wants them as they are now
            del total, times
        yield after, None


def _from_the_end(starts: list[int]) -> list[int]:
    """Of windows along a side, where they begin if their places are counted from its other end."""
    return [starts[-1] - start for start in reversed(starts)]


class Band(NamedTuple):
    """Some rows of an image.

    Attributes:
        first: Where they begin.
        total: ``[classes, rows, width]``, sums of logits.
        times: ``[rows, width]``, of so many windows.
    """

    first: int
    total: Tensor
    times: Tensor


def _add_windows(bands: Iterable[Band], found: Tensor, top: int, lefts: Sequence[int]) -> None:
    """Logits ``[B, classes, rows, columns]`` of windows that begin in row ``top`` and in columns ``lefts``."""
    for band in bands:
        inside = slice(band.first - top, band.first - top + len(band.times))
        for logits, left in zip(found, lefts):
            band.total[:, :, left : left + found.shape[-1]] += logits[:, inside]
            band.times[:, left : left + found.shape[-1]] += 1


def check_scales(scales: Sequence[float]) -> None:
    """Refuse what is no factor of a size.

    Raises:
        TypeError: They are no sequence of numbers.
        ValueError: None, or some that are not positive and finite.
    """
    if not isinstance(scales, Sequence):
        raise TypeError(f"The scales must be a sequence of numbers, got {scales!r}. Give (1.0,) for one.")
    for scale in scales:
        check_number("A scale", scale)
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"The scales are {tuple(scales)}, but must be positive, finite factors of the size, one at least.")


def _logits(model: Segments, images: Tensor) -> Tensor:
    """``[B, classes, H, W]`` of images of that size.

    Raises:
        TypeError: As `check_logits`.
        ValueError: As `check_logits`, or logits of another size.
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
        raise FloatingPointError("The model gives logits that are not finite; it is broken, or overflows in this precision.")


@dataclass(frozen=True)
class SlidingWindow:
    """How a segmenter looks at an image.

    Args:
        window: Side of sliding windows; None for the whole image.
        stride: Stride of the windows. Default: ``window``.
    """

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        check_windows(self.window, self.stride)
        object.__setattr__(self, "stride", self.stride or self.window)

    def over(self, model: nn.Module) -> nn.Module:
        """Return the model that looks at images so."""
        return SlidingWindowModel(model, self.window, self.stride)


class SlidingWindowModel(nn.Module):
    """A segmenter that looks at images of any size through sliding windows; gradients pass.

    Args:
        model: Maps normalized images to logits.
        window: Side of the windows; None for whole images.
        stride: Between windows. Default: ``window``.
    """

    def __init__(self, model: nn.Module, window: int | None = None, stride: int | None = None) -> None:
        super().__init__()
        check_windows(window, stride)
        self.model, self.window, self.stride = model, window, stride
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to logits ``[B, classes, H, W]``."""
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
    """Classes ``[H, W]`` of the pixels of an image: the likeliest, on average over several views if asked for.

    Memory holds a strip of windows across the shorter side; of several views the strip of one, the rows that its own strips
    share of each, and the mean of the classes where not all views are done, a strip of the smallest scale.

    Args:
        model: Maps normalized images to logits, in evaluation mode.
        image: ``[C, H, W]``, normalized.
        window: Side of sliding windows; None for the whole image at once.
        stride: Between windows. Default: ``window``.
        batch_size: Windows at a time.
        size: (height, width) of the classes, whose logits are interpolated bilinearly. Default: the image's.
        scales: Factors of the image's sides, over which probabilities are averaged.
        flip: Mirror images too.

    Raises:
        TypeError: A setting of another type; or as `check_logits`.
        ValueError: A model in training mode; an image that is not floating point ``[C, H, W]``; windows, scales or a size that
            are not positive; or as `check_logits`.
        FloatingPointError: Logits that are not finite.
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
    turned = window is not None and image.shape[-1] > image.shape[-2]
    if turned:
        model, image, size = partial(_turned, model), image.mT, (size[1], size[0])
    views = [(scale, axis) for scale in scales for axis in (None, *[-2 if turned else -1] * flip)]
    streams = [_view(model, image, window, stride, batch_size, size, *view) for view in views]
    bands = (band for band in streams[0] if band is not None) if len(streams) == 1 else _mean_probabilities(streams, size[0])
    found = torch.cat([band.argmax(dim=0) for band in bands])
    return found.mT if turned else found


def _turned(model: Segments, images: Tensor) -> Tensor:
    """Logits of images whose rows are columns."""
    return _logits(model, images.mT).mT


def _mirrored(model: Segments, axis: int, images: Tensor) -> Tensor:
    """Logits of mirror images, mirrored back."""
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
    """Logits ``[classes, rows, width]`` of an image seen so, interpolated to ``size``, from the top; None as in `_strips`.

    Windows of a mirrored view are mirrored one by one, so that its strips come in the order of all others.
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
    """Over streams of logits of ``height`` rows each, in blocks of rows.

    The stream that is furthest behind goes on, to where it holds hardly any memory.
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
    """Add a band of rows to blocks of `ROWS`, which are made as they are needed."""
    while band.shape[1]:
        block, offset = divmod(row, ROWS)
        part = band[:, : ROWS - offset]
        if block not in blocks:
            blocks[block] = band.new_zeros(band.shape[0], min(ROWS, height - block * ROWS), band.shape[2])
        blocks[block][:, offset : offset + part.shape[1]] += part
        row, band = row + part.shape[1], band[:, part.shape[1] :]


def classes_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Classes ``[B, height, width]`` of logits ``[B, classes, h, w]``: of their bilinear interpolation to ``size``.

    As ``F.interpolate`` and then the largest, but by bands of rows, for memory.
    """
    shape = (logits.shape[-2], logits.shape[-1])
    streams = [_bands([(0, one)], shape, size) for one in logits]
    return torch.stack([torch.cat([b.argmax(dim=0) for b in bands if b is not None]) for bands in streams])


def _bands(
    strips: Iterable[tuple[int, Tensor | None]], shape: tuple[int, int], size: tuple[int, int]
) -> Iterator[Tensor | None]:
    """Logits of ``shape`` that come in strips, interpolated to ``size``; no strip is held longer than it is needed."""
    places = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (shape[0] / size[0]) - 0.5).clamp(0, shape[0] - 1)
    done = 0
    before: Tensor | None = None  # the last row of the strip above, whose lower neighbor is in this one
    for top, logits in strips:
        if logits is None or shape == size:
            yield from [None] if logits is None else logits.split(ROWS, dim=1)
            continue
        last = top + logits.shape[1] - 1
        end = size[0] if last == shape[0] - 1 else int((places < last).sum())
        yield from _lines_between(top, logits, before, places[done:end], size[1])
        done = max(done, end)
        before = logits[:, -1:].clone() if last < shape[0] - 1 else None
        del logits


def _lines_between(top: int, logits: Tensor, before: Tensor | None, places: Tensor, width: int) -> Iterator[Tensor]:
    """Rows at ``places`` of a strip, in bands; those above its first row lie between that and the one ``before`` it."""
    above = int((places < top).sum())
    parts = [(logits, top, places[above:])]
    if before is not None:
        parts.insert(0, (torch.cat([before, logits[:, :1]], dim=1), top - 1, places[:above]))
    for lines, first, chosen in parts:
        for part in chosen.split(ROWS):
            if len(part):
                yield _band(lines, part - first, width)


def _band(lines: Tensor, places: Tensor, width: int) -> Tensor:
    """``[classes, rows, width]`` between lines of logits ``[classes, n, w]``."""
    above = places.long()
    some = lines[:, int(above[0]) : int(above[-1]) + 2]
    wide = F.interpolate(some[None], size=(some.shape[1], width), mode="bilinear")[0]
    above = above - above[0]
    below, share = (above + 1).clamp_max(some.shape[1] - 1), (places - places.long()).to(wide)[:, None]
    return torch.lerp(wide[:, above], wide[:, below], share)
