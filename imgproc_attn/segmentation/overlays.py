"""Label maps to look at: colours over pictures, with a legend."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .metrics import IGNORED
from .palettes import palette_of

SHOWN = 20  # classes that a legend names, the largest first


def coloured(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class numbers ``[H, W]`` as colours ``[H, W, 3]``; black where ignored."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def overlay(picture: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Colours of ``labels`` over ``picture``, both ``[H, W, …]`` in 8 bits; the picture itself where ignored."""
    share = np.where(labels == IGNORED, 0, opacity)[..., None]
    return np.rint(picture * (1 - share) + coloured(labels, palette) * share).astype(np.uint8)


def with_legend(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """An overlay, and below it the classes that are there with their share of the picture, the largest first."""
    palette = palette_of(names)
    shares = np.bincount(labels[labels != IGNORED].ravel(), minlength=len(names)) / max(labels.size, 1)
    shown = [label for label in np.argsort(-shares, kind="stable") if shares[label] > 0][:SHOWN]
    height, width = labels.shape
    line, cell = 18, 190
    columns = max(1, width // cell)
    rows = -(-len(shown) // columns)
    canvas = Image.new("RGB", (max(width, cell), height + rows * line + 6), "white")
    canvas.paste(Image.fromarray(overlay(picture, labels, palette)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, label in enumerate(shown):
        x, y = 6 + (i % columns) * cell, height + 4 + (i // columns) * line
        draw.rectangle((x, y, x + 12, y + 12), fill=tuple(palette[label].tolist()))
        draw.text((x + 18, y - 2), f"{names[label][:18]}  {100 * shares[label]:.1f} %", fill="black", font=font)
    return canvas


def draw_segmented(
    title: str, images: Tensor, others: Tensor, labels: Tensor, maps: Mapping[str, Tensor], names: Sequence[str]
) -> Figure:
    """A row a picture: itself, its labels, then its other version and what the model makes of both.

    Args:
        title: Of the figure.
        images: ``[n, 3, H, W]`` in [0, 1].
        others: The same pictures, attacked or corrupted.
        labels: ``[n, H', W']``.
        maps: ``{title: [n, H, W]}``, classes of the images, then of the others.
        names: Of the classes.
    """
    palette = palette_of(names)
    (before, of_images), (after, of_others) = maps.items()
    columns = [("picture", images), ("labels", labels), (before, of_images), (f"{after}, picture", others), (after, of_others)]
    height, width = images.shape[-2:]
    figure = Figure(figsize=(3 * len(columns), 3 * len(images) * height / width + 1), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for row, i in zip(axes, range(len(images))):
        for ax, (name, values) in zip(row, columns):
            shown = values[i].detach().cpu()
            ax.imshow(coloured(shown.numpy(), palette) if shown.ndim == 2 else rearrange(shown, "c h w -> h w c").clamp(0, 1))
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(name, fontsize="small")
    there = torch.cat([labels.flatten().cpu(), of_images.flatten().cpu()]).unique().tolist()
    patches = [Patch(color=palette[label] / 255, label=names[label]) for label in there if label < len(names)][:SHOWN]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8), fontsize="small")
    figure.suptitle(title)
    return figure
