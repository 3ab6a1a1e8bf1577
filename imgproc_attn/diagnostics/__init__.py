"""Diagnostics: what a filter model has learned, in numbers and pictures."""

from .bandwidths import SATURATED_SHARE, bandwidths, saturation
from .pictures import (
    draw_adversarial,
    draw_bandwidths,
    draw_curves,
    draw_grid,
    draw_heat_map,
    draw_kernel_rows,
    draw_learning,
    draw_run,
)

__all__ = [
    "SATURATED_SHARE",
    "bandwidths",
    "draw_adversarial",
    "draw_bandwidths",
    "draw_curves",
    "draw_grid",
    "draw_heat_map",
    "draw_kernel_rows",
    "draw_learning",
    "draw_run",
    "saturation",
]
