"""Training: recipes and the loop."""

from .data import Split, load_digits
from .loop import fit
from .recipe import Recipe, find_recipe, load_recipe

__all__ = ["Recipe", "Split", "find_recipe", "fit", "load_digits", "load_recipe"]
