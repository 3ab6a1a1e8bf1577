"""Experiments: train several models with one recipe and compare them in pairs."""

from .comparison import compare

__all__ = ["compare"]
