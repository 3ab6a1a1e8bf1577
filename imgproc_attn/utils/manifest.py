"""Manifest of a folder: the files that this package wrote there, with checksums that detect changes."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from .io import naming, read_json, unfinished, write_json
from .locks import locked

__all__ = ["MANIFEST", "Manifest", "check_listed", "claimed"]

MANIFEST = "manifest.json"


class _Content(TypedDict):
    files: dict[str, list[str]]


class Manifest:
    """List of the files that this package wrote to a folder, stored there as ``manifest.json``.

    Files that are not listed belong to somebody else. They are neither overwritten nor removed.

    A file is listed before it is written. Its entry holds the checksums of its old and its new content until the next write.
    So the file is recognized even if the process is killed at any time.

    Args:
        folder: Folder of the manifest, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, str] = {}  # Checksums of the files that this object wrote last.

    @property
    def files(self) -> dict[str, list[str]]:
        """Valid SHA-256 checksums per file name. The list is empty for files without a checksum.

        Raises:
            ValueError: The manifest is damaged, or another program wrote it.
        """
        remedy = "Move it away with the files that it lists, or give another --output."
        file = self.folder / MANIFEST
        return read_json(file, _Content, remedy)["files"] if file.is_file() else {}

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Check that existing files of these names are listed.

        Args:
            names: Paths relative to the folder.

        Raises:
            FileExistsError: A file exists that is not listed.
        """
        own = self.files
        foreign = [name for name in names if name not in own and os.path.lexists(self.folder / name)]
        if foreign:
            shown = ", ".join(foreign[:5]) + ", …" * (len(foreign) > 5)
            raise FileExistsError(
                f"{self.folder} must not hold {shown}, which would be overwritten, but which {MANIFEST} does not list as "
                "written by imgproc-attn. Move such files away, or give another --output."
            )

    def claim(self, names: Iterable[str]) -> None:
        """List files before they are written.

        Args:
            names: Paths relative to the folder.

        Raises:
            FileExistsError: As in `refuse_foreign`.
        """
        names = list(names)
        self.refuse_foreign(names)
        self._list({name: [] for name in names} | self.files)

    def write(self, files: Mapping[str, Callable[[Path], Any]]) -> None:
        """Write files and list their checksums. The old files are replaced, in order, only when all new files are written.

        Args:
            files: ``{name: function that writes the content to the path that it gets}``, see `write_atomically`.

        Raises:
            FileExistsError: As in `refuse_foreign`.
        """
        self.refuse_foreign(files)
        with ExitStack() as stack:  # The stack exits in reverse order, so the files enter in reverse order.
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
        """Check that a file is unchanged since it was written.

        Args:
            name: Name of a file that `write` wrote.
            remedy: Sentence that tells the user what to do if the file has changed.

        Raises:
            ValueError: The file is missing, or its content has changed.
        """
        file = self.folder / name
        if not file.is_file():
            raise ValueError(f"{file} must be there as imgproc-attn wrote it, but it is missing. {remedy}")
        if _checksum(file) not in self.files.get(name, []):
            raise ValueError(
                f"{file} must be as imgproc-attn wrote it, but its content has changed (SHA-256 in {MANIFEST}). {remedy}"
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove the listed files among ``names``, in order, and update the manifest."""
        own = self.files
        for name in names:
            if name in own:
                (self.folder / name).unlink(missing_ok=True)
                self._written.pop(name, None)
        self.settle()

    def settle(self) -> None:
        """Drop files that do not exist from the list. An empty manifest is removed."""
        self._list({name: sums for name, sums in self.files.items() if (self.folder / name).exists()})

    def _list(self, files: Mapping[str, list[str]]) -> None:
        if files:
            write_json(self.folder / MANIFEST, {"files": files})
        else:
            (self.folder / MANIFEST).unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Lock a folder and list the files that the block may write. At the end, only existing files stay listed.

    Args:
        folder: Folder to write to.
        names: Paths of the files relative to the folder.

    Raises:
        FileExistsError: As in `Manifest.refuse_foreign`.
        ValueError: Another process has locked the folder.
    """
    with locked(folder):
        manifest = Manifest(folder)
        manifest.claim(names)
        try:
            yield
        finally:
            manifest.settle()


def check_listed(file: Path, remedy: str) -> None:
    """Check a file as in `Manifest.check` if a manifest in its folder or the parent folder lists its checksum."""
    for folder in file.absolute().parents[:2]:
        manifest, name = Manifest(folder), file.absolute().relative_to(folder).as_posix()
        listed: list[str] = []
        with suppress(ValueError):  # Another program may use the same file name.
            listed = manifest.files.get(name, [])
        if listed:
            manifest.check(name, remedy)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
