"""Command that writes data: listops."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter, at_least, seed

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    p = commands.add_parser(
        "listops",
        help="write the ListOps files of the Long Range Arena",
        description="Draw random expressions of nested list operations, and write basic_train.tsv, basic_val.tsv and "
        "basic_test.tsv with the columns Source and Target. The defaults are the published settings (arXiv 2011.04006).",
        formatter_class=HelpFormatter,
    )
    p.add_argument("--output", type=Path, default=Path("listops"), help="folder of the files, which must not have them yet")
    p.add_argument("--train", type=at_least(1), default=96_000, metavar="N", help="number of training expressions")
    p.add_argument("--val", type=at_least(1), default=2_000, metavar="N", help="number of validation expressions")
    p.add_argument("--test", type=at_least(1), default=2_000, metavar="N", help="number of test expressions")
    p.add_argument("--min-length", type=at_least(1), default=500, metavar="N", help="expressions have more tokens")
    p.add_argument("--max-length", type=at_least(1), default=2_000, metavar="N", help="expressions have fewer tokens")
    p.add_argument("--max-depth", type=at_least(1), default=10, metavar="N", help="largest depth of an expression")
    p.add_argument("--max-args", type=at_least(1), default=10, metavar="N", help="largest number of arguments of an operator")
    p.add_argument("--seed", type=seed, default=0)
    p.set_defaults(function=_listops)


def _listops(args: argparse.Namespace) -> None:
    from ..sequences.listops import ListOps, write_listops
    from ..utils.progress import progress_bar

    generator = ListOps(args.max_depth, args.max_args, args.min_length, args.max_length)
    counts = (args.train, args.val, args.test)
    with progress_bar(sum(counts), "expressions") as bar:
        files = write_listops(args.output, counts, generator, args.seed, bar.update)
    for file, count in zip(files, counts):
        print(f"Written: {file}, {count} expressions")
