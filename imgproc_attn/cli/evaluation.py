"""Commands for evaluation: evaluate, segment, attack, corrupt, shift and report."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.corruption_names import COMMON, EXTRA
from ..evaluation.presets import ATTACKS, ENSEMBLE, NORMS, PRESETS, build_attacks
from ..evaluation.shifts import SHIFTS
from ..segmentation.presets import PIXEL_ATTACKS, PIXEL_PRESETS
from .arguments import (
    HelpFormatter,
    add_device,
    add_images,
    add_model,
    add_place,
    add_views,
    at_least,
    dataset_of,
    model_of,
    number,
    output_of,
    run_of,
    seed,
    severity,
    task_of,
)

__all__ = ["add_commands"]

ATTACK_TEXT = """\
Measure the accuracy of a classifier, or the mIoU of a segmenter, under adversarial attacks. Sanity checks report results that
are not reliable.

Images are attacked in [0, 1], and normalization is part of the model. The unit of eps is the same (4/255: four gray levels).
Random draws depend only on the seed and the sample, so results do not depend on batch size and number of processes. You can
kill the command at any time. Repeat it to resume.
In 8 processes: torchrun --nproc-per-node 8 -m imgproc_attn attack MODEL ...

presets:
"""
CORRUPT_TEXT = """\
Measure the accuracy of a classifier, or the mIoU of a segmenter, on corrupted images. These are the 15 + 4 corruptions of
ImageNet-C at 5 severities, generated on the fly for any images, or the published files of ImageNet-C and CIFAR-10-C (--files).
Do not compare the two: published files are compressed as JPEG, generated images are not. Frost needs photographs that are not
part of this package (--frost-folder).
"""
VALIDATION = "imagenet-val"
SHIFT_TEXT = """\
Measure the accuracy on naturally shifted ImageNet. Give the folders that you have. Class folders must be named by WordNet id
or, as in ImageNet-V2, by number. ImageNet-A and -R use only the logits of their 200 classes. ImageNet-O needs the validation
set. Its metric is the AUPR of detecting its images by low confidence.
"""


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers ``commands``."""
    _add_evaluate(commands)
    _add_segment(commands)
    _add_attack(commands)
    _add_corrupt(commands)
    _add_shift(commands)
    _add_report(commands)


def _add_evaluate(commands: Any) -> None:
    e = commands.add_parser(
        "evaluate",
        help="accuracy of any timm model or checkpoint on any images; mIoU of segmenters; perplexity of text",
        description="Measure top-1 and top-5 accuracy with confidence intervals, in total and per class, of any timm model or "
        "checkpoint on any images. For segmenters, measure mIoU, pixel accuracy and mean accuracy. For language models, "
        "measure perplexity, and bits per character or byte.",
        formatter_class=HelpFormatter,
    )
    add_model(e)
    add_images(e)
    add_views(e, several=True)
    e.add_argument(
        "--real-labels",
        nargs="?",
        const="",
        metavar="FILE",
        help="also use ReaL labels, from real.json or timm's copy (ImageNet validation)",
    )
    e.add_argument("--label", help="name of the model in reports, the same for all its seeds (default: its own)")
    e.add_argument("--restart", action="store_true", help="remove the results in the folder instead of resuming")
    add_place(e, "runs/evaluate", ["bfloat16", "float16"])
    e.set_defaults(function=_evaluate)


def _add_segment(commands: Any) -> None:
    s = commands.add_parser(
        "segment",
        help="write color overlays and label maps of images",
        description="Segment images. Write overlays/NAME.png, colors over the image with a legend, and labels/NAME.png, class "
        "numbers as 8-bit gray.",
        formatter_class=HelpFormatter,
    )
    s.add_argument("images", type=Path, metavar="IMAGE|FOLDER", help="image, or folder of images and subfolders")
    s.add_argument(
        "--checkpoint", dest="model", required=True, metavar="FOLDER", help="folder of a run or of one of its checkpoints"
    )
    add_views(s, several=True, title="views of images")
    s.add_argument("--output", type=Path, default=Path("runs/segment"), help="folder of the results")
    add_device(s)
    s.set_defaults(function=_segment)


class _Formatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formatter that keeps the lines of a description and adds defaults."""


def _add_robustness(commands: Any, name: str, text: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=text, formatter_class=_Formatter)
    add_model(parser)
    parser.add_argument("--label", help="name of the model in reports, the same for all its seeds (default: its own)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random draws of attacks, corruptions and checks")
    parser.add_argument("--restart", action="store_true", help="remove the results in the folder instead of resuming")
    parser.add_argument("--dry-run", action="store_true", help="only print protocol, passes and estimated time")
    # Small gradients vanish in float16, so attacks would fail.
    add_place(parser, f"runs/{name}", ["bfloat16"] if name == "attack" else ["bfloat16", "float16"])
    return parser


def _add_attack(commands: Any) -> None:
    presets = "\n".join(f"  {name}: {preset.purpose}" for name, preset in PRESETS.items())
    presets += f"\npreset for segmenters:\n  grid: {PIXEL_PRESETS['grid'].purpose}"
    a = _add_robustness(commands, "attack", ATTACK_TEXT + presets, "accuracy under FGSM, PGD and stronger attacks")
    add_images(a)
    add_views(a, several=False)
    a.add_argument("--preset", choices=PRESETS, help="protocol by name (default: grid, unless --attacks is given)")
    a.add_argument(
        "--attacks",
        nargs="+",
        choices=dict.fromkeys([*ATTACKS, ENSEMBLE, *PIXEL_ATTACKS]),
        metavar="ATTACK",
        help=f"{', '.join(ATTACKS)}, {ENSEMBLE}; for segmenters {', '.join(PIXEL_ATTACKS)}",
    )
    a.add_argument("--eps", nargs="+", type=number, metavar="EPS", help="radii, e.g. 1/255 4/255")
    a.add_argument("--norm", choices=NORMS, default="Linf", help="norm of the ball")
    a.add_argument(
        "--space",
        choices=["images", "normalized"],
        default="images",
        help="space in which eps is measured; normalized is the convention of the attention papers' code: no range, and the "
        "model's own predictions as labels",
    )
    a.add_argument("--targeted", action="store_true", help="attack towards a random other class, the same for every --seed")
    a.add_argument("--steps", type=at_least(1), help="number of steps (default: each attack's own)")
    a.add_argument(
        "--step-size",
        type=number,
        help="step size of PGD, also on pixels (default: 2.5 eps / steps), and MI-FGSM (default: eps / steps)",
    )
    a.add_argument("--restarts", type=at_least(1), help="random starts per sample (default: each attack's own)")
    a.add_argument("--queries", type=at_least(1), help="number of queries of Square")
    a.add_argument(
        "--checks", type=at_least(1), metavar="N", help="number of images for the sanity checks (default: 64; 8 for segmenters)"
    )
    a._negative_number_matcher = re.compile(r"-[\d.]+(/[\d.]+)?$")  # Otherwise argparse would reject -1/255 as an option.
    a.set_defaults(function=_attack)


def _add_corrupt(commands: Any) -> None:
    names = f"common: {', '.join(COMMON)}\nextra: {', '.join(EXTRA)}\nfor language models and reviews: word_swap"
    c = _add_robustness(
        commands, "corrupt", CORRUPT_TEXT + names, "accuracy on corrupted images (ImageNet-C, CIFAR-10-C, on the fly) or text"
    )
    add_images(c)
    add_views(c, several=True)
    c.add_argument(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="names, or common (15), extra (4), all (default: common, or all published files; word_swap for text)",
    )
    c.add_argument(
        "--severities",
        nargs="+",
        type=severity,
        metavar="N",
        help="severities from 1 to 5 (default: all); for word_swap, shares of words (default: 0.015)",
    )
    c.add_argument("--frost-folder", type=Path, help="folder with frost1.png to frost5.jpg of github.com/hendrycks/robustness")
    c.add_argument("--files", action="store_true", help="--root holds published files; all are used by default")
    c.set_defaults(function=_corrupt)


def _add_shift(commands: Any) -> None:
    s = _add_robustness(commands, "shift", SHIFT_TEXT, "accuracy on naturally shifted ImageNet: A, R, Sketch, V2, O, ReaL")
    for name, shift in SHIFTS.items():
        s.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"{shift.title} ({shift.source})")
    s.add_argument("--imagenet-o", type=Path, metavar="FOLDER", help="ImageNet-O (arXiv 1907.07174); needs --imagenet-val too")
    s.add_argument("--real-labels", nargs="?", const="", metavar="FILE", help="also use ReaL labels for --imagenet-val")
    add_images(s, where=False)
    s.set_defaults(function=_shift)


def _add_report(commands: Any) -> None:
    r = commands.add_parser(
        "report",
        help="write one page of many results with paired differences between models",
        description="Write one self-contained HTML page of the results of evaluate, attack, corrupt, shift and compare. It "
        "shows models side by side. Differences to the first model are paired by sample or, with several runs of one label, by "
        "training seed.",
        formatter_class=HelpFormatter,
    )
    r.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folders of results, or folders that contain such folders"
    )
    r.add_argument("--output", type=Path, default=Path("runs/report.html"), help="file of the report")
    r.set_defaults(function=_report)


def _evaluate(args: argparse.Namespace) -> None:
    from ..evaluation.protocols import evaluate_clean

    session = _session(args)
    samples = session.samples(dataset_of(args, session.task), streams=True)
    if args.restart:
        session.clear()
    real = args.real_labels is not None
    _print_result(evaluate_clean(session, samples, real=real, real_labels=_file(args.real_labels)), session)


def _file(name: str | None) -> Path | None:
    """Return the file of an option whose value may be left out."""
    return Path(name) if name else None


def _segment(args: argparse.Namespace) -> None:
    from ..evaluation.specs import ModelSpec
    from ..segmentation.segment_files import segment_images
    from ..tasks import SegmentationTask
    from ..training.distributed import start_processes

    if not Path(args.model).is_dir():
        raise ValueError(
            f"--checkpoint must be an existing folder, got {args.model}. Name the folder of a run, or one with config.json and "
            "weights."
        )
    options = {key: getattr(args, key) for key in ("short_side", "window", "stride", "scales", "flip")}
    settings = SegmentationTask.views(run_of(args), **options)
    written = segment_images(ModelSpec(args.model), args.images, args.output, start_processes(args.device)[0], **settings)
    print(f"Written: {len(written)} overlays and label maps to {args.output}")


def _session(args: argparse.Namespace, part: str = "", **options: Any) -> Any:
    """Return the `EvaluationSession` of a command.

    Args:
        args: Arguments of the command line.
        part: Subfolder of the output for this session.
        **options: Settings of the task that the command itself chooses.
    """
    import torch

    from ..evaluation.session import EvaluationSession, Runtime
    from ..training.distributed import start_processes
    from ..training.loop import autocast

    torch.backends.cudnn.allow_tf32 = False  # Convolutions must also use float32 if the record says so.
    device, world = start_processes(args.device)
    spec = model_of(args)
    return EvaluationSession.open(
        spec,
        lambda model: task_of(args, model, **options),
        Runtime(device, world, args.batch_size, args.workers, output_of(args, spec) / part),
        label=args.label,
        autocast=None if args.amp is None else autocast(device.type, args.amp),
        dtype=args.amp or "float32",
        seed=getattr(args, "seed", 0),
    )


def _attack(args: argparse.Namespace) -> None:
    from ..evaluation.conditions import attack_conditions, clean_condition
    from ..evaluation.protocols import run_attacks
    from ..evaluation.threat import ThreatModel

    own = {key: getattr(args, key) for key in ("steps", "step_size", "restarts", "queries")}
    if args.attacks is None:
        changed = [key for key, value in {**own, "eps": args.eps}.items() if value is not None]
        if changed or args.targeted or args.space != "images" or args.norm != "Linf":
            raise ValueError(
                "Settings of attacks must be left out with a preset, which fixes them, got some. Give --attacks too."
            )
    elif args.preset is not None:
        raise ValueError(f"--preset must be left out with --attacks, got {args.preset}. Give only one of them.")
    elif not args.eps:
        raise ValueError("--attacks must have radii, got none. Give --eps, e.g. --eps 1/255 4/255.")
    session = _session(args)
    if not session.task.attacks:
        raise ValueError(
            f"The model must be of a task with attacks, got one of the task {session.task.name}, which has none. Use "
            "`imgproc-attn corrupt`."
        )
    task, preset = session.task, None if args.attacks else (args.preset or "grid")
    if preset is not None:
        attacks = _preset(task, preset).build(task.num_outputs, args.seed)
    else:
        bounds = (0.0, 1.0) if args.space == "images" else None
        threats = [ThreatModel(eps, NORMS[args.norm](), args.targeted, bounds) for eps in args.eps]
        attacks = build_attacks(args.attacks, threats, task.num_outputs, args.seed, task.attacks, **own)
    samples = session.samples(dataset_of(args, task))
    if args.dry_run:
        conditions = [clean_condition(samples, task), *attack_conditions(samples, attacks, task)]
        checks = [*session.probes(samples, list(attacks.values()), args.checks).values()]
        return _plan(session, conditions, checks, f"preset {preset}: {task.presets[preset].purpose}\n" if preset else "")
    if args.restart:
        session.clear()
    _print_result(run_attacks(session, samples, attacks, args.checks, preset=preset), session)


def _preset(task: Any, name: str) -> Any:
    """Return the protocol of a name.

    Raises:
        ValueError: The task has no such protocol.
    """
    if name not in task.presets:
        known = ", ".join(task.presets) or "none"
        raise ValueError(f"--preset must be one of this model's ({known}), got {name}. Name another one, or --attacks.")
    return task.presets[name]


def _corrupt(args: argparse.Namespace) -> None:
    from ..evaluation.conditions import clean_condition, corruption_conditions, known_corruptions
    from ..evaluation.imagenet_c.errors import SEVERITIES
    from ..evaluation.imagenet_c.published import published_conditions
    from ..evaluation.protocols import run_corruptions

    session = _session(args)
    task, dataset = session.task, dataset_of(args, session.task)
    if args.files:
        if task.name != "classification":
            raise ValueError(
                f"--files must be left out for {task.name}, because ImageNet-C and CIFAR-10-C have no label maps. Remove it."
            )
        names = None if args.corruptions is None else known_corruptions(args.corruptions, Path(dataset.root))
        session.about["data"] = {**dataset.record, **task.protocol}
        severities = [int(severity) for severity in args.severities or SEVERITIES]
        conditions = published_conditions(dataset, session.inner, task, session.preprocessing, names, severities)
    else:
        corruptions = task.corruptions(args.corruptions, args.severities, args.seed, args.frost_folder)
        without = set(COMMON) - {corruption.name for corruption in corruptions}
        if session.runtime.world.rank == 0 and without == {"frost"}:
            print("Without --frost-folder, frost and the means over 15 corruptions are left out.")
        samples = session.samples(dataset)
        conditions = [clean_condition(samples, task), *corruption_conditions(samples, corruptions, task)]
    if args.dry_run:
        return _plan(session, conditions)
    if args.restart:
        session.clear()
    generated = not args.files and task.samples_are_images
    _print_result(run_corruptions(session, conditions, generated=generated), session)


def _shift(args: argparse.Namespace) -> None:
    from ..evaluation.specs import DatasetSpec

    given = {name: getattr(args, name.replace("-", "_")) for name in SHIFTS}
    asked = {name: folder for name, folder in given.items() if folder is not None}
    if not asked and args.imagenet_o is None:
        raise ValueError(f"At least one data set must be given, got none. Give --{', --'.join(given)} or --imagenet-o FOLDER.")
    if (args.imagenet_o is not None or args.real_labels is not None) and VALIDATION not in asked:
        raise ValueError(
            f"--imagenet-o and --real-labels must come with ImageNet's validation images, got none. Give --{VALIDATION} FOLDER."
        )
    datasets = {name: DatasetSpec("folder", str(folder), "", args.limit, args.skip_broken) for name, folder in asked.items()}
    for name, dataset in datasets.items():
        _shift_to(args, name, dataset)
    if args.imagenet_o is not None:
        _shift_to_unknown(args, datasets[VALIDATION])


def _shift_to(args: argparse.Namespace, name: str, dataset: Any) -> None:
    """Evaluate on one shifted data set."""
    from ..evaluation.conditions import clean_condition
    from ..evaluation.protocols import evaluate_clean

    session, title = _session(args, name, classes=SHIFTS[name].classes), SHIFTS[name].title
    samples = session.samples(dataset)
    if args.dry_run:
        return _plan(session, [clean_condition(samples, session.task, title)])
    if args.restart:
        session.clear()
    real = args.real_labels if name == VALIDATION else None
    _print_result(evaluate_clean(session, samples, title, "shift", real is not None, _file(real)), session)


def _shift_to_unknown(args: argparse.Namespace, validation: Any) -> None:
    """Measure how well images of ImageNet-O are detected among validation images of the classes that they resemble."""
    from ..data import find_root
    from ..evaluation.imagenet_subsets import classes_of
    from ..evaluation.protocols import run_unknown, unknown_conditions

    folders = [p.name for p in sorted(find_root(str(args.imagenet_o)).iterdir()) if p.is_dir()]
    classes = classes_of("ImageNet-O", folders)
    session = _session(args, "imagenet-o", classes=classes)
    unknown = session.samples(replace(validation, root=str(args.imagenet_o)))
    only = replace(session.task, classes=replace(classes, skip_others=True))
    known = only.samples_of(only.open_dataset(validation, session.inner, len(session.preprocessing.mean)))
    if args.dry_run:
        return _plan(session, unknown_conditions(session, unknown, known))
    if args.restart:
        session.clear()
    _print_result(run_unknown(session, unknown, known), session)


def _report(args: argparse.Namespace) -> None:
    from ..evaluation.report import write_report

    write_report(args.folders, args.output)
    print(f"Written: {args.output}")


def _plan(session: Any, conditions: Any, checks: Any = (), preface: str = "") -> None:
    """Print the plan of an evaluation."""
    from ..evaluation.planning import plan

    if session.runtime.world.rank == 0:
        print(preface + plan(session, conditions, checks), end="\n\n")


def _print_result(result: dict[str, Any], session: Any) -> None:
    """Print the table of results in the process that has it."""
    if result:
        print((session.output / "result.md").read_text(encoding="utf-8"))
        print(f"Written: {session.output}\n")
