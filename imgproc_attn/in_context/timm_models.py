"""The model under its name in timm, so that recipes, checkpoints and commands build it as they build others."""

from typing import Any

from timm.models import register_model

from ..models.checkpoints import load_own_weights, own_config
from .model import InContextRegressor

__all__: list[str] = []  # register_model adds the entry point


@register_model
def in_context_regressor(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
    """Model of in-context regression, `imgproc_attn.in_context.InContextRegressor`.

    Args:
        pretrained: Load trained weights, from a folder (``local-dir:``) or the hub (``hf-hub:``). None are published.
        pretrained_cfg: Configuration that timm passes for a folder or the hub.
        **kwargs: Keywords of `imgproc_attn.in_context.InContextRegressor`.
    """
    kwargs.pop("cache_dir", None)  # timm passes it; downloads of weights do not use it here
    own = own_config(pretrained_cfg, kwargs)
    if pretrained and own is None:
        raise ValueError(
            "in_context_regressor has no published weights, got pretrained=True. Name the folder of a run instead."
        )
    model: Any = InContextRegressor(**kwargs)
    model.num_classes = model.points
    # Sequences are not normalized. To code that asks for a size, a sequence is an image with a row per token.
    size = {"input_size": (1, model.context, model.dimensions), "interpolation": "nearest", "crop_pct": 1.0}
    given = {"architecture": "in_context_regressor", "num_classes": model.points, "mean": (0.0,), "std": (1.0,), **size}
    model.pretrained_cfg = own or given
    if own is not None and pretrained:
        load_own_weights(model, own)
    return model
