"""In-context regression: sequences of examples of a random function, causal models that predict the next value, baselines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
