"""The model under its name in timm, so that recipes, checkpoints and commands build it as they build others."""

from typing import Any

from timm.models import register_model

from ..language.timm_models import entry_point
from .model import InContextRegressor

__all__: list[str] = []  # register_model adds the entry point


def _create(name: str, **kwargs: Any) -> Any:
    """Return a model with the number of its outputs under timm's name for it."""
    model: Any = InContextRegressor(**kwargs)
    model.num_classes = model.points
    return model


in_context_regressor = entry_point("in_context_regressor", _create, __name__)
in_context_regressor.__doc__ = """Model of in-context regression, `imgproc_attn.in_context.InContextRegressor`.

Args:
    pretrained: Load trained weights, from a folder (``local-dir:``) or the hub (``hf-hub:``). None are published.
    pretrained_cfg: Configuration that timm passes for a folder or the hub.
    **kwargs: Keywords of `imgproc_attn.in_context.InContextRegressor`.
"""
register_model(in_context_regressor)
