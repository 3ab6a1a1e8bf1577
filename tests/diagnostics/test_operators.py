"""Spectra, gains and score shares of models, against plain readings of their definitions."""

import pytest
import timm
import torch
from skimage import data

from imgproc_attn.core.layer_state import LayerState
from imgproc_attn.diagnostics import draw_gains, draw_score_shares, draw_spectra, filter_gains, score_shares, spectrum
from imgproc_attn.diagnostics.operators import boost

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}


def photographs():
    """Two normalized crops of a photograph of scikit-image, ``[2, 3, 32, 32]``."""
    image = torch.from_numpy(data.astronaut()[:32, 200:264].copy()).movedim(-1, 0) / 127.5 - 1
    return torch.stack([image[..., :32], image[..., 32:]])


@pytest.mark.parametrize(
    ("residual", "law"),
    [
        ("plain", lambda a: a),
        ({"name": "twicing", "steps": 2}, lambda a: 1 - (1 - a) ** 3),
        ({"name": "sos", "rho": 0.5, "tau": 0.9}, lambda a: 0.9 * a * (1 + 0.5 * a) - 0.35 * a),
        ({"name": "neutreno", "gate": 0.6}, lambda a: a - 0.6),
        ({"name": "pid", "proportional": 0.8, "integral": 0.5, "derivative": 0.05}, lambda a: a - 1.35),
    ],
)
def test_boosting_moves_eigenvalues_by_its_polynomial(residual, law):
    model = timm.create_model("nlm_vit_tiny", residual=residual, **SMALL).eval()
    plain, boosted = spectrum(model, photographs(), layer=1)
    assert plain.shape == boosted.shape == (2, 2, 17)
    expected = law(plain)
    expected = expected.gather(-1, expected.abs().argsort(dim=-1, descending=True))
    assert torch.allclose(boosted.abs(), expected.abs(), atol=1e-6)
    assert torch.allclose(plain[..., 0].abs(), torch.ones(2, 2, dtype=torch.float64), atol=1e-5), "rows sum to 1"


def test_a_negative_layer_and_its_figure():
    model = timm.create_model("plain_vit_tiny", residual="twicing", **SMALL).eval()
    last, third = spectrum(model, photographs(), -1), spectrum(model, photographs(), 2)
    assert torch.equal(last.plain, third.plain)
    _, axes = draw_spectra({"plain": last.plain, "twicing": last.boosted})
    assert len(axes[0].lines) == 2


@pytest.mark.parametrize("boosted", [False, True])
def test_gains_are_their_definition(boosted):
    model = timm.create_model("nlm_vit_tiny", residual="twicing", **SMALL).eval()
    clean = photographs()
    noisy = clean + 0.1 * torch.randn_like(clean)
    gains = filter_gains(model, clean, noisy, boosted)
    x, geometry = model._embed(clean)
    y, _ = model._embed(noisy)
    for layer, block in enumerate(model.blocks):
        with torch.no_grad():
            a = block.attn.operator(block.norm1(y), geometry).dense().double()
            u = block.attn.qkv(block.norm1(x))[2].double()
            n = block.attn.qkv(block.norm1(y))[2].double() - u
            eye = torch.eye(17, dtype=torch.float64)
            matrix = eye - (eye - a) @ (eye - a) if boosted else a
            for values, found in ((u, gains.signal), (n, gains.noise)):
                expected = torch.stack([(matrix @ values)[:, h].norm() / values[:, h].norm() for h in range(2)])
                assert torch.allclose(found[layer], expected, rtol=1e-4)
            x, y = block(x, geometry)[0], block(y, geometry)[0]
    _, axes = draw_gains({"nlm": gains})
    assert len(axes[0].lines) == 2


def test_gains_of_layers_that_need_earlier_ones():
    model = timm.create_model("elliptical_vit_tiny", block_residual="sos", **SMALL).eval()
    clean = photographs()
    gains = filter_gains(model, clean, clean + 0.1 * torch.randn_like(clean))
    assert gains.signal.shape == (3, 2)
    assert gains.noise.isfinite().all()


def test_gains_need_noise():
    model, clean = timm.create_model("plain_vit_tiny", **SMALL).eval(), photographs()
    with pytest.raises(ValueError, match="noisy must differ from clean, got equal images"):
        filter_gains(model, clean, clean.clone())
    with pytest.raises(ValueError, match=r"noisy must have the shape of clean, \[2, 3, 32, 32\], got \[1, 3, 32, 32\]"):
        filter_gains(model, clean, clean[:1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain_vit_tiny", {}),
        ("plain_vit_tiny", {"class_token": True, "global_pool": "token", "qkv_bias": False}),
        ("plain_vit_tiny", {"positions": "sincos"}),
        ("plain_vit_tiny", {"dynamic_img_size": True}),
        ("aot_mssa_vit_tiny", {}),
        ("crate_tiny", {}),
    ],
)
def test_terms_of_scores(name, options):
    """The parts that the shares are computed from sum to the scores of the layer, and the shares to 1."""
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    if model.pos_embed is not None:
        torch.nn.init.normal_(model.pos_embed)
    images = photographs()
    shares = score_shares(model, images)
    attn, norm = model.blocks[0].attn, model.blocks[0].norm1
    with torch.no_grad():
        x, _ = model._embed(images)
        q, k, _ = attn.qkv(norm(x))
        score = (q @ k.mT).double()
        content = model._prepend_prefix(model.patch_embed(images).flatten(1, -2))

        def normalized(part, with_bias):
            part = (part - part.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
            return part * norm.weight + (norm.bias if with_bias else 0)

        def project(part, with_bias):
            q, k, _ = attn.qkv(part)
            zero_q, zero_k, _ = attn.qkv(torch.zeros_like(part))
            return (q, k) if with_bias else (q - zero_q, k - zero_k)

        qe, ke = project(normalized(content, True), True)
        qp, kp = project(normalized(x - content, False), False)
        parts = [(qe @ ke.mT).double(), (qe @ kp.mT + qp @ ke.mT).double(), (qp @ kp.mT).double()]
    assert torch.allclose(sum(parts), score, atol=1e-4 * score.abs().max())
    centered = score - score.mean(-1, keepdim=True)
    for part, found in zip(parts, shares):
        part = part - part.mean(-1, keepdim=True)
        expected = (part * centered).sum((0, 2, 3)) / centered.square().sum((0, 2, 3))
        assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(sum(shares), torch.ones(SMALL["num_heads"], dtype=torch.float64), atol=1e-6)


def test_shares_need_the_parts_they_split():
    for options, message in (
        ({"kernel": "gaussian_range"}, "model must have kernel='dot_product' to split its scores, got GaussianRange"),
        ({"qk_norm": True}, "model must have qk_norm=False"),
        ({"norm_layer": "rmsnorm"}, "model must have norm_layer='layernorm'"),
        ({"positions": "none"}, "model must add positions to the tokens, got none"),
        ({"positions": "untied"}, "model must add positions to the tokens, got none"),
        ({"positions": ["absolute", "rotary"]}, "model must not have 'rotary' positions"),
    ):
        with pytest.raises(ValueError, match=message):
            score_shares(timm.create_model("plain_vit_tiny", **{**SMALL, **options}).eval(), photographs())


def test_shares_against_tokens():
    model = timm.create_model("plain_vit_tiny", dynamic_img_size=True, **SMALL).eval()
    images = photographs()
    by_tokens = {side * side // 64: score_shares(model, images[..., :side, :side]) for side in (16, 32)}
    _, axes = draw_score_shares(by_tokens)
    assert [line.get_label() for line in axes[0].lines] == ["content", "cross", "position"]


def test_the_linear_part_leaves_references_out():
    """For rules with a reference, the spectrum's map is the difference of two outputs with one state."""
    model = timm.create_model("plain_vit_tiny", residual={"name": "pid"}, **SMALL).eval()
    attn = model.blocks[1].attn
    a = torch.rand(1, 2, 5, 5).softmax(-1)
    v, w = torch.randn(2, 1, 2, 5, 12)
    state = LayerState(first=torch.randn_like(v), previous=torch.randn_like(v), drift=torch.randn_like(v))
    difference = attn.residual(lambda x: a @ x, v, state) - attn.residual(lambda x: a @ x, w, state)
    assert torch.allclose(difference, boost(attn, a, v - w), atol=1e-5)
