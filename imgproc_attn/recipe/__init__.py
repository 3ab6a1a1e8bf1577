"""Recipes: YAML files of training runs, their schema, and functions to find and load them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
