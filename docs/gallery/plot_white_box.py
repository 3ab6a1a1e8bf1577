"""
Look inside an attention-only model
===================================

Attention-only transformers are derived as denoisers: each layer moves tokens towards low-dimensional subspaces. This example
first tests the theorem behind these models on random tokens. Then it measures each layer of a small trained model.
"""

# %%
# Run the theorem
# ---------------
# Tokens are drawn from a mixture of noisy low-rank Gaussians. The layers know the true subspaces. The theorem says: if the
# softmax is thresholded at ``tau``, each layer multiplies the signal-to-noise ratio by ``1 + step * tau`` (AoT,
# `arXiv 2506.03790 <https://arxiv.org/abs/2506.03790>`_).
# The command ``imgproc-attn theorem`` runs the same experiment and has more settings.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from skimage import data
from sklearn.datasets import load_digits

from imgproc_attn import diagnostics
from imgproc_attn.recipe import load_recipe
from imgproc_attn.training import train

torch.set_num_threads(1)  # Images of 8 x 8 pixels are too small for several threads.
step, tau, noises = 0.1, 0.55, (0.2, 0.5)

ratios = {}
for noise in noises:
    mixture = diagnostics.low_rank_mixture(noise=noise, generator=torch.Generator().manual_seed(0))
    ratios[noise] = {
        name: diagnostics.denoise(mixture, 12, case, step, tau).mean(dim=1).tolist()
        for name, case in diagnostics.THEOREM_CASES.items()
    }
fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
diagnostics.draw_denoising(ratios, 1 + step * tau, axes)
plt.show()

# %%
# The theorem holds with the threshold **and** a factor ``1 / sqrt(p)`` on the scores, where p is the dimension of a subspace.
# Without this factor, the noise parts of the tokens soon attend to the amplified tokens, and the ratio falls. With the plain
# softmax, the ratio also falls in the end. In models, a layer norm normalizes the tokens before attention. The growth is then
# arithmetic: a constant increment per layer. The growth in the figure of the paper is arithmetic too.

for noise, cases in ratios.items():
    for name, values in cases.items():
        growth = diagnostics.growth(values)
        print(f"noise {noise}, {name:36} factor {growth.smallest:.3f} to {growth.largest:.3f}   {growth.law}")

# %%
# Train a small model
# -------------------
# The model has eight attention-only layers, which use one set of subspaces for queries, keys and values, and twicing. It is
# trained on the digits of scikit-learn.

short = ["schedule.epochs=12", "schedule.warmup_epochs=2"]
variant = "comparison.variants.mine={name: aot_mssa_vit_tiny, residual: twicing, depth: 8}"
recipe = load_recipe("quickstart", [*short, variant]).variant("mine", seed=0)
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    result = train(recipe, run, device="cpu", log=lambda line: None)
    trained = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True).eval()
    untrained = timm.create_model(f"local-dir:{run / 'last'}", pretrained=False).eval()
print(f"{result['parameters']:,} parameters, test accuracy {result['test']['accuracy']:.1f} %")

# %%
# Measure every layer
# -------------------
# A cosine similarity near 1 and an effective rank near 1 mean that all tokens are alike (over-smoothing). The coding rate is
# the length of a code for the tokens. The subspace coding rate is the length of codes for the projections of the tokens onto
# the subspaces of the layer. Attention is derived as a step that lowers the subspace coding rate. In this model, this rate
# grows with depth, before and after training.

pixels = torch.from_numpy(load_digits().images[:64]).float()[:, None] / 16
mean, std = trained.pretrained_cfg["mean"][0], trained.pretrained_cfg["std"][0]
images = (pixels - mean) / std
models = {"untrained": untrained, "trained": trained}
measures = {name: diagnostics.measure_layers(model, images) for name, model in models.items()}
for values in measures.values():
    del values["non-zero entries"]  # All entries differ from zero without ISTA.
fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
diagnostics.draw_layers(measures, axes)
plt.show()

# %%
# Spectrum and gains
# ------------------
# Twicing raises each eigenvalue a of the filter to ``1 - (1 - a)^2``, so the filter removes less. On noisy images, the filter
# multiplies the signal by the factor alpha, and the noise by the factor beta. Where alpha is larger than beta, the skip
# connection around the filter raises the signal-to-noise ratio.

plain, boosted = diagnostics.spectrum(trained, images, layer=4)
noisy = (pixels + 0.2 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)) - mean) / std
gains = diagnostics.filter_gains(trained, images, noisy)
boosted_gains = diagnostics.filter_gains(trained, images, noisy, boosted=True)
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
diagnostics.draw_spectra({"plain filter": plain, "with twicing": boosted}, axes[:1])
diagnostics.draw_gains({"plain filter": gains, "with twicing": boosted_gains}, axes[1:])
plt.show()
for name, values in (("plain filter", gains), ("with twicing", boosted_gains)):
    print(f"{name}: mean alpha {values.signal.mean():.2f}, mean beta {values.noise.mean():.2f}")

# %%
# Positions that are added to the tokens
# --------------------------------------
# If positions are added to the tokens, each attention score contains products of the content of one token and the position of
# the other: cross terms. The share of these terms in the variance of the scores depends on the image and on the number of
# tokens. In this model, the projections are random and the positions are sines and cosines.

photograph = torch.from_numpy(data.astronaut()).movedim(-1, 0)[None] / 127.5 - 1
torch.manual_seed(0)
model = timm.create_model("plain_vit_tiny", positions="sincos", dynamic_img_size=True, depth=1).eval()
shares = {}
for side in (64, 128, 224, 448):
    resized = F.interpolate(photograph, (side, side), mode="bilinear", antialias=True)
    shares[(side // 16) ** 2] = diagnostics.score_shares(model, resized)
fig, axes = plt.subplots(1, 1, figsize=(4.6, 3), layout="constrained", squeeze=False)
diagnostics.draw_score_shares(shares, axes)
plt.show()
