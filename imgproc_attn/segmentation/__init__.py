"""Semantic segmentation: decoders, model, inference, metrics."""

from .decoders import LinearDecoder, MaskDecoder, mask_decoder
from .inference import Windowed, multi_scale, segment, sliding_strips
from .metrics import Areas
from .model import Segmenter, segmenter

__all__ = [
    "Areas",
    "LinearDecoder",
    "MaskDecoder",
    "Segmenter",
    "Windowed",
    "mask_decoder",
    "multi_scale",
    "segment",
    "segmenter",
    "sliding_strips",
]
