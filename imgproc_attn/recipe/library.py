"""Search for recipes: those of the package by name, and files by path."""

import difflib
from pathlib import Path

__all__ = ["find_recipe", "list_recipes", "packaged_files", "recipe_folders"]


def recipe_folders() -> list[Path]:
    """Return the folders of the packaged recipes: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parent / "recipes"]


def packaged_files() -> dict[str, Path]:
    """Return all YAML files of the package, ``{name: file}``: the recipes, and the base files that they extend."""
    known: dict[str, Path] = {}
    for folder in recipe_folders():
        for file in sorted(folder.rglob("*.yaml")):
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return known


def list_recipes() -> dict[str, Path]:
    """Return the recipes of the package, ``{name: file}``.

    Files whose name begins with ``_`` are omitted. They hold values that recipes share, and are not complete recipes.

    Example:
        >>> "imagenet/nlm_vit_tiny_300e" in list_recipes()
        True
    """
    return {name: file for name, file in packaged_files().items() if not file.name.startswith("_")}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        name: Path of a file, folder of a run, or name of a recipe of the package.

    Raises:
        FileNotFoundError: There is no such recipe. The message lists recipes with similar names.

    Example:
        >>> find_recipe("quickstart").name
        'quickstart.yaml'
    """
    for file in (Path(name), Path(name) / "recipe.yaml"):
        if file.is_file():
            return file
    known, short = list_recipes(), str(name).removesuffix(".yaml")
    if short in known:
        return known[short]
    near = difflib.get_close_matches(short, known, n=3) or [k for k in known if short in k] or list(known)
    raise FileNotFoundError(
        f"The recipe must be a file, a run folder or a recipe of the package, got {str(name)!r}. Did you mean one of "
        f"{', '.join(near[:8])}? `imgproc-attn recipes` lists all {len(known)}."
    )
