"""Commands for training: train, quickstart, compare and recipes."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter, add_device, add_threads, at_least

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers ``commands``."""
    t = commands.add_parser(
        "train",
        help="train the model of a recipe, in one process or under torchrun",
        description="Train the model of a recipe. In 8 processes: torchrun --nproc-per-node 8 -m imgproc_attn train RECIPE ...",
        formatter_class=HelpFormatter,
    )
    t.add_argument("recipe", help="YAML file, name that `imgproc-attn recipes` lists, or folder of a run")
    t.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changes of the recipe, e.g. data.root=/data/imagenet"
    )
    t.add_argument("--variant", help="model of a comparison to train")
    t.add_argument(
        "--output", type=Path, help="folder of the run (default: runs/RECIPE; for a variant, the folder of `compare`)"
    )
    held = t.add_mutually_exclusive_group()
    held.add_argument("--restart", action="store_true", help="remove the run in the folder when the new one is ready to start")
    held.add_argument("--resume", action="store_true", help="resume the run in the folder after its last finished epoch")
    add_device(t)
    add_threads(t)
    t.set_defaults(function=_train)

    q = commands.add_parser(
        "quickstart",
        help="train, attack and corrupt small models on real images within minutes, and write a report",
        description="Train, attack and corrupt small models on real images within minutes, and write a report.",
        formatter_class=HelpFormatter,
    )
    q.set_defaults(recipe="quickstart")
    c = commands.add_parser(
        "compare",
        help="train, attack and corrupt the models of a recipe, and write a report",
        description="Train, attack and corrupt the models of a recipe, and write a report of differences paired by seed.",
        formatter_class=HelpFormatter,
    )
    c.add_argument("recipe", help="YAML file with a section comparison, or name of such a recipe of the package")
    for p in (q, c):
        p.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="changes of the recipe, e.g. comparison.seeds=[0]"
        )
        p.add_argument("--output", type=Path, help="folder of the report (default: runs/RECIPE)")
        p.add_argument("--restart", action="store_true", help="remove the runs in the folder instead of resuming them")
        p.add_argument(
            "--jobs", type=at_least(1), help="number of processes that train and evaluate (default: one per core or per GPU)"
        )
        add_device(p)
        p.set_defaults(function=_compare)

    r = commands.add_parser(
        "recipes", help="list the recipes of the package, or show or copy one", formatter_class=HelpFormatter
    )
    one = r.add_mutually_exclusive_group()
    one.add_argument(
        "--show", metavar="NAME", help="print this recipe with all values that it inherits from files that it extends"
    )
    one.add_argument("--copy", metavar="NAME", help="copy this recipe with all values that it inherits")
    r.add_argument("--to", type=Path, help="target of the copy (default: its file name in the current folder)")
    r.set_defaults(function=_recipes)


def _train(args: argparse.Namespace) -> None:
    from ..recipe import find_recipe, load_recipe
    from ..training import train
    from ..training.run_dir import run_folder

    recipe = load_recipe(args.recipe, args.overrides, one_model=args.variant is None)
    output = _output(find_recipe(args.recipe))
    if args.variant is not None:
        output /= run_folder(args.variant, recipe.run.seed)  # A comparison uses the same folder.
        recipe = recipe.variant(args.variant, recipe.run.seed)
    output = args.output or output
    train(recipe, output, args.device, args.resume, args.restart)


def _output(recipe: Path) -> Path:
    """Return the default output: ``runs/NAME`` for recipes, and the folder itself for the recipe of a run."""
    from ..recipe import list_recipes
    from ..utils.manifest import MANIFEST

    if recipe.name == "recipe.yaml" and (recipe.parent / MANIFEST).exists():
        return recipe.parent
    names = {file: name for name, file in list_recipes().items()}
    return Path("runs") / names.get(recipe, recipe.stem)


def _compare(args: argparse.Namespace) -> None:
    from ..experiments.comparison import compare
    from ..recipe import find_recipe, load_recipe

    output = args.output or _output(find_recipe(args.recipe))
    report = compare(load_recipe(args.recipe, args.overrides), output, args.device, args.restart, args.jobs)
    print(report.read_text(encoding="utf-8"))
    print(f"Report: {report}")


def _recipes(args: argparse.Namespace) -> None:
    if args.to is not None and args.copy is None:
        raise ValueError(f"--to must come with --copy, got only --to {args.to}. Add --copy NAME.")
    if args.copy is not None:
        _copy(args.copy, args.to)
    elif args.show is not None:
        from ..recipe.loading import recipe_text

        print(recipe_text(args.show), end="")
    else:
        _list()


def _list() -> None:
    from ..recipe import list_recipes

    for name, file in list_recipes().items():
        purpose = file.read_text(encoding="utf-8").partition("Purpose:")[2].partition("\n# Source:")[0]
        print(f"{name:<44} {' '.join(purpose.replace('#', '').split())}")


def _copy(name: str, to: Path | None) -> None:
    from ..recipe import find_recipe
    from ..utils.io import check_output_file, write_text

    path = find_recipe(name)
    target = to or Path(path.name)
    target = target / path.name if target.is_dir() else target
    if target.exists():
        raise FileExistsError(f"The copy must be a new file, got {target}, which exists. Give another name with --to.")
    check_output_file(target)
    from ..recipe import load_recipe
    from ..recipe.loading import recipe_text

    write_text(target, recipe_text(path))
    command = "train" if load_recipe(path).comparison is None else "compare"
    print(f"Copied to {target}. Run it with: imgproc-attn {command} {target}")
