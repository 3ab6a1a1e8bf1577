"""Errors of commands and jobs: one line for errors that the user can fix, a traceback for errors in the code."""

import errno

__all__ = ["REMEDIES", "USER_ERRORS", "one_line"]

# Bad input raises these errors. Others, such as KeyError, are mistakes in the code and keep their traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MemoryError)

REMEDIES = {
    errno.ENOENT: "Check the path",
    errno.EACCES: "Check your permissions",
    errno.EPERM: "Check your permissions",
    errno.EROFS: "Choose another folder: this one is mounted read-only",
    errno.ENOSPC: "Make room on the disk, then try again",
    errno.EDQUOT: "Make room or raise your quota, then try again",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer --workers",
    errno.ENFILE: "Close other programs: the machine has too many open files",
    errno.ENOMEM: "Close other programs, or lower --batch-size",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, with a remedy.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "model.pt"))
        'model.pt: No such file or directory. Check the path.'
    """
    message = str(error)
    if isinstance(error, MemoryError):
        return f"There is not enough memory. Lower --batch-size or --workers. {message}".strip()
    if isinstance(error, OSError) and error.errno is not None:  # The operating system raised it.
        paths = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        remedy = REMEDIES.get(error.errno, "Check that the file is readable and that its disk works")
        return f"{paths}{': ' * bool(paths)}{error.strerror or message}. {remedy}."
    if "Original Traceback" in message:  # The error comes from a worker process, whose message ends with it.
        message = message.rstrip().splitlines()[-1].partition(": ")[2]
    return message or type(error).__name__
