"""Layers: the filter attention and the block around it."""

from .attention import FilterAttention
from .block import FilterBlock

__all__ = ["FilterAttention", "FilterBlock"]
