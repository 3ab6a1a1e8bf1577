"""Robust accuracy by this package, torchattacks and foolbox: equal attacks, one model, the same images.

    pip install foolbox && pip install --no-deps torchattacks
    python robustness/compare_libraries.py MODEL --root PATH [--checkpoint FILE] --attacks fgsm pgd --eps 1/255

Protocol
    Sources         FGSM (arXiv 1412.6572), PGD (1706.06083), APGD-CE (2003.01690), Square (1912.00049); torchattacks
                    (2010.01950), foolbox (1707.04131)
    Threat model    white box (Square: black box), untargeted; L-infinity ball around each image
    Normalization   inside the model: images are attacked in [0, 1], and eps is in these units
    Radius eps      1/255
    Attacks         FGSM; PGD with 20 steps of 2.5 eps / 20; on request APGD-CE with 20 steps, Square with 500 queries
    Restarts        1 random start each; none for FGSM
    Images          all images of the data, or a random subset of --limit N; only those that are classified correctly are
                    attacked
    Report          robust accuracy per library with its standard error, and the share of images on which a library agrees
                    with this package; with --runs N the time of the robust accuracy under PGD, interleaved runs

An image counts as robust if it is classified correctly before and after. This package judges every point that an attack
visits; the other libraries return their last. For the time, each library does what its user would have it do.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from imgproc_attn.benchmark import markdown, measure, summarize, synchronizer
from imgproc_attn.cli.arguments import HelpFormatter, add_images, add_model, at_least, dataset_of, model_of, number, task_of
from imgproc_attn.evaluation import APGDCE, FGSM, PGD, NormalizedModel, Square, evaluate
from imgproc_attn.evaluation.attacks import is_correct
from imgproc_attn.evaluation.samples import Batch, Samples, only_readable
from imgproc_attn.utils.environment import environment, keep_freed_memory
from imgproc_attn.utils.io import write_json
from imgproc_attn.utils.serialization import strength_text

Find = Callable[[Tensor, Tensor, Tensor], Tensor]  # adversarial images of images in [0, 1], labels, numbers of the images

OURS, PEERS = "imgproc_attn", ("torchattacks", "foolbox")


def rivals(attack: str, model: nn.Module, eps: float, args: argparse.Namespace) -> dict[str, Find]:
    """Those that have the attack, with equal settings, ours first."""
    import foolbox
    import torchattacks

    step, wrapped = 2.5 * eps / args.steps, foolbox.PyTorchModel(model, bounds=(0, 1))

    def of_foolbox(theirs: foolbox.Attack) -> Find:
        return lambda x, y, ids: theirs.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)

    def of_torchattacks(theirs: torchattacks.attack.Attack) -> Find:
        return lambda x, y, ids: theirs(x, y)

    def of_ours(ours: Any) -> Find:
        return lambda x, y, ids: ours(model, x, y, ids).adversarial

    if attack == "fgsm":
        peers = [torchattacks.FGSM(model, eps), foolbox.attacks.LinfFastGradientAttack()]
        ours: Any = FGSM(eps)
    elif attack == "pgd":
        peers = [torchattacks.PGD(model, eps, step, args.steps), foolbox.attacks.LinfPGD(abs_stepsize=step, steps=args.steps)]
        ours = PGD(eps, args.steps)
    elif attack == "apgd":
        peers, ours = [torchattacks.APGD(model, eps=eps, steps=args.steps)], APGDCE(eps, args.steps)
    else:
        peers, ours = [torchattacks.Square(model, eps=eps, n_queries=args.queries)], Square(eps, args.queries)
    return {OURS: of_ours(ours), **{name: make(p) for name, make, p in zip(PEERS, (of_torchattacks, of_foolbox), peers)}}


def robust(model: nn.Module, find: Find, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """``[B]`` bool, whether images that are classified correctly stay so."""
    return is_correct(model, find(x, y, ids).detach(), y)


def agreement(attack: str, model: nn.Module, batches: Callable[[], Iterator[Batch]], eps: float, args: Any) -> list[dict]:
    """Robust accuracy by each library, and how far ours is from the others'."""
    attacks, found = rivals(attack, model, eps, args), {}
    for x, y, ids in tqdm(batches(), f"{attack} {strength_text(eps)}", unit="batch", dynamic_ncols=True):
        right = is_correct(model, x, y)
        for library, find in attacks.items():
            robust_ones = right.clone()
            if right.any():
                robust_ones[right] = robust(model, find, x[right], y[right], ids[right.cpu()])
            found.setdefault(library, []).append(robust_ones)
    results_of = {library: torch.cat(parts).cpu() for library, parts in found.items()}
    return [
        _row(results_of[OURS], robust_ones, attack=attack, eps=strength_text(eps), library=name)
        for name, robust_ones in results_of.items()
    ]


def _row(ours: Tensor, robust_ones: Tensor, **about: str) -> dict[str, Any]:
    share = robust_ones.double().mean().item()
    return {
        **about,
        "images": len(robust_ones),
        "robust / %": 100 * share,
        "standard error": 100 * math.sqrt(share * (1 - share) / len(robust_ones)),
        "same results as ours / %": 100 * (robust_ones == ours).double().mean().item(),
        "robust by ours alone / %": 100 * (ours & ~robust_ones).double().mean().item(),
    }


def speed(model: nn.Module, batches: Callable[[], Iterator[Batch]], eps: float, args: Any) -> list[dict]:
    """Seconds for the robust accuracy under PGD, without reading: the peers on all images, ours by its own protocol."""
    read = list(batches())
    images, labels = torch.cat([x for x, _, _ in read]), torch.cat([y for _, y, _ in read])

    def of_peer(find: Find) -> Callable[[], Any]:
        return lambda: [is_correct(model, x, y) & robust(model, find, x, y, ids) for x, y, ids in read]

    steps = {name: of_peer(find) for name, find in rivals("pgd", model, eps, args).items() if name != OURS}
    ours = {"PGD": PGD(eps, args.steps)}
    steps[OURS] = lambda: evaluate(model, images, labels, ours, batch_size=args.batch_size)
    with tqdm(total=args.runs + 2, desc="speed", unit="round", dynamic_ncols=True) as bar:
        rows = summarize(measure(steps, args.runs, synchronizer(args.device), bar), PEERS[0])
    return [
        {
            "library": row["name"],
            "images": len(labels),
            "seconds": row["median_s"],
            "quartiles": " to ".join(f"{q:.2f}" for q in row["quartiles_s"]),
            f"of {PEERS[0]}' time": row["ratio"],
        }
        for row in rows
    ]


def table(title: str, rows: list[dict]) -> str:
    """All that the rows hold."""

    def column(key: str) -> Callable[[dict], str]:
        return lambda row: f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key])

    return markdown(title, rows, {key: column(key) for key in rows[0]})


class Help(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it stands above."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--attacks", nargs="*", choices=["fgsm", "pgd", "apgd", "square"], default=["fgsm", "pgd"])
    parser.add_argument("--eps", nargs="+", type=number, default=[1 / 255], help="radii of balls on images in [0, 1]")
    parser.add_argument("--steps", type=at_least(1), default=20, help="of PGD, 2.5 eps / steps each, and of APGD")
    parser.add_argument("--queries", type=at_least(1), default=500, help="of Square")
    parser.add_argument(
        "--runs", type=int, default=0, help="timed runs of PGD at the first radius, interleaved; 0 for none, else at least 2"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=50)
    parser.add_argument("--workers", type=at_least(0), default=2, help="processes that read")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/libraries.json"))
    parser.set_defaults(short_side=None, window=None, stride=None)
    args = parser.parse_args()
    if args.runs < 0 or args.runs == 1:
        parser.error(f"--runs is {args.runs}; of one run there is no spread: 0, or 2 and more")
    return args


def main() -> None:
    """Compare, print tables, write everything."""
    args = parse()
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not installed; see `python robustness/compare_libraries.py --help`.")
    keep_freed_memory()
    model, preprocessing = model_of(args).build()
    task = task_of(args, model)
    if task.name != "classification":
        raise SystemExit("The other libraries attack classifiers; pictures with label maps are not for them.")
    samples = Samples(task.open_dataset(dataset_of(args, task), model, preprocessing.input_size[0]))
    asked = NormalizedModel(task.restrict(model), preprocessing.mean, preprocessing.std).to(args.device).eval()

    def batches() -> Iterator[Batch]:
        return map(only_readable, samples.batches(preprocessing, args.batch_size, args.workers, torch.device(args.device)))

    versions = {name: version(name) for name in PEERS}
    print(", ".join(f"{name} {found}" for name, found in versions.items()))
    result: dict[str, Any] = {"environment": environment(args.device), "peers": versions, "samples": samples.identity}
    rows = [row for name in args.attacks for eps in args.eps for row in agreement(name, asked, batches, eps, args)]
    if rows:
        print(table("Robust accuracy", rows))
        write_json(args.output, {**result, "agreement": rows})
    timed = speed(asked, batches, args.eps[0], args) if args.runs else []
    if timed:
        print(table("Time of robust accuracy under PGD", timed))
    write_json(args.output, {**result, "agreement": rows, "speed": timed})


if __name__ == "__main__":
    main()
