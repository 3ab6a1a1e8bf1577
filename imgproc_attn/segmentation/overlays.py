"""Overlays and figures of label maps: colors over images, with a legend."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .metrics import IGNORE_INDEX
from .palettes import palette_of

if TYPE_CHECKING:  # Matplotlib takes a second to import, so it is imported only when a figure is drawn.
    from matplotlib.figure import Figure

__all__ = ["colored", "draw_predictions", "draw_segmented", "overlay", "with_legend"]

SHOWN = 20  # largest number of classes in a legend


def colored(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Convert class numbers ``[H, W]`` to colors ``[H, W, 3]``. Ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend the colors of labels with an image. Ignored pixels show only the image.

    Args:
        image: RGB image ``[H, W, 3]``, 8 bits.
        labels: Class numbers ``[H, W]``, 8 bits, 255 for ignored pixels.
        palette: RGB colors ``[classes, 3]``, 8 bits, as `palette_of` returns.
        opacity: Weight of the colors, from 0 to 1.

    Returns:
        RGB image ``[H, W, 3]``, 8 bits.

    Example:
        >>> image, labels = np.zeros((1, 2, 3), np.uint8), np.array([[0, 255]], np.uint8)
        >>> overlay(image, labels, palette_of(["Sky"])).tolist()
        [[[64, 64, 64], [0, 0, 0]]]
    """
    share = np.where(labels == IGNORE_INDEX, 0, opacity)[..., None]
    return np.rint(image * (1 - share) + colored(labels, palette) * share).astype(np.uint8)


def with_legend(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return an overlay and, below it, a legend of the classes with their share of the image, largest first.

    Args:
        image: RGB image ``[H, W, 3]``, 8 bits.
        labels: Class numbers ``[H, W]``, 8 bits, 255 for ignored pixels.
        names: Names of the classes.
    """
    palette = palette_of(names)
    shares = np.bincount(labels[labels != IGNORE_INDEX].ravel(), minlength=len(names)) / max(labels.size, 1)
    present = [label for label in np.argsort(-shares, kind="stable") if shares[label] > 0]
    entries = [(tuple(palette[i].tolist()), f"{names[i][:18]}  {100 * shares[i]:.1f} %") for i in present[:SHOWN]]
    entries += [((255, 255, 255), f"and {len(present) - SHOWN} more")] * (len(present) > SHOWN)
    height, width = labels.shape
    line, cell = 18, 190
    columns = max(1, width // cell)
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(width, cell), height + rows * line + 6), "white")
    canvas.paste(Image.fromarray(overlay(image, labels, palette)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, (color, text) in enumerate(entries):
        x, y = 6 + (i % columns) * cell, height + 4 + (i // columns) * line
        draw.rectangle((x, y, x + 12, y + 12), fill=color)
        draw.text((x + 18, y - 2), text, fill="black", font=font)
    return canvas


def _pixels(image: Tensor) -> np.ndarray:
    """Convert an image ``[3, H, W]`` in [0, 1] to ``[H, W, 3]`` in 8 bits."""
    return np.rint(255 * rearrange(image.detach().cpu().numpy(), "c h w -> h w c").clip(0, 1)).astype(np.uint8)


def draw_segmented(
    title: str, columns: Mapping[str, Sequence[Tensor]], names: Sequence[str], axes: Any = None
) -> "tuple[Figure, np.ndarray]":
    """Draw images and label maps side by side with a legend: one row per image, one column per version of it.

    Args:
        title: Title of the figure.
        columns: ``{title: one tensor per row}``: images ``[3, H, W]`` in [0, 1], or maps of classes ``[H, W]``. Maps are
            drawn over the images of the first column.
        names: Names of the classes.
        axes: Axes to draw in, ``[rows, columns]``. Default: axes of a new figure.

    Returns:
        Figure and axes ``[rows, columns]``.
    """
    from matplotlib.patches import Patch

    from ..diagnostics.figures import panels

    palette, count = palette_of(names), len(next(iter(columns.values())))
    height, width = next(iter(columns.values()))[0].shape[-2:]
    figure, axes = panels(count, len(columns), (3 * len(columns), 3 * count * height / width + 1), axes)
    areas = np.zeros(256, dtype=np.int64)
    for j, (name, tensors) in enumerate(columns.items()):
        axes[0, j].set_title(name, fontsize="small")
        for ax, tensor, image in zip(axes[:, j], tensors, next(iter(columns.values()))):
            ax.set(xticks=[], yticks=[])
            array = tensor.detach().cpu().numpy()
            if array.ndim == 3:
                ax.imshow(_pixels(tensor))
            else:
                below = F.interpolate(image[None], size=array.shape, mode="bilinear")[0]
                ax.imshow(overlay(_pixels(below), array, palette, 0.7))
                areas += np.bincount(array.ravel(), minlength=256)
    shown = [label for label in np.argsort(-areas, kind="stable") if areas[label] > 0 and label < len(names)][:SHOWN]
    patches = [Patch(color=palette[label] / 255, label=names[label]) for label in sorted(shown)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8) or 1, fontsize="small")
    figure.suptitle(title)
    return figure, axes


def draw_predictions(
    title: str,
    images: Iterable[tuple[Tensor, Tensor]],
    predictors: Mapping[str, Callable[[Tensor, tuple[int, int]], Tensor]],
    names: Sequence[str],
    axes: Any = None,
) -> "tuple[Figure, np.ndarray]":
    """Draw images, their labels and the predictions of models.

    Args:
        title: Title of the figure.
        images: Pairs of an image ``[3, H, W]`` in [0, 1] and labels ``[H', W']``.
        predictors: ``{title: function}``. Each function takes an image and (height, width) of the labels, and returns classes
            of that size.
        names: Names of the classes.
        axes: Axes to draw in, ``[number of images, 2 + number of models]``. Default: axes of a new figure.

    Returns:
        Figure and axes ``[number of images, 2 + number of models]``.
    """
    columns: dict[str, list[Tensor]] = {"image": [], "labels": [], **{label: [] for label in predictors}}
    for image, labels in images:
        predictions = [predict(image, (labels.shape[-2], labels.shape[-1])) for predict in predictors.values()]
        for column, tensor in zip(columns.values(), (image, labels, *predictions)):
            column.append(tensor)
    return draw_segmented(title, columns, names, axes)
