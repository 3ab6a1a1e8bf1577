"""Inference on images of any size: whole, in windows, at several scales."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    model: nn.Module, image: Tensor, window: int, stride: int, batch_size: int = 4
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
        yield top, total[:, :done] / times[:done].clone()  # a backward pass wants them as they are now
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
    batch_size: int = 4,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Classes ``[H, W]`` of the pixels of an image; of its logits, memory holds a strip of ``window`` rows.

    Args:
        model: Maps normalised images to logits, in evaluation mode.
        image: ``[C, H, W]``, normalised.
        window: Side of sliding windows; None for the whole image at once.
        stride: Between windows. Default: ``window``.
        batch_size: Windows at a time.
        size: (height, width) of the classes, whose logits are interpolated bilinearly. Default: the image's.
    """
    window = window or max(image.shape[-2:])
    strips = sliding_strips(model, image, window, stride or window, batch_size)
    return _classes(strips, (image.shape[-2], image.shape[-1]), size or (image.shape[-2], image.shape[-1]))


def classes_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Classes ``[B, height, width]`` of logits ``[B, classes, h, w]``: of their bilinear interpolation to ``size``.

    As ``F.interpolate`` and then the largest, but by bands of rows, for memory.
    """
    shape = (logits.shape[-2], logits.shape[-1])
    return torch.stack([_classes([(0, one)], shape, size) for one in logits])


def _classes(strips: Iterable[tuple[int, Tensor]], shape: tuple[int, int], size: tuple[int, int], rows: int = 64) -> Tensor:
    """Of logits of ``shape`` that come in strips, interpolated to ``size``; no strip is held longer than it is needed."""
    if shape == size:
        return torch.cat([logits.argmax(dim=0) for _, logits in strips])
    places = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (shape[0] / size[0]) - 0.5).clamp(0, shape[0] - 1)
    bands, done = [], 0
    before: Tensor | None = None  # the last row of the strip above, whose lower neighbour is in this one
    for top, logits in strips:
        parts = [(top, logits)] if before is None else [(top - 1, torch.cat([before, logits[:, :1]], dim=1)), (top, logits)]
        last = top + logits.shape[1] - 1
        for first, lines in parts:
            until = first + lines.shape[1] - 1
            end = size[0] if until == shape[0] - 1 else int((places < until).sum())
            bands += [_band(lines, part - first, size[1]) for part in places[done:end].split(rows) if len(part)]
            done = max(done, end)
        before = logits[:, -1:].clone() if last < shape[0] - 1 else None
    return torch.cat(bands)


def _band(lines: Tensor, places: Tensor, width: int) -> Tensor:
    """Classes ``[rows, width]`` between lines of logits ``[classes, n, w]``."""
    above = places.long()
    some = lines[:, int(above[0]) : int(above[-1]) + 2]
    wide = F.interpolate(some[None], size=(some.shape[1], width), mode="bilinear")[0]
    above = above - above[0]
    below, share = (above + 1).clamp_max(some.shape[1] - 1), (places - places.long()).to(wide)[:, None]
    return torch.lerp(wide[:, above], wide[:, below], share).argmax(dim=0)


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


@torch.no_grad()
def multi_scale(
    model: nn.Module, images: Tensor, scales: Sequence[float], flip: bool = True, size: tuple[int, int] | None = None
) -> Tensor:
    """The mean probability ``[B, classes, height, width]`` over scales and mirror images; all of it is held in memory.

    Args:
        model: Maps images to logits, in evaluation mode; `Windowed` for windows.
        images: ``[B, C, H, W]``.
        scales: Factors of the images' sides.
        flip: Mirror images too.
        size: (height, width), to which the logits of each view are interpolated. Default: the images'.

    Raises:
        FloatingPointError: Logits that are not finite.
    """
    total: Any = 0
    views = [(scale, mirrored) for scale in scales for mirrored in ([False, True] if flip else [False])]
    for scale, mirrored in views:
        sides = [max(1, round(side * scale)) for side in images.shape[-2:]]
        scaled = images if scale == 1 else F.interpolate(images, size=sides, mode="bilinear", antialias=scale < 1)
        logits = model(scaled.flip(-1) if mirrored else scaled)
        _check_finite(logits)
        logits = F.interpolate(logits, size=size or images.shape[-2:], mode="bilinear")
        total = total + (logits.flip(-1) if mirrored else logits).softmax(dim=1)
    return total / len(views)
