"""Recipes: YAML files of training runs, their schema, and functions to find and load them."""

from .library import find_recipe, list_recipes
from .loading import load_recipe, run_dataset
from .schema import Recipe

__all__ = ["Recipe", "find_recipe", "list_recipes", "load_recipe", "run_dataset"]
