"""The sequence classifiers under their names in timm, so that recipes, checkpoints and commands build them."""

from timm.models import register_model

from ..language.timm_models import entry_point
from .families import create_classifier, list_classifiers

__all__: list[str] = []  # register_model adds the entry points

for _name in list_classifiers():
    _create = entry_point(_name, create_classifier, __name__)
    _create.__doc__ = f"""Sequence classifier ``{_name}`` of `imgproc_attn.sequences.create_classifier`.

Args:
    pretrained: Load trained weights, from a folder (``local-dir:``) or the hub (``hf-hub:``). None are published yet.
    pretrained_cfg: Configuration that timm passes for a folder or the hub.
    **kwargs: Keywords of `imgproc_attn.sequences.SequenceClassifier`.
"""
    globals()[_name] = register_model(_create)
