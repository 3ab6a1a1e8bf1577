"""Writing files so that a crash leaves the old content or the new, never half of it."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

UNFINISHED = ".imgproc-attn-unfinished-"


def slug(name: str) -> str:
    """``name`` as a part of file names: letters, digits, dots, and ``-`` for the rest."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name).strip("-")


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash during `write_atomically`, or in a folder of that name, left in ``folder`` itself."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there.

    Args:
        path: Where the file shall be; its folder is made if need be.
        write: Gets the path of an empty file with the same suffix and fills it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``text`` in UTF-8."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """``rows``, the first of them the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """``content`` as strict, indented JSON (a NaN is an error, not a token other programs choke on)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


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
        return TypeAdapter(form).validate_python(json.loads(path.read_bytes()), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    except (ValueError, RecursionError) as error:  # of encodings too
        problem = "an empty file" if path.stat().st_size == 0 else f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} must be a JSON file as this package writes it, got {problem}. {remedy}")
