"""
Over-smoothing with depth
=========================

If a filter is applied many times, all tokens become alike. This example filters the patches of a photograph repeatedly, without
the skip connections and MLPs of a transformer. It measures how fast the tokens become alike with plain filtering, twicing and
NeuTRENO. Then it measures the same in transformers with random weights.
"""

# %%
# Prepare the tokens
# ------------------
# The photograph ships with scikit-image. The tokens are its 32 x 32 patches of 8 x 8 pixels, after the mean color is
# subtracted. We measure the mean cosine similarity of all pairs of tokens. It is 1 if all tokens point in the same direction.

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from skimage import data

import imgproc_attn  # noqa: F401  registers the models with timm
from imgproc_attn.core import GaussianRange, LayerState, NeuTRENO, Plain, Residual, SoftmaxFilter, Twicing
from imgproc_attn.diagnostics import token_similarity

SIDE, PATCH, DEPTH = 256, 8, 12
image = torch.from_numpy(data.coffee()[80 : 80 + SIDE, 150 : 150 + SIDE].copy()).movedim(-1, 0) / 255
mean = image.mean(dim=(1, 2), keepdim=True)
tokens = F.unfold((image - mean)[None], PATCH, stride=PATCH).mT[:, None]  # [batch, heads, tokens, values per patch]


def photograph(x: torch.Tensor) -> torch.Tensor:
    """Return the photograph ``[H, W, 3]`` of tokens."""
    return (F.fold(x[:, 0].mT, (SIDE, SIDE), PATCH, stride=PATCH)[0] + mean).movedim(0, -1).clamp(0, 1)


# %%
# Filter again and again
# ----------------------
# Each layer computes the kernel from its own tokens v, as a transformer does. The filtered tokens are ``u = A v``. Twicing adds
# the filtered residual: ``u + A (v - u)``. NeuTRENO adds a share g of the difference to the tokens v_0 of the first layer:
# ``u + g (v_0 - v)``. The code of both rules is that of the library.

rules = {"plain": Plain(), "twicing": Twicing(num_heads=1), "NeuTRENO": NeuTRENO(num_heads=1, gate=0.6)}


def filtered(rule: Residual, range_bandwidth: float) -> list[torch.Tensor]:
    """Return the tokens after 0 to ``DEPTH`` layers."""
    kernel = GaussianRange(1, tokens.shape[-1], range_bandwidth, learned=False)
    layers = [tokens]
    for _ in range(DEPTH):
        v = layers[-1]
        operator = SoftmaxFilter()(kernel(v, v))
        layers.append(rule(operator.apply, v, LayerState(first=tokens)))
    return layers


bandwidths = (2.0, 3.0, 4.0)
layers = {h: {name: filtered(rule, h) for name, rule in rules.items()} for h in bandwidths}

fig, axes = plt.subplots(1, 3, figsize=(8.4, 3), layout="constrained", sharey=True)
for ax, (h, by_rule) in zip(axes, layers.items()):
    for rule, xs in by_rule.items():
        ax.plot([token_similarity(x).mean().item() for x in xs], marker="o", markersize=3, label=rule)
    ax.set(title=f"range bandwidth {h:g}", xlabel="layer")
    ax.grid(alpha=0.3)
axes[0].set_ylabel("cosine similarity of tokens")
axes[0].legend(fontsize="small")
plt.show()

# %%
# With the narrowest kernel, tokens stay different under every rule. With wider kernels, plain filtering makes them alike.
# Twicing delays this, but does not prevent it, as the widest kernel shows. With NeuTRENO, tokens stay different, because each
# layer pulls them back to the tokens of the first layer.

for h, by_rule in layers.items():
    ends = ", ".join(f"{rule} {token_similarity(xs[-1]).mean().item():.2f}" for rule, xs in by_rule.items())
    print(f"range bandwidth {h:g}, similarity after {DEPTH} layers: {ends}")

# %%
# Look at the tokens
# ------------------
# The figure shows the photograph that the tokens form after 1, 4 and 12 layers, for the middle bandwidth.

shown, h = (1, 4, 12), bandwidths[1]
fig, axes = plt.subplots(3, len(shown), figsize=(4.4, 4.6), layout="constrained")
for row, rule in zip(axes, rules):
    row[0].set_ylabel(rule)
    for ax, layer in zip(row, shown):
        ax.imshow(photograph(layers[h][rule][layer]))
        ax.set(xticks=[], yticks=[])
for ax, layer in zip(axes[0], shown):
    ax.set_title(f"layer {layer}", fontsize="medium")
fig.suptitle(f"Filtered patches, range bandwidth {h:g}", fontsize="medium")
plt.show()

# %%
# Transformers with random weights
# --------------------------------
# Skip connections and MLPs slow over-smoothing down. The models in this section are not trained. They have the size of
# DeiT-tiny, and their weights are initialized by timm's scheme ``jax``. The input is the same photograph.
# ``forward_intermediates`` returns the tokens after each block. Lines show the mean over three seeds, bands show the range.

pixels = F.interpolate(image[None], (224, 224), mode="bilinear", antialias=True)
seeds = (0, 1, 2)
fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
for rule in rules:
    curves = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = timm.create_model("plain_vit_tiny", residual=rule.lower(), weight_init="jax").eval()
        with torch.no_grad():
            features = model.forward_intermediates((pixels - 0.5) / 0.5, output_fmt="NLC", intermediates_only=True)
        curves.append([token_similarity(x).mean().item() for x in features])
    curves = torch.tensor(curves)
    ax.plot(range(1, DEPTH + 1), curves.mean(0), marker="o", markersize=3, label=rule)
    ax.fill_between(range(1, DEPTH + 1), curves.amin(0), curves.amax(0), alpha=0.15)
    print(f"{rule:10} similarity after block {DEPTH}: {curves[:, -1].mean():.2f} ± {curves[:, -1].std():.2f}")
ax.set(xlabel="block", ylabel="cosine similarity of tokens", ylim=(0, 1))
ax.grid(alpha=0.3)
ax.legend(fontsize="small")
plt.show()

# %%
# Models with random weights tell nothing about accuracy, and over-smoothing in trained models can differ.
#
# To measure your own model, replace ``timm.create_model(...)``, and normalize ``pixels`` as your model expects.
