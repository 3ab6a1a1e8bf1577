"""Causal language models with the same components as the vision models, generation with a cache, and text data."""

from .cache import Cache
from .families import LANGUAGE_FAMILIES, LanguageFamily, create_model, list_models
from .generation import sample
from .gpt2_weights import load_gpt2_weights
from .model import FilterLanguageModel
from .output_layers import AdaptiveSoftmax, TiedLogits
from .text import TextSplit, TrainingWindows, read_text
from .tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    VocabularyLimits,
    WordTokenizer,
    tokenizer_of,
)
from .transformer import TokenTransformer
from .word_swap import SwappedText, WordSwap

__all__ = [
    "LANGUAGE_FAMILIES",
    "AdaptiveSoftmax",
    "BytePairTokenizer",
    "ByteTokenizer",
    "Cache",
    "CharacterTokenizer",
    "FilterLanguageModel",
    "LanguageFamily",
    "SwappedText",
    "TextSplit",
    "TiedLogits",
    "TokenTransformer",
    "Tokenizer",
    "TrainingWindows",
    "VocabularyLimits",
    "WordSwap",
    "WordTokenizer",
    "create_model",
    "list_models",
    "load_gpt2_weights",
    "read_text",
    "sample",
    "tokenizer_of",
]
