"""Data sets that give images one after the other alone: WebDataset, Hugging Face streams, TensorFlow data sets."""

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

# of WebDataset members; where several fit, timm's usual ones come first
MEMBER_EXTENSIONS = tuple(dict.fromkeys(["jpg", "png", "webp", *sorted(e[1:] for e in IMAGE_EXTENSIONS)]))
LOOKED_AT = 10_000  # samples of WebDataset whose members are looked at before anything starts


class StreamedImages(IterableDataset):
    """Images and labels of a stream.

    Args:
        reader: One of timm's.
        mode: ``L`` for gray, ``RGB`` for color.
        class_to_idx: ``{name: label}``, where names are known.

    Attributes:
        num_classes: Labels must lie in 0 to ``num_classes - 1``; None for any.
        transform: PIL image to array.
        announced: Number of images that the data set says it has; 0 if it does not say.
    """

    def __init__(self, reader: Any, mode: str, class_to_idx: dict[str, int] | None = None) -> None:
        self.reader, self.mode = reader, mode
        self.class_to_idx = class_to_idx or None
        self.num_classes: int | None = None
        self.transform: Callable[[Image.Image], Any] | None = None
        self.announced: int = getattr(reader, "num_samples", None) or 0

    @property
    def classes(self) -> dict[str, int] | None:
        """``{name: label}``, where names are known."""
        return self.class_to_idx

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.reader:
            image = to_8_bits(image, self.mode)
            label = label if self.num_classes is None else check_label(label, self.num_classes)
            yield (image if self.transform is None else self.transform(image)), label

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another order."""
        getattr(self.reader, "set_epoch", lambda epoch: None)(epoch)

    def set_loader_cfg(self, num_workers: int) -> None:
        """Tell the number of worker processes, which the length of an epoch depends on."""
        getattr(self.reader, "set_loader_cfg", lambda num_workers: None)(num_workers)

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """What is known of the data without reading it: number of images, names and sizes of shards."""
        yield getattr(self.reader, "split", None), self.announced
        for shard in _shards(self.reader):
            yield shard.name, shard.stat().st_size

    def check_count(self, found: int) -> None:
        """Compare the number of images of a whole pass with the number announced.

        Raises:
            ValueError: There was no image.
        """
        if found == 0:
            raise ValueError(
                f"The stream gave none of the {self.announced or 'images'} images that it should hold. Look at the messages "
                "above, and at the names of its files and members."
            )
        if self.announced and found != self.announced:
            warnings.warn(
                f"The stream gave {found} images, but {self.announced} are announced. Those that are missing count nowhere.",
                stacklevel=2,
            )


def _shards(reader: Any) -> list[Path]:
    return [Path(reader.root, name) for name in getattr(getattr(reader, "split_info", None), "filenames", ())]


def stream_shards(mode: str, label_field: str | None, root: str, split: str, **options: Any) -> StreamedImages:
    """Open a WebDataset: ``_info.json`` and the shards that it names.

    Args:
        mode: ``L`` for gray, ``RGB`` for color.
        label_field: Field of the ``.json`` members that holds labels; None for ``.cls`` members.
        root: Folder of the shards.
        split: In ``_info.json``; or names of shards, ``x-{000..011}.tar|12000`` with the number of images.
        options: Of timm's reader.

    Raises:
        FileNotFoundError: As `check_shards`.
        ValueError: As `check_shards`, or an ``_info.json`` that describes no such split.
    """
    # no conversion by timm, which would turn 16 bits into white
    options |= {"input_key": ";".join(MEMBER_EXTENSIONS), "input_img_mode": ""}
    try:
        reader = create_dataset("wds/", root=root, split=split, **options).reader
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{root}/_info.json must describe the split {split!r}, got {problem}. Write it anew.") from error
    check_shards(reader, label_field)
    return StreamedImages(reader, mode)


def check_shards(reader: Any, label_field: str | None) -> None:
    """Compare the shards of a WebDataset with what is announced, and look at the names of members in the first of them.

    Args:
        reader: timm's.
        label_field: Field of the ``.json`` members that holds labels; None for ``.cls`` members.

    Raises:
        FileNotFoundError: Shards are missing.
        ValueError: Shards are damaged, or hold fewer images with labels than announced.
    """
    info, shards = reader.split_info, _shards(reader)
    if label_field is not None:
        info.alt_label = label_field
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(shards)} shards of the split are not in {reader.root}: {some_names(missing)}. Copy "
            "them there, or correct the file names in _info.json or in the name of the split."
        )
    lengths = list(info.shard_lengths)
    if lengths and (len(lengths) != len(shards) or info.num_samples > sum(lengths)):
        raise ValueError(
            f"{reader.root}/_info.json announces {info.num_samples} images, but {sum(lengths)} in {len(lengths)} lengths of "
            f"{len(shards)} shards. Correct num_samples, shard_lengths and filenames."
        )
    looked_at = 0
    for i, shard in enumerate(shards):
        samples = _samples(shard)
        usable = sum(_is_usable(extensions, info.alt_label) for extensions in samples.values())
        announced = lengths[i] if lengths else 1
        if usable < announced:
            wanted = f".json with the field {info.alt_label!r}" if info.alt_label else ".cls"
            found = sorted({extension for extensions in samples.values() for extension in extensions})
            raise ValueError(
                f"{shard} must hold {announced} or more samples with an image and a label, got {usable} of {len(samples)} "
                f"samples. Images are members that end in .{some_names(MEMBER_EXTENSIONS, 5)}, labels in {wanted}; there are "
                f".{', .'.join(found[:8])}. Repair the shard, or correct _info.json."
            )
        looked_at += len(samples)
        if looked_at >= LOOKED_AT:
            break


def _samples(shard: Path) -> dict[str, dict[str, Any]]:
    """``{key: {extension: content of .json, None of others}}`` of the samples in a shard."""
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
        raise ValueError(f"{shard} is no whole tar archive: {problem}. Copy it again.") from error
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
