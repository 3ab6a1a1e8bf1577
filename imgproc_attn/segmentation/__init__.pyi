"""Semantic segmentation: decoders, model, inference, metrics, attacks and overlays."""

from .attacks import MaskedPGD, PixelFGSM, PixelMIFGSM, PixelPGD, SegPGD
from .decoders import LinearDecoder, MaskDecoder, depict_decoder, mask_decoder
from .inference import SlidingWindow, SlidingWindowModel, segment, sliding_strips
from .metrics import IoUMetric
from .model import Segmenter, segmenter
from .overlays import overlay, with_legend
from .palettes import palette_of

__all__ = [
    "IoUMetric",
    "LinearDecoder",
    "MaskDecoder",
    "MaskedPGD",
    "PixelFGSM",
    "PixelMIFGSM",
    "PixelPGD",
    "SegPGD",
    "Segmenter",
    "SlidingWindow",
    "SlidingWindowModel",
    "depict_decoder",
    "mask_decoder",
    "overlay",
    "palette_of",
    "segment",
    "segmenter",
    "sliding_strips",
    "with_legend",
]
