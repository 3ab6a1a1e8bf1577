"""Pictures with label maps: ADE20K, CamVid, and any folder of the like."""

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
from ..utils.io import printable
from .metrics import IGNORE_INDEX
from .palettes import CAMVID

NOT_A_CLASS = 254  # in lookup tables: a value that no label has

Pair = tuple[Path, Path]


class LabeledPictures(Dataset):
    """Pictures and label maps of equal size.

    Args:
        pairs: Files of each.
        classes: Names, in the order of their labels.
        lookup: ``[256]``: from a value of the files to the label, 255 for pixels to ignore, 254 for values that must not be.
        indices: Which of the pairs. Default: all.
        transform: Of ``(tv_tensors.Image, tv_tensors.Mask)``, both.

    Raises:
        ValueError: No pairs.
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
            raise ValueError("There are no pictures with labels.")
        if len(classes) > NOT_A_CLASS:
            raise ValueError(
                f"There are {len(classes)} classes, but 8-bit label maps have room for {NOT_A_CLASS} beside 254 and 255."
            )
        self.pairs, self.lookup, self.transform = list(pairs), lookup, transform
        self.indices = range(len(pairs)) if indices is None else indices
        self.classes = {name: label for label, name in enumerate(classes)}
        if len(self.classes) < len(classes):
            raise ValueError(f"Two classes have one name among {', '.join(sorted(classes)[:20])}; give each its own.")

    def __len__(self) -> int:
        return len(self.indices)

    def some(self, indices: Iterable[int]) -> "LabeledPictures":
        """Those at these places."""
        return LabeledPictures(self.pairs, list(self.classes), self.lookup, [self.indices[i] for i in indices])

    def name(self, index: int) -> str:
        """What the picture is called."""
        return printable(self._files(index)[0].name)

    def content(self, index: int) -> bytes:
        """Of picture and label map, as they lie there, and what values mean."""
        return b"".join(file.read_bytes() for file in self._files(index)) + self.lookup.tobytes()

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Names and sizes of each image and its label map, without decoding them."""
        root = os.path.commonpath([file.parent for pair in self.pairs for file in pair])
        for files in map(self._files, range(len(self))):
            yield tuple((file.relative_to(root).as_posix(), file.stat().st_size) for file in files)

    def _files(self, index: int) -> Pair:
        return self.pairs[self.indices[index]]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """``[3, H, W]`` in 8 bits, and labels ``[H, W]`` in 8 bits.

        Raises:
            ValueError: A picture and labels of different sizes, labels that are no map of class numbers, or of no class.
        """
        file, label_file = self._files(index)
        picture = read_picture(file)
        label = self.lookup[read_label(label_file)]
        _check_sizes(file, picture.shape[1::-1], label_file, label.shape[::-1])
        if (label == NOT_A_CLASS).any():
            self._refuse_strange(np.unique(read_label(label_file)), f"{label_file} has")
        image, mask = tv_tensors.Image(torch.tensor(picture).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
        return (image, mask) if self.transform is None else self.transform(image, mask)

    def _refuse_strange(self, values: np.ndarray, where: str) -> None:
        strange = values[self.lookup[values] == NOT_A_CLASS].tolist()
        if strange:
            known, ignored = np.flatnonzero(self.lookup < NOT_A_CLASS), np.flatnonzero(self.lookup == IGNORE_INDEX)
            raise ValueError(
                f"{where} the values {strange[:5]}, which are none of the {len(self.classes)} classes: those are "
                f"{known.min()} to {known.max()}, and ignored {', '.join(map(str, ignored))}."
            )

    def check(self) -> None:
        """Look at the headers of all files, and at a few label maps, so that no mistake waits behind hours of training.

        Raises:
            ValueError: Files that cannot be used; the message counts them and says what is wrong with the first. Or label maps
                without a label.
        """
        with ThreadPoolExecutor() as pool:
            told = list(pool.map(_look_at, map(self._files, range(len(self)))))
        wrong = [error for error, _ in told if error]
        if wrong:
            more = f" {len(wrong) - 3} more of the {len(self)} pairs are wrong." if len(wrong) > 3 else ""
            raise ValueError(" ".join(map(str, wrong[:3])) + more)
        turned = [i for i, (_, is_turned) in enumerate(told) if is_turned]
        if turned:
            warnings.warn(
                f"{len(turned)} of {len(self)} pictures have an EXIF orientation, {self._files(turned[0])[0]} for one. They "
                "are taken as they are stored; if their labels are of the upright picture, store the pictures upright too.",
                stacklevel=2,
            )
        few = range(0, len(self), -(-len(self) // 16))
        values: set[int] = set()
        for label_file in (self._files(i)[1] for i in few):
            found = np.unique(read_label(label_file))
            self._refuse_strange(found, f"{label_file} has")
            values |= set(found.tolist())
        if (self.lookup[sorted(values)] == IGNORE_INDEX).all():
            raise ValueError(
                f"All of {len(few)} label maps looked at hold nothing but {sorted(values)}, which is ignored: there is no "
                f"pixel to learn or to count. One of them is {self._files(0)[1]}."
            )


def _look_at(pair: Pair) -> tuple[ValueError | None, bool]:
    """What is wrong with the headers of a picture and its label map; and whether EXIF data would turn the picture."""
    file, label_file = pair
    try:
        with _opened(file) as picture, _opened(label_file) as label:
            _check_picture(file, picture)
            _check_label(label_file, label)
            _check_sizes(file, picture.size, label_file, label.size)
            # of PNG files this would read all pixels
            turned = picture.format != "PNG" and picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            return None, turned
    except ValueError as error:
        return error, False


def _check_sizes(file: Path, size: Sequence[int], label_file: Path, label_size: Sequence[int]) -> None:
    if tuple(size) != tuple(label_size):
        here, there = (f"{width} x {height}" for width, height in (size, label_size))
        turned = " Does an EXIF orientation turn it? Store it upright." if tuple(size) == tuple(label_size)[::-1] else ""
        raise ValueError(f"{file} is {here}, but its labels {label_file} are {there}; they must be equal.{turned}")


def read_picture(file: Path, upright: bool = False) -> np.ndarray:
    """``[H, W, 3]`` in 8 bits.

    Args:
        file: Of the picture.
        upright: Turn it as its EXIF data say. Pictures with label maps are not turned, in training and in evaluation.

    Raises:
        ValueError: It cannot be read, or has more than 8 bits, which would be cut off.
    """
    with _opened(file) as picture:
        _check_picture(file, picture)
        return np.array(to_8_bits(ImageOps.exif_transpose(picture) if upright else picture, "RGB"))


def _check_picture(file: Path, picture: Any) -> None:
    try:
        check_bit_depth(picture)
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error


def read_label(file: Path) -> np.ndarray:
    """A map of class numbers ``[H, W]`` in 8 bits, as it lies in the file.

    Raises:
        ValueError: It cannot be read; or a palette, colors or 16 bits, whose values are no class numbers.
    """
    with _opened(file) as label:
        _check_label(file, label)
        return np.array(label)


def _check_label(file: Path, label: Any) -> None:
    mode = label.mode
    few = next((bits for bits in ("2", "4") if f"L;{bits}'" in str(label.tile)), None)  # Pillow stretches them to 0 to 255
    if few is not None:
        raise ValueError(f"{file} has {few} bits a pixel, not 8, and would be read as other numbers; store 8-bit gray.")
    if mode == "L":
        return
    kind = {"P": "a palette", "1": "1 bit", "I": "16 or 32 bits", "I;16": "16 bits", "RGB": "colors", "RGBA": "colors"}
    remedy = (
        "if its indices are the class numbers, store them as gray: Image.fromarray(numpy.asarray(image))"
        if mode == "P"
        else "store class numbers as 8-bit gray"
    )
    raise ValueError(f"{file} has {kind.get(mode, f'mode {mode}')}, not one 8-bit gray value a pixel; {remedy}.")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Its header is read here; pixels when they are asked for."""
    try:
        with Image.open(file) as opened:
            yield opened
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error


def find_pictures(folder: Path, deep: bool = True) -> list[Path]:
    """Files of pictures in a folder, ``deep`` in those below it too; what is left out is reported.

    Raises:
        ValueError: Two of one name but for its ending, which would share label maps.
    """
    listing = list_images(folder, deep)
    report_left_out(folder, listing.left_out)
    files = [folder / name for name in listing.files]
    twice = [str(path) for path, count in Counter(file.with_suffix("") for file in files).items() if count > 1]
    if twice:
        raise ValueError(f"Several pictures have one name, and would share its labels: {', '.join(twice[:5])}.")
    return files


def _pairs(pictures: Path, labels: Path, deep: bool = True) -> list[Pair]:
    """Pictures below a folder, and label maps of the same names below the other.

    Args:
        pictures: Folder.
        labels: Folder.
        deep: Look into folders below, too.

    Raises:
        FileNotFoundError: A folder or label maps that are not there; the message lists them.
    """
    for folder in (pictures, labels):
        if not folder.is_dir():
            beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            there = f" Beside it are {', '.join(beside[:8])}: name one as the split." if beside else ""
            raise FileNotFoundError(f"There is no folder {folder}.{there}")
    files = find_pictures(pictures, deep)
    pairs = [(file, (labels / file.relative_to(pictures)).with_suffix(".png")) for file in files]
    missing = [str(label.relative_to(labels)) for _, label in pairs if not label.is_file()]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} label maps are not in {labels}: {', '.join(missing[:10])}{more}."
        )
    below = sorted(p.name for p in pictures.iterdir() if p.is_dir())
    if not pairs and not deep and below:
        raise FileNotFoundError(f"{pictures} holds no pictures, but {', '.join(below[:8])}; name one of them as the split.")
    if not pairs:
        raise FileNotFoundError(f"{pictures} holds no pictures ({', '.join(sorted(IMAGE_EXTENSIONS))}).")
    return pairs


def lookup_table(classes: Mapping[int, int]) -> np.ndarray:
    """``[256]`` from values of files to labels; values that are not named are of no class."""
    labels = [label for label in classes.values() if label != IGNORE_INDEX]
    if len(labels) > NOT_A_CLASS or max(classes) > IGNORE_INDEX:
        raise ValueError(
            f"There are {len(labels)} classes, but 8-bit label maps have room for {NOT_A_CLASS}: 254 and 255 mean others."
        )
    table = np.full(256, NOT_A_CLASS, dtype=np.uint8)
    for value, label in classes.items():
        table[value] = label
    return table


def open_ade20k(root: str, split: str) -> LabeledPictures:
    """ADE20K, the scene parsing benchmark (``ADEChallengeData2016``): 150 classes; the value 0 is ignored, 1 is label 0.

    Args:
        root: Holds ``images/SPLIT``, ``annotations/SPLIT`` and ``objectInfo150.txt``.
        split: ``training`` or ``validation``; empty for pictures that lie in ``images`` itself.
    """
    place = find_root(root)
    place = place / "ADEChallengeData2016" if (place / "ADEChallengeData2016").is_dir() else place
    info = place / "objectInfo150.txt"
    if not info.is_file():
        raise FileNotFoundError(f"There is no {info}; it comes with ADEChallengeData2016 and names the 150 classes.")
    names = [line.split("\t")[-1].split(",")[0].strip() for line in info.read_text(encoding="utf-8").splitlines()[1:]]
    table = lookup_table({0: IGNORE_INDEX, **{value: value - 1 for value in range(1, len(names) + 1)}})
    return LabeledPictures(_pairs(place / "images" / split, place / "annotations" / split, deep=bool(split)), names, table)


def open_camvid(root: str, split: str) -> LabeledPictures:
    """CamVid in SegNet's version: 11 classes, the twelfth is ignored.

    Args:
        root: Holds ``SPLIT`` and ``SPLITannot``.
        split: ``train``, ``val`` or ``test``.
    """
    if not split:
        raise ValueError("CamVid has no pictures but in its splits; name train, val or test.")
    place = find_root(root)
    names = list(CAMVID)
    table = lookup_table({**{label: label for label in range(11)}, 11: IGNORE_INDEX})
    return LabeledPictures(_pairs(place / split, place / f"{split}annot"), names, table)


def open_labeled_folder(root: str, split: str) -> LabeledPictures:
    """Any data set in ``images/SPLIT`` and ``annotations/SPLIT``, 8-bit gray PNG of class numbers, 255 ignored.

    Cityscapes, once its ``labelTrainIds.png`` lie there under the names of the pictures; others likewise.

    Args:
        root: Holds those, and ``classes.txt``: a name a line, in the order of class numbers.
        split: Empty for the folders themselves.
    """
    place = find_root(root)
    names = _names(place / "classes.txt")
    table = lookup_table({**{label: label for label in range(len(names))}, IGNORE_INDEX: IGNORE_INDEX})
    return LabeledPictures(_pairs(place / "images" / split, place / "annotations" / split, deep=bool(split)), names, table)


def _names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}, which names the classes, one a line.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the text
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error}); store it so.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


LABEL_MAP_READERS: Mapping[str, Callable[[str, str], LabeledPictures]] = {
    "ade20k": open_ade20k,
    "camvid": open_camvid,
    "labeled": open_labeled_folder,
}
