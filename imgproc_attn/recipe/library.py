"""Recipes by name: those that come with the package, and files."""

import difflib
from pathlib import Path


def recipe_folders() -> list[Path]:
    """Where recipes are looked for: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parent / "recipes"]


def packaged_files() -> dict[str, Path]:
    """The YAML files that come with the package: `list_recipes`, and the base files that these extend."""
    known: dict[str, Path] = {}
    for folder in recipe_folders():
        for file in sorted(folder.rglob("*.yaml")):
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return known


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package, ``{name: file}``, names as ``imagenet/nlm_vit_tiny_300e``.

    Files whose name begins with ``_`` are left out: they hold values that recipes share, and are no recipes by themselves.
    """
    return {name: file for name, file in packaged_files().items() if not file.name.startswith("_")}


def find_recipe(name: str | Path) -> Path:
    """The file ``name``, the recipe of a run's folder, or the recipe of that name that comes with the package.

    Raises:
        FileNotFoundError: Neither is there; the nearest recipes that are get named.
    """
    for file in (Path(name), Path(name) / "recipe.yaml"):
        if file.is_file():
            return file
    known, short = list_recipes(), str(name).removesuffix(".yaml")
    if short in known:
        return known[short]
    near = difflib.get_close_matches(short, known, n=3) or [k for k in known if short in k] or list(known)
    raise FileNotFoundError(
        f"No recipe {name!r}: neither a file nor one of the package's. Near it: {', '.join(near[:8])}; "
        f"`imgproc-attn recipes` lists all {len(known)}."
    )
