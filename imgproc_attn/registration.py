"""Registration of the package's models with timm, without importing timm.

A program imports timm before it asks timm for a model. The models are registered right after that import. The order of
``import imgproc_attn`` and ``import timm`` does not matter. ``import imgproc_attn`` alone imports neither timm nor torch, so
the console command shows its help quickly.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_after_timm"]

REGISTERING = (
    "imgproc_attn.models",
    "imgproc_attn.segmentation.model",
    "imgproc_attn.language.timm_models",
    "imgproc_attn.in_context.timm_models",
    "imgproc_attn.sequences.timm_models",
)


def register_after_timm() -> None:
    """Register the models now if timm is imported already. Otherwise register them right after timm is imported."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImports())


def _register() -> None:
    """Import the modules that register models with timm."""
    for name in REGISTERING:
        import_module(name)


class _AfterImports:
    """Finder that watches imports of timm and of this package, and registers the models once timm is loaded.

    Modules of this package import timm themselves. While such a module is only half imported, modules that register models
    may need it and cannot be imported. Registration therefore waits until the outermost import ends.
    """

    def __init__(self) -> None:
        self._running: list[str] = []
        self._registered = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._registered or not (fullname == "timm" or fullname.startswith("imgproc_attn.")):
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self._running.append(module.__name__)
        try:
            execute(module)
        finally:
            self._running.remove(module.__name__)
        if "timm" in sys.modules and not self._running and not self._registered:
            self._registered = True
            _register()
