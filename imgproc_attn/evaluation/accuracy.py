"""Clean accuracy of a classifier on any reader: one prediction a sample, from which every number is counted."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..data import SINGLE_PROCESS, UNREADABLE_LABEL, World
from ..utils.io import printable
from ..utils.markdown import markdown_table, markdown_text
from .classification import wilson_interval
from .contract import check_classes_of_labels, check_logits
from .imagenet_subsets import IMAGENET_CLASSES

_REAL = "Use real.json of ReaL (arXiv 2006.07159), or leave the file out for timm's copy of it."


@dataclass
class Predictions:
    """What a model said of each image, in the order of the data set.

    Attributes:
        top: ``[n, k]`` classes, best first; k is 5, or the number of classes if that is less.
        labels: ``[n]``; -1 for images that could not be read.
        losses: ``[n]`` cross-entropies, 0 for those.
        seconds: Of the slowest process.
    """

    top: Tensor
    labels: Tensor
    losses: Tensor
    seconds: float


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor],
    loader: Any,
    autocast: Callable[[], Any],
    world: World = SINGLE_PROCESS,
    progress: Callable[[int], Any] = lambda images: None,
) -> Predictions:
    """Run a model over a loader of `imgproc_attn.data.evaluation_loader`; every process gets all predictions.

    Raises:
        FloatingPointError: Logits that are not finite, whose order means nothing.
        TypeError: As `check_logits`.
        ValueError: As `check_logits`, or labels beyond the model's classes.
    """
    parts, start = [], time.perf_counter()
    for images, labels in loader:
        with autocast():
            logits = check_logits(model(images), images)
        logits = logits.float()
        if not logits.isfinite().all():
            raise FloatingPointError(
                "The model gives logits that are not finite; it is broken, or overflows in this precision."
            )
        check_classes_of_labels(labels, logits)
        losses = F.cross_entropy(logits, labels, ignore_index=UNREADABLE_LABEL, reduction="none")
        parts.append((logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu(), labels.cpu(), losses.cpu()))
        progress(len(images) * world.size)
    seconds = time.perf_counter() - start
    if not parts:
        raise ValueError("No image to evaluate on: the split is empty.")
    top, labels, losses = (torch.cat(column) for column in zip(*parts))
    own = Predictions(top, labels, losses, seconds)
    shares = [own]
    if world.size > 1:
        shares = [own] * world.size
        dist.all_gather_object(shares, own)
    return Predictions(
        _interleave([share.top for share in shares]),
        _interleave([share.labels for share in shares]),
        _interleave([share.losses for share in shares]),
        max(share.seconds for share in shares),
    )


def _interleave(shares: Sequence[Tensor]) -> Tensor:
    """Put back what every ``count``-th image was taken from."""
    whole = shares[0].new_empty(sum(len(share) for share in shares), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


def count_accuracy(predictions: Predictions, classes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Top-1 and top-5 with 95 % intervals (Wilson), loss, and a table by class.

    Raises:
        ValueError: No image could be read.
    """
    kept = predictions.labels != UNREADABLE_LABEL
    labels, found = predictions.labels[kept], predictions.top[kept] == predictions.labels[kept, None]
    n = len(labels)
    if n == 0:
        raise ValueError("No image could be read; see the list of unreadable images.")
    right = {"top1": found[:, 0], "top5": found.any(dim=1)}
    names = {label: printable(name) for name, label in (classes or {}).items()}
    table = []
    for label in labels.unique().tolist():
        of_class = labels == label
        row: dict[str, Any] = {"label": label, "name": names.get(label, str(label)), "n": int(of_class.sum())}
        table.append(row | {key: 100 * flags[of_class].double().mean().item() for key, flags in right.items()})
    summary: dict[str, Any] = {"n": n, "loss": predictions.losses[kept].double().mean().item()}
    for key, flags in right.items():
        summary[key] = 100 * flags.double().mean().item()
        summary[f"{key}_interval"] = list(wilson_interval(int(flags.sum()), n))
    return {**summary, "per_class": table}


def load_real(names: Sequence[str], file: Path | None = None) -> list[list[int]]:
    """The reassessed labels of images (ReaL, arXiv 2006.07159); an image may have several, or none.

    Args:
        names: Files of the ImageNet validation set, which end in the number of the image: ``ILSVRC2012_val_00000293.JPEG``.
        file: ``real.json`` of that work: a list of lists of labels. Default: timm's copy.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is none of theirs, or a name has no number that it knows.
    """
    known = file or files("timm.data").joinpath("_info", "imagenet_real_labels.json")
    try:
        real = json.loads(known.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{known} is no file of ReaL labels: {error}") from error
    _check_real(real, known)
    labels = []
    for name in names:
        number = re.search(r"(\d{8})\.\w+$", name)
        if number is None or not 1 <= int(number.group(1)) <= len(real):
            raise ValueError(f"{name}: not the name of an ImageNet validation image that {known} knows (…_val_00000001.JPEG).")
        labels.append(real[int(number.group(1)) - 1])
    return labels


def _check_real(real: Any, file: Any) -> None:
    """Refuse labels that no prediction could equal."""
    if not isinstance(real, list) or not real:
        raise ValueError(f"{file} must hold a list of labels per image, [[65], [970, 795], …], got {str(real)[:40]}. {_REAL}")
    for number, labels in enumerate(real, 1):
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < IMAGENET_CLASSES for label in labels):
            raise ValueError(
                f"{file} must hold a list of whole numbers from 0 to {IMAGENET_CLASSES - 1} per image, got {str(labels)[:40]} "
                f"for image {number}. {_REAL}"
            )


def count_real(predicted: Tensor, labels: Tensor, real: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Top-1 by `load_real`: right is any of an image's labels; images without one do not count.

    Args:
        predicted: ``[n]`` classes.
        labels: ``[n]``; -1 for images that could not be read.
        real: Labels of each.

    Raises:
        ValueError: No image has a label.
    """
    given = zip(real, predicted.tolist(), labels.tolist())
    right = [top in answers for answers, top, label in given if answers and label != UNREADABLE_LABEL]
    if not right:
        raise ValueError(f"None of the {len(real)} images has a ReaL label.")
    n = len(right)
    return {"n": n, "top1": 100 * sum(right) / n, "top1_interval": list(wilson_interval(sum(right), n))}


def names_hash(names: Sequence[str]) -> str:
    """Equal hashes, equal samples in equal order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def accuracy_table(result: Mapping[str, Any], worst: int = 5) -> str:
    """The numbers of `count_accuracy`, and of `count_real` under ``real``, as Markdown; then the worst classes."""

    def cells(name: str, part: Mapping[str, Any], key: str) -> list[str]:
        low, high = part[f"{key}_interval"]
        return [name, f"{part[key]:.2f}", f"{low:.2f} to {high:.2f}", part["n"]]

    shares = [cells("top-1", result, "top1"), cells("top-5", result, "top5")]
    if "real" in result:
        shares.append(cells("ReaL top-1", result["real"], "top1"))
    table = markdown_table(["", "accuracy / %", "95 % interval", "images"], shares)
    ranked = sorted(result["per_class"], key=lambda row: (row["top1"], row["label"]))[:worst]
    rows = ", ".join(f"{markdown_text(row['name'])} {row['top1']:.0f} % of {row['n']}" for row in ranked)
    return f"{table}\n\nWorst classes, top-1: {rows}."
