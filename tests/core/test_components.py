"""Components by keyword: members act in the given layers, and errors name the mistake."""

import pytest
import seeding
import timm
import timm.layers
import timm.optim
import torch
from backbones import SMALL, VARIANTS, small
from torch import nn

import imgproc_attn
from imgproc_attn.core.bandwidths import Bandwidth
from imgproc_attn.core.filters import log_weights
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.positions import SinCos, SpatialGaussian
from imgproc_attn.core.residuals import L2Boosting, NeuTRENO, Residual, Twicing
from imgproc_attn.core.terms import Distance, TensorBias, Terms
from imgproc_attn.models import LayerSpec

SOFTMAX = {name: variant for name, variant in VARIANTS.items() if "filter" not in variant}


@pytest.mark.parametrize("variant", SOFTMAX.values(), ids=SOFTMAX)
def test_fused_equals_dense(variant):
    models = [small(**variant, filter=filter).double().eval() for filter in ("softmax", "dense")]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-9, atol=1e-9)


def test_dot_product_absolute_is_timms_vit():
    """Parameter names, initial values and outputs are equal."""
    seeding.seed(1)
    theirs = timm.models.VisionTransformer(**SMALL).eval()
    seeding.seed(1)
    ours = small().eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_gate_zero_is_the_plain_model():
    plain = small().double().eval()
    gated = small(residual={"name": "twicing", "gate": 0.0}).double().eval()
    gated.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(plain(x), gated(x))


# In a fresh model no weight passes the threshold, so the class token sees no patch.
TRAINABLE = {name: variant for name, variant in VARIANTS.items() if name != "threshold"}


@pytest.mark.parametrize("variant", TRAINABLE.values(), ids=TRAINABLE)
def test_every_parameter_gets_a_gradient_that_counts(variant):
    model = small(**variant)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    last = f"blocks.{len(model.blocks) - 1}."
    for name, parameter in model.named_parameters():
        # With class-token pooling, only the row of the class token counts in the last block, and it has no position.
        spatial = "spatial_bandwidth" in name or ".positions." in name
        boosted = "twicing" in str(variant) or "bregman" in str(variant)
        if model.global_pool == "token" and spatial and name.startswith(last) and not boosted:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_layers_choose_where_a_member_acts():
    model = small(
        kernel={"name": "gaussian_range", "layers": [0, -1], "range_bandwidth": 3.0},
        positions=["absolute", {"name": "spatial_gaussian", "layers": [1]}],
        residual={"name": "twicing", "steps": 2, "layers": [2]},
    )
    assert [type(b.attn.kernel) for b in model.blocks] == [GaussianRange, DotProduct, GaussianRange]
    assert [len(b.attn.positions) for b in model.blocks] == [0, 1, 0]
    assert [b.attn.residual.steps for b in model.blocks] == [0, 0, 2]


def test_fixed_bandwidths_are_no_parameters():
    model = small(
        kernel={"name": "gaussian_range", "range_bandwidth": [2.0, 5.0], "learned": False},
        positions={"name": "spatial_gaussian", "spatial_bandwidth": 1.5, "learned": False},
    )
    assert not [n for n, _ in model.named_parameters() if "bandwidth" in n]
    for module in model.modules():
        if isinstance(module, Bandwidth):
            assert module().tolist() in ([pytest.approx(2.0), pytest.approx(5.0)], [pytest.approx(1.5)] * 2)


def test_own_members_without_touching_the_package():
    class Cosine(nn.Module):
        def __init__(self, temperature):
            super().__init__()
            self.temperature = temperature

        def forward(self, q, k, is_causal=False):
            normalize = nn.functional.normalize
            return Terms([normalize(q, dim=-1) / self.temperature], [normalize(k, dim=-1)])

    class Rows(nn.Module):
        """Kernel on positions that sees only its own row of patches."""

        def forward(self, query, key, like):
            same = query.coordinates[0, :, None, 0] == key.coordinates[0, None, :, 0]
            same |= query.is_patch[:, None] * key.is_patch == 0
            log = torch.zeros_like(same, dtype=like.dtype).masked_fill(~same, float("-inf"))
            return Terms(biases=[TensorBias(log[None, None])])

    class Sharpen(Residual):
        def __init__(self, amount):
            super().__init__(steps=1)
            self.amount = amount

        def operand(self, u, v, last):
            return u

        def update(self, u, smoothed):
            return u + self.amount * (u - smoothed)

    seen = []

    def kernel(layer: LayerSpec):
        seen.append(layer.depth)
        return Cosine(0.1)

    model = timm.create_model(
        "test_nlm_vit", kernel=kernel, positions=["absolute", lambda layer: Rows()], residual=lambda layer: Sharpen(0.5)
    ).eval()
    assert seen == list(range(6))
    assert model(torch.randn(1, 3, 160, 160)).isfinite().all()
    weights = model.attention_weights(torch.randn(1, 3, 160, 160), [0])[0]
    assert weights[0, 0, 1, 11:].abs().max() == 0  # first row of 10 patches, behind the class token


BAD = [
    (
        {"kernel": "gausian_range"},
        ValueError,
        "kernel: member must be one of .*, got 'gausian_range'. Did you mean 'gaussian_range'",
    ),
    ({"residual": "twiceing"}, ValueError, "Did you mean 'twicing'"),
    ({"positions": "absolut"}, ValueError, "Did you mean 'absolute'"),  # codespell:ignore
    ({"residual": {"name": "twicing", "step": 2}}, ValueError, "option must be one of .*, got 'step'. Did you mean 'steps'"),
    ({"residual": {"name": "twicing", "layers": [3]}}, ValueError, "block indices must be from -3 to 2, got 3"),
    ({"residual": {"name": "twicing", "steps": 0}}, ValueError, "steps must be a whole number of at least 1, got 0"),
    ({"residual": {"name": "twicing", "gate": float("nan")}}, ValueError, "gate must be a finite number, got nan"),
    ({"positions": 5}, TypeError, "must be a name, .*, got 5"),
    (
        {"positions": "untied", "no_embed_class": False},
        ValueError,
        "no_embed_class must be True for untied positions, got False",
    ),
    ({"residual": 3}, TypeError, "must be a name, .*, got 3"),
    ({"positions": ["absolute", "untied"]}, ValueError, "at most one of .* got .*absolute.*untied"),
    ({"positions": ["none", "absolute"]}, ValueError, "must not mix 'none'"),
    (
        {"positions": ["spatial_gaussian", "spatial_gaussian"]},
        ValueError,
        "hold each member once, got 'spatial_gaussian' twice",
    ),
    ({"positions": [{"name": "absolute", "layers": [0]}]}, ValueError, r"layers must be left out, got \[0\]"),
    ({"positions": {"name": "sincos", "layers": [1]}}, ValueError, "acts once, on the tokens"),
    (
        {"kernel": {"name": "gaussian_range", "range_bandwidth": -1.0}},
        ValueError,
        r"range_bandwidth must be finite and above its floor 0\.1, got -1\.0",
    ),
    (
        {"kernel": {"name": "gaussian_range", "range_bandwidth": float("nan")}},
        ValueError,
        "range_bandwidth must be .*, got nan",
    ),
    ({"kernel": {"name": "gaussian_range", "range_bandwidth": [1.0] * 3}}, ValueError, r"one value per head \(2\), got 3"),
    (
        {"positions": {"name": "spatial_gaussian", "spatial_bandwidth": float("inf")}},
        ValueError,
        "spatial_bandwidth must be .*, got inf",
    ),
    ({"pos_embed": "learn"}, ValueError, "Use positions="),
    ({"block_fn": nn.Identity}, ValueError, "Use kernel="),
    ({"img_size": 30}, ValueError, "divisible by patch_size 8 x 8, got 30 x 30. Use 24 x 24"),
    ({"embed_dim": 33}, ValueError, "dim must be divisible by num_heads=2, got 33"),
    ({"not_an_argument": 1}, TypeError, "not_an_argument"),
    ({"kernel": {"name": "elliptical", "layers": [0, 1]}}, ValueError, "layers must be at least 1, got 0"),
    ({"kernel": {"name": "elliptical", "scaling": "median"}}, ValueError, "scaling must be 'max' or 'mean', got 'median'"),
    ({"residual": {"name": "sos", "tau": 2.5}}, ValueError, r"tau must be in \(0, 2\), .*, got 2\.5"),
    ({"residual": "l2_boosting"}, ValueError, "residual: member must be one of .*, got 'l2_boosting'"),
    ({"block_residual": "neutreno"}, ValueError, "block_residual: member must be one of .*, got 'neutreno'"),
    ({"positions": ["sincos", "absolute"]}, ValueError, "at most one of .* got .*absolute.*sincos"),
    ({"positions": {"name": "sincos", "temprature": 1.0}}, ValueError, "Did you mean 'temperature'"),  # codespell:ignore
    ({"kernel": DotProduct(16)}, TypeError, "kernel must be a factory, .*, got DotProduct"),
    ({"residual": Twicing}, TypeError, "residual must be a factory, .*, got Twicing"),
    (
        {"positions": ["absolute", SpatialGaussian(2, (4, 4))]},
        TypeError,
        "positions must be a factory, .*, got SpatialGaussian",
    ),
    ({"residual": {"name": "twicing", "gate": [1.0, 0.0]}}, ValueError, "gate must be a finite number, got"),
    ({"residual": {"name": "twicing", "layers": "last"}}, TypeError, "block indices must be whole numbers, got 'last'"),
    ({"block_residual": lambda layer: NeuTRENO(1)}, ValueError, "block_residual must be a rule for blocks, got NeuTRENO"),
    ({"residual": lambda layer: L2Boosting()}, ValueError, "residual must be a rule for filters, got L2Boosting"),
    ({"positions": "rotary", "embed_dim": 36}, ValueError, "head_dim must be divisible by 4, got 18"),
    (
        {"positions": lambda layer: SinCos(layer.embed_dim)},
        TypeError,
        "got SinCos, which adds to the tokens.* name 'sincos'",
    ),
    ({"positions": {"name": "rotary", "temperature": 0}}, ValueError, "rotary: temperature must be positive and finite, got 0"),
    (
        {"positions": {"name": "sincos", "temperature": "9"}},
        ValueError,
        "sincos: temperature must be positive and finite, got '9'",
    ),
    ({"positions": {"name": "alibi", "spatial_bandwidth": [1.0]}}, ValueError, r"one value per head \(2\), got 1"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD)
def test_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        small(**kwargs)


@pytest.mark.parametrize("member", ["spatial_gaussian", "alibi", "untied"])
def test_positions_start_at_the_scale_of_content(member):
    """A kernel much flatter than the content would hardly learn. (Closed gates and relative tables start at 0 by design.)"""
    model = small(positions=member, embed_dim=192, num_heads=3, img_size=112)
    spread = {}

    def look(name):
        def hook(module, _, terms):
            log = terms.biases[0].dense() if terms.biases else log_weights(terms)
            spread[name] = log[..., 1:, 1:].double().std(dim=-1).mean(dim=(0, 2))

        return hook

    attn = model.blocks[1].attn
    attn.kernel.register_forward_hook(look("content"))
    attn.positions[0].register_forward_hook(look("position"))
    model(torch.randn(2, 3, 112, 112))
    assert (spread["position"] > 0.1 * spread["content"]).all(), spread


def test_untied_positions_are_not_in_the_tokens():
    model = small(positions="untied").eval()
    x = torch.randn(1, 3, 32, 32)
    before, _ = model._embed(x)
    with torch.no_grad():
        model.pos_embed.add_(1.0)
    after, geometry = model._embed(x)
    assert torch.equal(before, after)
    assert torch.equal(geometry.position_embeddings[:, 1:], model.pos_embed)


def test_distance_is_public_for_own_kernels():
    assert Distance._fields == ("q", "k", "scale", "is_causal")
    assert imgproc_attn.LayerSpec is LayerSpec
