"""
Fast attention against explicit distances
=========================================

A Gaussian kernel needs the distance of every query to every key. This library computes the kernel with fused attention, and
never stores a matrix of distances. This script compares errors and times of this method with explicit distances on your
machine.
"""

import time

import matplotlib.pyplot as plt
import skimage
import torch
from torch.nn.functional import scaled_dot_product_attention, unfold

from imgproc_attn.core import GaussianRange, SoftmaxFilter, SpatialGaussian, grid_geometry, product

torch.manual_seed(0)
num_heads, head_dim, bandwidth = 6, 64, 4.0

# %%
# Queries, keys and values of a photograph
# ----------------------------------------
# The tokens are patches of 16 x 16 pixels of scikit-image's astronaut. A random projection gives queries, keys and values, as
# in an untrained layer with 6 heads of width 64.

photograph = torch.from_numpy(skimage.data.astronaut()).double().permute(2, 0, 1)[None] / 255


def tokens(num_tokens, stride=8):
    """Return q, k, v, each [1, heads, num_tokens, head_dim], of patches that overlap by half."""
    patches = unfold(photograph, 16, stride=stride).mT[:, :num_tokens]
    patches = (patches - patches.mean()) / patches.std()
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(patches.shape[-1], 3 * num_heads * head_dim, generator=generator, dtype=torch.float64)
    qkv = patches @ projection / patches.shape[-1] ** 0.5
    return qkv.reshape(1, num_tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)


# %%
# Three forms of one filter
# -------------------------
# The explicit form follows the formula: differences, squares, softmax. The lifted form, which the library uses, rewrites the
# squared distance as
#
# .. math:: -|q_i - k_j|^2 / h^2 = 2 q_i \cdot k_j / h^2 - |k_j|^2 / h^2 - |q_i|^2 / h^2.
#
# The last term is constant in a row of the attention matrix, so the softmax cancels it. The second term becomes one more column
# of the keys. What is left is an inner product, so fused attention can compute the filter block by block.
#
# The third form uses ``torch.cdist`` with its default settings. It also computes distances from inner products. But it keeps
# the last term, and stores the matrix of distances.


def explicit(q, k, v):
    """Return the filtered values, with distances from differences as a tensor [1, heads, N, N]."""
    return torch.softmax(-((torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist") / bandwidth) ** 2), dim=-1) @ v


def with_cdist(q, k, v):
    """Return the filtered values, with distances from inner products as a tensor [1, heads, N, N]."""
    return torch.softmax(-((torch.cdist(q, k) / bandwidth) ** 2), dim=-1) @ v


def lifted(q, k, v):
    """Return the filtered values through fused attention."""
    kernel = GaussianRange(num_heads, head_dim, bandwidth, learned=False, dtype=q.dtype)
    return SoftmaxFilter()(kernel(q, k)).apply(v)


# %%
# Error
# -----
# The reference is the explicit form in float64. A common offset of all tokens does not change distances. But it is a hard
# case for inner products, because they become large numbers with small differences. To avoid this, the library first
# subtracts a mean key.

q, k, v = tokens(196)
reference = explicit(q, k, v)
print(f"largest filtered value: {reference.abs().max():.2f}; largest errors:")
for offset in (0.0, 10.0, 100.0):
    shifted = q + offset, k + offset, v
    single = [t.float() for t in shifted]
    exact = explicit(*[t.double() for t in single])  # of the rounded inputs, so that only the computation counts
    errors = {
        "lifted, float64": lifted(*shifted) - reference,
        "lifted, float32": lifted(*single) - exact,
        "explicit, float32": explicit(*single) - exact,
        "cdist, float32": with_cdist(*single) - exact,
    }
    print(f"offset {offset:g}")
    print("\n".join(f"    {name:17} {error.abs().max():.1e}" for name, error in errors.items()))

# %%
# The bilateral filter multiplies this kernel with a spatial kernel. The library lifts the positions of patches in the same way:
# they become a few more columns.

geometry = grid_geometry(14, 14, num_prefix_tokens=0, like=q)
space = SpatialGaussian(num_heads, (14, 14), spatial_bandwidth=3.0, learned=False, dtype=q.dtype)
places = geometry.coordinates.double()
log_weights = -((torch.cdist(q, k) / bandwidth) ** 2) - (torch.cdist(places, places) / 3.0) ** 2
kernel = GaussianRange(num_heads, head_dim, bandwidth, learned=False, dtype=q.dtype)
bilateral = SoftmaxFilter()(product(space(geometry, geometry, like=q), kernel(q, k))).apply(v)
print(f"bilateral filter, float64: largest error {(bilateral - torch.softmax(log_weights, dim=-1) @ v).abs().max():.1e}")

# %%
# Time and memory
# ---------------
# The figure shows the time of one application of the filter in float32, the shortest of several runs. Dot-product attention
# is the lower limit, because the lifted form adds a few columns to it. With a few hundred tokens on a CPU, ``torch.cdist``
# may be as fast as the lifted form. But it needs the memory of the matrix, and is less precise, as measured above.


def dot_product(q, k, v):
    """Return softmax attention, for comparison."""
    return scaled_dot_product_attention(q, k, v)


def shortest_times(functions, inputs, repeats=5):
    """Return the shortest time of each function in milliseconds. They take turns, so that other programs disturb all alike."""
    times = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function(*inputs)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: min(values[1:]) for name, values in times.items()}  # The first round warms up.


counts = [49, 100, 196, 400, 784, 1600]
forms = {
    "explicit distances": explicit,
    "torch.cdist": with_cdist,
    "lifted, fused": lifted,
    "dot-product attention": dot_product,
}
with torch.no_grad():
    by_count = [shortest_times(forms, [t.float() for t in tokens(n)]) for n in counts]
milliseconds = {name: [times[name] for times in by_count] for name in forms}

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, values in milliseconds.items():
    relative = [value / base for value, base in zip(values, milliseconds["dot-product attention"])]
    axes[0].loglog(counts, values, marker="o", label=name)
    axes[1].loglog(counts, relative, marker="o", label=name)
axes[0].set(ylabel="milliseconds", title=f"{num_heads} heads of width {head_dim}, {torch.get_num_threads()} CPU thread(s)")
axes[1].set(ylabel="times dot-product attention", title="relative time")
axes[1].set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
for ax in axes:
    ax.set_xlabel("number of tokens")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
axes[0].legend(fontsize="small")

for i, n in enumerate(counts):
    slow, cdist = (milliseconds[name][i] / milliseconds["lifted, fused"][i] for name in ("explicit distances", "torch.cdist"))
    megabytes = num_heads * n**2 * 4 / 2**20
    print(f"{n:4} tokens: explicit / lifted {slow:4.1f}, cdist / lifted {cdist:4.1f}, matrix {megabytes:4.1f} MiB")

# %%
# To see more, change ``head_dim`` and ``counts``, or move the tensors to a GPU. The command ``imgproc-attn benchmark`` measures
# whole models.
