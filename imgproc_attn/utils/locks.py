"""A lock on a folder, which ends with the process that holds it, however that process ends."""

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".imgproc-attn.lock"

# The system's locks belong to the process: they do not tell two of its threads apart.
_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep ``folder`` to this process. It is made if need be, and removed again if it stays empty.

    The lock is a POSIX record lock on a file inside. The system lifts it when the process ends, also when it is killed, and
    child processes such as a loader's workers do not inherit it. Where the system has no such locks, a warning says so.

    Args:
        folder: A folder that one process at a time may write to.

    Raises:
        ValueError: Another process, or another thread of this one, holds it; the message names the holder.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file, process = folder.resolve() / LOCK, os.getpid()
    if file in _held:
        raise _in_use(folder, _this_process())
    descriptor = _lock(folder, file)
    _held.add(file)
    try:
        yield
    finally:
        if os.getpid() == process:  # a forked child has a copy of this frame, but not of the lock
            _held.discard(file)
            _unlock(file, descriptor)
            with suppress(OSError):  # of folders that are not empty
                for place in made:
                    place.rmdir()


def _lock(folder: Path, file: Path) -> int | None:
    """The descriptor that holds the lock; None where files cannot be locked."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a folder to read from: to write to it fails with a message of its own
            return None
        if _acquire(folder, descriptor) is None:
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _this_process().encode(errors="replace"))
                return descriptor
        os.close(descriptor)  # the last holder removed the file in between


def _acquire(folder: Path, descriptor: int) -> int | None:
    """Lock an open file, and return it; None, and it is closed, where files cannot be locked."""
    try:
        if fcntl is None:
            raise OSError("this system has no fcntl")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        os.close(descriptor)
        raise _in_use(folder, holder or "another process") from None
    except OSError as error:
        os.close(descriptor)
        warnings.warn(
            f"{folder} cannot be locked ({error}). Make sure that no other process writes to it at the same time.",
            stacklevel=5,
        )
        return None
    return descriptor


def _unlock(file: Path, descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):  # before it is free, or the next holder's file would go
            file.unlink()
        os.close(descriptor)


def _this_process() -> str:
    command = " ".join(" ".join(sys.argv).split())[:200]
    return f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S} ({command})"


def _in_use(folder: Path, holder: str) -> ValueError:
    return ValueError(
        f"{folder} must be free, but it is in use by {holder}. Wait for it to end, stop it, or give another --output."
    )
