"""Training: recipes, the loop, and what a run keeps."""

from .library import find_recipe, list_recipes
from .loop import Trainer
from .recipe import load_recipe
from .run import train
from .schema import Recipe

__all__ = ["Recipe", "Trainer", "find_recipe", "list_recipes", "load_recipe", "train"]
