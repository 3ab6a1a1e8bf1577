"""Extensions: your own modules, which commands import first so that they can register models with timm."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["hint", "import_extension", "imported", "requested"]

requested: list[str] = []  # Child processes import these extensions too.
imported: dict[str, Path] = {}  # File of each imported extension by module name. The file of a package is its __init__.py.


def import_extension(name: str) -> ModuleType:
    """Import an extension. From then on, its source code is part of the environment that results record.

    Args:
        name: Name of a module or package, which is searched in the working directory too; or path of a ``.py`` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such module, or another module of that name is imported already.
    """
    is_file = name.endswith(".py")
    file, module = Path(name).resolve(), Path(name).stem if is_file else name
    if is_file and not file.is_file():
        raise FileNotFoundError(f"--import must be an existing file, got {name}. Check the path.")
    folder = str(file.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # At the end, so that its other files do not shadow installed packages.
    try:
        result = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # The extension exists, but a module that it imports does not.
        raise ValueError(
            f"--import must be a module that is installed or in {folder}, got {name}. Give its name or its file."
        ) from None
    if result.__file__ is None:
        raise ValueError(f"--import must be Python source code, got {name}. Give a .py file, or a folder with an __init__.py.")
    source = Path(result.__file__).resolve()
    expected = [file] if is_file else [path.resolve() for path in _sources(Path(folder, *module.split("."))) if path.is_file()]
    if expected and source not in expected:
        raise ValueError(
            f"--import {name}: {module!r} must not be the name of another module, got that of {source}. Rename it."
        )
    imported[module] = source
    requested.append(str(file) if is_file else name)
    return result


def _sources(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.py"), path / "__init__.py"]


def hint(error: str) -> str:
    """Return the advice to append to timm's error about an unknown model; empty for other errors."""
    return "; if it is a model of your own, name its module with --import" if "Unknown model" in error else ""
