"""Parts of an image filter in torch: kernels, positions, filters and residual rules, and the layer and block that use them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
