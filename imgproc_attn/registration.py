"""Registration of the package's models with timm, without importing timm.

To ask timm for a model, a program imports timm. So the models are registered right after that import, whichever comes first:
``import imgproc_attn`` or ``import timm``. ``import imgproc_attn`` alone imports neither timm nor torch, and the console
command shows its help without them.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTERING = ("imgproc_attn.models", "imgproc_attn.segmentation.model")


def register_after_timm() -> None:
    """Register the models now if timm is imported already, else as soon as it is."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImports())


def _register() -> None:
    for name in REGISTERING:
        import_module(name)


class _AfterImports:
    """Watches imports of timm and of this package; registers the models at the end of the first one that has loaded timm.

    Modules of this package import timm themselves. While one of them is half imported, those that register models cannot be
    imported, as they may need it. So registration waits for the outermost import to end.
    """

    def __init__(self) -> None:
        self._running: list[str] = []
        self._registered = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._registered or not (fullname == "timm" or fullname.startswith("imgproc_attn.")):
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
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
