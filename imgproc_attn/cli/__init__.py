"""The console command ``imgproc-attn``.

Help and usage errors come at once: the modules that build the parser import no torch. A command imports what it needs when it
runs.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from .._version import __version__
from ..utils.errors import USER_ERRORS, one_line
from ..utils.plugins import import_extension
from . import benchmark, evaluation, training
from .console import console, reader_left


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="imgproc-attn", description="Vision transformers whose attention is an image filter.")
    top.add_argument("--version", action="version", version=f"imgproc-attn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, evaluation, benchmark):
        group.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--import",
            dest="extensions",
            metavar="MODULE",
            action="append",
            default=[],
            help="first import this module or .py file, which registers models of your own with timm; may be given again",
        )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; problems with what was asked for end in one line and exit status 2."""
    with console():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    top = parser()
    args, rest = top.parse_known_args(arguments)
    changes = next((getattr(args, name) for name in ("overrides", "options") if hasattr(args, name)), None)
    if rest and (changes is None or any(text.startswith("-") or "=" not in text for text in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a command's changes in one row only
        changes.extend(rest)  # type: ignore[union-attr]
    warnings.formatwarning = lambda message, *_: f"imgproc-attn: warning: {message}\n"  # users have no use for our line numbers
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
        print("imgproc-attn: stopped. To go on, repeat the command; train also needs --resume.", file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            raise
        print(f"imgproc-attn: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        _leave_processes(failed=True)


def _leave_processes(failed: bool = False) -> None:
    """Leave the process group, if any: its threads would otherwise outlive the interpreter, and abort the process.

    Not NCCL's after a failure: to leave it is to wait for processes that wait for this one, whose end torchrun waits for.
    """
    dist = sys.modules.get("torch.distributed")  # a command that has not imported it is in no group
    if dist is not None and dist.is_available() and dist.is_initialized() and not (failed and "nccl" in dist.get_backend()):
        dist.destroy_process_group()
