"""The language models under their names in timm, so that recipes, checkpoints and commands build them as they build others."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import register_model

from ..models.checkpoints import load_own_weights, own_config
from .families import create_model, list_models

__all__: list[str] = []  # register_model adds the entry points


def entry_point(name: str, create: Callable[..., Any], module: str) -> Callable[..., Any]:
    """Return the function that timm registers for a model of sequences.

    Args:
        name: Name of the model.
        create: Function of the name and keywords. Its models have ``num_classes`` and ``context``.
        module: Name of the module that registers the function.
    """

    def build(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("cache_dir", None)  # timm passes it; downloads of weights do not use it here
        own = own_config(pretrained_cfg, kwargs)
        if pretrained and own is None:
            raise ValueError(f"{name} has no published weights, got pretrained=True. Name the folder of a run instead.")
        model: Any = create(name, **kwargs)
        # Token indices are not normalized. A line of tokens is an image of height 1 to code that asks for a size.
        line = {"input_size": (1, 1, model.context), "mean": (0.0,), "std": (1.0,), "interpolation": "nearest", "crop_pct": 1.0}
        model.pretrained_cfg = own or {"architecture": name, "num_classes": model.num_classes, **line}
        if own is not None and pretrained:
            load_own_weights(model, own)
        return model

    build.__name__ = build.__qualname__ = name  # timm registers a function under its name
    build.__module__ = module
    return build


def _with_tokenizer(name: str, tokenizer: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """Return a language model that carries the record of its tokenizer."""
    model: Any = create_model(name, **kwargs)
    model.tokenizer, model.num_classes = tokenizer, model.vocab_size
    return model


for _name in list_models():
    _create = entry_point(_name, _with_tokenizer, __name__)
    _create.__doc__ = f"""Language model ``{_name}`` of `imgproc_attn.language.create_model`.

Args:
    pretrained: Load trained weights, from a folder (``local-dir:``) or the hub (``hf-hub:``). None are published yet.
    tokenizer: Tokenizer that the model was trained with, as `imgproc_attn.language.Tokenizer.record` returns it.
    pretrained_cfg: Configuration that timm passes for a folder or the hub.
    **kwargs: Keywords of `imgproc_attn.language.FilterLanguageModel`.
"""
    globals()[_name] = register_model(_create)
