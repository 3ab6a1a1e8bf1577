"""Readers, which open a data set by its name: those of timm, and three that timm does not have."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from .folders import ClassFolders, ClassTar, natural_order, some_names
from .hugging_face import HuggingFaceImages, stream_images
from .pathfinder import Pathfinder
from .reader_names import check_columns, check_reader, reads_from_a_place
from .streams import StreamedImages, stream_shards

__all__ = [
    "Digits",
    "PackedImages",
    "TorchvisionImages",
    "check_classes",
    "find_root",
    "open_images",
]

DIGITS_HELD_OUT = 360
# timm treats these names of splits as equal. A test split is never a synonym of another one.
SYNONYMS = ({"train", "training"}, {"validation", "val", "valid", "eval", "evaluation"})


class Digits(Reader):
    """Reader of scikit-learn's 1,797 scanned digits, 8 x 8 pixels of 17 gray levels.

    The test split holds 360 of them, stratified by class.

    Args:
        split: ``train`` or ``test``.
        seed: Seed of the random split.

    Raises:
        ValueError: There is no such split.

    Example:
        >>> len(Digits("train")), len(Digits("test"))
        (1437, 360)
    """

    def __init__(self, split: str, seed: int = 0) -> None:
        super().__init__()
        from sklearn.datasets import load_digits  # The import takes a second.
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            range(len(digits.target)), test_size=DIGITS_HELD_OUT, random_state=seed, stratify=digits.target
        )
        if split not in ("train", "test"):
            raise ValueError(f"The split of digits must be 'train' or 'test', got {split!r}. Name one of them.")
        self._ids = train if split == "train" else test
        self._images = [Image.fromarray(image) for image in np.round(digits.images * 255 / 16).astype(np.uint8)]
        self._labels = digits.target
        self.class_to_idx = {str(i): i for i in range(10)}

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        i = self._ids[index]
        return self._images[i], int(self._labels[i])

    def __len__(self) -> int:
        return len(self._ids)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"digit-{self._ids[index]}"

    def entry(self, index: int) -> tuple[str, int, int]:
        """Return name, label and a checksum of the pixels."""
        i = self._ids[index]
        return self._filename(index), int(self._labels[i]), zlib.crc32(self._images[i].tobytes())


class PackedImages(Reader):
    """Reader of encoded images in one ``.npz`` file.

    The file holds these arrays:

    - ``<split>_bytes``: uint8 content of all image files of a split, concatenated.
    - ``<split>_lengths``: number of bytes of each image.
    - ``<split>_labels``: label of each image.
    - ``classes``: class names in the order of their labels.

    Args:
        file: Path of the ``.npz`` file.
        split: Name of the split.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another format, is truncated, or has no such split.
    """

    def __init__(self, file: Path, split: str) -> None:
        super().__init__()
        if not file.is_file():
            packs = ", ".join(sorted(p.name for p in file.glob("*.npz"))) if file.is_dir() else ""
            raise FileNotFoundError(
                f"{file} must be an .npz file, got a folder. Name the .npz file in it{f': {packs}' if packs else ''}."
                if file.is_dir()
                else f"{file} must be an .npz file, got a path that does not exist. Check the path."
            )
        try:
            with np.load(file, allow_pickle=False) as pack:
                splits = [name.removesuffix("_bytes") for name in pack.files if name.endswith("_bytes")]
                name = next((name for name in [split, *sorted(_synonyms(split))] if name in splits), None)
                if name is None:
                    known = ", ".join(splits) or "none"
                    raise ValueError(f"The split must be one of {file} ({known}), got {split!r}. Name one of them.")
                self._bytes, self._labels = pack[f"{name}_bytes"], pack[f"{name}_labels"].astype(int)
                ends = np.cumsum(pack[f"{name}_lengths"].astype(np.int64))  # The type of the lengths would overflow.
                classes = [str(name) for name in pack["classes"]]
        except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{file} must be a complete .npz pack of images, got an unreadable file ({error}). Copy the file again, or "
                "create it again."
            ) from error
        if len(ends) != len(self._labels) or len(ends) == 0 or ends[-1] != len(self._bytes):
            raise ValueError(
                f"{file} must hold one length and one label per image, and as many bytes as the sum of the lengths, got "
                f"{len(ends)} lengths, {len(self._labels)} labels and {len(self._bytes)} bytes. Copy the file again, or "
                "create it again."
            )
        self._starts, self._ends, self._split = np.r_[0, ends[:-1]], ends, name
        self.class_to_idx = {class_name: i for i, class_name in enumerate(classes)}

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self._bytes[self._starts[index] : self._ends[index]].tobytes()), int(self._labels[index])

    def __len__(self) -> int:
        return len(self._labels)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self._split}-{index}"

    def entry(self, index: int) -> tuple[str, int, int]:
        """Return name, label and a checksum of the encoded image."""
        content = self._bytes[self._starts[index] : self._ends[index]].tobytes()
        return self._filename(index), int(self._labels[index]), zlib.crc32(content)


class TorchvisionImages(Reader):
    """Reader of a torchvision data set whose items are ``(PIL image, label)``.

    Args:
        dataset: torchvision data set without transforms.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self._dataset = dataset
        if hasattr(dataset, "loader"):
            dataset.loader = Image.open  # The loader of torchvision would convert 16 bits to white.
        # The class_to_idx of ImageNet lists every synonym of a class, so its WordNet ids are preferred.
        self.class_to_idx = getattr(dataset, "wnid_to_idx", None) or getattr(dataset, "class_to_idx", None)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        samples = getattr(self._dataset, "samples", None)
        if samples:
            return str(samples[index][0])
        train = getattr(self._dataset, "train", None)
        part = "" if train is None else "-train" if train else "-test"  # Indices do not tell which split an image is from.
        return f"{type(self._dataset).__name__}{part}-{index}"

    def entry(self, index: int) -> tuple[Any, ...]:
        """Return name, label, and file size or checksum of the pixels, as far as the data set gives access to them."""
        samples, pixels = (getattr(self._dataset, name, None) for name in ("samples", "data"))
        if samples:
            path, label = samples[index]
            return os.path.relpath(path, self._dataset.root), label, os.stat(path).st_size
        if pixels is None:
            return (self._filename(index),)
        return self._filename(index), int(self._dataset.targets[index]), zlib.crc32(np.asarray(pixels[index]).tobytes())


def open_images(
    name: str,
    root: str,
    split: str,
    seed: int = 0,
    training: bool = False,
    batch_size: int = 1,
    mode: str = "RGB",
    download: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Reader | StreamedImages:
    """Open one split of a data set.

    Args:
        name: Name of the reader, as in `imgproc_attn.recipe.sections.Data`.
        root: Folder or file of the data. Unused for ``digits``.
        split: Name of the split. For folders it is a subfolder, and empty for ``root`` itself.
        seed: Seed of the split of ``digits`` and ``pathfinder``, and of the shuffling of iterable data sets.
        training: Shuffle an iterable data set.
        batch_size: Batch size, a hint for iterable data sets.
        mode: Mode of the images of an iterable data set: ``L`` for gray, ``RGB`` for color.
        download: Download missing data (torchvision and iterable data sets).
        image_column: Image column of Hugging Face data. Default: see `imgproc_attn.data.hugging_face.choose_columns`.
        label_column: Label column of Hugging Face data, with the same default. For WebDataset: field of the ``.json`` members
            that holds labels. Default: ``.cls`` members.

    Returns:
        Reader of the split; `StreamedImages` for iterable data sets (``wds/…``, ``hfids/…``, ``tfds/…``).

    Raises:
        FileNotFoundError: The data does not exist.
        ValueError: The reader or split does not exist, or the data has another format.

    Example:
        >>> reader = open_images("digits", "", "test")
        >>> image, label = reader[0]
        >>> image.size
        (8, 8)
    """
    check_reader(name)
    check_columns(name, image_column, label_column)
    kind, _, which = name.partition("/")
    if name == "digits":
        return Digits(split, seed)
    if name == "npz":
        return PackedImages(find_root(root), split)
    if name == "pathfinder":
        return Pathfinder(find_root(root), split, seed)
    if name == "folder":
        return _open_folder(find_root(root), split)
    if name in ("torch/folder", "torch/image_folder"):
        return _open_folder(find_root(root), split, order=str)  # torchvision sorts class names as text: 1, 10, 2.
    folder = str(find_root(root, to_be_made=download)) if root or reads_from_a_place(name) else None
    if kind == "hfds":
        return HuggingFaceImages(which, folder, split, image_column, label_column)
    options: dict[str, Any] = {"root": folder, "split": split, "is_training": training, "batch_size": batch_size}
    options |= {"seed": seed, "download": download}
    try:
        if kind == "torch":
            return TorchvisionImages(create_dataset(name, **options))
        if kind == "hfids":
            return stream_images(which, mode, image_column, label_column, **options)
        if kind == "wds":
            return stream_shards(mode, label_column, **options)
        return StreamedImages(create_dataset(name, input_img_mode=mode, **options).reader, mode)
    except (AssertionError, ImportError, RuntimeError) as error:
        missing = "download=True" in str(error)
        remedy = "Give data.download=true in a recipe." if missing else "Check the name, the root and the split."
        raise ValueError(
            f"data.name={name!r} must be a data set with the split {split!r} at the root {Path(root).absolute()}, got the "
            f"error: {str(error).rstrip('. ')}. {remedy}"
        ) from error


def find_root(root: str, to_be_made: bool = False) -> Path:
    """Find the folder or file of a data set.

    Args:
        root: Path. A relative path that does not exist is searched in the folder ``$IMGPROC_ATTN_DATA`` too.
        to_be_made: Whether the path may be missing, because a download will create it.

    Raises:
        ValueError: ``root`` is empty.
        FileNotFoundError: The path does not exist, and ``to_be_made`` is False.
    """
    if not root:
        raise ValueError("The root must be a path, got ''. Give data.root=PATH in a recipe, --root PATH in a command.")
    tried = [Path(root).expanduser()]
    if os.environ.get("IMGPROC_ATTN_DATA") and not tried[0].is_absolute():
        tried.append(Path(os.environ["IMGPROC_ATTN_DATA"]) / root)
    for path in tried:
        if path.exists():
            return path
    if to_be_made:
        return tried[0]
    raise FileNotFoundError(
        f"The root must be an existing folder or file, got {' and '.join(str(p) for p in tried)}. Give data.root=PATH in a "
        "recipe, --root PATH in a command, or set IMGPROC_ATTN_DATA to the folder that relative paths start from."
    )


def _open_folder(root: Path, split: str, order: Callable[[str], Any] = natural_order) -> Reader:
    """Open the folder or tar archive of a split.

    Unlike timm, do not replace a missing split by ``root`` itself.
    """
    folder = root
    if not root.is_dir():
        _check_archive(root)
    if split and not root.is_dir():
        raise ValueError(
            f"The split of the file {root} must be empty, got {split!r}. Give an empty split, or a folder as root."
        )
    if not split and root.is_dir():
        splits = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name in {"test", *SYNONYMS[0], *SYNONYMS[1]})
        if splits:
            raise ValueError(
                f"{root} must hold class folders, got the splits {', '.join(splits)}. Name one of them as the split. If these "
                f"are classes, give {root.parent} as the root, and {root.name!r} as the split."
            )
    if split:
        names = [split, *sorted(_synonyms(split) - {split})]
        candidates = [root / f"{name}{ending}" for name in names for ending in ("", ".tar")]
        existing = [c for c in candidates if c.exists()]
        if not existing:
            content = sorted(p.name for p in root.iterdir())[:8]
            raise FileNotFoundError(
                f"The split must be a folder or .tar file in {root}, which holds {', '.join(content) or 'nothing'}, got "
                f"{split!r}. Name one of them, or give an empty split if these are the class folders."
            )
        folder = existing[0]
    return (ClassFolders if folder.is_dir() else ClassTar)(folder, order)


def _check_archive(file: Path) -> None:
    """Refuse a root that is a file, but not a tar archive."""
    if file.suffix.lower() != ".tar":
        raise ValueError(
            f"The root must be a folder of class folders, or an uncompressed .tar archive of them, got the file {file}. Unpack "
            "other archives. Instead of one image, give the folder that holds the class folders."
        )


def check_classes(classes: Any, num_classes: int, other: Any = None, names: tuple[str, str] = ("train", "test")) -> None:
    """Check the number of classes of a split, and that two splits have equal classes.

    Args:
        classes: ``{name: label}`` of a split; None if the reader has no class names.
        num_classes: Expected number of classes.
        other: ``{name: label}`` of another split, or None.
        names: Names of the two splits, for messages.

    Raises:
        ValueError: The number of classes differs from ``num_classes``, or the splits have different classes.

    Example:
        >>> check_classes({"cat": 0, "dog": 1}, num_classes=2)
    """
    if classes and len(classes) != num_classes:
        raise ValueError(
            f"The {names[0]} split must have {num_classes} classes, got {len(classes)} ({some_names(list(classes))}). Correct "
            "data.num_classes of the recipe, num_classes of the model, or the split."
        )
    if classes and other and classes != other:
        only = [sorted(set(a) - set(b)) for a, b in ((classes, other), (other, classes))]
        parts = [
            f"only in {name}: {', '.join(o[:5])}{', …' if len(o) > 5 else ''} ({len(o)})" for name, o in zip(names, only) if o
        ]
        raise ValueError(
            f"The splits {names[0]} and {names[1]} must have equal classes, got classes "
            + ("; ".join(parts) or "with the same names and other labels")
            + ". Correct the folders or names of the classes."
        )


def _synonyms(split: str) -> set[str]:
    return next((group for group in SYNONYMS if split in group), {split})
