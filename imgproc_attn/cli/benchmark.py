"""The command that measures speed and memory."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import DEFAULTS


def add_commands(commands: Any) -> None:
    """Add it to the subparsers ``commands``."""
    from ..benchmark import GRIDS, MODELS

    p = commands.add_parser(
        "benchmark",
        help="speed and memory beside plain attention and timm's ViT",
        formatter_class=DEFAULTS,
    )
    subjects = ["operators", "models", "memory", "filtering", "training"]
    p.add_argument("--what", nargs="+", choices=subjects, default=subjects)
    p.add_argument("--tokens", nargs="+", type=int, choices=sorted(GRIDS), default=sorted(GRIDS))
    p.add_argument("--models", nargs="+", default=list(MODELS), help="the first is what the others are compared with")
    p.add_argument("--runs", type=int, default=15, help="timed runs of each, interleaved")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    p.add_argument("--output", type=Path, default=Path("runs/benchmark.json"))
    p.set_defaults(function=_benchmark)


def _benchmark(args: argparse.Namespace) -> None:
    import timm
    import torch

    from .. import benchmark as b
    from ..environment import environment
    from ..files import write_json

    dtype = getattr(torch, args.dtype)
    result: dict = {"environment": environment(args.device), "dtype": args.dtype, "runs": args.runs}
    hardware = result["environment"]["hardware"]
    device = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads")
    print(f"{device}, torch {torch.__version__}, timm {timm.__version__}, {args.dtype}, {args.runs} runs")
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
    if "training" in args.what:
        result["training"] = b.benchmark_training(args.runs, args.device)
        print(b.markdown("An epoch of training", result["training"], b.TRAINING_COLUMNS))
    write_json(args.output, result)
    print(f"Written: {args.output}")
