"""Arguments that several commands share, and what they mean."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.serialization import SEEDS


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, but for those that the help has told in its own words, and those that are nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help is not None and "(default" in action.help
        return action.help if told or action.default in (None, [], False) else super()._get_help_string(action)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU where there is one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads",
        type=at_least(1),
        help="on the CPU; small models are faster with 1 beside other programs (default: torch's, one per core)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model that is evaluated."""
    parser.add_argument("model", help="a timm name, the folder of a run, or one with timm's config.json and weights")
    parser.add_argument("options", nargs="*", metavar="key=value", help="keyword arguments of the model, e.g. img_size=384")
    parser.add_argument("--checkpoint", type=Path, help="weights: safetensors or torch.save'd (never unpickled)")
    parser.add_argument("--pretrained", action="store_true", help="timm's own weights of that name")
    parser.add_argument("--input-size", type=at_least(1), nargs=3, metavar=("C", "H", "W"), help="(default: the model's)")
    parser.add_argument("--crop-pct", type=share, help="resize to size / crop_pct, then crop (default: the model's)")


def add_images(parser: argparse.ArgumentParser, where: bool = True) -> None:
    """The images it is evaluated on; ``where`` they are, unless the command has its own words for that."""
    if where:
        parser.add_argument(
            "--data",
            help="folder, npz, digits, torch/..., wds/..., hfds/..., hfids/..., tfds/...; of segmenters ade20k, camvid, "
            "labeled (default: a run's own, else folder)",
        )
        parser.add_argument("--root", help="folder or file; $IMGPROC_ATTN_DATA is looked in too (default: a run's own)")
        parser.add_argument(
            "--split", help="split or subfolder (default: a run's test split; the root itself of no run, or of another folder)"
        )
        parser.add_argument(
            "--classes",
            metavar="MAP",
            help="what folders' names mean, if not the model's classes: imagenet (some of its 1,000), imagenet-a, imagenet-r",
        )
        own = "(default: a run's own, else image or the only one)", "(default: a run's own, else label or the only one)"
        parser.add_argument("--image-column", metavar="NAME", help=f"column of images, of hfds/... and hfids/... {own[0]}")
        parser.add_argument(
            "--label-column", metavar="NAME", help=f"column of labels; of wds/... the field of .json members {own[1]}"
        )
    parser.add_argument("--limit", type=at_least(1), help="only so many, drawn at random (default: all, or a run's own)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out and name unreadable images, else stop at one")


def add_views(parser: argparse.ArgumentParser, several: bool, title: str = "of segmenters") -> None:
    """How a segmenter looks at pictures; ``several`` views are for those that are not attacked."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--short-side",
        type=_pixels("own"),
        metavar="PIXELS",
        help="resize pictures to it, the longer one to 4 times as much at most; labels keep their size; own: not at all "
        "(default: a run's, else own)",
    )
    group.add_argument(
        "--window",
        type=_pixels("whole"),
        metavar="PIXELS",
        help="side of sliding windows; whole: the whole picture at once (default: a run's, else whole)",
    )
    group.add_argument(
        "--stride", type=at_least(1), metavar="PIXELS", help="between windows (default: a run's, else the window)"
    )
    if several:
        told = "average over the picture at these factors of its size, e.g. 0.75 1 1.25"
        group.add_argument("--scales", type=float, nargs="+", default=[1.0], help=told)
        group.add_argument("--flip", action="store_true", help="and over mirror images")


def _pixels(word: str) -> Callable[[str], int | str]:
    """A number of pixels, or that word for none."""
    return lambda text: text if text == word else at_least(1)(text)


def add_place(parser: argparse.ArgumentParser, batch_size: int, output: str, precisions: list[str]) -> None:
    """Where and how it runs."""
    parser.add_argument(
        "--batch-size", type=at_least(1), help=f"of each process (default: {batch_size}; 1 for pictures with label maps)"
    )
    parser.set_defaults(usual_batch_size=batch_size)
    parser.add_argument("--workers", type=at_least(0), default=2, help="processes that read")
    parser.add_argument("--amp", choices=precisions, help="autocast (default: float32)")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder of the results (default: {output}/, the model's name, and a short hash of its path, options and images)",
    )
    parser.set_defaults(usual_output=output)
    add_device(parser)
    add_threads(parser)


def output_of(args: argparse.Namespace, spec: Any) -> Path:
    """Where results go: as given, else a folder of this model and these images alone, below that of a label for several."""
    import hashlib

    from ..utils.io import slug

    images = {key: str(getattr(args, key, None)) for key in ("data", "root", "split", "limit", "classes")}
    which = hashlib.sha256(f"{spec.identity}{images}".encode()).hexdigest()[:8]
    return args.output or Path(args.usual_output, *map(slug, [args.label] if args.label else []), f"{slug(spec.label)}-{which}")


def model_of(args: argparse.Namespace) -> Any:
    """Return the `ModelSpec` of `add_model`."""
    from ..evaluation.specs import ModelSpec

    run = run_of(args)
    return ModelSpec(
        args.model,
        args.checkpoint,
        args.pretrained,
        dict(_option(o) for o in args.options),
        None if args.input_size is None else tuple(args.input_size),
        args.crop_pct,
        None if run is None else run.run.seed,
    )


def task_of(args: argparse.Namespace, model: Any, **options: Any) -> Any:
    """Return the task of a model: that of its run's recipe, or the one that the model names, or else classification.

    Args:
        args: Of the command line.
        model: The model.
        **options: Settings that the command itself makes.
    """
    from ..evaluation.scoring import find_task

    run = run_of(args)
    task = find_task(run.task if run is not None else getattr(model, "task", "classification"))
    names = ["short_side", "window", "stride", "classes", "image_column", "label_column", "crop_pct", "real_labels"]
    names += ["skip_broken", "input_size", "flip", "scales"]
    given = {name: getattr(args, name, None) for name in names}
    given |= {"scales": None} if given["scales"] == [1.0] else {}
    given = {name: value for name, value in {**given, **options}.items() if value is not None and value is not False}
    return task.for_model(model, run, **given)


def takes_label_maps(args: argparse.Namespace) -> bool:
    """Whether images come one by one, each with a label map of its own size."""
    run = run_of(args)
    return run is not None and run.segmentation is not None


def dataset_of(args: argparse.Namespace, task: Any) -> Any:
    """Return the `DatasetSpec` of `add_images`: as given, else the test split of the run that is evaluated.

    Raises:
        ValueError: Options that do not go together.
    """
    from ..data.readers import check_columns, reads_from_a_place
    from ..evaluation.specs import DatasetSpec

    run = run_of(args)
    own = run is not None and args.data in (None, run.data.name)  # the data that the run was trained on, wherever they lie
    name = args.data or (run.data.name if run is not None else "folder")
    task.check_reader(name)
    if args.root is None and not own and reads_from_a_place(name):
        raise ValueError(f"--data {name} reads from a place: give --root PATH.")
    columns = {
        key: getattr(args, key, None) or (run.data.columns[key] if own else None) for key in ("image_column", "label_column")
    }
    check_columns(name, **columns)
    options: dict[str, Any] = {"limit": args.limit, "skip_broken": args.skip_broken, **columns}
    if own and (args.root is None or name != "folder"):  # the very images that the run held out, wherever they lie now
        options |= {"limit": args.limit or run.data.test_images, "seed": run.data.seed}
        return DatasetSpec(name, args.root or run.data.root, _split(args, run), **options)
    return DatasetSpec(name, args.root or "", args.split or "", **options)


def _split(args: argparse.Namespace, run: Any) -> str:
    split = run.data.test_split if args.split is None else args.split
    if split is None:
        raise ValueError(f"The run {args.model} has no test split; give --split.")
    return split


def run_of(args: argparse.Namespace) -> Any:
    """The recipe of the run that is evaluated; None if it is none."""
    from ..recipe import load_recipe

    model = Path(args.model.removeprefix("local-dir:"))
    if len(model.parts) > 1 and not model.is_dir() and not args.model.startswith("hf-hub:"):  # timm's names have no slash
        there = sorted(p.name for p in model.parent.iterdir() if p.is_dir()) if model.parent.is_dir() else []
        raise ValueError(f"There is no folder {model}" + (f"; beside it are {', '.join(there[:8])}." if there else "."))
    folders = [folder for folder in (model, model.parent) if model.is_dir() and (folder / "recipe.yaml").is_file()]
    return load_recipe(folders[0]) if folders else None


def _option(text: str) -> tuple[str, Any]:
    from ..recipe.loading import value_of
    from ..recipe.yaml_text import free_value

    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} has no '='; write key=value.")
    return key, free_value(value_of(value, text), key)


def number(text: str) -> float:
    """A number or a fraction, ``4/255``."""
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number and no fraction like 4/255") from None


def share(text: str) -> float:
    """A number above 0, up to 1."""
    found = number(text)
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: above 0, up to 1")
    return found


def at_least(low: int) -> Callable[[str], int]:
    """Whole numbers from there on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} on")
        return int(text)

    return read


def seed(text: str) -> int:
    """A whole number that all random number generators take."""
    found = at_least(0)(text)
    if found >= SEEDS:
        raise argparse.ArgumentTypeError(f"a seed must be from 0 to {SEEDS - 1}, got {text}. Choose a smaller one.")
    return found
