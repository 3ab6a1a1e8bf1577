"""Iterable data sets, which have no random access: WebDataset, Hugging Face streams, TensorFlow data sets."""

import json
import os
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from .decoding import IMAGE_EXTENSIONS, to_8_bits
from .folders import some_names
from .images import check_label

__all__ = ["StreamedImages", "check_shards", "stream_shards"]

# Extensions of the image members of a WebDataset. If a sample has several images, the extensions that timm reads come first.
MEMBER_EXTENSIONS = tuple(dict.fromkeys(["jpg", "png", "webp", *sorted(e[1:] for e in IMAGE_EXTENSIONS)]))
NUM_CHECKED_SAMPLES = 10_000  # Member names of this many samples are checked before a run starts.


class StreamedImages(IterableDataset):
    """Iterable data set of images and labels.

    Args:
        reader: Iterable reader of timm.
        mode: ``L`` for gray, ``RGB`` for color.
        class_to_idx: ``{name: label}``; None if the data set has no class names.

    Attributes:
        num_classes: Number of classes. Labels must be in 0 to ``num_classes - 1``. Default: None, labels are not checked.
        transform: Function from a PIL image to an array. Default: None, items hold PIL images.
        announced: Number of images that the data set declares; 0 if it declares none.
    """

    def __init__(self, reader: Any, mode: str, class_to_idx: dict[str, int] | None = None) -> None:
        self.reader, self.mode = reader, mode
        self.class_to_idx = class_to_idx or None
        self.num_classes: int | None = None
        self.transform: Callable[[Image.Image], Any] | None = None
        self.announced: int = getattr(reader, "num_samples", None) or 0

    @property
    def classes(self) -> dict[str, int] | None:
        """Class indices ``{name: label}``; None if the data set has no class names."""
        return self.class_to_idx

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.reader:
            image = to_8_bits(image, self.mode)
            label = label if self.num_classes is None else check_label(label, self.num_classes)
            yield (image if self.transform is None else self.transform(image)), label

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which the order of shuffling depends on."""
        getattr(self.reader, "set_epoch", lambda epoch: None)(epoch)

    def set_loader_cfg(self, num_workers: int) -> None:
        """Set the number of worker processes, which the length of an epoch depends on."""
        getattr(self.reader, "set_loader_cfg", lambda num_workers: None)(num_workers)

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over facts known without reading images: split, number of images, names and sizes of shards."""
        yield getattr(self.reader, "split", None), self.announced
        for shard in _shards(self.reader):
            yield shard.name, shard.stat().st_size

    def check_count(self, found: int) -> None:
        """Compare the number of images of a complete pass with the announced number, and warn if they differ.

        Args:
            found: Number of images of the pass.

        Raises:
            ValueError: There was no image.
        """
        expected = self.announced or "some"
        if found == 0:
            raise ValueError(
                f"The stream must yield {expected} images, got 0. Read the messages above, and check the names of its files "
                "and members."
            )
        if self.announced and found != self.announced:
            warnings.warn(
                f"The stream yielded {found} images instead of the announced {self.announced}. Missing images are not counted.",
                stacklevel=2,
            )


def _shards(reader: Any) -> list[Path]:
    return [Path(reader.root, name) for name in getattr(getattr(reader, "split_info", None), "filenames", ())]


def stream_shards(mode: str, label_field: str | None, root: str, split: str, **options: Any) -> StreamedImages:
    """Open a WebDataset, that is ``_info.json`` and the shards that it lists.

    Args:
        mode: ``L`` for gray, ``RGB`` for color.
        label_field: Field of the ``.json`` members that holds labels; None for ``.cls`` members.
        root: Folder of the shards.
        split: Name of a split in ``_info.json``; or shard names and number of images, such as ``x-{000..011}.tar|12000``.
        options: Keyword arguments of timm's reader.

    Raises:
        FileNotFoundError: As in `check_shards`.
        ValueError: As in `check_shards`, or ``_info.json`` describes no such split.
    """
    # timm must not convert the images: its conversion would turn 16 bits into white.
    options |= {"input_key": ";".join(MEMBER_EXTENSIONS), "input_img_mode": ""}
    try:
        reader = create_dataset("wds/", root=root, split=split, **options).reader
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{root}/_info.json must describe the split {split!r}, got {problem}. Write it again.") from error
    check_shards(reader, label_field)
    return StreamedImages(reader, mode)


def check_shards(reader: Any, label_field: str | None) -> None:
    """Compare the shards of a WebDataset with the announced numbers, and check the member names of the first shards.

    Args:
        reader: timm's WebDataset reader.
        label_field: Field of the ``.json`` members that holds labels; None for ``.cls`` members.

    Raises:
        FileNotFoundError: Shards are missing.
        ValueError: Shards are damaged, or hold fewer labeled images than announced.
    """
    info, shards = reader.split_info, _shards(reader)
    if label_field is not None:
        info.alt_label = label_field
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise FileNotFoundError(
            f"{reader.root} must hold {len(shards)} shards of the split, got {len(missing)} missing: {some_names(missing)}. "
            "Copy them there, or correct the file names in _info.json or in the name of the split."
        )
    lengths = list(info.shard_lengths)
    if lengths and (len(lengths) != len(shards) or info.num_samples > sum(lengths)):
        raise ValueError(
            f"{reader.root}/_info.json must have one length per shard, and num_samples must be at most their sum, got "
            f"{info.num_samples} images, {len(shards)} shards and {len(lengths)} lengths with the sum {sum(lengths)}. Correct "
            "num_samples, shard_lengths and filenames."
        )
    num_checked = 0
    for i, shard in enumerate(shards):
        samples = _samples(shard)
        usable = sum(_is_usable(extensions, info.alt_label) for extensions in samples.values())
        announced = lengths[i] if lengths else 1
        if usable < announced:
            wanted = f".json with the field {info.alt_label!r}" if info.alt_label else ".cls"
            present = sorted({extension for extensions in samples.values() for extension in extensions})
            raise ValueError(
                f"{shard} must hold {announced} or more samples with an image and a label, got {usable} of {len(samples)} "
                f"samples. Images are members that end in .{some_names(MEMBER_EXTENSIONS, 5)}, labels in {wanted}. Its members "
                f"end in .{', .'.join(present[:8])}. Repair the shard, or correct _info.json."
            )
        num_checked += len(samples)
        if num_checked >= NUM_CHECKED_SAMPLES:
            break


def _samples(shard: Path) -> dict[str, dict[str, Any]]:
    """Return the samples of a shard, ``{key: {extension: content}}``. Only ``.json`` members have content."""
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = base_plus_ext(member.name) if member.isreg() else (None, None)
                if key is not None and extension is not None and not os.path.basename(key).startswith("__"):
                    content = tar.extractfile(member).read() if extension.lower() == "json" else None  # type: ignore[union-attr]
                    samples[key][extension.lower()] = content
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = str(error).splitlines()[0].rstrip(":")
        raise ValueError(f"{shard} must be a complete tar archive, got {problem}. Copy it again.") from error
    return samples


def _is_usable(members: dict[str, Any], label_field: str) -> bool:
    if not members.keys() & set(MEMBER_EXTENSIONS):
        return False
    if not label_field:
        return "cls" in members
    try:
        return label_field in json.loads(members.get("json", "{}"))
    except ValueError:
        return False
