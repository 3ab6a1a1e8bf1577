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
        yield top, total[:, :done] / times[:done].clone()  # a backward pass wants them as they are now
        if after < height:
            for strip in (total, times):
                _move_up(strip, done)


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
        self.train(model.training)

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
    return classes_of(torch.cat(list(strips), dim=1)[None], size)[0]


@torch.no_grad()
def classes_of(logits: Tensor, size: tuple[int, int], rows: int = 64) -> Tensor:
    """Classes ``[B, height, width]`` of logits ``[B, classes, h, w]`` at another ``size``, between pixels bilinearly.

    As ``F.interpolate`` and then the largest, but by bands of ``rows``, for memory.
    """
    height, width = logits.shape[-2:]
    if (height, width) == size:
        return logits.argmax(dim=1)
    places = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
    bands = []
    for part in places.split(rows):
        first = int(part[0])
        lines = logits[:, :, first : int(part[-1]) + 2]
        wide = F.interpolate(lines, size=(lines.shape[2], size[1]), mode="bilinear")
        above = part.long() - first
        share = (part - part.long()).to(logits)[:, None]
        below = (above + 1).clamp_max(lines.shape[2] - 1)
        bands.append(torch.lerp(wide[:, :, above], wide[:, :, below], share).argmax(dim=1))
    return torch.cat(bands, dim=1)


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
def multi_scale(model: nn.Module, images: Tensor, scales: Sequence[float], flip: bool = True) -> Tensor:
    """The mean probability ``[B, classes, H, W]`` over scales and mirror images.

    Args:
        model: Maps images to logits, in evaluation mode; `Windowed` for windows.
        images: ``[B, C, H, W]``.
        scales: Factors of the images' sides.
        flip: Mirror images too.
    """
    total: Any = 0
    views = [(scale, mirrored) for scale in scales for mirrored in ([False, True] if flip else [False])]
    for scale, mirrored in views:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        scaled = images if scale == 1 else F.interpolate(images, size=size, mode="bilinear", antialias=scale < 1)
        logits = model(scaled.flip(-1) if mirrored else scaled)
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        total = total + (logits.flip(-1) if mirrored else logits).softmax(dim=1)
    return total / len(views)
