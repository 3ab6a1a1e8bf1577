"""
Rows of a range, a spatial and a bilateral kernel
=================================================

Each output token of attention is a weighted average of all tokens. Its weights are one row of the attention matrix. This
example draws such rows over a photograph. The kernel modules are those of the attention layers. The tokens are pixels, and
their colors are the queries and keys.
"""

# %%
# Prepare the tokens
# ------------------
# The photograph ships with scikit-image. We take every third pixel of a crop, which gives a grid of 56 x 56 tokens. Kernels
# take tensors of the shape ``[batch, heads, tokens, width]``.

import matplotlib.pyplot as plt
import torch
from skimage import data

from imgproc_attn.core import GaussianRange, SoftmaxFilter, SpatialGaussian, Terms, grid_geometry, product

SIDE = 56
image = torch.from_numpy(data.astronaut()[20:188:3, 150:318:3].copy()) / 255
colors = image.reshape(1, 1, SIDE * SIDE, 3)
geometry = grid_geometry(SIDE, SIDE, num_prefix_tokens=0, like=colors)

# %%
# Build the three filters
# -----------------------
# The bilateral kernel is the product of a range kernel and a spatial kernel:
#
# .. math:: \log K_{ij} = -\frac{|q_i - k_j|^2}{h_r^2} - \frac{|p_i - p_j|^2}{h_s^2}
#
# The range bandwidth h_r is in units of the colors. The spatial bandwidth h_s is in pixels. ``SoftmaxFilter`` divides each row
# of K by its sum, so the weights of a row sum to 1.


def range_kernel(h_r: float) -> Terms:
    """Return the log-weights of the similarity of two colors."""
    kernel = GaussianRange(num_heads=1, head_dim=3, range_bandwidth=h_r, learned=False)
    return kernel(colors, colors)


def spatial_kernel(h_s: float) -> Terms:
    """Return the log-weights of the distance of two pixels."""
    kernel = SpatialGaussian(num_heads=1, grid_size=(SIDE, SIDE), spatial_bandwidth=h_s, learned=False)
    return kernel(geometry, geometry, like=colors)


def rows(terms: Terms) -> torch.Tensor:
    """Return the filter as a matrix, one row per output pixel."""
    return SoftmaxFilter()(terms).dense()[0, 0]


h_r, h_s = 0.25, 9.0
filters = {
    f"range kernel\n$h_r$ = {h_r}": rows(range_kernel(h_r)),
    f"spatial kernel\n$h_s$ = {h_s:g} pixels": rows(spatial_kernel(h_s)),
    "bilateral kernel\n(their product)": rows(product(spatial_kernel(h_s), range_kernel(h_r))),
}

# %%
# Draw one row per pixel and kernel
# ---------------------------------
# The cross marks the output pixel. Bright pixels have a large weight in the average that gives this pixel.


def draw_row(ax, y: int, x: int, weights: torch.Tensor | None = None) -> None:
    """Draw the photograph, and over it the filter row of one pixel."""
    ax.imshow(image)
    if weights is not None:
        ax.imshow(weights[y * SIDE + x].reshape(SIDE, SIDE), cmap="inferno", alpha=0.85, vmin=0)
    ax.plot(x, y, "c+", markersize=9, markeredgewidth=2)
    ax.set(xticks=[], yticks=[])


pixels = {"cheek": (37, 19), "hair": (12, 24), "background": (14, 51)}
fig, axes = plt.subplots(len(pixels), 1 + len(filters), figsize=(8, 6.4), layout="constrained")
for row, (part, (y, x)) in zip(axes, pixels.items()):
    draw_row(row[0], y, x)
    row[0].set_ylabel(part)
    for ax, weights in zip(row[1:], filters.values()):
        draw_row(ax, y, x, weights)
for ax, title in zip(axes[0], ["photograph", *filters]):
    ax.set_title(title, fontsize="medium")
plt.show()

# %%
# The range kernel ignores places: it averages similar colors anywhere. The spatial kernel ignores colors: it averages across
# edges. Only their product averages pixels that are near and on the same side of an edge. The table below shows this in
# numbers. "pixels" is the effective number of averaged pixels, ``1 / sum_j A_ij^2``. "distance" and "color" are weighted
# means over the averaged pixels: of their distance from the output pixel i, and of their color difference to it.

place, color = geometry.coordinates[0], colors[0, 0]
print(f"{'pixel':12}{'kernel':18}{'pixels':>8}{'distance':>10}{'color':>8}")
for part, (y, x) in pixels.items():
    i = y * SIDE + x
    for title, weights in filters.items():
        a = weights[i]
        distance, difference = (a * (t - t[i]).norm(dim=1) for t in (place, color))
        print(f"{part:12}{title.split(chr(10))[0]:18}{1 / a.square().sum():8.0f}{distance.sum():10.1f}{difference.sum():8.3f}")

# %%
# Change the bandwidths
# ---------------------
# With a small range bandwidth, the row of the bilateral kernel follows edges. With a large range bandwidth, it is nearly a
# Gaussian blur. With a small spatial bandwidth, it stays near the output pixel.

range_bandwidths, spatial_bandwidths = (0.15, 0.3, 1.0), (4.0, 9.0, 30.0)
fig, axes = plt.subplots(3, 3, figsize=(6.2, 6.4), layout="constrained")
for row, h_s in zip(axes, spatial_bandwidths):
    row[0].set_ylabel(f"$h_s$ = {h_s:g}")
    for ax, h_r in zip(row, range_bandwidths):
        draw_row(ax, *pixels["cheek"], rows(product(spatial_kernel(h_s), range_kernel(h_r))))
for ax, h_r in zip(axes[0], range_bandwidths):
    ax.set_title(f"$h_r$ = {h_r}", fontsize="medium")
fig.suptitle("One row of the bilateral kernel", fontsize="medium")
plt.show()

# %%
# To see rows of your own photograph, change ``image`` and ``pixels``. For a trained model, use
# :py:func:`imgproc_attn.diagnostics.draw_kernel_rows`.
