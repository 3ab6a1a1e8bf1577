"""Vision transformers whose attention is an image filter. Importing this package registers its models with timm.

Names are loaded on first use, from where the stub file beside this one says. So ``import imgproc_attn`` takes no time, and
neither does the help of the console command.
"""

import lazy_loader

from ._version import __version__
from .registration import register_after_timm

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

register_after_timm()
