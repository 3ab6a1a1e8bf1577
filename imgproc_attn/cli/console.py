"""Standard output and standard error of a command: any encoding, and readers that leave early."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper, UnsupportedOperation

from ..utils.errors import one_line

CLOSED_PIPE = 141  # 128 + SIGPIPE: the status that a shell reports for a Unix tool whose reader has closed the pipe


@contextmanager
def console() -> Iterator[None]:
    r"""Print whatever a command prints, each line at once, also into pipes and files.

    Characters that the encoding of an output lacks are printed as escapes such as ``\u2026``, unless ``PYTHONIOENCODING`` names
    another way. A command whose reader has closed the pipe (``| head``) ends without a message.

    Raises:
        SystemExit: Status 141 after a closed pipe, status 2 if output cannot be written, as on a full disk.
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
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):
        return True  # Windows cannot tell
    poll = select.poll()
    for stream in _streams():
        try:
            poll.register(stream.fileno(), 0)
        except UnsupportedOperation:  # no file, as in tests
            continue
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _discard_output() -> None:
    """Write nothing more to outputs that fail, so that the interpreter can end without complaint."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _streams() -> list[TextIOWrapper]:
    """Return standard output and standard error, without those that are closed or replaced, as in notebooks."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper) and not stream.closed]
