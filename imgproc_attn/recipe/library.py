"""Search for recipes: those of the package by name, and files by path."""

from pathlib import Path

from ..utils.suggestions import did_you_mean

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
        FileNotFoundError: There is no such recipe. The message suggests a similar name.

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
    parts = [recipe for recipe in known if short in recipe] or list(known)
    hint = did_you_mean(short, known, otherwise=f"Give one such as {', '.join(parts[:8])}.")
    raise FileNotFoundError(
        f"The recipe must be a file, a run folder or a recipe of the package, got {str(name)!r}. {hint} `imgproc-attn recipes` "
        f"lists all {len(known)}."
    )
