"""The console command ``imgproc-attn``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def _quickstart(args: argparse.Namespace) -> None:
    from .quickstart import quickstart
    from .training import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(args.recipe), args.overrides)
    report = quickstart(recipe, args.output, args.device, args.restart)
    print(report.read_text())
    print(f"Report: {report}")


def _benchmark(args: argparse.Namespace) -> None:
    import torch

    from . import benchmark as b
    from .files import write_json

    dtype = getattr(torch, args.dtype)
    result: dict = {"machine": b.machine(args.device), "dtype": args.dtype, "runs": args.runs}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()) + f", {args.dtype}, {args.runs} runs")
    b.keep_freed_memory()
    if "operators" in args.what:
        result["operators"] = b.benchmark_operators(args.tokens, args.runs, args.device, dtype)
        print(b.markdown("Operators, 6 heads of 64", result["operators"], b.TIME_COLUMNS))
    if "models" in args.what:
        result["models"] = b.benchmark_models(args.models, args.tokens, args.runs, args.device, dtype)
        print(b.markdown("Whole models", result["models"], b.TIME_COLUMNS))
    if "memory" in args.what:
        result["memory"] = b.benchmark_memory(args.models, max(args.tokens), args.device, dtype)
        print(b.markdown("Peak memory of a training step, one image", result["memory"], b.MEMORY_COLUMNS))
    if "filtering" in args.what:
        result["filtering"] = b.benchmark_filtering(args.runs, args.device)
        print(b.markdown("Filters on a 512 x 512 photograph, 11 x 11 window", result["filtering"], b.FILTERING_COLUMNS))
    write_json(args.output, result)
    print(f"Written: {args.output}")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    from .benchmark import GRIDS, MODELS

    top = argparse.ArgumentParser(prog="imgproc-attn", description="Vision transformers whose attention is an image filter.")
    top.add_argument("--version", action="version", version=f"imgproc-attn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    q = commands.add_parser(
        "quickstart",
        help="train models on real images, attack and corrupt them, report",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    q.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe, e.g. run.seeds=[0]")
    q.add_argument("--recipe", default="quickstart", help="a YAML file, or the name of a recipe of the package")
    q.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder of the report")
    q.add_argument("--device", default="cpu", help="where to run, e.g. cuda")
    q.add_argument("--restart", action="store_true", help="repeat finished runs instead of keeping them")
    q.set_defaults(function=_quickstart)

    p = commands.add_parser(
        "benchmark",
        help="speed and memory beside plain attention and timm's ViT",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    subjects = ["operators", "models", "memory", "filtering"]
    p.add_argument("--what", nargs="+", choices=subjects, default=subjects)
    p.add_argument("--tokens", nargs="+", type=int, choices=sorted(GRIDS), default=sorted(GRIDS))
    p.add_argument("--models", nargs="+", default=list(MODELS), help="the first is what the others are compared with")
    p.add_argument("--runs", type=int, default=15, help="timed runs of each, interleaved")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    p.add_argument("--output", type=Path, default=Path("runs/benchmark.json"))
    p.set_defaults(function=_benchmark)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; problems with what was asked for end in one line and exit status 2."""
    args = parser().parse_args(arguments)
    try:
        args.function(args)
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        sys.exit(_fail(error))


def _fail(error: Exception) -> int:
    print(f"imgproc-attn: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
