"""Inference on images of any size: whole, in windows, at several scales."""

from collections.abc import Callable, Iterator, Sequence
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


@torch.no_grad()
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
    """
    height, width = image.shape[-2:]
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    rows = min(window, height)
    total = times = None
    for top, after in zip(tops, [*tops[1:], height]):
        for part in (lefts[i : i + batch_size] for i in range(0, len(lefts), batch_size)):
            # float32 whatever the model's precision: halves would not add up, and tie
            found = model(torch.stack([image[:, top : top + window, left : left + window] for left in part])).float()
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
        yield top, total[:, :done] / times[:done]
        if after < height:
            for strip in (total, times):
                _move_up(strip, done)


def _move_up(strip: Tensor, rows: int) -> None:
    """Drop a strip's first rows, in place and without a second strip; empty ones follow."""
    for first in range(0, strip.shape[-2] - rows, rows):
        part = strip[..., first + rows : first + 2 * rows, :]
        strip[..., first : first + part.shape[-2], :] = part
    strip[..., strip.shape[-2] - rows :, :] = 0


def segment(
    model: nn.Module,
    image: Tensor,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Classes ``[H, W]`` of the pixels of an image.

    Args:
        model: Maps normalised images to logits, in evaluation mode.
        image: ``[C, H, W]``, normalised.
        window: Side of sliding windows; None for the whole image at once.
        stride: Between windows. Default: ``window``.
        batch_size: Windows at a time.
        size: (height, width) of the classes; if it is not the image's, logits of the whole image are held to be resized.
    """
    window = window or max(image.shape[-2:])
    strips = (logits for _, logits in sliding_strips(model, image, window, stride or window, batch_size))
    if size is None or size == tuple(image.shape[-2:]):
        return torch.cat([logits.argmax(dim=0) for logits in strips])
    return F.interpolate(torch.cat(list(strips), dim=1)[None], size=size, mode="bilinear")[0].argmax(dim=0)


@torch.no_grad()
def evaluate_pictures(
    model: nn.Module,
    loader: Any,
    evaluator: Any,
    autocast: Callable[[], Any],
    short_side: int | None = None,
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
        short_side: Pictures are resized to it first. Default: as they are.
        window: As in `segment`.
        stride: As in `segment`.
        distributed: Count over all processes.
    """
    for images, labels in loader:
        if short_side is not None:
            images = resized(images[0], short_side / min(images.shape[-2:]))[None]
        with autocast():
            found = segment(model, images[0], window, stride, size=tuple(labels.shape[-2:]))
        evaluator.update(found[None], labels)
    return evaluator.compute(distributed)


def resized(image: Tensor, factor: float) -> Tensor:
    """``[C, H, W]`` with both sides times ``factor``, rounded."""
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=factor < 1)[0]


@torch.no_grad()
def multi_scale(
    model: nn.Module,
    image: Tensor,
    scales: Sequence[float],
    flip: bool = True,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
) -> Tensor:
    """Classes ``[H, W]`` from the mean probability over scales and mirror images; holds ``classes x H x W`` values.

    Args:
        model: Maps normalised images to logits, in evaluation mode.
        image: ``[C, H, W]``, normalised.
        scales: Factors of the image's sides.
        flip: Mirror images too.
        window: As in `segment`.
        stride: As in `segment`.
        batch_size: As in `segment`.
    """
    size, total = image.shape[-2:], None
    for scale in scales:
        scaled = resized(image, scale)
        for mirrored in (False, True) if flip else (False,):
            view = scaled.flip(-1) if mirrored else scaled
            side = window or max(view.shape[-2:])
            strips = sliding_strips(model, view, side, stride or side, batch_size)
            logits = torch.cat([strip for _, strip in strips], dim=1)
            logits = F.interpolate(logits[None], size=size, mode="bilinear")[0]
            probabilities = (logits.flip(-1) if mirrored else logits).softmax(dim=0)
            total = probabilities if total is None else total + probabilities
    assert total is not None
    return total.argmax(dim=0)
