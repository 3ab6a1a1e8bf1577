"""The public names and their signatures are those of ``public_api.txt``: nobody changes them without noticing.

After an intended change, write the file again: ``python tests/test_public_api.py``.
"""

import difflib
import importlib
import inspect
from pathlib import Path

FILE = Path(__file__).with_name("public_api.txt")
PACKAGES = (
    "",
    ".image_filters",
    ".models",
    ".language",
    ".in_context",
    ".sequences",
    ".data",
    ".tasks",
    ".recipe",
    ".training",
    ".evaluation",
    ".segmentation",
    ".diagnostics",
)
CORE = (
    "attention",
    "bandwidths",
    "block",
    "components",
    "elementwise_filters",
    "feature_filters",
    "filters",
    "gates",
    "geometry",
    "kernels",
)
CORE += (
    "landmark_filters",
    "layer_cache",
    "layer_state",
    "lifting",
    "linear_filters",
    "pointwise",
    "positions",
    "projections",
    "relative_buckets",
    "residuals",
)
CORE += ("sliding_window", "terms")
MODULES = [*(f"imgproc_attn{package}" for package in PACKAGES), *(f"imgproc_attn.core.{module}" for module in CORE)]


def signature(thing):
    """The arguments and defaults of a function or class; nothing of other things."""
    if not callable(thing):
        return ""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return ""
    plain = [p.replace(annotation=inspect.Parameter.empty, default=default(p.default)) for p in parameters]
    return str(inspect.Signature(plain))


def default(value):
    """A default as it is, or a placeholder for objects, whose text may hold an address in memory."""
    plain = value is inspect.Parameter.empty or isinstance(value, str | int | float | tuple | type(None))
    return value if plain else "…"


def lines():
    """One line per public name, ``module.name(arguments)``."""
    return [
        f"{module}.{name}{signature(getattr(importlib.import_module(module), name))}"
        for module in MODULES
        for name in sorted(importlib.import_module(module).__all__)
    ]


def test_public_names_and_signatures():
    changed = list(difflib.unified_diff(FILE.read_text(encoding="utf-8").splitlines(), lines(), lineterm="", n=0))
    assert not changed, "\n".join(["The public API has changed; if it should, run python tests/test_public_api.py:", *changed])


def test_what_the_package_gives_at_the_top():
    import imgproc_attn

    promised = {"from_timm", "bilateral_filter", "non_local_means", "core", "models", "training", "evaluation"}
    assert promised | {"segmentation", "diagnostics", "tasks", "recipe"} <= set(imgproc_attn.__all__)


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
