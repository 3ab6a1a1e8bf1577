"""Images and labels: readers that timm does not have, and the data loaders for training and evaluation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
