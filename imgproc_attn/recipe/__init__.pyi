"""Recipes: the schema of the YAML files, and the functions that find, read and write them."""

from .library import find_recipe, list_recipes
from .loading import load_recipe
from .schema import Recipe

__all__ = ["Recipe", "find_recipe", "list_recipes", "load_recipe"]
