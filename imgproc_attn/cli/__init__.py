"""Console command ``imgproc-attn``.

The modules that build the parser import no torch, so that help and usage errors appear at once. A command imports what it
needs when it runs.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from .._version import __version__
from ..utils.errors import USER_ERRORS, one_line
from ..utils.plugins import import_extension
from . import benchmark, data, diagnostics, evaluation, training
from .console import console, reader_left

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command and its subcommands.

    Example:
        >>> parser().parse_args(["recipes", "--show", "quickstart"]).show
        'quickstart'
    """
    top = argparse.ArgumentParser(prog="imgproc-attn", description="Vision transformers whose attention is an image filter.")
    top.add_argument("--version", action="version", version=f"imgproc-attn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, evaluation, diagnostics, data, benchmark):
        group.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--import",
            dest="extensions",
            metavar="MODULE",
            action="append",
            default=[],
            help="module or .py file to import first, which registers your own models with timm; may be repeated",
        )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Errors of the user end with one line on standard error and exit status 2.

    Args:
        arguments: Words of the command line. Default: those of the process.

    Raises:
        SystemExit: Status 2 for errors of the user, 130 after Ctrl-C, 141 if the reader of the output has left.
    """
    with console():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    top = parser()
    args, rest = top.parse_known_args(arguments)
    changes = next((getattr(args, name) for name in ("overrides", "options") if hasattr(args, name)), None)
    if rest and (changes is None or any(text.startswith("-") or "=" not in text for text in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse accepts key=value arguments only next to each other, so later ones are added here.
        changes.extend(rest)  # type: ignore[union-attr]
    warnings.formatwarning = lambda message, *_: (
        f"imgproc-attn: warning: {message}\n"
    )  # The line numbers of this package do not help users.
    if getattr(args, "device", "") in ("cpu", "auto"):
        from ..utils.environment import keep_freed_memory

        keep_freed_memory()
    if getattr(args, "threads", None) is not None:
        import torch

        torch.set_num_threads(args.threads)
    try:
        for name in args.extensions:
            import_extension(name)
        args.function(args)
        _leave_processes()
    except KeyboardInterrupt:
        print("imgproc-attn: stopped. Repeat the command to resume; train also needs --resume.", file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            raise
        print(f"imgproc-attn: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        _leave_processes(failed=True)


def _leave_processes(failed: bool = False) -> None:
    """Leave the process group, if any. Its threads would otherwise outlive the interpreter and abort the process.

    After a failure, NCCL's group is not left: this would wait for processes that wait for this one.
    """
    dist = sys.modules.get("torch.distributed")  # A command that has not imported it is in no group.
    if dist is not None and dist.is_available() and dist.is_initialized() and not (failed and "nccl" in dist.get_backend()):
        dist.destroy_process_group()
