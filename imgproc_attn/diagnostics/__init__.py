"""Diagnostics of trained filter models: bandwidths, saturation and figures."""

from .bandwidths import SATURATED_SHARE, bandwidths, saturation
from .figures import (
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
