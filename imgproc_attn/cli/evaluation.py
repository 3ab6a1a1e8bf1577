"""Commands that evaluate: evaluate, attack, corrupt, shift, report."""

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
    add_place,
    add_subject,
    add_views,
    at_least,
    number,
    output_of,
    run_of,
    seed,
    source_of,
    subject_of,
    views_of,
)

ATTACK_TEXT = """\
Accuracy of a classifier, or mIoU of a segmenter, under adversarial attacks, with sanity checks that say when not to believe
it.

Images are attacked in [0, 1], with normalization inside the model; eps is in the same units (4/255: four gray levels). Random
draws belong to the sample, so batch size and number of processes change nothing. Killed at any moment, the same command goes
on where it was.
In 8 processes: torchrun --nproc-per-node 8 -m imgproc_attn attack MODEL ...

presets:
"""
CORRUPT_TEXT = """\
Accuracy of a classifier, or mIoU of a segmenter, on corrupted images: the 15 + 4 corruptions of ImageNet-C at 5 severities,
generated on the fly for any images, or the published files of ImageNet-C and CIFAR-10-C (--files). Generated ones are not
compressed as JPEG, as the published files are: do not compare the two. Frost needs photographs that do not come with this
package (--frost-folder).
"""
VALIDATION = "imagenet-val"
SHIFT_TEXT = """\
Accuracy on naturally shifted ImageNet: give the folders you have. Class folders are called by WordNet id or, as ImageNet-V2's,
by number. ImageNet-A and -R count the logits of their 200 classes; ImageNet-O, with the validation set, the AUPR of telling its
images by low confidence.
"""


def add_commands(commands: Any) -> None:
    """Add them to the subparsers ``commands``."""
    _add_evaluate(commands)
    _add_segment(commands)
    _add_attack(commands)
    _add_corrupt(commands)
    _add_shift(commands)
    _add_report(commands)


def _add_evaluate(commands: Any) -> None:
    e = commands.add_parser(
        "evaluate",
        help="accuracy of any timm model or checkpoint on any images; mIoU of segmenters",
        description="Top-1 and top-5 with confidence intervals, by class, of any timm model or checkpoint on any images; of "
        "segmenters mIoU, pixel and mean accuracy.",
        formatter_class=HelpFormatter,
    )
    add_subject(e)
    add_images(e)
    add_views(e, several=True)
    e.add_argument(
        "--real-labels",
        nargs="?",
        const="",
        metavar="FILE",
        help="also count by ReaL labels, real.json or timm's copy (ImageNet validation)",
    )
    e.add_argument("--label", help="what a segmenter is called in reports (default: its name); one label for all its seeds")
    e.add_argument("--restart", action="store_true", help="forget what the folder holds of a segmenter")
    add_place(e, 128, "runs/evaluate", ["bfloat16", "float16"])
    e.set_defaults(function=_evaluate)


def _add_segment(commands: Any) -> None:
    s = commands.add_parser(
        "segment",
        help="color overlays and label maps of pictures",
        description="Segment pictures: overlays/NAME.png, colors over the picture with a legend, and labels/NAME.png, class "
        "numbers as 8-bit gray.",
        formatter_class=HelpFormatter,
    )
    s.add_argument("pictures", type=Path, metavar="IMAGE|FOLDER", help="a picture, or a folder of pictures and folders")
    s.add_argument("--checkpoint", dest="model", required=True, metavar="FOLDER", help="of a run, or of one of its checkpoints")
    add_views(s, several=True, title="how it looks at pictures")
    s.add_argument("--output", type=Path, default=Path("runs/segment"), help="folder of the results")
    add_device(s)
    s.set_defaults(function=_segment)


class _Formatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and tells defaults."""


def _add_robustness(commands: Any, name: str, text: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=text, formatter_class=_Formatter)
    add_subject(parser)
    parser.add_argument("--label", help="what the model is called in reports (default: its name); one label for all its seeds")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws of attacks, corruptions and checks")
    parser.add_argument("--restart", action="store_true", help="forget what the folder holds instead of going on with it")
    parser.add_argument("--dry-run", action="store_true", help="print protocol, passes and estimated time, and do nothing")
    # float16's small gradients vanish, and attacks with them
    add_place(parser, 64, f"runs/{name}", ["bfloat16"] if name == "attack" else ["bfloat16", "float16"])
    return parser


def _add_attack(commands: Any) -> None:
    presets = "\n".join(f"  {name}: {preset.purpose}" for name, preset in PRESETS.items())
    presets += f"\nof segmenters, one:\n  grid: {PIXEL_PRESETS['grid'].purpose}"
    a = _add_robustness(commands, "attack", ATTACK_TEXT + presets, "accuracy under FGSM, PGD and stronger attacks")
    add_images(a)
    add_views(a, several=False)
    a.add_argument("--preset", choices=PRESETS, help="a protocol by name (default: grid, unless --attacks are given)")
    a.add_argument(
        "--attacks",
        nargs="+",
        choices=dict.fromkeys([*ATTACKS, ENSEMBLE, *PIXEL_ATTACKS]),
        metavar="ATTACK",
        help=f"{', '.join(ATTACKS)}, {ENSEMBLE}; of segmenters {', '.join(PIXEL_ATTACKS)}",
    )
    a.add_argument("--eps", nargs="+", type=number, metavar="EPS", help="radii, e.g. 1/255 4/255")
    a.add_argument("--norm", choices=NORMS, default="Linf", help="of the ball")
    a.add_argument(
        "--space",
        choices=["images", "normalized"],
        default="images",
        help="what eps is meant of; normalized is the convention of the attention papers' code: no range, the model's own "
        "predictions for labels",
    )
    a.add_argument("--targeted", action="store_true", help="towards a random other class, the same for every --seed")
    a.add_argument("--steps", type=at_least(1), help="of attacks in steps (default: each attack's own)")
    a.add_argument(
        "--step-size", type=number, help="of PGD, also of pixels (default: 2.5 eps / steps) and MI-FGSM (default: eps / steps)"
    )
    a.add_argument("--restarts", type=at_least(1), help="random starts a sample (default: each attack's own)")
    a.add_argument("--queries", type=at_least(1), help="of Square")
    a.add_argument(
        "--checks", type=at_least(1), metavar="N", help="images that the sanity checks look at (default: 64; 8 of segmenters)"
    )
    a._negative_number_matcher = re.compile(r"-[\d.]+(/[\d.]+)?$")  # -1/255 is a wrong number, not an unknown option
    a.set_defaults(function=_attack)


def _add_corrupt(commands: Any) -> None:
    names = f"common: {', '.join(COMMON)}\nextra: {', '.join(EXTRA)}"
    c = _add_robustness(
        commands, "corrupt", CORRUPT_TEXT + names, "accuracy on corrupted images: ImageNet-C, CIFAR-10-C, on the fly"
    )
    add_images(c)
    add_views(c, several=True)
    c.add_argument(
        "--corruptions",
        nargs="+",
        metavar="NAME",
        help="names, common (15), extra (4), all (default: common, or what files there are)",
    )
    c.add_argument(
        "--severities", nargs="+", type=int, choices=range(1, 6), default=[1, 2, 3, 4, 5], metavar="1-5", help="how strong"
    )
    c.add_argument("--frost-folder", type=Path, help="frost1.png to frost5.jpg of github.com/hendrycks/robustness")
    c.add_argument("--files", action="store_true", help="--root holds published files; all that are there, by default")
    c.set_defaults(function=_corrupt)


def _add_shift(commands: Any) -> None:
    s = _add_robustness(commands, "shift", SHIFT_TEXT, "accuracy on naturally shifted ImageNet: A, R, Sketch, V2, O, ReaL")
    for name, shift in SHIFTS.items():
        s.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"{shift.title} ({shift.source})")
    s.add_argument("--imagenet-o", type=Path, metavar="FOLDER", help="ImageNet-O (arXiv 1907.07174); wants --imagenet-val too")
    s.add_argument("--real-labels", nargs="?", const="", metavar="FILE", help="count --imagenet-val by ReaL labels too")
    add_images(s, where=False)
    s.set_defaults(function=_shift)


def _add_report(commands: Any) -> None:
    r = commands.add_parser(
        "report",
        help="one page of many results: models side by side, paired where samples are the same",
        description="One self-contained HTML page of the results of attack, corrupt, shift, and evaluate of segmenters: "
        "models side by side, differences to the first model paired by sample or, with several runs of one label, by training "
        "seed.",
        formatter_class=HelpFormatter,
    )
    r.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of results, or of folders of results")
    r.add_argument("--output", type=Path, default=Path("runs/report.html"))
    r.set_defaults(function=_report)


def _evaluate(args: argparse.Namespace) -> None:
    from ..evaluation.accuracy import accuracy_table
    from ..evaluation.run import evaluate_classifier
    from ..segmentation.source import PictureSource
    from ..training.loop import autocast

    subject, source = subject_of(args), source_of(args)
    if isinstance(source, PictureSource):
        return _evaluate_segmenter(args, source)
    device, world = _start(args)
    output = output_of(args, subject)
    result = evaluate_classifier(
        subject,
        source,
        output,
        device,
        world,
        batch_size=args.batch_size or args.usual_batch_size,
        workers=args.workers,
        autocast=autocast(device.type, args.amp),
        dtype=args.amp or "float32",
        real=args.real_labels is not None,
        real_labels=Path(args.real_labels) if args.real_labels else None,
    )
    if world.rank == 0:
        print(accuracy_table(result))
        if result["unreadable"]:
            print(f"{len(result['unreadable'])} unreadable images left out: {', '.join(result['unreadable'][:5])}")
        print(f"\nWritten: {output}")


def _evaluate_segmenter(args: argparse.Namespace, source: Any) -> None:
    from ..segmentation.evaluate import evaluate_segmenter

    assessment = _assess(args, source)
    if args.restart:
        assessment.forget()
    _tell(evaluate_segmenter(assessment), assessment)


def _segment(args: argparse.Namespace) -> None:
    from ..evaluation.subject import ModelSpec
    from ..segmentation.evaluate import segment_pictures
    from ..training.distributed import start_processes

    if not Path(args.model).is_dir():
        raise ValueError(f"--checkpoint {args.model} is no folder; name that of a run, or one with config.json and weights.")
    written = segment_pictures(
        ModelSpec(args.model), args.pictures, args.output, start_processes(args.device)[0], **views_of(args, run_of(args))
    )
    print(f"Written: {len(written)} overlays and label maps to {args.output}")


def _start(args: argparse.Namespace) -> Any:
    """Device and processes of a command that only evaluates."""
    import torch

    from ..training.distributed import start_processes

    torch.backends.cudnn.allow_tf32 = False  # a recorded float32 is float32 in convolutions too
    return start_processes(args.device)


def _assess(args: argparse.Namespace, source: Any, part: str = "") -> Any:
    """The `Assessment` that a command is about; ``part`` of its folder is for it."""
    from ..evaluation.assessment import Assessment, Place
    from ..segmentation.source import PictureSource
    from ..training.loop import autocast

    device, world = _start(args)
    subject, usual = subject_of(args), 1 if isinstance(source, PictureSource) else args.usual_batch_size
    place = Place(output_of(args, subject) / part, device, world, args.batch_size or usual, args.workers)
    context = None if args.amp is None else autocast(device.type, args.amp)
    return Assessment(subject, source, place, args.label, context, args.amp or "float32", getattr(args, "seed", 0))


def _attack(args: argparse.Namespace) -> None:
    from ..evaluation.robustness import attack_conditions, run_attacks
    from ..evaluation.threat import ThreatModel

    own = {key: getattr(args, key) for key in ("steps", "step_size", "restarts", "queries")}
    if args.attacks is None:
        changed = [key for key, value in {**own, "eps": args.eps}.items() if value is not None]
        if changed or args.targeted or args.space != "images" or args.norm != "Linf":
            raise ValueError("A preset fixes its attacks and their settings; name --attacks to set your own.")
    elif args.preset is not None:
        raise ValueError(f"--preset {args.preset} and --attacks exclude each other.")
    elif not args.eps:
        raise ValueError("--attacks need radii: give --eps, e.g. --eps 1/255 4/255.")
    source = source_of(args)
    assessment = _assess(args, source)
    measure = assessment.measure
    preset = None if args.attacks else (args.preset or "grid")
    if preset is not None:
        attacks = _preset(measure, preset).build(measure.num_classes, args.seed)
    else:
        bounds = (0.0, 1.0) if args.space == "images" else None
        threats = [ThreatModel(eps, NORMS[args.norm](), args.targeted, bounds) for eps in args.eps]
        attacks = build_attacks(args.attacks, threats, measure.num_classes, args.seed, measure.attacks, **own)
    if args.dry_run:
        conditions = attack_conditions(assessment.samples(), attacks, measure)
        return _plan(args, assessment, conditions, f"preset {preset}: {measure.presets[preset].purpose}\n" if preset else "")
    if args.restart:
        assessment.forget()
    _tell(run_attacks(assessment, attacks, args.checks, preset=preset), assessment)


def _preset(measure: Any, name: str) -> Any:
    """The protocol of that name.

    Raises:
        ValueError: It is of other models.
    """
    if name not in measure.presets:
        raise ValueError(f"--preset {name} is not for this model; there are {', '.join(measure.presets)}.")
    return measure.presets[name]


def _corrupt(args: argparse.Namespace) -> None:
    from ..evaluation.imagenet_c.published import published_conditions
    from ..evaluation.robustness import corruption_conditions, known_corruptions, run_corruptions
    from ..evaluation.subject import ImageSource

    source = source_of(args)
    assessment = _assess(args, source)
    if args.files:
        if not isinstance(source, ImageSource):
            raise ValueError("--files are of ImageNet-C and CIFAR-10-C, which have no label maps; leave it out.")
        names = None if args.corruptions is None else known_corruptions(args.corruptions, Path(source.root))
        conditions = published_conditions(source, assessment.inner, assessment.preprocessing, names, args.severities)
    else:
        asked = args.corruptions or ["common"]
        names = known_corruptions(asked, args.frost_folder)
        if assessment.place.world.rank == 0 and "frost" not in names and {"common", "all"} & set(asked):
            print("Without --frost-folder, frost is left out, and with it the means over 15 corruptions.")
        conditions = corruption_conditions(
            assessment.samples(), names, args.severities, assessment.measure, args.seed, args.frost_folder
        )
    if args.dry_run:
        return _plan(args, assessment, conditions)
    if args.restart:
        assessment.forget()
    _tell(run_corruptions(assessment, conditions, generated=not args.files), assessment)


def _shift(args: argparse.Namespace) -> None:
    from ..data import find_root
    from ..evaluation.imagenet_subsets import class_map, classes_of
    from ..evaluation.robustness import run_shift, run_unknown, shift_conditions, unknown_conditions
    from ..evaluation.subject import ImageSource

    def assess(name: str, folder: Path, classes: Any) -> Any:
        source = ImageSource("folder", str(folder), "", classes, args.limit, args.skip_broken)
        return _assess(args, source, name)

    given = {name: getattr(args, name.replace("-", "_")) for name in SHIFTS}
    asked = {name: folder for name, folder in given.items() if folder is not None}
    if not asked and args.imagenet_o is None:
        raise ValueError(f"No data set given; name the folder of one: --{', --'.join(given)}, --imagenet-o.")
    if (args.imagenet_o is not None or args.real_labels is not None) and VALIDATION not in asked:
        raise ValueError(f"--imagenet-o and --real-labels need ImageNet's validation images: give --{VALIDATION} FOLDER.")
    for name, folder in asked.items():
        assessment, title = assess(name, folder, class_map(SHIFTS[name].classes)), SHIFTS[name].title
        if args.dry_run:
            _plan(args, assessment, shift_conditions(assessment, title))
            continue
        if args.restart:
            assessment.forget()
        real = args.real_labels if name == VALIDATION else None
        _tell(run_shift(assessment, title, real is not None, Path(real) if real else None), assessment)
    if args.imagenet_o is not None:
        folders = [p.name for p in sorted(find_root(str(args.imagenet_o)).iterdir()) if p.is_dir()]
        classes = classes_of("ImageNet-O", folders)
        unknown = assess("imagenet-o", args.imagenet_o, classes)
        known = assess("imagenet-o", asked[VALIDATION], replace(classes, alone=True))
        if args.dry_run:
            return _plan(args, unknown, unknown_conditions(unknown, known))
        if args.restart:
            unknown.forget()
        _tell(run_unknown(unknown, known), unknown)


def _report(args: argparse.Namespace) -> None:
    from ..evaluation.report import write_report

    write_report(args.folders, args.output)
    print(f"Written: {args.output}")


def _plan(args: argparse.Namespace, assessment: Any, conditions: Any, preface: str = "") -> None:
    """Print what would be done."""
    from ..evaluation.robustness import plan

    if assessment.place.world.rank == 0:
        print(preface + plan(assessment, conditions, getattr(args, "checks", None) or assessment.measure.checked), end="\n\n")


def _tell(result: dict[str, Any], assessment: Any) -> None:
    """Print the table of results, in the process that has it."""
    output = assessment.place.output
    if result:
        print((output / "result.md").read_text(encoding="utf-8"))
        print(f"Written: {output}\n")
