"""Inference on images of any size: whole, in windows, at several scales; memory holds strips of rows, never all logits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    model: nn.Module, image: Tensor, window: int, stride: int, batch_size: int = 2
) -> Iterator[tuple[int, Tensor]]:
    """Logits of an image by overlapping windows, averaged where they overlap, in strips of rows from the top.

    Memory holds one strip: ``classes x window x width`` values. Windows larger than the image are the image, whole.

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
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    rows = min(window, height)
    total = times = None
    for top, after in zip(tops, [*tops[1:], height]):
        for part in (lefts[i : i + batch_size] for i in range(0, len(lefts), batch_size)):
            found = model(torch.stack([image[:, top : top + window, left : left + window] for left in part]))
            found = found if found.dtype == torch.float64 else found.float()  # halves would not add up, and tie
            _check_finite(found)
            if len(tops) == len(lefts) == 1:
                yield 0, found[0]
                return
            if total is None or times is None:
                total, times = found.new_zeros(found.shape[1], rows, width), found.new_zeros(rows, width)
            for i, left in enumerate(part):
                total[:, :, left : left + window] += found[i]
                times[:, left : left + window] += 1
            del found
        assert total is not None
        assert times is not None
        done = after - top if after < height else rows
        for first in range(0, done, ROWS):
            rest = slice(first, min(first + ROWS, done))
            yield top + first, total[:, rest] / times[rest].clone()  # a backward pass wants them as they are now
        if after < height:
            for strip in (total, times):
                _move_up(strip, done)


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise FloatingPointError("The model gives logits that are not finite; it is broken, or overflows in this precision.")


def _move_up(strip: Tensor, rows: int) -> None:
    """Drop a strip's first rows, in place and without a second strip; empty ones follow."""
    for first in range(0, strip.shape[-2] - rows, rows):
        part = strip[..., first + rows : first + 2 * rows, :]
        strip[..., first : first + part.shape[-2], :] = part
    strip[..., strip.shape[-2] - rows :, :] = 0


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
    model: nn.Module,
    image: Tensor,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 2,
    size: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Classes ``[H, W]`` of the pixels of an image: the likeliest, on average over several views if asked for.

    Of the logits of each view, memory holds a strip of ``window`` rows.

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
    if not scales or min(scales) <= 0:
        raise ValueError(f"The scales are {tuple(scales)}, but must be positive factors of the size, one at least.")
    height, width = size or (image.shape[-2], image.shape[-1])
    views = [(scale, mirrored) for scale in scales for mirrored in (False, *[True] * flip)]
    streams = [_view(model, image, window, stride, batch_size, (height, width), *view) for view in views]
    bands = streams[0] if len(streams) == 1 else _mean_probabilities(streams)
    return torch.cat([band.argmax(dim=0) for band in bands])


def _view(
    model: nn.Module,
    image: Tensor,
    window: int | None,
    stride: int | None,
    batch_size: int,
    size: tuple[int, int],
    scale: float,
    mirrored: bool,
) -> Iterator[Tensor]:
    """Logits ``[classes, rows, width]`` of an image seen so, interpolated to ``size``, from the top."""
    if scale != 1:
        sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size=sides, mode="bilinear", antialias=scale < 1)[0]
    height, width = image.shape[-2:]
    side = window or max(height, width)
    strips = sliding_strips(model, image.flip(-1) if mirrored else image, side, stride or side, batch_size)
    for band in _bands(strips, (height, width), size):
        yield band.flip(-1) if mirrored else band


def _mean_probabilities(streams: Sequence[Iterator[Tensor]]) -> Iterator[Tensor]:
    """Over streams of logits of the same rows, which may come in bands of other heights."""
    held = [next(stream) for stream in streams]
    while held:
        rows = min(band.shape[1] for band in held)
        yield torch.stack([band[:, :rows].softmax(dim=0) for band in held]).mean(dim=0)
        rests = [band[:, rows:] if rows < band.shape[1] else next(stream, None) for band, stream in zip(held, streams)]
        held = [rest for rest in rests if rest is not None]  # all end with the same row


def classes_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Classes ``[B, height, width]`` of logits ``[B, classes, h, w]``: of their bilinear interpolation to ``size``.

    As ``F.interpolate`` and then the largest, but by bands of rows, for memory.
    """
    shape = (logits.shape[-2], logits.shape[-1])
    return torch.stack([torch.cat([band.argmax(dim=0) for band in _bands([(0, one)], shape, size)]) for one in logits])


def _bands(strips: Iterable[tuple[int, Tensor]], shape: tuple[int, int], size: tuple[int, int]) -> Iterator[Tensor]:
    """Logits of ``shape`` that come in strips, interpolated to ``size``; no strip is held longer than it is needed."""
    if shape == size:
        yield from (band for _, logits in strips for band in logits.split(ROWS, dim=1))
        return
    places = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (shape[0] / size[0]) - 0.5).clamp(0, shape[0] - 1)
    done = 0
    before: Tensor | None = None  # the last row of the strip above, whose lower neighbour is in this one
    for top, logits in strips:
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
