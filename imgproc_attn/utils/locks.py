"""Lock on a folder. The lock ends with the process that holds it, even if the process is killed."""

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
except ImportError:  # Windows does not have it.
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "locked"]

LOCK = ".imgproc-attn.lock"  # Name of the lock file in a folder.

# POSIX locks belong to a process and do not exclude its other threads. This set does.
_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process. The folder is created if it does not exist, and removed again if it stays empty.

    The lock is a POSIX record lock on a file in the folder. The system releases it when the process ends or is killed. Child
    processes, such as the workers of a data loader, do not inherit it. A system without such locks causes a warning.

    Args:
        folder: Folder that only one process at a time may write to.

    Raises:
        ValueError: Another process, or another thread of this process, holds the lock. The message names the holder.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file, process = folder.resolve() / LOCK, os.getpid()
    if file in _held:
        raise _in_use(folder, _this_process())
    descriptor = _lock(folder, file)
    _held.add(file)
    try:
        yield
    finally:
        if os.getpid() == process:  # A forked child has a copy of this frame, but does not hold the lock.
            _held.discard(file)
            _unlock(file, descriptor)
            with suppress(OSError):  # A folder with files is kept.
                for path in created:
                    path.rmdir()


def _lock(folder: Path, file: Path) -> int | None:
    """Return the file descriptor that holds the lock; None if files cannot be locked."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # The folder is read-only. Writing to it fails later with a clear message.
            return None
        if _acquire(folder, descriptor) is None:
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _this_process().encode(errors="replace"))
                return descriptor
        os.close(descriptor)  # The last holder removed the file in the meantime, so try again.


def _acquire(folder: Path, descriptor: int) -> int | None:
    """Lock an open file and return its descriptor. If files cannot be locked, close it and return None."""
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
        with suppress(OSError):  # Unlink before the release, or the file of the next holder would be removed.
            file.unlink()
        os.close(descriptor)


def _this_process() -> str:
    command = " ".join(" ".join(sys.argv).split())[:200]
    return f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S} ({command})"


def _in_use(folder: Path, holder: str) -> ValueError:
    return ValueError(
        f"{folder} must be free, but it is in use by {holder}. Wait for it to end, stop it, or give another --output."
    )
