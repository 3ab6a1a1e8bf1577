"""Draws kernel_row.png: one row of each kernel over a photograph that ships with scikit-image.

The library's own kernels, with the picture's colors for queries and keys: what attention averages for the marked pixel.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from skimage import data

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import GaussianRange
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.terms import Terms, product

SIDE, PIXEL = 56, (16, 14)

picture = torch.tensor(data.astronaut()[20:188:3, 150:318:3] / 255)
features = picture.reshape(1, 1, SIDE * SIDE, 3)
geometry = grid_geometry(SIDE, SIDE, 0, features)
range_terms = GaussianRange(1, 3, range_bandwidth=0.25, dtype=torch.float64)(features, features)
spatial_terms = SpatialGaussian(1, (SIDE, SIDE), spatial_bandwidth=9.0, dtype=torch.float64)(geometry, geometry, features)
nothing = Terms([torch.zeros_like(features)], [torch.zeros_like(features)])

panels = {
    "picture": None,
    "range kernel\n(non-local means)": range_terms,
    "spatial kernel": product(spatial_terms, nothing),
    "product\n(bilateral filter)": product(spatial_terms, range_terms),
}
figure = Figure(figsize=(9, 3.0), layout="constrained")
for ax, (title, terms) in zip(figure.subplots(1, 4), panels.items()):
    ax.imshow(picture)
    if terms is not None:
        row = SoftmaxFilter()(terms).dense()[0, 0, PIXEL[0] * SIDE + PIXEL[1]].detach().reshape(SIDE, SIDE)
        ax.imshow(row, cmap="inferno", alpha=0.85)
    ax.plot(PIXEL[1], PIXEL[0], "c+", markersize=10, markeredgewidth=2)
    ax.set(title=title, xticks=[], yticks=[])
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)
