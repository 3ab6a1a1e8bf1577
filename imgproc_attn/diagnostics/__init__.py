"""Diagnostics: what a filter model has learned, in numbers and pictures."""

from .bandwidths import bandwidths, saturation
from .pictures import draw_adversarial, draw_bandwidths, draw_curves, draw_kernel_rows, draw_learning, draw_run

__all__ = [
    "bandwidths",
    "draw_adversarial",
    "draw_bandwidths",
    "draw_curves",
    "draw_kernel_rows",
    "draw_learning",
    "draw_run",
    "saturation",
]
