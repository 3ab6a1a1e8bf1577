"""Command that measures speed and memory."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter, at_least

__all__ = ["add_commands"]

TOKENS = (196, 784, 3136)  # numbers of tokens of square grids

MARK = "imgproc-attn benchmark"  # value of written_by, by which a file of results is recognized


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    p = commands.add_parser(
        "benchmark",
        help="measure speed and memory in comparison with plain attention and timm's ViT",
        formatter_class=HelpFormatter,
    )
    subjects = ["operators", "causal", "models", "memory", "generation", "filtering", "training", "evaluation", "corruptions"]
    p.add_argument("--what", nargs="+", choices=subjects, default=subjects)
    p.add_argument("--tokens", nargs="+", type=int, choices=TOKENS, default=TOKENS)
    models = "models to measure; the first is the baseline (default: ViT-S of timm and of each family)"
    p.add_argument("--models", nargs="+", help=models)
    p.add_argument("--runs", type=at_least(2), default=15, help="number of timed runs per case, interleaved; at least 2")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    p.add_argument("--output", type=Path, default=Path("runs/benchmark.json"))
    p.set_defaults(function=_benchmark)


def _benchmark(args: argparse.Namespace) -> None:
    import timm
    import torch

    from .. import benchmark as b
    from ..utils.environment import environment
    from ..utils.io import check_output_file, write_json

    check_output_file(args.output, MARK)
    dtype, models = getattr(torch, args.dtype), args.models or b.MODELS
    result: dict = {"written_by": MARK, "environment": environment(args.device), "dtype": args.dtype, "runs": args.runs}
    hardware = result["environment"]["hardware"]
    device = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads")
    print(f"{device}, torch {torch.__version__}, timm {timm.__version__}, {args.dtype}, {args.runs} runs")
    sections: dict[str, tuple[Any, str, Any]] = {
        "operators": (
            lambda: b.benchmark_operators(args.tokens, args.runs, args.device, dtype),
            "Operators, 6 heads of 64",
            b.TIME_COLUMNS,
        ),
        "causal": (
            lambda: b.benchmark_causal(args.runs, args.device, dtype),
            "Causal operators, 6 heads of 64, batch of 2",
            b.TIME_COLUMNS,
        ),
        "models": (
            lambda: b.benchmark_models(models, args.tokens, args.runs, args.device, dtype),
            "Whole models",
            b.TIME_COLUMNS,
        ),
        "memory": (
            lambda: b.benchmark_memory(models, max(args.tokens), args.device, dtype),
            "Peak memory of a training step with one image",
            b.MEMORY_COLUMNS,
        ),
        "generation": (
            lambda: b.benchmark_generation(args.runs, args.device, dtype),
            "One new token of a language model, with a cache",
            b.GENERATION_COLUMNS,
        ),
        "filtering": (
            lambda: b.benchmark_filtering(args.runs, args.device),
            "Filters on a 512 x 512 photograph with an 11 x 11 window",
            b.NAME_COLUMNS,
        ),
        "training": (lambda: b.benchmark_training(args.runs, args.device), "One epoch of training", b.NAME_COLUMNS),
        "evaluation": (
            lambda: b.benchmark_evaluation(args.runs, args.device),
            "Clean accuracy on 64 images",
            b.NAME_COLUMNS,
        ),
        "corruptions": (
            lambda: b.benchmark_corruptions(args.runs),
            "Corruptions of ImageNet-C, severity 3, one 224 x 224 image",
            b.CORRUPTION_COLUMNS,
        ),
    }
    for name in args.what:
        run, title, columns = sections[name]
        result[name] = run()
        write_json(args.output, result)
        print(b.markdown(title, result[name], columns))
    print(f"Written: {args.output}")
