"""Which files of a folder are images, and which class they belong to: the one rule of all readers of files."""

import heapq
import io
import os
import re
import tarfile
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from timm.data.readers.reader import Reader

from ..utils.manifest import MANIFEST
from .decoding import IMAGE_EXTENSIONS

FOLDERS_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
HIDDEN = frozenset({*FOLDERS_OF_SYSTEMS, "Thumbs.db", "desktop.ini"})
# reasons to leave a path out
HIDDEN_IMAGE, HIDDEN_FOLDER = "hidden images", "hidden folders"
OTHER_TYPE, NOT_A_FILE = "files of other types", "images that are no regular files"
READ_BEFORE, NO_CLASS = "folders that a link shows a second time", "images outside of class folders"

LeftOut = Mapping[str, Sequence[str]]


def natural_order(name: str) -> tuple[Any, ...]:
    """Sort key: numbers by value, letters without case; ties by the name itself.

    The order is total. It depends on no locale, hash seed, order of directory entries or Unicode normalization.
    """
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name).lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Whether programs made this file or folder for themselves: ``.ipynb_checkpoints``, ``._x.png``, ``__MACOSX``."""
    return name.startswith(".") or name in HIDDEN


def is_image(name: str) -> bool:
    """Whether the extension is one of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


@dataclass
class Listing:
    """The images of a folder or an archive.

    Attributes:
        files: Paths below the folder, with ``/``, in `natural_order`.
        folders: Names of the folders directly below it.
        left_out: ``{reason: paths}``.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_file(self, path: str, name: str) -> None:
        """Decide on a regular file."""
        if name == MANIFEST:  # of results of our own that lie below
            return
        if not is_hidden(name):
            (self.files if is_image(name) else self.left_out[OTHER_TYPE]).append(path)
        elif is_image(name):
            self.left_out[HIDDEN_IMAGE].append(path)

    def sort(self) -> "Listing":
        """Put everything into `natural_order`."""
        for paths in (self.files, self.folders, *self.left_out.values()):
            paths.sort(key=natural_order)
        return self


def list_images(root: Path, deep: bool = True) -> Listing:
    """Find the image files of a folder.

    Links to folders are followed. Each folder is read once: first all that can be reached without a link, then links, from
    the upper ones to the lower ones.

    Args:
        root: The folder.
        deep: Also look into the folders below.

    Raises:
        OSError: A folder cannot be read.
    """
    listing, seen = Listing(), {_identity(root)}
    waiting, links = [""], []  # type: ignore[var-annotated]
    while waiting or links:
        below = waiting.pop() if waiting else heapq.heappop(links)[-1]
        if below and not _is_new(root / below, seen):
            listing.left_out[READ_BEFORE].append(below[:-1])
            continue
        with os.scandir(root / below) as entries:
            for entry in entries:
                path = below + entry.name
                if not _is_folder(entry):
                    if _is_file(entry):
                        listing.add_file(path, entry.name)
                    elif is_image(entry.name):
                        listing.left_out[NOT_A_FILE].append(path)
                    continue
                if is_hidden(entry.name):
                    listing.left_out[HIDDEN_FOLDER].append(path)
                    continue
                if not below:
                    listing.folders.append(entry.name)
                if deep and entry.is_symlink():
                    heapq.heappush(links, (path.count("/"), natural_order(path), path + "/"))
                elif deep:
                    waiting.append(path + "/")
    return listing.sort()


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    identity = _identity(folder)
    known = identity in seen
    seen.add(identity)
    return not known


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """True also for a link to nothing: it is counted, and named when it cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def report_left_out(where: Path, left_out: LeftOut) -> None:
    """Warn once of everything that is not read, with numbers and examples."""
    told = [f"{len(paths)} {reason} ({some_names(paths, 3)})" for reason, paths in left_out.items() if paths]
    if told:
        warnings.warn(f"{where}: not read are {'; '.join(told)}.", stacklevel=2)


def some_names(names: Sequence[str], count: int = 8) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


@dataclass(frozen=True)
class Classes:
    """Images by class folder.

    The class is the first folder below the root, as in torchvision's ``ImageFolder``: images in folders below that belong to
    it too.

    Attributes:
        names: Paths of images, in `natural_order`.
        labels: Of each image.
        class_to_idx: ``{folder: label}``.
    """

    names: list[str]
    labels: list[int]
    class_to_idx: dict[str, int]

    @classmethod
    def of(cls, root: Path, listing: Listing, order: Callable[[str], Any]) -> "Classes":
        """Give every image its label, and report what is left out.

        Args:
            root: Where the images are, for messages.
            listing: They.
            order: Sort key of the class names.

        Raises:
            ValueError: No class folders, or one without an image.
        """
        names = [path for path in listing.files if "/" in path]
        folders = [path.partition("/")[0] for path in names]
        left_out: dict[str, Sequence[str]] = dict(listing.left_out)
        left_out[OTHER_TYPE] = [path for path in left_out.get(OTHER_TYPE, []) if "/" in path]  # beside classes: a README
        left_out[NO_CLASS] = [path for path in listing.files if "/" not in path]
        if not names:
            raise ValueError(f"{root} holds no images in class folders. {_diagnosis(left_out, listing.folders)}")
        _check_no_class_is_empty(root, listing.folders, set(folders), left_out)
        report_left_out(root, left_out)
        deep = [path for path in names if path.count("/") > 1]
        if deep:
            warnings.warn(
                f"{root}: {len(deep)} images are in folders below a class folder ({some_names(deep, 3)}). Their class is the "
                f"first folder, {deep[0].partition('/')[0]} for {deep[0]}.",
                stacklevel=2,
            )
        class_to_idx = {name: label for label, name in enumerate(sorted(set(folders), key=order))}
        return cls(names, [class_to_idx[folder] for folder in folders], class_to_idx)


def _check_no_class_is_empty(root: Path, folders: Iterable[str], known: set[str], left_out: LeftOut) -> None:
    for folder in folders:
        if folder not in known:
            inside = {reason: [p for p in paths if f"{p}/".startswith(f"{folder}/")] for reason, paths in left_out.items()}
            raise ValueError(
                f"The class folder {root / folder} holds no image, and would shift the labels of the classes after it; "
                f"fill it, or remove it here and in every other split. {_diagnosis(inside, [])}".rstrip()
            )


def _diagnosis(left_out: LeftOut, folders: Sequence[str]) -> str:
    """What is there instead of images."""
    told = [f"{len(paths)} {reason} ({some_names(paths, 3)})" for reason, paths in left_out.items() if paths]
    if not told:
        return f"Its folders hold no files: {some_names(folders)}." if folders else ""
    known = " ".join(sorted(IMAGE_EXTENSIONS)) if left_out.get(OTHER_TYPE) else ""
    return f"It holds {'; '.join(told)}." + (f" Images end in {known}." if known else "")


class ClassFolders(Reader):
    """A folder per class.

    Args:
        root: Holds the class folders.
        order: Sort key of the class names. Default: natural order.

    Raises:
        ValueError: No class folders, or one without an image.
    """

    def __init__(self, root: Path, order: Callable[[str], Any] = natural_order) -> None:
        super().__init__()
        found = Classes.of(root, list_images(root), order)
        self.root, self.labels, self.class_to_idx = root, found.labels, found.class_to_idx
        self._names = found.names

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open(self.root / self._names[index], "rb"), self.labels[index]

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, index: int) -> tuple[str, int, int]:
        """Name, label and size in bytes; -1 for a file that is not there."""
        try:
            size = os.stat(f"{self.root}/{self._names[index]}").st_size
        except OSError:
            size = -1
        return self._names[index], self.labels[index], size

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        return str(self.root / name) if absolute else os.path.basename(name) if basename else name


class ClassTar(Reader):
    """Class folders in an uncompressed tar archive, or a tar archive per class in one.

    Folders that hold all class folders are left away: ``train/cats/0.png`` beside ``train/dogs/0.png`` are cats and dogs.

    Args:
        file: The archive.
        order: Sort key of the class names. Default: natural order.

    Raises:
        ValueError: No archive, a damaged one, or one without images of classes.
    """

    def __init__(self, file: Path, order: Callable[[str], Any] = natural_order) -> None:
        super().__init__()
        try:
            with tarfile.open(file, "r:") as tar:
                places, links = _members(tar)
                whole = tar.offset < file.stat().st_size  # there is an end mark
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"{file} is no whole uncompressed tar archive: {error}. Pack or copy it again.") from error
        if not whole:
            raise ValueError(f"{file} has no end mark and seems to be cut off. Pack or copy it again.")
        places = _without_common_folders(places)
        listing = Listing()
        listing.left_out[NOT_A_FILE] += filter(is_image, links)
        for path in places:
            *above, name = path.split("/")
            hidden = next((i for i, part in enumerate(above) if is_hidden(part)), None)
            if hidden is None:
                listing.add_file(path, name)
            elif is_image(name):
                listing.left_out[HIDDEN_IMAGE].append(path)
        found = Classes.of(file, listing.sort(), order)
        self.root, self.labels, self.class_to_idx = file, found.labels, found.class_to_idx
        self._names, self._places = found.names, [places[name] for name in found.names]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        start, size = self._places[index]
        with self.root.open("rb") as file:  # opened anew: a file shared by processes would have one position
            file.seek(start)
            return io.BytesIO(file.read(size)), self.labels[index]

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, index: int) -> tuple[str, int, int]:
        """Name, label and size in bytes."""
        return self._names[index], self.labels[index], self._places[index][1]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        return f"{self.root}/{name}" if absolute else os.path.basename(name) if basename else name


def _members(tar: tarfile.TarFile, above: str = "", start: int = 0) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """``{path: (first byte, size)}`` of the regular files, those of archives inside too; and paths of links and the like."""
    places: dict[str, tuple[int, int]] = {}
    others = []
    for member in tar:
        path = _path(above + member.name)
        content = tar.extractfile(member) if path.endswith(".tar") and not is_hidden(os.path.basename(path)) else None
        if content is not None:
            with tarfile.open(fileobj=content, mode="r:") as inner:
                inside, links = _members(inner, path.removesuffix(".tar") + "/", start + member.offset_data)
            places |= inside
            others += links
        elif member.isreg() and not member.issparse():
            places[path] = (start + member.offset_data, member.size)
        elif member.islnk() and _path(above + member.linkname) in places:  # a second name of a file
            places[path] = places[_path(above + member.linkname)]
        elif not member.isdir():
            others.append(path)
    return places, others


def _path(name: str) -> str:
    return os.path.normpath(name).replace(os.sep, "/").lstrip("/")


def _without_common_folders(places: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    images = [path for path in places if is_image(path) and not any(map(is_hidden, path.split("/")))]
    while images and len({path.partition("/")[0] for path in images}) == 1 and all(path.count("/") > 1 for path in images):
        common = images[0].partition("/")[0] + "/"
        places = {path.removeprefix(common): place for path, place in places.items() if path.startswith(common)}
        images = [path.removeprefix(common) for path in images]
    return places
