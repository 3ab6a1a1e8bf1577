"""
What each position member sees
==============================

Each member of ``positions`` is a kernel on the places of two patches. It ignores the content of the patches. For each member,
this script draws one row of its weights on the grid of patches: how much each patch counts in the output of one marked patch.
"""

import matplotlib.pyplot as plt
import torch

from imgproc_attn.core import (
    Alibi,
    DenseFilter,
    DotProduct,
    RelativeTable,
    Rotary,
    SpatialGaussian,
    Terms,
    UntiedPositions,
    grid_geometry,
    product,
)

torch.manual_seed(0)
height, width, num_heads, head_dim = 14, 14, 4, 16
geometry = grid_geometry(height, width, num_prefix_tokens=0, like=torch.empty(0))
like = torch.empty(0)  # The dtype of this tensor is the dtype of the kernels.

# %%
# Five members
# ------------
# A kernel on positions maps the places of queries and keys to log-weights. A filter turns log-weights into weights whose rows
# sum to 1. In a model, the kernel on positions is multiplied with a kernel on the content. This script uses a constant kernel
# instead, so it needs no model and no image.
#
# - ``spatial_gaussian`` has one bandwidth per head. By default, the bandwidths are log-spaced over the heads, from 1.5
#   patches to twice the side of the grid.
# - ``alibi`` is a Laplace kernel. It has a sharp peak and long tails.
# - ``relative_table`` learns one log-weight per offset between two patches. A new table is zero, so all rows are flat. This
#   script fills the table with random values.
# - ``untied`` compares learned position vectors with a dot product. In this script, the vectors and the projections are random.
# - ``rotary`` rotates queries and keys by angles that depend on their places. Its weights also depend on the content. In this
#   script, all patches have the same random content, so that only the places matter.

spatial_gaussian = SpatialGaussian(num_heads, (height, width))
alibi = Alibi(num_heads, spatial_bandwidth=[1.0, 2.0, 4.0, 8.0])
relative_table = RelativeTable(num_heads, (height, width))
torch.nn.init.normal_(relative_table.table)
untied = UntiedPositions(64, num_heads, head_dim)
rotary = Rotary(head_dim)

vectors = 0.02 * torch.randn(1, height * width, 64)  # timm draws the position vectors of its models like this.
content = 2 * torch.randn(1, num_heads, 1, head_dim).expand(-1, -1, height * width, -1)
turned = rotary.rotate(content, content, geometry, geometry)

terms = {
    "spatial_gaussian": spatial_gaussian(geometry, geometry, like),
    "alibi": alibi(geometry, geometry, like),
    "relative_table\n(random)": relative_table(geometry, geometry, like),
    "untied\n(random)": untied(*2 * [geometry._replace(position_embeddings=vectors)], like),
    "rotary\n(equal content)": DotProduct(head_dim)(*turned),
}


def weights_of(terms, num_tokens):
    """Return the weights [heads, queries, keys] of log-weights."""
    constant = Terms([torch.zeros(1, num_heads, num_tokens, 1)], [torch.zeros(1, num_heads, num_tokens, 1)])
    with torch.no_grad():
        return DenseFilter()(product(terms, constant)).dense()[0]


weights = {name: weights_of(term, height * width) for name, term in terms.items()}
print("shape of each:", {tuple(a.shape) for a in weights.values()})

# %%
# The figure shows one row of weights per member and head. The color scale of each panel begins at 0 and ends at the largest
# weight of its row. The number above a panel is this largest weight. In a flat row, each of the 196 patches has the weight
# 1 / 196 = 0.005.


def draw_row(ax, kernel, row, column):
    """Draw the weights of all patches for the patch in ``row`` and ``column``."""
    weights_of_patch = kernel[row * width + column].reshape(height, width)
    ax.imshow(weights_of_patch, cmap="inferno", vmin=0)
    ax.plot(column, row, "c+", markersize=8)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{weights_of_patch.max():.3f}", fontsize="small")


fig, axes = plt.subplots(len(weights), num_heads, figsize=(6, 7.6), layout="constrained")
for line, (name, a) in zip(axes, weights.items()):
    for ax, kernel in zip(line, a):
        draw_row(ax, kernel, 4, 5)
    line[0].set_ylabel(name)
_ = fig.suptitle("One member per line, one head per column; the cross marks the patch", fontsize="medium")

# %%
# Does only the offset count?
# ---------------------------
# Some kernels depend only on the offset between the two patches. For such a kernel, the whole row moves when the marked patch
# moves, so an object is filtered in the same way everywhere in the image. The figure compares the rows of two marked patches.

fig, axes = plt.subplots(2, len(weights), figsize=(7.5, 3.6), layout="constrained")
for line, place in zip(axes, [(4, 5), (9, 10)]):
    for ax, a in zip(line, weights.values()):
        draw_row(ax, a[1], *place)
for ax, name in zip(axes[1], weights):
    ax.set_xlabel(name)
_ = fig.suptitle("Rows of two patches, second head", fontsize="medium")

# %%
# The next lines answer the same question in numbers. For each patch, we take the log-weight of its right neighbor, minus the
# log-weight of the patch itself. If only the offset counts, this difference is the same everywhere in the grid, and its
# standard deviation is 0, except for rounding.

for name, a in weights.items():
    log_a = a.log().reshape(num_heads, height, width, height, width)
    diagonal = torch.einsum("hyxyx->hyx", log_a)
    neighbor = torch.stack([log_a[:, y, x, y, x + 1] - diagonal[:, y, x] for y in range(height) for x in range(width - 1)])
    print(f"{' '.join(name.split()):24} standard deviation {neighbor.std(dim=0).mean():.6f}")

# %%
# Only ``untied`` depends on the places themselves. For example, it can learn that the sky is at the top. All other members
# depend only on offsets.
#
# Tokens without a place
# ----------------------
# A class token has no place, so its log-weight with every token is 0. In ``spatial_gaussian``, 0 is also the log-weight of a
# patch with itself. So each patch gives the class token the same weight as itself.

with_class_token = grid_geometry(height, width, num_prefix_tokens=1, like=torch.empty(0))
a = weights_of(spatial_gaussian(with_class_token, with_class_token, like), 1 + height * width)
print("weights of the class token and of the patch itself, per head:")
print(torch.stack([a[:, 100, 0], a[:, 100, 100]], dim=1))

# %%
# To see more, change ``head_dim``, the bandwidths, or ``temperature`` of :class:`~imgproc_attn.core.positions.Rotary`. In a
# model, you choose members by name: ``timm.create_model("nlm_vit_tiny", positions=["absolute", "alibi"])``.
