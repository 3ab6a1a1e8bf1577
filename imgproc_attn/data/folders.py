"""Find the images of a folder or a tar archive, and the class of each. All readers of files use these rules."""

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

__all__ = [
    "ClassFolders",
    "ClassTar",
    "Classes",
    "Listing",
    "is_hidden",
    "is_image",
    "list_images",
    "natural_order",
    "report_left_out",
    "some_names",
]

FOLDERS_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
HIDDEN = frozenset({*FOLDERS_OF_SYSTEMS, "Thumbs.db", "desktop.ini"})
# Reasons to skip a path. They complete the phrase "3 …" in messages.
HIDDEN_IMAGE, HIDDEN_FOLDER = "hidden images", "hidden folders"
OTHER_TYPE, NOT_A_FILE = "files of other types", "images that are not regular files"
READ_BEFORE, NO_CLASS = "folders already read through another path", "images outside of class folders"

LeftOut = Mapping[str, Sequence[str]]


def natural_order(name: str) -> tuple[Any, ...]:
    """Return the sort key of natural order: numbers by value, letters without case, ties by the exact name.

    The order is total. It does not depend on the locale, the hash seed, the order of directory entries or the Unicode
    normalization.

    Example:
        >>> sorted(["image10", "Image2", "image1"], key=natural_order)
        ['image1', 'Image2', 'image10']
    """
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name).lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a system or hidden file or folder, such as ``.ipynb_checkpoints`` or ``__MACOSX``."""
    return name.startswith(".") or name in HIDDEN


def is_image(name: str) -> bool:
    """Return whether the file extension is one of `IMAGE_EXTENSIONS`."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


@dataclass
class Listing:
    """Images of a folder or an archive.

    Attributes:
        files: Paths relative to the folder, with ``/`` as separator, in `natural_order`.
        folders: Names of the folders directly below it.
        left_out: Skipped paths, ``{reason: paths}``.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_file(self, path: str, name: str) -> None:
        """Add a regular file to the images or to the skipped paths."""
        if name == MANIFEST:  # Results of this package may lie in the folder. Their manifest is not worth a warning.
            return
        if not is_hidden(name):
            (self.files if is_image(name) else self.left_out[OTHER_TYPE]).append(path)
        elif is_image(name):
            self.left_out[HIDDEN_IMAGE].append(path)

    def sort(self) -> "Listing":
        """Sort all paths in `natural_order`."""
        for paths in (self.files, self.folders, *self.left_out.values()):
            paths.sort(key=natural_order)
        return self


def list_images(root: Path, deep: bool = True) -> Listing:
    """List the image files of a folder.

    Links to folders are followed, and each folder is read only once. Folders that are reachable without a link are read
    first. Linked folders follow, those nearest to the root first.

    Args:
        root: Folder to search.
        deep: Also search the subfolders.

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
    except OSError:  # The entry is a link to itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return True for files and for broken links. A broken link counts as an image, and reading it names the path."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def report_left_out(where: Path, left_out: LeftOut) -> None:
    """Warn once about all skipped paths, with counts and examples."""
    if any(left_out.values()):
        warnings.warn(f"{where}: skipped {_summary(left_out)}.", stacklevel=2)


def _summary(left_out: LeftOut) -> str:
    """Return the number of skipped paths per reason, with examples."""
    return "; ".join(f"{len(paths)} {reason} ({some_names(paths, 3)})" for reason, paths in left_out.items() if paths)


def some_names(names: Sequence[str], count: int = 8) -> str:
    """Join the first ``count`` names for a message.

    Example:
        >>> some_names(["cat", "dog", "fox"], count=2)
        'cat, dog, …'
    """
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


@dataclass(frozen=True)
class Classes:
    """Images with the labels of their class folders.

    The class is the first folder below the root, as in torchvision's ``ImageFolder``. Images in its subfolders belong to
    it too.

    Attributes:
        names: Paths of the images, in `natural_order`.
        labels: Label of each image.
        class_to_idx: ``{folder: label}``.
    """

    names: list[str]
    labels: list[int]
    class_to_idx: dict[str, int]

    @classmethod
    def of(cls, root: Path, listing: Listing, order: Callable[[str], Any]) -> "Classes":
        """Label every image of a listing, and warn about the skipped paths.

        Args:
            root: Folder or archive of the images, for messages.
            listing: Images to label.
            order: Sort key of the class names.

        Raises:
            ValueError: There are no class folders, or one holds no image.
        """
        names = [path for path in listing.files if "/" in path]
        folders = [path.partition("/")[0] for path in names]
        left_out: dict[str, Sequence[str]] = dict(listing.left_out)
        # Files beside the class folders, such as a README, are expected and not worth a warning.
        left_out[OTHER_TYPE] = [path for path in left_out.get(OTHER_TYPE, []) if "/" in path]
        left_out[NO_CLASS] = [path for path in listing.files if "/" not in path]
        if not names:
            problem = f"{root} must hold images in class folders, got none. {_diagnosis(left_out, listing.folders)}".rstrip()
            raise ValueError(f"{problem} Put the images of each class into one folder.")
        _check_no_class_is_empty(root, listing.folders, set(folders), left_out)
        report_left_out(root, left_out)
        deep = [path for path in names if path.count("/") > 1]
        if deep:
            warnings.warn(
                f"{root}: {len(deep)} images are in subfolders of a class folder ({some_names(deep, 3)}). Their class is the "
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
                f"The class folder {root / folder} must hold an image, got none. Fill it, or remove it here and in every "
                f"other split: it would shift the labels of the classes after it. {_diagnosis(inside, [])}".rstrip()
            )


def _diagnosis(left_out: LeftOut, folders: Sequence[str]) -> str:
    """Describe the content of a folder that holds no images."""
    summary = _summary(left_out)
    if not summary:
        return f"Its folders hold no files: {some_names(folders)}." if folders else ""
    known = " ".join(sorted(IMAGE_EXTENSIONS)) if left_out.get(OTHER_TYPE) else ""
    return f"It holds {summary}." + (f" Images end in {known}." if known else "")


class ClassFolders(Reader):
    """Reader of one folder per class.

    Args:
        root: Folder that holds the class folders.
        order: Sort key of the class names. Default: natural order.

    Raises:
        ValueError: There are no class folders, or one holds no image.
    """

    def __init__(self, root: Path, order: Callable[[str], Any] = natural_order) -> None:
        super().__init__()
        classes = Classes.of(root, list_images(root), order)
        self.root, self.labels, self.class_to_idx = root, classes.labels, classes.class_to_idx
        self._names = classes.names

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open(self.root / self._names[index], "rb"), self.labels[index]

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, index: int) -> tuple[str, int, int]:
        """Return name, label and size in bytes. The size of a missing file is -1."""
        try:
            size = os.stat(f"{self.root}/{self._names[index]}").st_size
        except OSError:
            size = -1
        return self._names[index], self.labels[index], size

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        return str(self.root / name) if absolute else os.path.basename(name) if basename else name


class ClassTar(Reader):
    """Reader of an uncompressed tar archive of class folders, or of one inner tar archive per class.

    A folder that holds all class folders is dropped: ``train/cats/0.png`` and ``train/dogs/0.png`` have the classes ``cats``
    and ``dogs``.

    Args:
        file: Tar archive.
        order: Sort key of the class names. Default: natural order.

    Raises:
        ValueError: The file is not a tar archive, is damaged, or holds no images in class folders.
    """

    def __init__(self, file: Path, order: Callable[[str], Any] = natural_order) -> None:
        super().__init__()
        try:
            with tarfile.open(file, "r:") as tar:
                spans, links = _members(tar)
                is_complete = tar.offset < file.stat().st_size  # An end mark follows the last member.
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"{file} must be a complete, plain tar file, got {error}. Pack or copy it again.") from error
        if not is_complete:
            raise ValueError(f"{file} must be a complete tar file, got one without an end mark. Pack or copy it again.")
        spans = _without_common_folders(spans)
        listing = Listing()
        listing.left_out[NOT_A_FILE] += filter(is_image, links)
        for path in spans:
            *above, name = path.split("/")
            hidden = next((i for i, part in enumerate(above) if is_hidden(part)), None)
            if hidden is None:
                listing.add_file(path, name)
            elif is_image(name):
                listing.left_out[HIDDEN_IMAGE].append(path)
        classes = Classes.of(file, listing.sort(), order)
        self.root, self.labels, self.class_to_idx = file, classes.labels, classes.class_to_idx
        self._names, self._spans = classes.names, [spans[name] for name in classes.names]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        start, size = self._spans[index]
        with self.root.open("rb") as file:  # Processes that shared one open file would also share its position.
            file.seek(start)
            return io.BytesIO(file.read(size)), self.labels[index]

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, index: int) -> tuple[str, int, int]:
        """Return name, label and size in bytes."""
        return self._names[index], self.labels[index], self._spans[index][1]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        return f"{self.root}/{name}" if absolute else os.path.basename(name) if basename else name


def _members(tar: tarfile.TarFile, above: str = "", start: int = 0) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return ``{path: (first byte, size)}`` of the regular files, inner archives included, and the paths of other members."""
    spans: dict[str, tuple[int, int]] = {}
    others = []
    for member in tar:
        path = _path(above + member.name)
        content = tar.extractfile(member) if path.endswith(".tar") and not is_hidden(os.path.basename(path)) else None
        if content is not None:
            with tarfile.open(fileobj=content, mode="r:") as inner:
                inside, links = _members(inner, path.removesuffix(".tar") + "/", start + member.offset_data)
            spans |= inside
            others += links
        elif member.isreg() and not member.issparse():
            spans[path] = (start + member.offset_data, member.size)
        elif member.islnk() and _path(above + member.linkname) in spans:  # A hard link is a second name of a file.
            spans[path] = spans[_path(above + member.linkname)]
        elif not member.isdir():
            others.append(path)
    return spans, others


def _path(name: str) -> str:
    return os.path.normpath(name).replace(os.sep, "/").lstrip("/")


def _without_common_folders(spans: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    images = [path for path in spans if is_image(path) and not any(map(is_hidden, path.split("/")))]
    while images and len({path.partition("/")[0] for path in images}) == 1 and all(path.count("/") > 1 for path in images):
        common = images[0].partition("/")[0] + "/"
        spans = {path.removeprefix(common): span for path, span in spans.items() if path.startswith(common)}
        images = [path.removeprefix(common) for path in images]
    return spans
