"""Families of sequence classifiers, one entry per family in `SEQUENCE_FAMILIES`.

A family is a `SequenceClassifier` of the Long Range Arena's shape with some of its keywords set. To add one, add an entry.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from ..utils.suggestions import did_you_mean
from .classifier import SequenceClassifier

__all__ = ["SEQUENCE_FAMILIES", "create_classifier", "list_classifiers"]

# Blocks of the plain model have 8 C^2 weights, since MLPs are twice as wide as the tokens. Attention alone has 4 C^2 weights,
# and with shared subspaces 2 C^2. So attention-only models of four and eight blocks have as many weights in their blocks.
SEQUENCE_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "nlm": {"kernel": "gaussian_range"},
    "bilateral": {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian")},
    "bilateral_untied": {"positions": "untied"},
    "elliptical": {"kernel": "elliptical"},
    "twicing": {"residual": "twicing"},
    "neutreno": {"residual": "neutreno"},
    "aot_mhsa": {"mlp": "none", "depth": 4},
    "aot_mssa": {"projection": "subspaces", "mlp": "none", "depth": 8},
}
PREFIX = "lra_"
DROPOUT = {"drop_rate": 0.1}


def _models() -> dict[str, dict[str, Any]]:
    """Return the keywords of all models by name."""
    return {f"{PREFIX}{name}": {**DROPOUT, **family} for name, family in SEQUENCE_FAMILIES.items()}


def list_classifiers(filter: str = "") -> list[str]:
    """Return the names of the sequence classifiers.

    Args:
        filter: Pattern with ``*`` and ``?`` as wildcards. Default: all models.

    Example:
        >>> list_classifiers("lra_aot_*")
        ['lra_aot_mhsa', 'lra_aot_mssa']
    """
    return sorted(name for name in _models() if fnmatch(name, filter or "*"))


def create_classifier(name: str, **components: Any) -> SequenceClassifier:
    """Create a sequence classifier with random weights.

    Args:
        name: Name from `list_classifiers`.
        **components: Keywords of `SequenceClassifier`. They replace those of the name.

    Raises:
        ValueError: The name is unknown, or as `SequenceClassifier`.
        TypeError: As `SequenceClassifier`.

    Example:
        >>> model = create_classifier("lra_plain", vocab_size=16, context=64, padding=0, positions=["absolute", "rotary"])
        >>> sum(p.numel() for p in model.blocks.parameters())
        66944
    """
    models = _models()
    if name not in models:
        hint = did_you_mean(name, models, otherwise="See imgproc_attn.sequences.list_classifiers().")
        raise ValueError(f"name must be that of a sequence classifier, got {name!r}. {hint}")
    return SequenceClassifier(**{**models[name], **components})
