"""Standard output and standard error of a command, for any encoding and for readers that stop early."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper, UnsupportedOperation

from ..utils.errors import one_line

__all__ = ["console", "reader_left"]

CLOSED_PIPE = 141  # 128 + SIGPIPE: the status that a shell reports for a Unix tool whose reader has closed the pipe


@contextmanager
def console() -> Iterator[None]:
    r"""Print every line of a command at once, also to pipes and files.

    Characters that the encoding of an output lacks are printed as escapes such as ``\u2026``, unless ``PYTHONIOENCODING``
    selects another error handler. A command whose reader has closed the pipe (``| head``) ends without a message.

    Raises:
        SystemExit: Status 141 after a closed pipe, status 2 if output cannot be written, for example on a full disk.
    """
    for stream in _streams():
        chosen = stream.errors not in ("strict", "surrogateescape")
        stream.reconfigure(errors=stream.errors if chosen else "backslashreplace", line_buffering=True)
    try:
        try:
            yield
        finally:
            for stream in _streams():
                stream.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        _discard_output()
        print(f"imgproc-attn: output: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def reader_left() -> bool:
    """Return whether standard output or standard error is a pipe whose reader has closed it."""
    if not hasattr(select, "poll"):
        return True  # Windows has no poll, so a closed pipe cannot be told from other errors.
    poll = select.poll()
    for stream in _streams():
        try:
            poll.register(stream.fileno(), 0)
        except UnsupportedOperation:  # The stream is not a file, for example in tests.
            continue
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _discard_output() -> None:
    """Redirect outputs that fail to the null device, so that the interpreter ends without an error message."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _streams() -> list[TextIOWrapper]:
    """Return standard output and standard error, except streams that are closed or replaced, as in notebooks."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper) and not stream.closed]
