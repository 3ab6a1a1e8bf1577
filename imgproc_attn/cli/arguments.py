"""Arguments that several commands share, and the objects built from them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.serialization import SEEDS

__all__ = [
    "HelpFormatter",
    "add_device",
    "add_images",
    "add_model",
    "add_place",
    "add_threads",
    "add_views",
    "at_least",
    "dataset_of",
    "model_of",
    "number",
    "output_of",
    "run_of",
    "seed",
    "severity",
    "share",
    "task_of",
]

TASK_OPTIONS = ("short_side", "window", "stride", "scales", "flip", "classes")  # settings of tasks
DATA_OPTIONS = ("image_column", "label_column", "crop_pct", "input_size", "skip_broken", "real_labels")  # not of all tasks


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that adds defaults to the help, except empty ones and those that the text already documents."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        documented = action.help is not None and "(default" in action.help
        return action.help if documented or action.default in (None, [], False) else super()._get_help_string(action)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda or one such as cuda:1; auto: a GPU if there is one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "--threads",
        type=at_least(1),
        help="threads on the CPU; with other programs running, small models are faster with 1 (default: torch's, one per core)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select the model to evaluate."""
    parser.add_argument("model", help="name in timm, folder of a run, or folder with timm's config.json and weights")
    parser.add_argument("options", nargs="*", metavar="key=value", help="keyword arguments of the model, e.g. img_size=384")
    parser.add_argument("--checkpoint", type=Path, help="weights, saved by safetensors or torch.save (never unpickled)")
    parser.add_argument("--pretrained", action="store_true", help="load timm's trained weights")
    parser.add_argument(
        "--input-size", type=at_least(1), nargs=3, metavar=("C", "H", "W"), help="size of images (default: the model's)"
    )
    parser.add_argument("--crop-pct", type=share, help="resize to size / crop_pct, then crop (default: the model's)")


def add_images(parser: argparse.ArgumentParser, where: bool = True) -> None:
    """Add the options that select the images to evaluate.

    Args:
        parser: Parser of the command.
        where: Whether to add the options for the location of the images. Use False for commands with their own options for it.
    """
    if where:
        parser.add_argument(
            "--data",
            help="folder, npz, digits, pathfinder, torch/..., wds/..., hfds/..., hfids/..., tfds/...; for segmenters ade20k, "
            "camvid, labeled; for language models text; for sequences listops, reviews, retrieval (default: that of the run, "
            "else folder)",
        )
        parser.add_argument("--root", help="folder or file, also relative to $IMGPROC_ATTN_DATA (default: that of the run)")
        parser.add_argument(
            "--split", help="split or subfolder (default: test split of the run; without a run or with other data, the root)"
        )
        parser.add_argument(
            "--classes",
            metavar="MAP",
            help="meaning of folder names other than the model's classes: imagenet (some of its 1,000), imagenet-a, imagenet-r",
        )
        usual = (
            "(default: that of the run, else image or the only one)",
            "(default: that of the run, else label or the only one)",
        )
        parser.add_argument("--image-column", metavar="NAME", help=f"column of images in hfds/... and hfids/... {usual[0]}")
        parser.add_argument(
            "--label-column", metavar="NAME", help=f"column of labels; in wds/..., field of .json members {usual[1]}"
        )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        help="number of images or windows of text, drawn at random (default: all, or that of the run)",
    )
    parser.add_argument("--skip-broken", action="store_true", help="skip unreadable images and list them, instead of stopping")


def add_views(parser: argparse.ArgumentParser, several: bool, title: str = "for segmenters") -> None:
    """Add the views of images for segmenters.

    Args:
        parser: Parser of the command.
        several: Whether to add options for several views, which attacks do not support.
        title: Title of the group of options.
    """
    group = parser.add_argument_group(title)
    group.add_argument(
        "--short-side",
        type=_pixels("own"),
        metavar="PIXELS",
        help="shorter side to which images are resized, with a longer side of at most 4 times as much; labels keep their size; "
        "own: no resizing (default: that of the run, else own)",
    )
    group.add_argument(
        "--window",
        type=_pixels("whole"),
        metavar="PIXELS",
        help="side of sliding windows; whole: the whole image at once (default: that of the run, else whole)",
    )
    group.add_argument(
        "--stride",
        type=at_least(1),
        metavar="PIXELS",
        help="distance between windows (default: that of the run, else the window)",
    )
    if several:
        scales = "average over the image at these factors of its size, e.g. 0.75 1 1.25"
        group.add_argument("--scales", type=float, nargs="+", default=[1.0], help=scales)
        group.add_argument("--flip", action="store_true", help="average also over mirrored images")


def _pixels(word: str) -> Callable[[str], int | str]:
    """Return a parser of a number of pixels, or of ``word``, which stands for none."""
    return lambda text: text if text == word else at_least(1)(text)


def add_place(parser: argparse.ArgumentParser, output: str, precisions: list[str]) -> None:
    """Add batch size, workers, precision, output and device.

    Args:
        parser: Parser of the command.
        output: Folder in which default outputs are created.
        precisions: Allowed values of ``--amp``.
    """
    parser.add_argument(
        "--batch-size", type=at_least(1), help="batch size per process (default: 64; 1 for images with label maps; 8 for text)"
    )
    parser.add_argument("--workers", type=at_least(0), default=2, help="number of processes that read images")
    parser.add_argument("--amp", choices=precisions, help="precision of autocast (default: float32)")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder of the results (default: {output}/, the model's name, and a short hash of its path, options and data)",
    )
    parser.set_defaults(usual_output=output)
    add_device(parser)
    add_threads(parser)


def output_of(args: argparse.Namespace, spec: Any) -> Path:
    """Return the folder of the results.

    Without ``--output``, it is a folder for this model and these images, inside a folder for the label if there is one.
    """
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
        args: Arguments of the command line.
        model: Model.
        **options: Settings that the command itself chooses.

    Raises:
        ValueError: An option that the task does not have.
    """
    from ..evaluation.scoring import find_task

    run = run_of(args)
    task = find_task(run.task if run is not None else getattr(model, "task", "classification"))
    given = {name: getattr(args, name, None) for name in (*TASK_OPTIONS, *DATA_OPTIONS)}
    given |= {"scales": None} if given["scales"] == [1.0] else {}
    given = {name: value for name, value in {**given, **options}.items() if value is not None and value is not False}
    refused = [f"--{name.replace('_', '-')}" for name in given if name in task.refused_options]
    if refused:
        raise ValueError(f"{' and '.join(refused)} must be left out for {task.name}, which does not use them.")
    return task.for_model(model, run, **{name: value for name, value in given.items() if name not in DATA_OPTIONS})


def dataset_of(args: argparse.Namespace, task: Any) -> Any:
    """Return the `DatasetSpec` of `add_images`: the given images, else the test split of the run that is evaluated.

    Raises:
        ValueError: The options do not fit together.
    """
    from ..data.reader_names import check_columns, reads_from_a_place
    from ..evaluation.specs import DatasetSpec
    from ..recipe import run_dataset

    run = run_of(args)
    own = run is not None and args.data in (None, run.data.name)  # The data of the run, which may have moved.
    name = args.data or (run.data.name if run is not None else "folder")
    task.check_reader(name)
    if args.root is None and not own and reads_from_a_place(name):
        raise ValueError(f"--data {name} must have a --root, got none. Give --root PATH.")
    columns = {
        key: getattr(args, key, None) or (run.data.columns[key] if own else None) for key in ("image_column", "label_column")
    }
    check_columns(name, **columns)
    options: dict[str, Any] = {"limit": args.limit, "skip_broken": args.skip_broken, **columns}
    if own and (args.root is None or name != "folder"):  # The test images of the run, which may have moved.
        if run.data.test_split is None and args.split is None:
            raise ValueError(f"The run must have a test split, got {args.model}, which has none. Give --split.")
        return run_dataset(run, args.split, args.root, **options)
    return DatasetSpec(name, args.root or "", args.split or "", **options)


def run_of(args: argparse.Namespace) -> Any:
    """Return the recipe of the run that is evaluated; None if the model is not a run.

    Raises:
        ValueError: The model is a path that is not an existing folder, or the folder of a comparison.
    """
    from ..evaluation.specs import folder_of_run
    from ..recipe import load_recipe

    model = Path(args.model.removeprefix("local-dir:"))
    # Names of timm have no slash.
    if len(model.parts) > 1 and not model.is_dir() and not args.model.startswith("hf-hub:"):
        siblings = sorted(p.name for p in model.parent.iterdir() if p.is_dir()) if model.parent.is_dir() else []
        remedy = f"Name one of these in it: {', '.join(siblings[:8])}." if siblings else "Check the path."
        raise ValueError(f"The model must be a timm name or an existing folder, got {model}. {remedy}")
    run = folder_of_run(args.model)
    if run is None:
        _refuse_comparison(model)
    return None if run is None else load_recipe(run)


def _refuse_comparison(folder: Path) -> None:
    """Refuse the folder of a comparison, which holds several runs."""
    runs = sorted(path.parent for path in folder.glob("runs/*/recipe.yaml"))
    if runs:
        raise ValueError(
            f"The model must be the folder of one run, got {folder}, the folder of a comparison. Name one of its runs: "
            f"{', '.join(map(str, runs[:8]))}."
        )


def _option(text: str) -> tuple[str, Any]:
    from ..recipe.loading import value_of
    from ..recipe.yaml_text import free_value

    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"An option must have the form key=value, got {text!r}. Add '='.")
    return key, free_value(value_of(value, text), key)


def number(text: str) -> float:
    """Parse a number or a fraction.

    Raises:
        argparse.ArgumentTypeError: The text is neither a number nor a fraction.

    Example:
        >>> number("51/255")
        0.2
    """
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction such as 4/255, got {text!r}") from None


def share(text: str) -> float:
    """Parse a number or fraction above 0 and at most 1.

    Raises:
        argparse.ArgumentTypeError: The text is not a number in this range.
    """
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def severity(text: str) -> float:
    """Parse a severity of images, from 1 to 5, or a share of words.

    Raises:
        argparse.ArgumentTypeError: The text is neither of them.

    Example:
        >>> severity("5"), severity("0.015")
        (5.0, 0.015)
    """
    value = number(text)
    if not (0 < value <= 1 or value in (2, 3, 4, 5)):
        raise argparse.ArgumentTypeError(f"must be a severity from 1 to 5, or a share of words up to 1, got {text!r}")
    return value


def at_least(low: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are at least ``low``.

    Example:
        >>> at_least(1)("8")
        8
    """

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be a whole number, at least {low}, got {text!r}")
        return int(text)

    return read


def seed(text: str) -> int:
    """Parse a seed, a whole number from 0 to ``SEEDS - 1``. All random number generators accept this range.

    Raises:
        argparse.ArgumentTypeError: The text is not a whole number in this range.
    """
    value = at_least(0)(text)
    if value >= SEEDS:
        raise argparse.ArgumentTypeError(f"a seed must be from 0 to {SEEDS - 1}, got {text}. Choose a smaller one.")
    return value
