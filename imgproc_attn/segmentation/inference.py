"""Inference on images of any size: whole, in windows, at several scales; memory holds strips, never all logits."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Segments = Callable[[Tensor], Tensor]  # images [B, C, H, W] to logits [B, classes, H, W]

ROWS = 64  # that are divided, interpolated or compared at a time


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride``, the last flush with the end; one window if it covers the side.

    Raises:
        ValueError: A stride that is not positive, or that leaves gaps.
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride is {stride}, but must be from 1 to the window, {window}: larger ones leave gaps.")
    if size <= window:
        return [0]
    return [*range(0, size - window, stride), size - window]


def sliding_strips(
    model: Segments, image: Tensor, window: int, stride: int, batch_size: int = 2
) -> Iterator[tuple[int, Tensor]]:
    """Logits of an image by overlapping windows, averaged where they overlap, in strips of rows from the top.

    Memory holds the rows of one window: ``classes x window x width`` values. Windows larger than the image are all of it.

    Args:
        model: Maps normalised images to logits.
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


def _strips(model: Segments, image: Tensor, window: int, stride: int, batch_size: int) -> Iterator[tuple[int, Tensor | None]]:
    """As `sliding_strips`; and nothing in the place of logits where hardly any memory is held, before the next windows."""
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    rows, end = min(window, height), 0
    bands: deque[Band] = deque()  # of the rows that are not done; each is let go when it is
    for top, after in zip(tops, [*tops[1:], height]):
        for part in (lefts[i : i + batch_size] for i in range(0, len(lefts), batch_size)):
            found = model(torch.stack([image[:, top : top + window, left : left + window] for left in part]))
            found = found if found.dtype == torch.float64 else found.float()  # halves would not add up, and tie
            _check_finite(found)
            if len(tops) == len(lefts) == 1:
                yield 0, found[0]
                return
            for first in range(end, top + rows, ROWS):
                few = min(ROWS, top + rows - first)
                bands.append(Band(first, found.new_zeros(found.shape[1], few, width), found.new_zeros(few, width)))
            end = top + rows
            for band in bands:
                inside = slice(band.first - top, band.first - top + len(band.times))
                for logits, left in zip(found, part):
                    band.total[:, :, left : left + window] += logits[:, inside]
                    band.times[:, left : left + window] += 1
            del found
        while bands and bands[0].first < after:
            first, total, times = bands.popleft()
            few = min(len(times), after - first)
            if few < len(times):
                bands.appendleft(Band(after, total[:, few:], times[few:]))
            yield first, total[:, :few] / times[:few].clone()  # a backward pass wants them as they are now
            del total, times
        yield after, None


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


def check_scales(scales: Sequence[float]) -> None:
    """Refuse what is no factor of a size.

    Raises:
        ValueError: None, or some that are not positive and finite.
    """
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"The scales are {tuple(scales)}, but must be positive, finite factors of the size, one at least.")


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise FloatingPointError("The model gives logits that are not finite; it is broken, or overflows in this precision.")


class Windowed(nn.Module):
    """A segmenter that looks at images of any size through sliding windows; gradients pass.

    Args:
        model: Maps normalised images to logits.
        window: Side of the windows; None for whole images.
        stride: Between windows. Default: ``window``.
    """

    def __init__(self, model: nn.Module, window: int | None = None, stride: int | None = None) -> None:
        super().__init__()
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

    Memory holds a strip of windows across the shorter side (of mirrored views: across the width), and what of the classes other
    views have not come to.

    Args:
        model: Maps normalised images to logits, in evaluation mode.
        image: ``[C, H, W]``, normalised.
        window: Side of sliding windows; None for the whole image at once.
        stride: Between windows. Default: ``window``.
        batch_size: Windows at a time.
        size: (height, width) of the classes, whose logits are interpolated bilinearly. Default: the image's.
        scales: Factors of the image's sides, over which probabilities are averaged.
        flip: Mirror images too.

    Raises:
        ValueError: No scales, or some that are not positive; or as `sliding_strips`.
        FloatingPointError: Logits that are not finite.
    """
    check_scales(scales)
    size = size or (image.shape[-2], image.shape[-1])
    if window is not None and image.shape[-1] > image.shape[-2] and not flip:  # which come from the other end
        turned = partial(_turned, model)
        return segment(turned, image.mT, window, stride, batch_size, (size[1], size[0]), scales).mT
    views = [(scale, mirrored) for scale in scales for mirrored in (False, *[True] * flip)]
    streams = [_view(model, image, window, stride, batch_size, size, *view) for view in views]
    bands = (band for band in streams[0] if band is not None) if len(streams) == 1 else _mean_probabilities(streams, size[0])
    return torch.cat([band.argmax(dim=0) for band in bands])


def _turned(model: Segments, images: Tensor) -> Tensor:
    """Logits of images whose rows are columns."""
    return model(images.mT).mT


def _view(
    model: Segments,
    image: Tensor,
    window: int | None,
    stride: int | None,
    batch_size: int,
    size: tuple[int, int],
    scale: float,
    mirrored: bool,
) -> Iterator[Tensor | None]:
    """Logits ``[classes, rows, width]`` of an image seen so, interpolated to ``size``, from the top; None as in `_strips`."""
    if scale != 1:
        sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size=sides, mode="bilinear", antialias=scale < 1)[0]
    height, width = image.shape[-2:]
    side = window or max(height, width)
    strips = _strips(model, image.flip(-1) if mirrored else image, side, stride or side, batch_size)
    for band in _bands(strips, (height, width), size):
        yield band.flip(-1) if band is not None and mirrored else band


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
    before: Tensor | None = None  # the last row of the strip above, whose lower neighbour is in this one
    for top, logits in strips:
        if logits is None or shape == size:
            yield from [None] if logits is None else logits.split(ROWS, dim=1)
            continue
        parts = [(top, logits)] if before is None else [(top - 1, torch.cat([before, logits[:, :1]], dim=1)), (top, logits)]
        last = top + logits.shape[1] - 1
        for first, lines in parts:
            until = first + lines.shape[1] - 1
            end = size[0] if until == shape[0] - 1 else int((places < until).sum())
            for part in places[done:end].split(ROWS):
                if len(part):
                    yield _band(lines, part - first, size[1])
            done = max(done, end)
        before = logits[:, -1:].clone() if last < shape[0] - 1 else None


def _band(lines: Tensor, places: Tensor, width: int) -> Tensor:
    """``[classes, rows, width]`` between lines of logits ``[classes, n, w]``."""
    above = places.long()
    some = lines[:, int(above[0]) : int(above[-1]) + 2]
    wide = F.interpolate(some[None], size=(some.shape[1], width), mode="bilinear")[0]
    above = above - above[0]
    below, share = (above + 1).clamp_max(some.shape[1] - 1), (places - places.long()).to(wide)[:, None]
    return torch.lerp(wide[:, above], wide[:, below], share)


@torch.no_grad()
def evaluate_pictures(
    model: nn.Module,
    loader: Any,
    evaluator: Any,
    autocast: Callable[[], Any],
    window: int | None = None,
    stride: int | None = None,
    distributed: bool = False,
) -> dict[str, Any]:
    """Segment pictures one by one, each compared with its labels at their own size, and let ``evaluator`` count.

    Args:
        model: Maps normalised images to logits, in evaluation mode.
        loader: Gives one picture ``[1, C, H, W]`` and its labels ``[1, H, W]`` at a time.
        evaluator: As `Areas`.
        autocast: Context of the forward pass.
        window: As in `segment`.
        stride: As in `segment`.
        distributed: Count over all processes.
    """
    for images, labels in loader:
        with autocast():
            found = segment(model, images[0], window, stride, size=tuple(labels.shape[-2:]))
        evaluator.update(found[None], labels)
    return evaluator.compute(distributed)
