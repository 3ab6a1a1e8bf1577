"""Arguments that several commands share, and what they mean."""

import argparse
from pathlib import Path
from typing import Any

DEFAULTS = argparse.ArgumentDefaultsHelpFormatter


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU where there is one")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """What is evaluated."""
    parser.add_argument("model", help="a timm name, the folder of a run, or one with timm's config.json and weights")
    parser.add_argument("options", nargs="*", metavar="key=value", help="keyword arguments of the model, e.g. img_size=384")
    parser.add_argument("--checkpoint", type=Path, help="weights: safetensors or torch.save'd (never unpickled)")
    parser.add_argument("--pretrained", action="store_true", help="timm's own weights of that name")
    parser.add_argument("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="(default: the model's)")
    parser.add_argument("--crop-pct", type=float, help="resize to size / crop_pct, then crop (default: the model's)")


def add_images(parser: argparse.ArgumentParser, where: bool = True) -> None:
    """The images it is evaluated on; ``where`` they are, unless the command has its own words for that."""
    if where:
        parser.add_argument(
            "--data",
            help="folder, npz, digits, torch/…, wds/…, hfds/…, tfds/…; of segmenters ade20k, camvid, labelled (default: a "
            "run's own, else folder)",
        )
        parser.add_argument("--root", help="folder or file; $IMGPROC_ATTN_DATA is looked in too (default: a run's own)")
        parser.add_argument("--split", help="split or subfolder (default: a run's test split, else the root itself)")
        parser.add_argument(
            "--classes",
            metavar="MAP",
            help="what folders' names mean, if not the model's classes: imagenet (some of its 1,000), imagenet-a, imagenet-r",
        )
    parser.add_argument("--limit", type=positive, help="only so many, drawn at random (default: all, or a run's own)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out and name unreadable images, else stop at one")


def add_views(parser: argparse.ArgumentParser, several: bool) -> None:
    """How a segmenter looks at pictures; ``several`` views are for those that are not attacked."""
    group = parser.add_argument_group("of segmenters", "default: as a run's recipe has it")
    group.add_argument("--short-side", type=positive, help="resize pictures to it; labels keep their size")
    group.add_argument("--window", type=positive, help="side of sliding windows (default: whole pictures)")
    group.add_argument("--stride", type=positive, help="between windows (default: the window)")
    if several:
        group.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over views of these sizes")
        group.add_argument("--flip", action="store_true", help="and over mirror images")


def views_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_views`; what is not given is the recipe's, if a run is evaluated."""
    run = run_of(args)
    section = None if run is None else run.segmentation
    found = {name: getattr(args, name) for name in ("short_side", "window", "stride")}
    if section is not None:
        own_windows = args.window is not None  # a stride belongs to its window
        found["short_side"] = args.short_side or section.short_side
        found["stride"] = args.stride or (None if own_windows else section.stride)
        found["window"] = args.window or section.window
    return found | {"scales": tuple(getattr(args, "scales", (1.0,))), "flip": getattr(args, "flip", False)}


def add_place(parser: argparse.ArgumentParser, batch_size: int, output: str, precisions: list[str]) -> None:
    """Where and how it runs."""
    parser.add_argument(
        "--batch-size", type=positive, help=f"of each process (default: {batch_size}; 1 for pictures with label maps)"
    )
    parser.set_defaults(usual_batch_size=batch_size)
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--amp", choices=precisions, help="autocast (default: float32)")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of the results")
    add_device(parser)


def subject_of(args: argparse.Namespace) -> Any:
    """The `Subject` of `add_subject`."""
    from ..evaluation.subject import Subject

    run = run_of(args)
    return Subject(
        args.model,
        args.checkpoint,
        args.pretrained,
        dict(_option(o) for o in args.options),
        None if args.input_size is None else tuple(args.input_size),
        args.crop_pct,
        None if run is None else run.run.seed,
    )


def source_of(args: argparse.Namespace) -> Any:
    """The `ImageSource` or `PictureSource` of `add_images`: as given, else the test split of the run that is evaluated."""
    from ..evaluation.classes import class_map
    from ..evaluation.subject import ImageSource
    from ..segmentation.data import READERS
    from ..segmentation.source import PictureSource

    run = run_of(args)
    segments = run is not None and run.segmentation is not None
    make: Any = ImageSource
    options: dict[str, Any] = {"limit": args.limit}
    if args.data in READERS or (args.data is None and segments):
        if args.classes is not None or args.skip_broken:
            raise ValueError("--classes and --skip-broken are for classifiers; label maps name their classes themselves.")
        make, options = PictureSource, options | views_of(args)
    else:
        options |= {"classes": None if args.classes is None else class_map(args.classes), "skip_broken": args.skip_broken}
    if args.data is None and args.root is None and run is not None:  # the very images that the run held out
        options |= {"limit": args.limit or run.data.test_images, "seed": run.data.seed}
        split = run.data.test_split if args.split is None else args.split
        if split is None:
            raise ValueError(f"The run {args.model} has no test split; give --split.")
        return make(run.data.name, run.data.root, split, **options)
    name = args.data or (run.data.name if run is not None else "folder")
    if args.root is None and name in ("folder", "npz"):
        raise ValueError(f"--data {name} reads from a place: give --root PATH.")
    return make(name, args.root or "", args.split or "", **options)


def run_of(args: argparse.Namespace) -> Any:
    """The recipe of the run that is evaluated; None if it is none."""
    from ..training import load_recipe

    model = Path(args.model.removeprefix("local-dir:"))
    folders = [folder for folder in (model, model.parent) if model.is_dir() and (folder / "recipe.yaml").is_file()]
    return load_recipe(folders[0]) if folders else None


def _option(text: str) -> tuple[str, Any]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} has no '='; write key=value.")
    return key, yaml.safe_load(value)


def number(text: str) -> float:
    """A number or a fraction, ``4/255``."""
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number and no fraction like 4/255") from None


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
