"""The console command ``imgproc-attn``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__


def _train(args: argparse.Namespace) -> None:
    from .training import find_recipe, load_recipe, train

    recipe = load_recipe(args.recipe, args.overrides)
    if args.variant is not None:
        recipe = recipe.variant(args.variant, recipe.run.seed)
    output = args.output or _output(find_recipe(args.recipe))
    train(recipe, output, args.device, args.resume, args.restart)


def _output(recipe: Path) -> Path:
    """``runs/NAME`` of the package's recipes, and of files; a run's own folder."""
    from .training import list_recipes

    if recipe.name == "recipe.yaml" and (recipe.parent / "metrics.jsonl").exists():
        return recipe.parent
    names = {file: name for name, file in list_recipes().items()}
    return Path("runs") / names.get(recipe, recipe.stem)


def _compare(args: argparse.Namespace) -> None:
    from .comparison import compare
    from .training import find_recipe, load_recipe

    output = args.output or _output(find_recipe(args.recipe))
    report = compare(load_recipe(args.recipe, args.overrides), output, args.device, args.restart)
    print(report.read_text())
    print(f"Report: {report}")


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.accuracy import accuracy_table
    from .evaluation.run import Subject, evaluate_classifier
    from .training.loop import autocast
    from .training.run import start_processes

    subject = Subject(
        args.model,
        args.checkpoint,
        args.pretrained,
        dict(_option(o) for o in args.options),
        None if args.input_size is None else tuple(args.input_size),
        args.crop_pct,
    )
    data, root, split = _where(args)
    device, processes = start_processes(args.device)
    result = evaluate_classifier(
        subject,
        data,
        root,
        split,
        args.output,
        device,
        processes,
        batch_size=args.batch_size,
        workers=args.workers,
        autocast=autocast(device.type, args.amp),
        skip_broken=args.skip_broken,
        limit=args.limit,
        real_labels=args.real_labels,
    )
    if processes.rank == 0:
        print(accuracy_table(result))
        if result["unreadable"]:
            print(f"{len(result['unreadable'])} unreadable images left out: {', '.join(result['unreadable'][:5])}")
        print(f"\nWritten: {args.output}")


def _where(args: argparse.Namespace) -> tuple[str, str, str]:
    """Reader, root and split: as given, else the test split of the run that is evaluated."""
    from .training import load_recipe

    run = Path(args.model)
    run = run if (run / "recipe.yaml").is_file() else run.parent
    if args.data is None and args.root is None and (run / "recipe.yaml").is_file():
        data = load_recipe(run).data
        split = data.test_split if args.split is None else args.split
        if split is None:
            raise ValueError(f"{run} has no test split; give --split.")
        return data.name, data.root, split
    name = args.data or "folder"
    if args.root is None and name in ("folder", "npz"):
        raise ValueError(f"--data {name} reads from a place: give --root PATH.")
    return name, args.root or "", args.split or ""


def _option(text: str) -> tuple[str, Any]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} has no '='; write key=value.")
    return key, yaml.safe_load(value)


def _recipes(args: argparse.Namespace) -> None:
    from .files import write_text
    from .training import find_recipe, list_recipes

    if args.copy is None:
        for name, file in list_recipes().items():
            purpose = file.read_text(encoding="utf-8").partition("Purpose:")[2].partition("\n# Source:")[0]
            print(f"{name:<44} {' '.join(purpose.replace('#', '').split())}")
        return
    path = find_recipe(args.copy)
    target = args.to or Path(path.name)
    target = target / path.name if target.is_dir() else target
    if target.exists():
        raise FileExistsError(f"{target} exists; give another name with --to.")
    write_text(target, path.read_text(encoding="utf-8"))
    print(f"Copied to {target}; run it with: imgproc-attn train {target}")


def _benchmark(args: argparse.Namespace) -> None:
    import timm
    import torch

    from . import benchmark as b
    from .environment import environment
    from .files import write_json

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


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    from .benchmark import GRIDS, MODELS

    top = argparse.ArgumentParser(prog="imgproc-attn", description="Vision transformers whose attention is an image filter.")
    top.add_argument("--version", action="version", version=f"imgproc-attn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    defaults = argparse.ArgumentDefaultsHelpFormatter
    t = commands.add_parser(
        "train",
        help="train the model of a recipe; under torchrun in many processes",
        description="Train the model of a recipe. In 8 processes: torchrun --nproc-per-node 8 -m imgproc_attn train RECIPE …",
        formatter_class=defaults,
    )
    t.add_argument("recipe", help="a YAML file, a name that `imgproc-attn recipes` lists, or the folder of a run")
    t.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe, e.g. data.root=/data/imagenet")
    t.add_argument("--variant", help="which model of a comparison")
    t.add_argument("--output", type=Path, help="folder of the run (default: runs/RECIPE)")
    t.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU where there is one")
    t.add_argument("--restart", action="store_true", help="remove the run in the folder first")
    t.add_argument("--resume", action="store_true", help="go on with the run in the folder, after its last whole epoch")
    t.set_defaults(function=_train)

    for name, text, recipe in (
        ("quickstart", "train models on real images, attack and corrupt them, report, within minutes", "quickstart"),
        ("compare", "the same for any recipe of several models", None),
    ):
        c = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=defaults)
        if recipe is None:
            c.add_argument("recipe", help="a YAML file with a section comparison, or the name of such a recipe of the package")
        c.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe, e.g. comparison.seeds=[0]")
        c.add_argument("--output", type=Path, help="folder of the report (default: runs/RECIPE)")
        c.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU where there is one")
        c.add_argument("--restart", action="store_true", help="forget the runs in the folder instead of going on with them")
        c.set_defaults(function=_compare, **({} if recipe is None else {"recipe": recipe}))

    e = commands.add_parser(
        "evaluate",
        help="accuracy of any timm model or checkpoint on any images",
        description="Top-1 and top-5 with confidence intervals, by class, of any timm model or checkpoint on any images.",
        formatter_class=defaults,
    )
    e.add_argument("model", help="a timm name, the folder of a run, or one with timm's config.json and weights")
    e.add_argument("options", nargs="*", metavar="key=value", help="keyword arguments of the model, e.g. img_size=384")
    e.add_argument("--checkpoint", type=Path, help="weights: safetensors or torch.save'd (never unpickled)")
    e.add_argument("--pretrained", action="store_true", help="timm's own weights of that name")
    e.add_argument("--data", help="folder, npz, digits, torch/…, wds/…, hfds/…, tfds/… (default: a run's own, else folder)")
    e.add_argument("--root", help="folder or file of the images; $IMGPROC_ATTN_DATA is looked in too (default: a run's own)")
    e.add_argument("--split", help="split or subfolder (default: a run's test split, else the root itself)")
    e.add_argument("--real-labels", type=Path, help="real.json: also count by ReaL labels (ImageNet validation)")
    e.add_argument("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="(default: the model's)")
    e.add_argument("--crop-pct", type=float, help="resize to size / crop_pct, then crop (default: the model's)")
    e.add_argument("--batch-size", type=int, default=128)
    e.add_argument("--workers", type=int, default=2, help="processes that read")
    e.add_argument("--amp", choices=["bfloat16", "float16"], help="autocast (default: float32)")
    e.add_argument("--limit", type=int, help="only so many images, drawn at random")
    e.add_argument("--skip-broken", action="store_true", help="leave out and name unreadable images (default: stop at one)")
    e.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU where there is one")
    e.add_argument("--output", type=Path, default=Path("runs/evaluate"), help="folder of result.json and tables")
    e.set_defaults(function=_evaluate)

    r = commands.add_parser("recipes", help="list the recipes of the package, or copy one", formatter_class=defaults)
    r.add_argument("--copy", metavar="NAME", help="copy this one")
    r.add_argument("--to", type=Path, help="where (default: its file name, here)")
    r.set_defaults(function=_recipes)

    p = commands.add_parser(
        "benchmark",
        help="speed and memory beside plain attention and timm's ViT",
        formatter_class=defaults,
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
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; problems with what was asked for end in one line and exit status 2."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    changes = next((getattr(args, name) for name in ("overrides", "options") if hasattr(args, name)), None)
    if rest and (changes is None or any(text.startswith("-") or "=" not in text for text in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a command's changes in one row only
        changes.extend(rest)  # type: ignore[union-attr]
    warnings.formatwarning = lambda message, *_: f"imgproc-attn: warning: {message}\n"  # users have no use for our line numbers
    if getattr(args, "device", "") in ("cpu", "auto"):
        from .environment import keep_freed_memory

        keep_freed_memory()
    try:
        args.function(args)
    except KeyboardInterrupt:
        print("imgproc-attn: stopped; training goes on with --resume, a comparison with the same command.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        sys.exit(_fail(error))
    finally:
        _leave_processes()


def _leave_processes() -> None:
    """Leave the process group, if any: its threads would otherwise outlive the interpreter, and abort the process."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _fail(error: Exception) -> int:
    message = str(error)
    if "Original Traceback" in message:  # of a loader's process: its last line is the error
        message = message.rstrip().splitlines()[-1].partition(": ")[2]
    print(f"imgproc-attn: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
