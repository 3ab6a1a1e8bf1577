"""What experiments offer, for type checkers, and for `lazy_loader`, which loads it on first use."""

from .comparison import compare

__all__ = ["compare"]
