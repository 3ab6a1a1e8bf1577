"""Measures of the tokens of all layers, against timm's intermediate features and plain formulas."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from imgproc_attn.diagnostics import (
    coding_rate,
    draw_layers,
    effective_rank,
    layer_tokens,
    measure_layers,
    subspace_coding_rate,
    token_similarity,
)

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}


def test_similarity_is_the_mean_over_pairs():
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    for tokens, found in zip(x, token_similarity(x)):
        pairs = [torch.cosine_similarity(tokens[i], tokens[j], dim=0) for i in range(5) for j in range(5) if i != j]
        assert found.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-12)
    with pytest.raises(ValueError, match="number of tokens must be at least 2, got 1"):
        token_similarity(x[:, :1])


def test_effective_rank_is_the_exponential_of_an_entropy():
    x = torch.randn(6, 4, dtype=torch.float64)
    share = np.linalg.svd(x.numpy(), compute_uv=False)
    share = share / share.sum()
    assert effective_rank(x).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-10)
    scaled = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert effective_rank(scaled).item() == pytest.approx(3.0), "a singular value of zero counts nothing"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "plain_vit_tiny", "nlm_vit_tiny", "aot_mhsa_vit_tiny", "crate_tiny"])
def test_tokens_are_those_of_the_blocks(name):
    """With and without class token, with and without MLP, timm's model and ours."""
    model = timm.create_model(name, **SMALL).eval()
    images = torch.rand(2, 3, 32, 32)
    tokens = layer_tokens(model, images)
    with torch.no_grad():
        features = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert [tuple(x.shape) for x in tokens] == [(2, 16, 24)] * 4
    assert all(torch.equal(x, feature) for x, feature in zip(tokens[1:], features, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_subspace_rate_is_that_of_the_tokens_after_attention():
    model = timm.create_model("crate_tiny", **SMALL).eval()
    images = torch.rand(2, 3, 32, 32)
    found = measure_layers(model, images, eps=0.3)
    tokens = layer_tokens(model, images)
    assert list(found["coding rate"]) == [0, 1, 2, 3]
    assert found["coding rate"][2] == pytest.approx(coding_rate(tokens[2], 0.3).mean().item(), rel=1e-6)
    assert list(found["subspace coding rate"]) == [1, 2, 3]
    kept = []
    block = model.blocks[1]
    block.norm2.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0][:, 1:]))
    with torch.no_grad():
        model(images)
    bases = torch.stack([rows.t() for rows in block.attn.qkv.weight.detach().split(12)])
    assert found["subspace coding rate"][2] == pytest.approx(subspace_coding_rate(kept[0], bases, 0.3).mean().item(), rel=1e-6)
    assert 0 < found["non-zero entries"][1] < found["non-zero entries"][0] == 1.0, "ISTA sets entries to zero"


def test_models_without_subspaces_or_of_unequal_depth():
    images = torch.rand(1, 3, 32, 32)
    by_model = {
        "plain": measure_layers(timm.create_model("plain_vit_tiny", **SMALL).eval(), images),
        "crate": measure_layers(timm.create_model("crate_tiny", **{**SMALL, "depth": 5}).eval(), images),
    }
    assert "subspace coding rate" not in by_model["plain"]
    _, axes = draw_layers(by_model)
    assert [len(ax.lines) for ax in axes] == [2, 2, 2, 2, 1]
    assert [list(line.get_xdata()) for line in axes[0].lines] == [list(range(4)), list(range(6))]


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="model must be a vision transformer of timm, got Linear"):
        layer_tokens(nn.Linear(3, 3), torch.rand(1, 3))
