"""Causal language models with the same components as the vision models, and generation with a cache."""

from .cache import Cache
from .families import LANGUAGE_FAMILIES, LanguageFamily, create_model, list_models
from .generation import sample
from .gpt2_weights import load_gpt2_weights
from .model import FilterLanguageModel

__all__ = [
    "LANGUAGE_FAMILIES",
    "Cache",
    "FilterLanguageModel",
    "LanguageFamily",
    "create_model",
    "list_models",
    "load_gpt2_weights",
    "sample",
]
