"""Readers of the published files: the folders of ImageNet-C and the arrays of CIFAR-10-C, without further changes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data.readers.reader import Reader

from ...data import Images, Preprocessing, check_classes, find_root, random_subset
from ..conditions import Condition
from ..corruption_names import COMMON, EXTRA
from ..samples import Samples
from ..specs import DatasetSpec
from .errors import SEVERITIES

__all__ = ["CorruptedArrays", "published_conditions"]

LABELS = "labels.npy"


class CorruptedArrays(Reader):
    """Reader of one severity of a corruption of CIFAR-10-C or CIFAR-100-C.

    Args:
        file: ``CORRUPTION.npy``: ``[5 n, 32, 32, 3]`` uint8, one severity after the other. ``labels.npy`` lies beside it, with
            n labels or with the same n labels five times. A file of only one severity has ``[n, 32, 32, 3]`` and n labels.
        severity: 1 to 5.
        asked: All severities that the user asked for. For a file of one severity it must be one.

    Raises:
        ValueError: The files are cut off or do not agree, or several severities are asked for and the file has one.
    """

    def __init__(self, file: Path, severity: int, asked: Sequence[int] = SEVERITIES) -> None:
        super().__init__()
        try:
            images = np.load(file, mmap_mode="r", allow_pickle=False)
            labels = np.load(file.parent / LABELS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{file} and {LABELS} beside it must be complete .npy files, got {error}. Download them again."
            ) from error
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images) or labels.ndim != 1:
            raise ValueError(
                f"{file} must hold five severities of images [n, height, width, 3] in uint8 and one label per image, got "
                f"{images.dtype} of shape {images.shape} and labels of shape {labels.shape}. Download the files again."
            )
        first = _first_of_five(labels, len(images))
        if first is not None:
            n = len(first)
            self._images, self._labels = images[n * (severity - 1) : n * severity], first.astype(int)
        elif len(labels) != len(images):
            raise ValueError(
                f"{file} must hold five severities of images for n labels, or one severity with one label per image, got "
                f"{len(images)} images and {len(labels)} labels. Download the files again."
            )
        elif len(asked) > 1:
            raise ValueError(
                f"{file} must hold five severities for severities {', '.join(map(str, asked))}, got one ({len(images)} images, "
                f"{len(labels)} labels). Name the one that it is, as --severities 3."
            )
        else:
            self._images, self._labels = images, labels.astype(int)
        self.class_to_idx = None
        self.labels = sorted(set(self._labels.tolist()))

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])

    def __len__(self) -> int:
        return len(self._labels)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"test-{index}"


def _first_of_five(labels: np.ndarray, count: int) -> np.ndarray | None:
    """Return the labels of one severity if ``count`` images are five severities; else None.

    Labels that are as many as the images belong to five severities if they repeat five times.
    """
    n, rest = divmod(count, len(SEVERITIES))
    if rest or (len(labels) == count and not (labels.reshape(len(SEVERITIES), n) == labels[:n]).all()):
        return None
    return labels[:n] if len(labels) in (n, count) else None


def published_conditions(
    source: DatasetSpec,
    model: Any,
    task: Any,
    preprocessing: Preprocessing,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
) -> list[Condition]:
    """Return one condition per corruption and severity in ``source.root``.

    Images are not cropped, and not resized if they have the input size of the model.

    Args:
        source: Data set. Its root holds ``CORRUPTION/SEVERITY/CLASS/…`` (also one folder deeper, as the archives unpack), or
            ``CORRUPTION.npy`` and ``labels.npy``.
        model: Model to evaluate.
        task: Classification task.
        preprocessing: Preprocessing of the model.
        corruptions: Names of corruptions. Default: all in the folder.
        severities: Severities, 1 to 5.

    Raises:
        FileNotFoundError: There is no corruption in the folder, or one of the given ones is missing.
        ValueError: As `Task.open_dataset`.
    """
    root = find_root(source.root)
    present = _find(root)
    missing = [name for name in corruptions or [] if name not in present]
    if missing or not present:
        wanted = ", ".join(missing) or "corruptions of ImageNet-C or CIFAR-10-C"
        raise FileNotFoundError(
            f"{root} must hold {wanted}, as CORRUPTION/SEVERITY/CLASS/… or CORRUPTION.npy, got {', '.join(present) or 'none'}. "
            "Check the root and --corruptions."
        )
    prepared = preprocessing._replace(crop_pct=1.0, crop_mode="center")  # The published images are cropped already.
    return [
        Condition(
            f"{name} {severity} (file)",
            Samples(_open(source, present[name], severity, severities, model, task, preprocessing)),
            task.clean,
            preprocessing=prepared,
            family=name,
            strength=severity,
        )
        for name in (corruptions or present)
        for severity in severities
    ]


def _find(root: Path) -> Mapping[str, Path]:
    """Return the paths of the corruptions below ``root``, in the order of the tables."""
    known = [*COMMON, *EXTRA]
    folders = [root, *(sorted(p for p in root.iterdir() if p.is_dir() and p.name not in known) if root.is_dir() else [])]
    candidates = {name: [folder / ending for folder in folders for ending in (f"{name}.npy", name)] for name in known}
    there = {name: [path for path in paths if path.exists()] for name, paths in candidates.items()}
    return {name: paths[0] for name, paths in there.items() if paths}


def _open(
    source: DatasetSpec, path: Path, severity: int, asked: Sequence[int], model: Any, task: Any, preprocessing: Preprocessing
) -> Images:
    channels = preprocessing.input_size[0]
    if path.is_dir():
        images = task.open_dataset(replace(source, data="folder", root=str(path), split=str(severity)), model, channels)
        assert isinstance(images, Images)
        return images
    reader = CorruptedArrays(path, severity, asked)
    check_classes({str(label): label for label in reader.labels}, model.num_classes, names=(path.name, ""))
    return Images(reader, model.num_classes, random_subset(len(reader), source.limit, source.seed), channels)
