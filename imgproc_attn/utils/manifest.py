"""Which files of a folder this package wrote, and whether they are still as it wrote them."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from .io import naming, read_json, unfinished, write_json
from .locks import locked

MANIFEST = "manifest.json"


class _Content(TypedDict):
    files: dict[str, list[str]]


class Manifest:
    """The list of this package's own files in a folder, kept there as ``manifest.json``.

    All other files are somebody else's: they are neither overwritten nor removed. A file is listed before it is written. With
    a checksum, it is listed under that of its old content and that of its new one until it is written the next time, so that
    it is known after a kill at any moment.

    Args:
        folder: The folder; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, str] = {}  # checksums of what this object has written, and nobody else since

    @property
    def files(self) -> dict[str, list[str]]:
        """Possible SHA-256 checksums by name, none where there is no need for one.

        Raises:
            ValueError: The manifest is damaged, or somebody else's.
        """
        remedy = "Move it away with the files that it lists, or give another --output."
        file = self.folder / MANIFEST
        return read_json(file, _Content, remedy)["files"] if file.is_file() else {}

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Make sure that files of these names are this package's own, or are not there.

        Raises:
            FileExistsError: Some are somebody else's.
        """
        own = self.files
        foreign = [name for name in names if name not in own and os.path.lexists(self.folder / name)]
        if foreign:
            told = ", ".join(foreign[:5]) + ", …" * (len(foreign) > 5)
            raise FileExistsError(
                f"{self.folder} must not hold {told}, which would be overwritten, but which {MANIFEST} does not list as "
                "written by imgproc-attn. Move such files away, or give another --output."
            )

    def claim(self, names: Iterable[str]) -> None:
        """List files that are about to be written; as `refuse_foreign`."""
        names = list(names)
        self.refuse_foreign(names)
        self._list({name: [] for name in names} | self.files)

    def write(self, files: Mapping[str, Callable[[Path], Any]]) -> None:
        """Write files and list their checksums. Each takes the place of the one before it when all are written, in this order.

        Args:
            files: By name, what fills each, as `write_atomically` takes it.

        Raises:
            FileExistsError: As `refuse_foreign`.
        """
        self.refuse_foreign(files)
        with ExitStack() as stack:  # which is left in reverse order
            waiting = {name: stack.enter_context(unfinished(self.folder / name)) for name in reversed(list(files))}
            for name, write in files.items():
                with naming(self.folder / name):
                    write(waiting[name])
            new, known = {name: _checksum(file) for name, file in waiting.items()}, self.files
            old = {name: [self._written[name]] if name in self._written else known.get(name, []) for name in new}
            self._list(known | {name: list(dict.fromkeys([*old[name], new[name]])) for name in new})
            for name in new:
                self._written.pop(name, None)
        self._written.update(new)

    def check(self, name: str, remedy: str) -> None:
        """Make sure that a file is as it was written.

        Args:
            name: A file of `write`.
            remedy: What the user can do if it is not, a whole sentence.

        Raises:
            ValueError: It is missing, or its content has changed.
        """
        file = self.folder / name
        if not file.is_file():
            raise ValueError(f"{file} must be there as imgproc-attn wrote it, but it is missing. {remedy}")
        if _checksum(file) not in self.files.get(name, []):
            raise ValueError(
                f"{file} must be as imgproc-attn wrote it, but its content has changed (SHA-256 in {MANIFEST}). {remedy}"
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, in this order, as far as they are this package's own; then list what is left."""
        own = self.files
        for name in names:
            if name in own:
                (self.folder / name).unlink(missing_ok=True)
                self._written.pop(name, None)
        self.settle()

    def settle(self) -> None:
        """List files that exist, and no others; without any, the manifest goes."""
        self._list({name: sums for name, sums in self.files.items() if (self.folder / name).exists()})

    def _list(self, files: Mapping[str, list[str]]) -> None:
        if files:
            write_json(self.folder / MANIFEST, {"files": files})
        else:
            (self.folder / MANIFEST).unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Keep a folder to this process, and list files that it writes; in the end, those that it has written.

    Raises:
        FileExistsError: The folder holds some that are somebody else's.
        ValueError: Another process writes to it.
    """
    with locked(folder):
        manifest = Manifest(folder)
        manifest.claim(names)
        try:
            yield
        finally:
            manifest.settle()


def check_listed(file: Path, remedy: str) -> None:
    """As `Manifest.check`, if a manifest in the file's folder, or in the one above, lists its checksum."""
    for folder in file.absolute().parents[:2]:
        manifest, name = Manifest(folder), file.absolute().relative_to(folder).as_posix()
        listed: list[str] = []
        with suppress(ValueError):  # somebody else's
            listed = manifest.files.get(name, [])
        if listed:
            manifest.check(name, remedy)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
