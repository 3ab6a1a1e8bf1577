"""Modules of one's own beside the package: commands import them first, for the models that they register with timm."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

requested: list[str] = []  # what processes that this one starts import too
imported: dict[str, Path] = {}  # by name: the file of each, of a package its __init__.py


def import_extension(name: str) -> ModuleType:
    """Import a module of one's own; its sources are part of what a number was made with from then on.

    Args:
        name: Of a module or a package, looked for in the working directory too; or the path of a ``.py`` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such module; or another one of that name is imported already.
    """
    is_file = name.endswith(".py")
    file, module = Path(name).resolve(), Path(name).stem if is_file else name
    if is_file and not file.is_file():
        raise FileNotFoundError(f"--import {name}: there is no such file.")
    place = str(file.parent if is_file else Path.cwd())
    if place not in sys.path:
        sys.path.append(place)  # behind installed packages: its other files must not take their place
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # what is missing is something that the module itself imports
        raise ValueError(f"--import {name}: there is no such module, in {place} or installed; give a name or a file.") from None
    if found.__file__ is None:
        raise ValueError(f"--import {name}: this is no Python source; of a folder, give one with an __init__.py.")
    source = Path(found.__file__).resolve()
    meant = [file] if is_file else [path.resolve() for path in _sources(Path(place, *module.split("."))) if path.is_file()]
    if meant and source not in meant:
        raise ValueError(
            f"--import {name}: {module!r} must not be the name of another module, got that of {source}. Rename it."
        )
    imported[module] = source
    requested.append(str(file) if is_file else name)
    return found


def _sources(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.py"), path / "__init__.py"]


def hint(error: str) -> str:
    """What to try where timm knows no model of a name."""
    return "; if it is a model of your own, name its module with --import" if "Unknown model" in error else ""
