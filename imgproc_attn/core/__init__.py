"""The parts of a filter, in torch: kernels, positions, filters, residuals, and the layer and block that compose them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
