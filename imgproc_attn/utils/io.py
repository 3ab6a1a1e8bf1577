"""Writing files so that a crash leaves the old content or the new, never half of it."""

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

UNFINISHED = ".imgproc-attn-unfinished-"


def slug(name: str) -> str:
    """``name`` as a part of file names: letters, digits, dots, and ``-`` for the rest."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name).strip("-") if name.strip(".") else "-"


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash during `write_atomically`, or in a folder of that name, left in ``folder`` itself."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def printable(text: str) -> str:
    """``text`` with the bytes of file names that are not UTF-8 written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cannot_write(path: Path, error: Exception) -> OSError:
    """Describe in one line why ``path`` cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    remedy = "Check its folder and your permissions, or choose another output"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        there = next(parent for parent in path.absolute().parents if parent.exists())
        remedy = f"{shutil.disk_usage(there).free / 2**20:.1f} MiB are free: make room or raise your quota, then try again"
    return OSError(f"{path} cannot be written: {reason}. {remedy}.")


def check_output_folder(folder: Path) -> None:
    """Try to write into ``folder``, which need not exist; nothing is left behind. Commands do so before they work.

    Raises:
        OSError: It is a file or below one, cannot be made, or cannot be written to.
    """
    path = Path(os.path.abspath(folder))
    try:
        there = next(parent for parent in (path, *path.parents) if _is_there(parent))
        if not there.is_dir():
            found = "a broken link" if there.is_symlink() else "a file"
            raise NotADirectoryError(f"The output {folder} must be a folder, but {there} is {found}. Choose another output.")
        with tempfile.TemporaryDirectory(dir=there, prefix=UNFINISHED) as trial:
            place = Path(trial) / path.relative_to(there)
            place.mkdir(parents=True, exist_ok=True)
            (place / "trial").write_bytes(bytes(4096))
    except OSError as error:
        raise error if error.errno is None else cannot_write(folder, error) from None


def check_output_file(file: Path, mark: str = "") -> None:
    """Try whether ``file`` can be written, as `check_output_folder`.

    Args:
        file: Need not exist.
        mark: A text near the beginning of all that the caller writes: a file without it is not overwritten.

    Raises:
        OSError: It is a folder or a device, its folder cannot be written to, or it is somebody else's.
    """
    if os.path.exists(file) and not file.is_file():
        raise OSError(f"The output {file} must be a file, but is a folder or a device. Choose another output.")
    if file.is_file() and file.stat().st_size > 0:
        with file.open("rb") as content:
            if mark.encode() not in content.read(4096):
                raise FileExistsError(
                    f"The output {file} must not exist, or be a file that this command wrote; it would be overwritten. "
                    "Choose another output."
                )
    check_output_folder(file.parent)


def _is_there(path: Path) -> bool:
    """True also for a link to nothing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system within name ``path``, and say what to do."""
    try:
        yield
    except OSError as error:
        raise error if error.errno is None else cannot_write(path, error) from error


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to be filled, which takes its place at the end, unless there is an error.

    Args:
        path: Where the file shall be; its folder is made if need be.

    Yields:
        The path of the empty file, with the same suffix.

    Raises:
        OSError: It cannot be written; what ``path`` held before is whole.
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
    """Let ``write`` fill the file that `unfinished` gives."""
    with unfinished(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """``text`` in UTF-8; what it cannot hold is written as by `printable`."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """``rows``, the first of them the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def dump_json(content: Any, path: Path) -> None:
    """Strict, indented JSON (a NaN is an error, not a token other programs choke on), into a file that need not stay whole."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """``content`` as `dump_json` writes it, atomically."""
    write_atomically(path, partial(dump_json, content))


def read_json(
    path: Path, form: Any = dict[str, Any], remedy: str = "Restore it, or remove it and run the command again."
) -> Any:
    """Return what a JSON file of this package holds.

    Args:
        path: The file.
        form: Type of the content, as pydantic takes it: ``dict[str, float]``, a ``TypedDict`` of `typing_extensions`.
        remedy: What the user can do about a damaged file, a whole sentence.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, cut off, not JSON, or of another form; the message names the file and the place in it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = json.loads(path.read_bytes())
        TypeAdapter(form).validate_python(content, strict=True)
        return content  # with what the form does not know
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    except (ValueError, RecursionError) as error:  # of encodings too
        problem = "an empty file" if path.stat().st_size == 0 else f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} must be a JSON file as this package writes it, got {problem}. {remedy}")
