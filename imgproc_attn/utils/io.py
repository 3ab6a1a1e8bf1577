"""Atomic file writing: after a crash, a file has either its old or its new content."""

import csv
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

__all__ = [
    "UNFINISHED",
    "cannot_write",
    "check_output_file",
    "check_output_folder",
    "dump_json",
    "naming",
    "printable",
    "read_json",
    "remove_unfinished",
    "slug",
    "unfinished",
    "write_atomically",
    "write_csv",
    "write_json",
    "write_text",
]

UNFINISHED = ".imgproc-attn-unfinished-"  # Prefix of temporary files and folders.


def slug(name: str) -> str:
    """Return ``name`` as a part of file names: its words of letters, digits and dots, joined by ``-``.

    Example:
        >>> slug("bilateral + twicing")
        'bilateral-twicing'
    """
    words = "".join(c if c.isalnum() or c == "." else " " for c in name).split()
    return "-".join(words) if any(word.strip(".") for word in words) else "-"


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that a crash left directly in ``folder``, such as those of `unfinished`."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def printable(text: str) -> str:
    """Return ``text`` with backslash escapes for bytes that are not UTF-8, which file names may hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cannot_write(path: Path, error: Exception) -> OSError:
    """Return the error that explains in one line why ``path`` cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    remedy = "Check its folder and your permissions, or choose another output"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        remedy = f"{shutil.disk_usage(existing).free / 2**20:.1f} MiB are free: make room or raise your quota, then try again"
    return OSError(f"{path} cannot be written: {reason}. {remedy}.")


def check_output_folder(folder: Path) -> None:
    """Check that files can be written to ``folder``. Commands call this before they compute anything.

    Args:
        folder: Folder, which need not exist. The check leaves no file behind.

    Raises:
        OSError: The path or a parent is a file, or the folder cannot be created or written to.
    """
    path = Path(os.path.abspath(folder))
    try:
        existing = next(parent for parent in (path, *path.parents) if _exists(parent))
        if not existing.is_dir():
            kind = "a broken link" if existing.is_symlink() else "a file"
            raise NotADirectoryError(f"The output {folder} must be a folder, but {existing} is {kind}. Choose another output.")
        with tempfile.TemporaryDirectory(dir=existing, prefix=UNFINISHED) as trial:
            inner = Path(trial) / path.relative_to(existing)
            inner.mkdir(parents=True, exist_ok=True)
            (inner / "trial").write_bytes(bytes(4096))
    except OSError as error:
        raise error if error.errno is None else cannot_write(folder, error) from None


def check_output_file(file: Path, mark: str = "") -> None:
    """Check that ``file`` can be written, as in `check_output_folder`.

    Args:
        file: Output file, which need not exist.
        mark: Text near the beginning of all files that the caller writes. A file without it is not overwritten.

    Raises:
        OSError: The path is a folder or a device, its folder cannot be written to, or another program wrote the file.
    """
    if os.path.exists(file) and not file.is_file():
        raise OSError(f"The output {file} must be a file, got a folder or a device. Choose another output.")
    if file.is_file() and file.stat().st_size > 0:
        with file.open("rb") as content:
            if mark.encode() not in content.read(4096):
                raise FileExistsError(
                    f"The output {file} must not exist, or be a file that this command wrote, got another file. Choose another "
                    "output."
                )
    check_output_folder(file.parent)


def _exists(path: Path) -> bool:
    """Return whether a path exists. A broken link exists too."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of the operating system name ``path`` and a remedy."""
    try:
        yield
    except OSError as error:
        raise error if error.errno is None else cannot_write(path, error) from error


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Create an empty temporary file beside ``path``, which replaces ``path`` if the block ends without an error.

    Args:
        path: Final path. Its folder is created if it does not exist.

    Yields:
        Path of the temporary file, with the same suffix.

    Raises:
        OSError: The file cannot be written. The old content of ``path`` is intact.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically.

    Args:
        path: Path of the file.
        write: Function that writes the content to the path that it gets, see `unfinished`.
    """
    with unfinished(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8. Characters that UTF-8 cannot encode are escaped as in `printable`."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file. The first of the rows is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def dump_json(content: Any, path: Path) -> None:
    """Write indented JSON, not atomically. NaN and infinity raise a ValueError, because strict JSON has no token for them."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically, see `dump_json`."""
    write_atomically(path, partial(dump_json, content))


def read_json(
    path: Path, form: Any = dict[str, Any], remedy: str = "Restore it, or remove it and run the command again."
) -> Any:
    """Read and validate a JSON file of this package.

    Args:
        path: Path of the file.
        form: Type of the content that pydantic validates: ``dict[str, float]``, a ``TypedDict`` of `typing_extensions`.
        remedy: Sentence that tells the user what to do about a damaged file.

    Returns:
        The content, including keys that ``form`` does not list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, truncated, not JSON, or of another form. The message names the file and the key.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = json.loads(path.read_bytes())
        TypeAdapter(form).validate_python(content, strict=True)
        return content  # The validated copy would lack the keys that the form does not list.
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    except (ValueError, RecursionError) as error:  # Errors of the encoding are ValueErrors too.
        problem = "an empty file" if path.stat().st_size == 0 else f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} must be a JSON file as this package writes it, got {problem}. {remedy}")
