"""Images with label maps: ADE20K, CamVid and folders of the same layout."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..data import find_root
from ..data.decoding import IMAGE_EXTENSIONS, check_bit_depth, to_8_bits
from ..data.folders import list_images, report_left_out
from ..data.reader_names import LABEL_MAPS
from ..utils.io import printable
from .metrics import IGNORE_INDEX
from .palettes import CAMVID

__all__ = [
    "LABEL_MAP_READERS",
    "LabeledImages",
    "find_images",
    "lookup_table",
    "open_ade20k",
    "open_camvid",
    "open_labeled_folder",
    "read_image",
    "read_label",
]

NOT_A_CLASS = 254  # entry of lookup tables for values that must not occur in label maps

Pair = tuple[Path, Path]


class LabeledImages(Dataset):
    """Data set of images with label maps of equal size.

    Args:
        pairs: Files of the images and of their label maps.
        classes: Names of the classes, in the order of their labels.
        lookup: Table ``[256]`` from values in the files to labels: 255 for pixels to ignore, 254 for values that must not
            occur. See `lookup_table`.
        indices: Indices of the pairs to use. Default: all.
        transform: Joint transform of a ``tv_tensors.Image`` and a ``tv_tensors.Mask``.

    Raises:
        ValueError: There are no pairs, more than 254 classes, or two classes of the same name.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        lookup: np.ndarray,
        indices: Sequence[int] | None = None,
        transform: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if not pairs:
            raise ValueError("The data set must have at least 1 image with labels, got 0. Check the folders.")
        if len(classes) > NOT_A_CLASS:
            raise ValueError(
                f"The number of classes must be at most {NOT_A_CLASS}, got {len(classes)}. 8-bit label maps hold no more: the "
                "values 254 and 255 are reserved. Merge some classes."
            )
        self.pairs, self.lookup, self.transform = list(pairs), lookup, transform
        self.indices = range(len(pairs)) if indices is None else indices
        self.classes = {name: label for label, name in enumerate(classes)}
        if len(self.classes) < len(classes):
            raise ValueError(
                f"Names of classes must be unique, got two equal ones among {', '.join(sorted(classes)[:20])}. Rename one."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def some(self, indices: Iterable[int]) -> "LabeledImages":
        """Return the subset at these indices."""
        return LabeledImages(self.pairs, list(self.classes), self.lookup, [self.indices[i] for i in indices])

    def name(self, index: int) -> str:
        """Return the file name of an image."""
        return printable(self._files(index)[0].name)

    def content(self, index: int) -> bytes:
        """Return the bytes of the image file, the label map file and the lookup table, for hashes."""
        return b"".join(file.read_bytes() for file in self._files(index)) + self.lookup.tobytes()

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Yield the names and the sizes in bytes of each image file and its label map, without decoding them."""
        root = os.path.commonpath([file.parent for pair in self.pairs for file in pair])
        for files in map(self._files, range(len(self))):
            yield tuple((file.relative_to(root).as_posix(), file.stat().st_size) for file in files)

    def _files(self, index: int) -> Pair:
        return self.pairs[self.indices[index]]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an image ``[3, H, W]`` and its labels ``[H, W]``, both in 8 bits, after the transform.

        Raises:
            ValueError: The sizes of image and label map differ, the label map is not 8-bit gray, or it has a value that is
                not a class.
        """
        file, label_file = self._files(index)
        pixels = read_image(file)
        label = self.lookup[read_label(label_file)]
        _check_sizes(file, pixels.shape[1::-1], label_file, label.shape[::-1])
        if (label == NOT_A_CLASS).any():
            self._refuse_strange(np.unique(read_label(label_file)), f"The values of {label_file}")
        image, mask = tv_tensors.Image(torch.tensor(pixels).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
        return (image, mask) if self.transform is None else self.transform(image, mask)

    def _refuse_strange(self, values: np.ndarray, where: str) -> None:
        strange = values[self.lookup[values] == NOT_A_CLASS].tolist()
        if strange:
            known, ignored = np.flatnonzero(self.lookup < NOT_A_CLASS), np.flatnonzero(self.lookup == IGNORE_INDEX)
            raise ValueError(
                f"{where} must be classes ({known.min()} to {known.max()}) or ignored values ({', '.join(map(str, ignored))}), "
                f"got {strange[:5]}. Correct the label maps."
            )

    def check(self) -> None:
        """Check the headers of all files and the values of a few label maps, before hours of training.

        Raises:
            ValueError: Some files cannot be used, or the label maps have no labeled pixel. The message counts the files and
                explains the first three errors.

        Warns:
            UserWarning: Some images have an EXIF orientation.
        """
        with ThreadPoolExecutor() as pool:
            checks = list(pool.map(_check_headers, map(self._files, range(len(self)))))
        wrong = [error for error, _ in checks if error]
        if wrong:
            more = f" {len(wrong) - 3} more of the {len(self)} pairs have errors." if len(wrong) > 3 else ""
            raise ValueError(" ".join(map(str, wrong[:3])) + more)
        turned = [i for i, (_, is_turned) in enumerate(checks) if is_turned]
        if turned:
            warnings.warn(
                f"{len(turned)} of {len(self)} images have an EXIF orientation, for example {self._files(turned[0])[0]}. They "
                "are used as stored, without rotation. If their labels belong to the upright image, store the image upright.",
                stacklevel=2,
            )
        few = range(0, len(self), -(-len(self) // 16))
        values: set[int] = set()
        for label_file in (self._files(i)[1] for i in few):
            present = np.unique(read_label(label_file))
            self._refuse_strange(present, f"The values of {label_file}")
            values |= set(present.tolist())
        if (self.lookup[sorted(values)] == IGNORE_INDEX).all():
            raise ValueError(
                f"Label maps must have labeled pixels, got only the ignored values {sorted(values)} in {len(few)} label maps, "
                f"for example {self._files(0)[1]}. Store class numbers."
            )


def _check_headers(pair: Pair) -> tuple[ValueError | None, bool]:
    """Return an error in the headers of an image and its label map, if any, and whether EXIF data would rotate the image."""
    file, label_file = pair
    try:
        with _opened(file) as image, _opened(label_file) as label:
            _check_image(file, image)
            _check_label(label_file, label)
            _check_sizes(file, image.size, label_file, label.size)
            # For PNG files, getexif would read all pixels.
            turned = image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            return None, turned
    except ValueError as error:
        return error, False


def _check_sizes(file: Path, size: Sequence[int], label_file: Path, label_size: Sequence[int]) -> None:
    if tuple(size) != tuple(label_size):
        here, there = (f"{width} x {height}" for width, height in (size, label_size))
        swapped = tuple(size) == tuple(label_size)[::-1]
        remedy = "Does an EXIF orientation turn the image? Store it upright." if swapped else "Store both in one size."
        raise ValueError(f"{file} must have the size of its labels {label_file}, {there}, got {here}. {remedy}")


def read_image(file: Path, upright: bool = False) -> np.ndarray:
    """Read an image as RGB ``[H, W, 3]``, 8 bits.

    Args:
        file: File of the image.
        upright: Whether to apply the EXIF orientation. Images with label maps are never rotated, neither in training nor in
            evaluation.

    Raises:
        ValueError: The file cannot be read, or has more than 8 bits per value, which would be cut off.
    """
    with _opened(file) as image:
        _check_image(file, image)
        return np.array(to_8_bits(ImageOps.exif_transpose(image) if upright else image, "RGB"))


def _check_image(file: Path, image: Any) -> None:
    try:
        check_bit_depth(image)
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error


def read_label(file: Path) -> np.ndarray:
    """Read a label map ``[H, W]``, 8 bits, with the values of the file.

    Raises:
        ValueError: The file cannot be read, or has a palette, colors or 16 bits, whose values are not class numbers.
    """
    with _opened(file) as label:
        _check_label(file, label)
        return np.array(label)


def _check_label(file: Path, label: Any) -> None:
    mode = label.mode
    # Pillow stretches gray values of 2 or 4 bits to 0 to 255, so that they would be read as other numbers.
    few = next((bits for bits in ("2", "4") if f"L;{bits}'" in str(label.tile)), None)
    if few is not None:
        raise ValueError(f"{file} must have 8 bits per pixel, got {few}. Store class numbers as 8-bit gray.")
    if mode == "L":
        return
    kind = {"P": "a palette", "1": "1 bit", "I": "16 or 32 bits", "I;16": "16 bits", "RGB": "colors", "RGBA": "colors"}
    remedy = (
        "If its indices are the class numbers, store them as gray: Image.fromarray(numpy.asarray(image))"
        if mode == "P"
        else "Store class numbers as 8-bit gray"
    )
    raise ValueError(f"{file} must have one 8-bit gray value per pixel, got {kind.get(mode, f'mode {mode}')}. {remedy}.")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image file. The header is read here, the pixels on first use."""
    try:
        with Image.open(file) as opened:
            yield opened
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read {file}: {error}. Replace the file.") from error


def find_images(folder: Path, deep: bool = True) -> list[Path]:
    """Return the image files of a folder. Files that are left out are reported.

    Args:
        folder: Folder to search.
        deep: Whether to search its subfolders too.

    Raises:
        ValueError: Two names differ only in their ending, so the images would share a label map.
    """
    listing = list_images(folder, deep)
    report_left_out(folder, listing.left_out)
    files = [folder / name for name in listing.files]
    twice = [str(path) for path, count in Counter(file.with_suffix("") for file in files).items() if count > 1]
    if twice:
        raise ValueError(
            f"Names of images must differ not only in their ending, got several of {', '.join(twice[:5])}. Rename them: "
            "they would share a label map."
        )
    return files


def _pairs(images: Path, labels: Path, deep: bool = True) -> list[Pair]:
    """Return pairs of image and label map of the same name below two folders.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        deep: Whether to search subfolders too.

    Raises:
        FileNotFoundError: A folder, images or label maps are missing. The message lists them.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            siblings = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            remedy = (
                f"Name one of these as the split: {', '.join(siblings[:8])}." if siblings else "Check the root and the split."
            )
            raise FileNotFoundError(f"The data set must have the folder {folder}, got no such folder. {remedy}")
    files = find_images(images, deep)
    pairs = [(file, (labels / file.relative_to(images)).with_suffix(".png")) for file in files]
    missing = [str(label.relative_to(labels)) for _, label in pairs if not label.is_file()]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise FileNotFoundError(
            f"{labels} must hold {len(pairs)} label maps, got {len(missing)} missing: {', '.join(missing[:10])}{more}. Add "
            "them, or remove their images."
        )
    below = sorted(p.name for p in images.iterdir() if p.is_dir())
    if not pairs and not deep and below:
        raise FileNotFoundError(f"{images} must hold images, got {', '.join(below[:8])}. Name one of these as the split.")
    if not pairs:
        raise FileNotFoundError(f"{images} must hold images ({', '.join(sorted(IMAGE_EXTENSIONS))}), got none. Check the root.")
    return pairs


def lookup_table(classes: Mapping[int, int]) -> np.ndarray:
    """Return a table ``[256]`` from values in files to labels.

    Args:
        classes: ``{value: label}``, with the label 255 for pixels to ignore. All other values get 254: they must not occur.

    Raises:
        ValueError: There are more than 254 classes, or a value above 255.

    Example:
        >>> lookup_table({0: 255, 1: 0, 2: 1})[:4]
        array([255,   0,   1, 254], dtype=uint8)
    """
    labels = [label for label in classes.values() if label != IGNORE_INDEX]
    if len(labels) > NOT_A_CLASS or max(classes) > IGNORE_INDEX:
        raise ValueError(
            f"The number of classes must be at most {NOT_A_CLASS}, got {len(labels)}. 8-bit label maps hold no more: the "
            "values 254 and 255 are reserved. Merge some classes."
        )
    table = np.full(256, NOT_A_CLASS, dtype=np.uint8)
    for value, label in classes.items():
        table[value] = label
    return table


def open_ade20k(root: str, split: str) -> LabeledImages:
    """Open ADE20K, the scene parsing benchmark (``ADEChallengeData2016``), with 150 classes.

    The value 0 in the files is ignored, and the value 1 is label 0.

    Args:
        root: Folder with ``images/SPLIT``, ``annotations/SPLIT`` and ``objectInfo150.txt``.
        split: ``training`` or ``validation``; empty for images that are in ``images`` itself.

    Raises:
        FileNotFoundError: The root, ``objectInfo150.txt``, images or label maps are missing.
        ValueError: Two images have the same name.
    """
    folder = find_root(root)
    folder = folder / "ADEChallengeData2016" if (folder / "ADEChallengeData2016").is_dir() else folder
    info = folder / "objectInfo150.txt"
    if not info.is_file():
        raise FileNotFoundError(
            f"ADE20K must have the file {info}, got no such file. Copy it from ADEChallengeData2016: it names the 150 classes."
        )
    names = [line.split("\t")[-1].split(",")[0].strip() for line in info.read_text(encoding="utf-8").splitlines()[1:]]
    table = lookup_table({0: IGNORE_INDEX, **{value: value - 1 for value in range(1, len(names) + 1)}})
    return LabeledImages(_pairs(folder / "images" / split, folder / "annotations" / split, deep=bool(split)), names, table)


def open_camvid(root: str, split: str) -> LabeledImages:
    """Open CamVid in SegNet's version: 11 classes; the twelfth is ignored.

    Args:
        root: Folder with the subfolders ``SPLIT`` and ``SPLITannot``.
        split: ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: The root, images or label maps are missing.
        ValueError: The split is empty, or two images have the same name.
    """
    if not split:
        raise ValueError("The split of CamVid must be train, val or test, got ''. Name one of them.")
    folder = find_root(root)
    names = list(CAMVID)
    table = lookup_table({**{label: label for label in range(11)}, 11: IGNORE_INDEX})
    return LabeledImages(_pairs(folder / split, folder / f"{split}annot"), names, table)


def open_labeled_folder(root: str, split: str) -> LabeledImages:
    """Open any data set in ``images/SPLIT`` and ``annotations/SPLIT``.

    Label maps are 8-bit gray PNG files of class numbers; 255 is ignored. For Cityscapes, copy its ``labelTrainIds.png``
    files there under the names of the images.

    Args:
        root: Folder with these subfolders and ``classes.txt``: one name per line, in the order of class numbers.
        split: Name of the split; empty for files in ``images`` and ``annotations`` themselves.

    Raises:
        FileNotFoundError: The root, ``classes.txt``, images or label maps are missing.
        ValueError: Two images or two classes have the same name, there are more than 254 classes, or ``classes.txt`` is not
            in UTF-8.
    """
    folder = find_root(root)
    names = _names(folder / "classes.txt")
    table = lookup_table({**{label: label for label in range(len(names))}, IGNORE_INDEX: IGNORE_INDEX})
    return LabeledImages(_pairs(folder / "images" / split, folder / "annotations" / split, deep=bool(split)), names, table)


def _names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(
            f"The data set must have the file {file}, got no such file. Write one class name per line to it."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark.
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be a text file in UTF-8, got other bytes ({error}). Store it in UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


LABEL_MAP_READERS: Mapping[str, Callable[[str, str], LabeledImages]] = dict(
    zip(LABEL_MAPS, (open_ade20k, open_camvid, open_labeled_folder), strict=True)
)
