"""Families of causal language models, one entry per family in `LANGUAGE_FAMILIES`.

A family is a `FilterLanguageModel` with some of its keywords set. A model is named ``<family>_<size>``, or ``test_<family>``
for quick tests. To add a family, add an entry.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from torch import nn

from ..utils.suggestions import did_you_mean
from .model import FilterLanguageModel

__all__ = ["LANGUAGE_FAMILIES", "LanguageFamily", "create_model", "list_models"]


class LanguageFamily(NamedTuple):
    """One family of language models.

    Attributes:
        components: Keywords of `FilterLanguageModel` that all sizes share.
        shapes: Keywords of `FilterLanguageModel` per size.
    """

    components: Mapping[str, Any]
    shapes: Mapping[str, Mapping[str, Any]]


# The sizes of GPT-2 have 124, 355, 774 and 1,558 million parameters. The small one trains on a few CPU cores.
TEST = {"vocab_size": 256, "context": 64, "embed_dim": 64, "depth": 3, "num_heads": 2}
SMALL = {"context": 256, "embed_dim": 192, "depth": 6, "num_heads": 3}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
GPT2 = {
    "small": SMALL,
    "base": BASE,
    "medium": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "large": {"embed_dim": 1280, "depth": 36, "num_heads": 20},
    "xl": {"embed_dim": 1600, "depth": 48, "num_heads": 25},
    "test": TEST,
}
FILTER = {"small": SMALL, "base": BASE, "test": TEST}
# Attention-only models (arXiv 2506.03790). Their small sizes have as many parameters in blocks as `gpt2_lm_small`. The shapes
# of 102, 182 and 122 million parameters are not published. These are the GPT-2 shapes, and the one shape, with these counts.
AOT_MSSA_LM = {
    "small": {**SMALL, "depth": 36},
    "base": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "medium": {"embed_dim": 1280, "depth": 36, "num_heads": 20},
    "test": TEST,
}
AOT_MHSA_LM = {
    "small": {**SMALL, "depth": 18},
    "base": {"embed_dim": 896, "depth": 24, "num_heads": 14},
    "test": TEST,
}
# Word-level models of the twicing, elliptical and NeuTRENO papers, with an MLP of width 2,048 and an adaptive softmax. In their
# code, blocks normalize their output, and scores of words have biases.
WORDS103: dict[str, Any] = {"vocab_size": 267735, "cutoffs": (20000, 40000, 200000), "depth": 16, "num_heads": 8}
WIKITEXT103 = {
    "small": {**WORDS103, "context": 256, "embed_dim": 128, "mlp_ratio": 16},
    "medium": {**WORDS103, "context": 384, "embed_dim": 256, "mlp_ratio": 8},
    "test": TEST,
}

LANGUAGE_FAMILIES: Mapping[str, LanguageFamily] = {
    "gpt2_lm": LanguageFamily({}, GPT2),
    "nlm_lm": LanguageFamily({"kernel": "gaussian_range"}, FILTER),
    "bilateral_lm": LanguageFamily({"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian")}, FILTER),
    "bilateral_untied_lm": LanguageFamily({"positions": "untied"}, FILTER),
    "elliptical_lm": LanguageFamily({"kernel": "elliptical"}, FILTER),
    "twicing_lm": LanguageFamily({"residual": "twicing"}, FILTER),
    "neutreno_lm": LanguageFamily({"residual": "neutreno"}, FILTER),
    "aot_mhsa_lm": LanguageFamily({"mlp": "none"}, AOT_MHSA_LM),
    "aot_mssa_lm": LanguageFamily({"projection": "subspaces", "mlp": "none"}, AOT_MSSA_LM),
    "wikitext103_lm": LanguageFamily({"positions": "sincos", "drop_rate": 0.1, "act_layer": nn.ReLU}, WIKITEXT103),
}


def _models() -> dict[str, dict[str, Any]]:
    """Return the keywords of all models by name."""
    return {
        f"test_{name}" if size == "test" else f"{name}_{size}": {**family.components, **shape}
        for name, family in LANGUAGE_FAMILIES.items()
        for size, shape in family.shapes.items()
    }


def list_models(filter: str = "") -> list[str]:
    """Return the names of the language models.

    Args:
        filter: Pattern with ``*`` and ``?`` as wildcards. Default: all models.

    Example:
        >>> list_models("gpt2_lm_*")
        ['gpt2_lm_base', 'gpt2_lm_large', 'gpt2_lm_medium', 'gpt2_lm_small', 'gpt2_lm_xl']
    """
    return sorted(name for name in _models() if fnmatch(name, filter or "*"))


def create_model(name: str, **components: Any) -> FilterLanguageModel:
    """Create a language model with random weights.

    Args:
        name: Name from `list_models`.
        **components: Keywords of `FilterLanguageModel`. They replace those of the name.

    Raises:
        ValueError: The name is unknown, or as `FilterLanguageModel`.
        TypeError: As `FilterLanguageModel`.

    Example:
        >>> model = create_model("test_gpt2_lm", residual={"name": "twicing", "layers": [-2, -1]}, positions="rotary")
        >>> [block.attn.residual.steps for block in model.blocks]
        [0, 1, 1]
    """
    models = _models()
    if name not in models:
        hint = did_you_mean(name, models, otherwise="See imgproc_attn.language.list_models().")
        raise ValueError(f"name must be that of a language model, got {name!r}. {hint}")
    return FilterLanguageModel(**{**models[name], **components})
