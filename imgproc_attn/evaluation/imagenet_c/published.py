"""Readers of the published files: ImageNet-C's folders and CIFAR-10-C's arrays, taken as they are."""

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

LABELS = "labels.npy"


class CorruptedArrays(Reader):
    """One severity of a corruption of CIFAR-10-C or CIFAR-100-C.

    Args:
        file: ``CORRUPTION.npy``: ``[5 n, 32, 32, 3]`` in 8 bits, severity after severity; ``labels.npy`` lies beside it, of n
            labels or of these five times. Or, of one severity alone, ``[n, 32, 32, 3]`` and n labels.
        severity: 1 to 5.
        asked: All severities that are asked for: of a file of one severity it is for the user to say which that is.

    Raises:
        ValueError: The files are cut off, or do not agree; several severities are asked of a file of one.
    """

    def __init__(self, file: Path, severity: int, asked: Sequence[int] = SEVERITIES) -> None:
        super().__init__()
        try:
            pictures = np.load(file, mmap_mode="r", allow_pickle=False)
            labels = np.load(file.parent / LABELS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file}, or {LABELS} beside it, is missing or cut off: {error}") from error
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or not len(pictures) or labels.ndim != 1:
            raise ValueError(
                f"{file} holds {pictures.dtype} of shape {pictures.shape} for labels of shape {labels.shape}; expected are "
                "five severities of pictures [n, height, width, 3] in 8 bits, and one label per picture."
            )
        first = _first_of_five(labels, len(pictures))
        if first is not None:
            n = len(first)
            self._pictures, self._labels = pictures[n * (severity - 1) : n * severity], first.astype(int)
        elif len(labels) != len(pictures):
            raise ValueError(
                f"{file} holds {len(pictures)} pictures for {len(labels)} labels; expected are five severities of pictures in "
                "turn for n labels, or one severity with as many labels as pictures."
            )
        elif len(asked) > 1:
            raise ValueError(
                f"{file} holds one severity ({len(pictures)} pictures, {len(labels)} labels), but severities "
                f"{', '.join(map(str, asked))} are asked for. Say which it is, as --severities 3."
            )
        else:
            self._pictures, self._labels = pictures, labels.astype(int)
        self.class_to_idx = None
        self.labels = sorted(set(self._labels.tolist()))

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pictures[index]), int(self._labels[index])

    def __len__(self) -> int:
        return len(self._labels)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"test-{index}"


def _first_of_five(labels: np.ndarray, count: int) -> np.ndarray | None:
    """The labels of one severity, where ``count`` pictures are five severities of them; else None.

    As many labels as pictures are those of five severities if they repeat.
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
    """A condition a corruption and severity that lies in ``source.root``; not resized if the model wants the files' size.

    Args:
        source: Its root holds ``CORRUPTION/SEVERITY/CLASS/…`` (also one folder deeper, as the archives unpack), or
            ``CORRUPTION.npy`` and ``labels.npy``.
        model: The model.
        task: The task of classification.
        preprocessing: The model's.
        corruptions: Which. Default: all that are there.
        severities: Which.

    Raises:
        FileNotFoundError: None is there, or not all of those asked for.
        ValueError: As `Task.open_dataset`.
    """
    root = find_root(source.root)
    found = _find(root)
    missing = [name for name in corruptions or [] if name not in found]
    if missing or not found:
        wanted = f", but not {', '.join(missing)}." if found else "; it wants CORRUPTION/SEVERITY/CLASS/… or CORRUPTION.npy."
        raise FileNotFoundError(f"{root} holds {', '.join(found) or 'no corruption of ImageNet-C or CIFAR-10-C'}{wanted}")
    prepared = preprocessing._replace(crop_pct=1.0, crop_mode="center")  # a second cut would be another data set
    return [
        Condition(
            f"{name} {severity} (file)",
            Samples(_open(source, found[name], severity, severities, model, task, preprocessing)),
            task.clean,
            preprocessing=prepared,
            family=name,
            strength=severity,
        )
        for name in (corruptions or found)
        for severity in severities
    ]


def _find(root: Path) -> Mapping[str, Path]:
    """What is there, in the order of the tables."""
    known = [*COMMON, *EXTRA]
    places = [root, *(sorted(p for p in root.iterdir() if p.is_dir() and p.name not in known) if root.is_dir() else [])]
    candidates = {name: [place / ending for place in places for ending in (f"{name}.npy", name)] for name in known}
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
