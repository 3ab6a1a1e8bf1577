"""Errors of commands and of jobs: one line for what a user can mend, a traceback for what is wrong in the code."""

import errno

# what bad input raises; others, such as KeyError and AttributeError, are mistakes in the code, and keep their traceback
USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MemoryError)

REMEDIES = {
    errno.ENOENT: "Check the path",
    errno.EACCES: "Check your permissions",
    errno.EPERM: "Check your permissions",
    errno.EROFS: "Choose another place: this one is mounted read-only",
    errno.ENOSPC: "Make room on the disk, then try again",
    errno.EDQUOT: "Make room or raise your quota, then try again",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer --workers",
    errno.ENFILE: "Close other programs: the machine has too many open files",
    errno.ENOMEM: "Close other programs, or lower --batch-size",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def one_line(error: BaseException) -> str:
    """What is wrong, and what to do about it."""
    message = str(error)
    if isinstance(error, MemoryError):
        return f"There is not enough memory. Lower --batch-size or --workers. {message}".strip()
    if isinstance(error, OSError) and error.errno is not None:  # the system's own words
        places = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        remedy = REMEDIES.get(error.errno, "Check that the file is readable and its disk sound")
        return f"{places}{': ' * bool(places)}{error.strerror or message}. {remedy}."
    if "Original Traceback" in message:  # of a loader's process: its last line is the error
        message = message.rstrip().splitlines()[-1].partition(": ")[2]
    return message or type(error).__name__
