"""Readers: what turns the name of a data set into encoded images and labels. timm's, and three it does not have."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from .folders import ClassFolders, ClassTar, natural_order, some_names
from .hugging_face import HuggingFaceImages, stream_images
from .streams import StreamedImages, stream_shards

READERS = ("folder", "npz", "digits")
PREFIXES = ("torch", "wds", "hfds", "hfids", "tfds")  # timm's
DIGITS_HELD_OUT = 360
SYNONYMS = ({"train", "training"}, {"validation", "val", "valid", "eval", "evaluation"})  # timm's; a test is neither


class Digits(Reader):
    """The 1,797 scanned digits of scikit-learn, 8 x 8 pixels of 17 gray levels, split class by class; 360 are the test split.

    Args:
        split: ``train`` or ``test``.
        seed: Of the split.
    """

    def __init__(self, split: str, seed: int = 0) -> None:
        super().__init__()
        from sklearn.datasets import load_digits  # a second to import
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            range(len(digits.target)), test_size=DIGITS_HELD_OUT, random_state=seed, stratify=digits.target
        )
        if split not in ("train", "test"):
            raise ValueError(f"digits has no split {split!r}; there are train and test.")
        self._ids = train if split == "train" else test
        self._pictures = [Image.fromarray(picture) for picture in np.round(digits.images * 255 / 16).astype(np.uint8)]
        self._labels = digits.target
        self.class_to_idx = {str(i): i for i in range(10)}

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        i = self._ids[index]
        return self._pictures[i], int(self._labels[i])

    def __len__(self) -> int:
        return len(self._ids)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"digit-{self._ids[index]}"

    def entry(self, index: int) -> tuple[str, int, int]:
        """Name, label and a checksum of the pixels."""
        i = self._ids[index]
        return self._filename(index), int(self._labels[i]), zlib.crc32(self._pictures[i].tobytes())


class PackedImages(Reader):
    """Encoded images in one ``.npz`` file.

    It holds, for each split, ``<split>_bytes`` (all files one after the other, uint8), ``<split>_lengths`` and
    ``<split>_labels``, and ``classes``.

    Args:
        file: The ``.npz``.
        split: Of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such pack, is cut off, or has no such split.
    """

    def __init__(self, file: Path, split: str) -> None:
        super().__init__()
        if not file.is_file():
            packs = ", ".join(sorted(p.name for p in file.glob("*.npz"))) if file.is_dir() else ""
            raise FileNotFoundError(
                f"{file} is a folder; name the .npz file in it{f': {packs}' if packs else ''}."
                if file.is_dir()
                else f"There is no file {file}."
            )
        try:
            with np.load(file, allow_pickle=False) as pack:
                splits = [name.removesuffix("_bytes") for name in pack.files if name.endswith("_bytes")]
                found = [name for name in [split, *sorted(_synonyms(split))] if name in splits]
                if not found:
                    raise ValueError(f"{file} has no split {split!r}; there are {', '.join(splits) or 'none'}.")
                self._bytes, self._labels = pack[f"{found[0]}_bytes"], pack[f"{found[0]}_labels"].astype(int)
                ends = np.cumsum(pack[f"{found[0]}_lengths"].astype(np.int64))  # the lengths' own type would overflow
                classes = [str(name) for name in pack["classes"]]
        except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is no pack of images: {error}") from error
        if len(ends) != len(self._labels) or len(ends) == 0 or ends[-1] != len(self._bytes):
            raise ValueError(
                f"{file}: {len(ends)} lengths, {len(self._labels)} labels and {len(self._bytes)} bytes do not agree."
            )
        self._starts, self._ends, self._split = np.r_[0, ends[:-1]], ends, found[0]
        self.class_to_idx = {name: i for i, name in enumerate(classes)}

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self._bytes[self._starts[index] : self._ends[index]].tobytes()), int(self._labels[index])

    def __len__(self) -> int:
        return len(self._labels)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self._split}-{index}"

    def entry(self, index: int) -> tuple[str, int, int]:
        """Name, label and a checksum of the file."""
        content = self._bytes[self._starts[index] : self._ends[index]].tobytes()
        return self._filename(index), int(self._labels[index]), zlib.crc32(content)


class TorchvisionImages(Reader):
    """A torchvision data set of ``(PIL image, label)``."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self._dataset = dataset
        if hasattr(dataset, "loader"):
            dataset.loader = Image.open  # torchvision's own would convert 16 bits to white
        # ImageNet's class_to_idx has every synonym of a class
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
        part = "" if train is None else "-train" if train else "-test"  # both may be equally large
        return f"{type(self._dataset).__name__}{part}-{index}"

    def entry(self, index: int) -> tuple[Any, ...]:
        """Name, label and file size, or a checksum of pixels in memory, as far as the data set shows them."""
        samples, pixels = (getattr(self._dataset, name, None) for name in ("samples", "data"))
        if samples:
            path, label = samples[index]
            return os.path.relpath(path, self._dataset.root), label, os.stat(path).st_size
        if pixels is None:
            return (self._filename(index),)
        return self._filename(index), int(self._dataset.targets[index]), zlib.crc32(np.asarray(pixels[index]).tobytes())


def check_reader(name: str, beside: Iterable[str] = ()) -> None:
    """Refuse what timm would take for a folder of images.

    Args:
        name: Of a reader.
        beside: Further names that are known.

    Raises:
        ValueError: There is none of that name.
    """
    kind, _, which = name.partition("/")
    if name not in (*READERS, *beside) and not (kind in PREFIXES and which):
        raise ValueError(
            f"{name!r} is no reader; there are {', '.join((*READERS, *beside))} and names that begin with "
            f"{', '.join(f'{prefix}/' for prefix in PREFIXES)}"
        )


def reads_from_a_place(name: str) -> bool:
    """Whether the reader needs a root."""
    return name != "digits" and not name.startswith(("hfds/", "hfids/"))


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
    """The reader of one split; a stream for what can only be iterated over (WebDataset and its like).

    Args:
        name: As in `imgproc_attn.recipe.schema.Data`.
        root: Folder or file.
        split: Name of the split, for folders a subfolder; empty for ``root`` itself.
        seed: Of the digits' split, and of the shuffling of what can only be iterated over.
        training: Shuffle what can only be iterated over.
        batch_size: A hint for it.
        download: Fetch what is not there, for torchvision's sets and what can only be iterated over.
        mode: Of the pictures of what can only be iterated over: ``L`` or ``RGB``.
        image_column: Of Hugging Face data. Default: see `imgproc_attn.data.hugging_face.choose_columns`.
        label_column: Likewise; of WebDataset the field of ``.json`` members that holds labels.

    Raises:
        FileNotFoundError: The data is not there.
        ValueError: It is there, and not as it should be.
    """
    check_reader(name)
    check_columns(name, image_column, label_column)
    kind, _, which = name.partition("/")
    if name == "digits":
        return Digits(split, seed)
    if name == "npz":
        return PackedImages(find_root(root), split)
    if name == "folder":
        return _open_folder(find_root(root), split)
    if name in ("torch/folder", "torch/image_folder"):
        return _open_folder(find_root(root), split, order=str)  # labels in torchvision's order: 1, 10, 2
    place = str(find_root(root, to_be_made=download)) if root or reads_from_a_place(name) else None
    if kind == "hfds":
        return HuggingFaceImages(which, place, split, image_column, label_column)
    options: dict[str, Any] = {"root": place, "split": split, "is_training": training, "batch_size": batch_size}
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
        hint = " (here: data.download=true)" if "download=True" in str(error) else ""
        raise ValueError(f"data.name={name!r}, root {Path(root).absolute()}, split {split!r}: {error}{hint}") from error


def check_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    """Refuse names of columns for readers that have none.

    Raises:
        ValueError: The reader has no such columns.
    """
    kind = name.partition("/")[0]
    for key, value, kinds in (
        ("image_column", image_column, ("hfds", "hfids")),
        ("label_column", label_column, ("hfds", "hfids", "wds")),
    ):
        if value is not None and kind not in kinds:
            raise ValueError(f"{key} must be left out for {name!r}, got {value!r}; only {', '.join(kinds)} have columns.")


def find_root(root: str, to_be_made: bool = False) -> Path:
    """``root``, or the same in ``$IMGPROC_ATTN_DATA``.

    Raises:
        ValueError: It is empty.
        FileNotFoundError: Neither exists, and it is not ``to_be_made`` by a download.
    """
    if not root:
        raise ValueError("No folder or file is named to read from; give data.root=PATH in a recipe, --root PATH in a command.")
    tried = [Path(root).expanduser()]
    if os.environ.get("IMGPROC_ATTN_DATA") and not tried[0].is_absolute():
        tried.append(Path(os.environ["IMGPROC_ATTN_DATA"]) / root)
    for path in tried:
        if path.exists():
            return path
    if to_be_made:
        return tried[0]
    raise FileNotFoundError(
        f"There is no {' and no '.join(str(p) for p in tried)}. Give data.root=PATH in a recipe, --root PATH in a command, or "
        "set IMGPROC_ATTN_DATA to the folder a relative path starts from."
    )


def _open_folder(root: Path, split: str, order: Callable[[str], Any] = natural_order) -> Reader:
    """A folder per class, or a tar archive of such, named as the split.

    Unlike in timm, a missing split is not replaced by ``root`` itself.
    """
    folder = root
    if not root.is_dir():
        _check_archive(root)
    if split and not root.is_dir():
        raise ValueError(f"{root} is one file, and has no split {split!r}; give the folder it lies in, or an empty split.")
    if not split and root.is_dir():
        splits = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name in {"test", *SYNONYMS[0], *SYNONYMS[1]})
        if splits:
            raise ValueError(
                f"{root} holds splits, {', '.join(splits)}, in the place of classes; name one of them. If these are classes, "
                f"give {root.parent} as the root, and {root.name!r} as the split."
            )
    if split:
        names = [split, *sorted(_synonyms(split) - {split})]
        candidates = [root / f"{name}{ending}" for name in names for ending in ("", ".tar")]
        existing = [c for c in candidates if c.exists()]
        if not existing:
            there = sorted(p.name for p in root.iterdir())[:8]
            raise FileNotFoundError(
                f"{root} has no folder {split!r}; it holds {', '.join(there) or 'nothing'}. Name one of them as the split, or "
                "give an empty split if the classes lie there."
            )
        folder = existing[0]
    return (ClassFolders if folder.is_dir() else ClassTar)(folder, order)


def _check_archive(file: Path) -> None:
    """Refuse one file as the root that is no tar archive."""
    if file.suffix.lower() != ".tar":
        raise ValueError(
            f"The root must be a folder of class folders, or an uncompressed .tar archive of such, got the file {file}. Unpack "
            "an archive of another kind; of an image, give the folder that holds the class folders."
        )


def check_classes(classes: Any, num_classes: int, other: Any = None, names: tuple[str, str] = ("train", "test")) -> None:
    """Refuse splits whose classes differ from each other or in number from ``num_classes``.

    Args:
        classes: ``{name: label}`` of a split, or None where the reader knows none.
        num_classes: Of the recipe.
        other: The same of another split.
        names: Of the two splits.
    """
    if classes and len(classes) != num_classes:
        raise ValueError(
            f"The {names[0]} split has {len(classes)} classes, but {num_classes} are expected (data.num_classes of a recipe, "
            f"num_classes of a model). Its classes are {some_names(list(classes))}."
        )
    if classes and other and classes != other:
        only = [sorted(set(a) - set(b)) for a, b in ((classes, other), (other, classes))]
        parts = [
            f"only in {name}: {', '.join(o[:5])}{', …' if len(o) > 5 else ''} ({len(o)})" for name, o in zip(names, only) if o
        ]
        raise ValueError(
            f"The classes of the splits {names[0]} and {names[1]} differ: "
            + ("; ".join(parts) or "same names, other labels")
            + "."
        )


def _synonyms(split: str) -> set[str]:
    return next((group for group in SYNONYMS if split in group), {split})
