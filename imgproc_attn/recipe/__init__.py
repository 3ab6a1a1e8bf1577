"""Recipes: the schema of the YAML files, and the functions that find, read and write them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
