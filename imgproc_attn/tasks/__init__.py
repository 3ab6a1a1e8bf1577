"""Tasks: one class per task holds its data, loss, metrics, scorers, attacks, checks and figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
