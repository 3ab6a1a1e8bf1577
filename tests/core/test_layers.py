import pytest
import timm.layers
import timm.models.vision_transformer
import torch
from torch import nn

from imgproc_attn.core import FilterAttention, FilterBlock
from imgproc_attn.core.filters import DenseFilter, SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.core.layer_state import LayerState
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.projections import QueryKeyValue
from imgproc_attn.core.residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Twicing


def layer(kernel=None, positions=(), residual=None, fused=True, dim=24, heads=3, **kwargs):
    return FilterAttention(
        QueryKeyValue(dim, heads),
        kernel or DotProduct(dim // heads),
        positions,
        (SoftmaxFilter() if fused else DenseFilter()),
        residual or Plain(),
        nn.Linear(dim, dim),
        **kwargs,
    )


def test_is_timm_attention_with_its_weights():
    """Parameter names and outputs are equal."""
    theirs = timm.layers.Attention(24, 3, qkv_bias=True, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm).double()
    ours = layer(q_norm=nn.LayerNorm(8), k_norm=nn.LayerNorm(8), norm=nn.LayerNorm(24)).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 10, 24, dtype=torch.float64)
    geometry = grid_geometry(3, 3, 1, x)
    torch.testing.assert_close(ours(x, geometry)[0], theirs(x), rtol=1e-12, atol=1e-12)
    mask = torch.randn(1, 1, 10, 10, dtype=torch.float64)
    torch.testing.assert_close(ours(x, geometry, mask)[0], theirs(x, mask), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x, geometry, is_causal=True)[0], theirs(x, is_causal=True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_weights_explain_the_output(steps):
    grid = (3, 4)
    residual = Twicing(3, steps) if steps else Plain()
    attn = layer(GaussianRange(3, 8), [SpatialGaussian(3, grid)], residual).double()
    x = torch.randn(2, 13, 24, dtype=torch.float64)
    geometry = grid_geometry(*grid, 1, x)
    a = attn.operator(x, geometry).dense()
    boosted = torch.eye(13, dtype=torch.float64) - torch.linalg.matrix_power(torch.eye(13, dtype=torch.float64) - a, steps + 1)
    _, _, v = attn.qkv(x)
    torch.testing.assert_close(attn.proj((boosted @ v).transpose(1, 2).flatten(2)), attn(x, geometry)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_normed_queries(dtype):
    """Under autocast, norms return float32 and values are in half precision."""
    grid = (3, 4)
    attn = layer(GaussianRange(3, 8), [SpatialGaussian(3, grid)], q_norm=nn.LayerNorm(8), k_norm=nn.LayerNorm(8))
    x = torch.randn(2, 12, 24)
    geometry = grid_geometry(*grid, 0, x)
    with torch.autocast("cpu", dtype):
        result, _ = attn(x, geometry)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), attn(x, geometry)[0], rtol=2e-2, atol=2e-2)


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="dim must be divisible by num_heads=5, got 24"):
        QueryKeyValue(24, 5)


def test_block_is_timm_block_with_its_weights():
    theirs = timm.models.vision_transformer.Block(24, 3, qkv_bias=True, init_values=0.1).double()
    scales = (timm.layers.LayerScale(24, 0.1) for _ in range(2))
    ours = FilterBlock(layer(), timm.layers.Mlp(24, 96), nn.LayerNorm(24), nn.LayerNorm(24), *scales).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 10, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x, grid_geometry(3, 3, 1, x))[0], theirs(x), rtol=1e-6, atol=1e-6)


def test_flip_equivariance():
    """A flipped image gives a flipped output, because an isotropic kernel has no direction."""
    grid = (4, 5)
    attn = layer(GaussianRange(3, 8), [SpatialGaussian(3, grid)], Twicing(3)).double()
    x = torch.randn(1, 20, 24, dtype=torch.float64)
    geometry = grid_geometry(*grid, 0, x)
    flipped = x.reshape(1, 4, 5, 24).flip(2).reshape(1, 20, 24)
    expected = attn(x, geometry)[0].reshape(1, 4, 5, 24).flip(2).reshape(1, 20, 24)
    torch.testing.assert_close(attn(flipped, geometry)[0], expected)


def block(block_residual=None, residual=None, **kwargs):
    return FilterBlock(
        layer(residual=residual, **kwargs),
        timm.layers.Mlp(24, 96),
        nn.LayerNorm(24),
        nn.LayerNorm(24),
        block_residual=block_residual,
    ).double()


@pytest.mark.parametrize(
    ("block_residual", "formula"),
    [
        (Plain(), lambda f, z, y: f(z)),
        (Twicing(1), lambda f, z, y: f(z) + f(z - f(z))),
        (Twicing(1, gate=0.3), lambda f, z, y: f(z) + 0.3 * f(z - f(z))),
        (SOS(1, rho=0.4, tau=1.0), lambda f, z, y: f(z + 0.4 * f(z)) - 0.4 * f(z)),
        (Bregman(1, steps=2), lambda f, z, y: f(z + (z - f(z)) + (z - f(z + (z - f(z)))))),
        (L2Boosting(), lambda f, z, y: f(y - z)),
    ],
    ids=["plain", "twicing", "gated twicing", "sos", "bregman", "l2 boosting"],
)
def test_block_residuals_are_their_formulas(block_residual, formula):
    """Block residuals follow their formulas: f is the whole branch, computed again on each operand."""
    z, y = torch.randn(2, 2, 10, 24, dtype=torch.float64)
    geometry, subject = grid_geometry(3, 3, 1, z), block(block_residual)

    def f(x):
        return subject.attn(subject.norm1(x), geometry)[0]

    expected = z + formula(f, z, y)
    expected = expected + subject.mlp(subject.norm2(expected))
    result, _ = subject(z, geometry, state=LayerState(tokens=y))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_what_is_handed_on():
    """The state holds the first values, the previous values, their drift, and the tokens of the first block."""
    x = torch.randn(1, 10, 24, dtype=torch.float64)
    geometry, state, tokens, values = grid_geometry(3, 3, 1, x), LayerState(), [], []
    for rule in (None, Twicing(1), None):
        subject = block(rule, NeuTRENO(3))
        tokens.append(x)
        values.append(subject.attn.qkv(subject.norm1(x))[2])
        x, state = subject(x, geometry, state=state)
    assert torch.equal(state.tokens, tokens[0])
    torch.testing.assert_close(state.first, values[0])
    torch.testing.assert_close(state.previous, values[2])
    torch.testing.assert_close(state.drift, values[0] - values[1] + values[0] - values[2])


def test_nothing_is_handed_on_where_nothing_is_carried():
    x = torch.randn(1, 10, 24, dtype=torch.float64)
    _, state = block()(x, grid_geometry(3, 3, 1, x))
    assert state is None


def test_state_asked_where_there_is_none():
    x = torch.randn(1, 10, 24, dtype=torch.float64)
    geometry = grid_geometry(3, 3, 1, x)
    for subject in (block(residual=PID(3)), block(kernel=Elliptical(8)), block(L2Boosting())):
        with pytest.raises(ValueError, match=r"state.* must .*, got"):
            subject(x, geometry)


def test_elliptical_refuses_masks_by_name():
    x = torch.randn(1, 10, 24, dtype=torch.float64)
    with pytest.raises(ValueError, match="attn_mask must be None for this kernel, whose metric is computed from all tokens"):
        block(kernel=Elliptical(8))(x, grid_geometry(3, 3, 1, x), torch.ones(10, 10, dtype=torch.bool), state=LayerState())


def test_a_dropped_path_hands_its_values_on():
    x = torch.randn(3, 10, 24, dtype=torch.float64)
    dropped = timm.layers.DropPath(0.999999)
    subject = FilterBlock(layer(), nn.Identity(), nn.LayerNorm(24), nn.LayerNorm(24), drop_path1=dropped).double().train()
    _, state = subject(x, grid_geometry(3, 3, 1, x), state=LayerState())
    torch.testing.assert_close(state.first, subject.attn.qkv(subject.norm1(x))[2])
