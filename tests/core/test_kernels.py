import math

import pytest
import torch
from reference import squared_distances
from torch.nn.functional import scaled_dot_product_attention

from imgproc_attn.core.filters import DenseFilter, SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.core.layer_state import LayerState, next_state
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.terms import Terms, product


def operands(dtype=torch.float64, scale=1.0, heads=2, length=17, dim=8):
    return [torch.randn(2, heads, length, dim, dtype=dtype) * s for s in (scale, scale, 1.0)]


def test_dot_product_is_softmax_attention():
    q, k, v = operands()
    fused = SoftmaxFilter()
    torch.testing.assert_close(
        fused(DotProduct(8)(q, k)).apply(v), scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("fused", [True, False])
def test_gaussian_is_non_local_means(fused):
    q, k, v = operands()
    bandwidths = [1.3, 2.7]
    kernel = GaussianRange(2, 8, bandwidths, dtype=torch.float64)
    filter = SoftmaxFilter() if fused else DenseFilter()
    h = torch.tensor(bandwidths, dtype=torch.float64)[:, None, None]
    expected = (-squared_distances(q, k) / h**2).softmax(-1) @ v
    torch.testing.assert_close(filter(kernel(q, k)).apply(v), expected, rtol=1e-12, atol=1e-12)


def bilateral_times_norm_factors_times_cross_terms(y, p, h, key_only=True):
    """Return K_SA of arXiv 2506.10371 as Terms: the bilateral kernel, the norm factors of the keys and the cross terms."""
    heads, dim = y.shape[1], y.shape[-1]
    kernel = GaussianRange(heads, dim, h, learned=False, dtype=y.dtype)
    space = GaussianRange(heads, dim, h, learned=False, dtype=y.dtype)
    range_terms, space_terms = kernel(y, y), space(p, p)
    norms = (y.square().sum(-1, keepdim=True) + p.square().sum(-1, keepdim=True)) / h**2
    cross = Terms([y / dim**0.5, p / dim**0.5], [p, y], key_bias=norms)
    return product(product(space_terms, range_terms), cross)


def test_identity_in_float64():
    """Bilateral kernel x norm factors x cross terms equals softmax attention on tokens with added positions."""
    for scale in (1.0, 3.0):
        y, p, v = operands(scale=scale)
        h = (4 * 8) ** 0.25
        fused = SoftmaxFilter()
        x = y + p
        attention = scaled_dot_product_attention(x, x, v)
        identity = fused(bilateral_times_norm_factors_times_cross_terms(y, p, h)).apply(v)
        torch.testing.assert_close(identity, attention, rtol=1e-12, atol=1e-12)


def test_identity_in_float32_at_large_logits():
    """At logits above 15, the error is at most twice that of softmax attention."""
    y, p, v = operands(scale=2.2, dim=64, length=197)
    x = y + p
    logits = x @ x.mT / 8
    assert logits.max() > 15
    exact = logits.softmax(-1) @ v
    fused, h = SoftmaxFilter(), (4 * 64) ** 0.25
    x32 = (y.float() + p.float()).contiguous()
    own = (scaled_dot_product_attention(x32, x32, v.float()).double() - exact).square().mean().sqrt()
    terms = bilateral_times_norm_factors_times_cross_terms(y.float(), p.float(), h)
    error = (fused(terms).apply(v.float()).double() - exact).square().mean().sqrt()
    assert error <= 2 * own


def test_gaussian_differs_from_attention_only_in_key_norms():
    q, k, v = operands()
    k = torch.nn.functional.normalize(k, dim=-1) * 3
    fused = SoftmaxFilter()
    gaussian = fused(GaussianRange(2, 8, dtype=torch.float64)(q, k)).apply(v)
    torch.testing.assert_close(gaussian, scaled_dot_product_attention(q, k, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_of_everything(prefix, per_axis, fused):
    geometry = grid_geometry(2, 3, prefix, torch.empty(0))
    length = 6 + prefix
    q, k, v = (torch.randn(2, 2, length, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    kernel = GaussianRange(2, 3, [0.9, 1.4], dtype=torch.float64)
    positions = SpatialGaussian(2, (2, 3), [0.8, 1.7], per_axis=per_axis, dtype=torch.float64)
    parameters = [*kernel.parameters(), *positions.parameters()]
    filter = SoftmaxFilter() if fused else DenseFilter()

    def function(q, k, v, *_):
        return filter(product(positions(geometry, geometry, v), kernel(q, k))).apply(v)

    assert len(parameters) == 2 + per_axis
    assert torch.autograd.gradcheck(function, (q, k, v, *parameters))


def test_wide_range_bandwidth_averages_and_narrow_selects():
    q, _, v = operands()
    filter = SoftmaxFilter()
    wide = filter(GaussianRange(2, 8, 1e4, dtype=torch.float64)(q, q)).apply(v)
    torch.testing.assert_close(wide, v.mean(2, keepdim=True).expand_as(v), rtol=1e-5, atol=1e-5)
    narrow = filter(GaussianRange(2, 8, 0.11, dtype=torch.float64)(q, q)).apply(v)
    torch.testing.assert_close(narrow, v)


def test_default_bandwidth():
    torch.testing.assert_close(GaussianRange(3, 64).range_bandwidth(), torch.full((3,), 4.0))
    assert math.isclose((4 * 64) ** 0.25, 4.0)


@pytest.mark.parametrize("bad", [0.0, -2.0, math.nan, math.inf, 0.05])
def test_refuses_bandwidths(bad):
    with pytest.raises(ValueError, match=r"range_bandwidth must be .* above its floor 0\.1"):
        GaussianRange(2, 8, bad)


def test_float16_columns_do_not_overflow():
    """The squared norms of the keys are far larger than 65,504."""
    q, k, v = (torch.randn(1, 2, 9, 64).half() * s for s in (300, 300, 1))
    fused = SoftmaxFilter()
    result = fused(GaussianRange(2, 64)(q, k)).apply(v)
    assert result.isfinite().all()
    exact = (-squared_distances(q.double(), k.double()) / 16).softmax(-1) @ v.double()
    torch.testing.assert_close(result.double(), exact, rtol=2e-3, atol=2e-3)


def test_two_distances_multiply():
    """Two kernels multiply, also if one acts on half of the features."""
    q, k, v = operands()
    wide, narrow = GaussianRange(2, 8, 1.5, dtype=torch.float64), GaussianRange(2, 8, 0.7, dtype=torch.float64)
    terms = product(wide(q, k), narrow(q[..., :4], k[..., :4]))
    expected = (-squared_distances(q, k) / 1.5**2 - squared_distances(q[..., :4], k[..., :4]) / 0.7**2).softmax(-1) @ v
    torch.testing.assert_close(SoftmaxFilter()(terms).apply(v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean_scale", [False, True])
def test_elliptical_is_its_formula(mean_scale):
    """Log-weights equal q M k / sqrt(d) with M from explicit sums over tokens."""
    q, k, v = operands()
    previous = torch.randn_like(v)
    m = torch.stack([(v[:, :, i] - previous[:, :, i]).abs() for i in range(v.shape[2])]).sum(0) / 5  # the published delta
    m = m / (m.mean(-1, keepdim=True) if mean_scale else m.max(-1, keepdim=True).values)
    expected = torch.einsum("bhid,bhd,bhjd->bhij", q, m, k) / 8**0.5
    a = SoftmaxFilter()(Elliptical(8, mean_scale)(q, k, False, v, next_state(LayerState(), previous))).dense()
    torch.testing.assert_close(a, expected.softmax(-1), rtol=1e-10, atol=1e-12)


def test_elliptical_without_change_is_the_dot_product():
    q, k, v = operands()
    terms = Elliptical(8)(q, k, False, v, next_state(LayerState(), v))
    assert torch.equal(SoftmaxFilter()(terms).dense(), SoftmaxFilter()(DotProduct(8)(q, k)).dense())


def test_elliptical_under_causality_knows_no_later_token():
    """Changes of later tokens must not change earlier rows, as a metric over all tokens would."""
    q, k, v = operands()
    previous = torch.randn_like(v)
    filter, kernel = SoftmaxFilter(), Elliptical(8)

    def rows(q, k, v, previous):
        return filter(kernel(q, k, True, v, next_state(LayerState(), previous)), is_causal=True).dense() @ v

    before = rows(q, k, v, previous)
    for tensor in (q, k, v, previous):
        tensor[:, :, 9:] += 1.0
    assert torch.equal(rows(q, k, v, previous)[:, :, :9], before[:, :, :9])
    assert not torch.equal(rows(q, k, v, previous)[:, :, 9:], before[:, :, 9:])


def test_the_last_causal_metric_is_the_full_one():
    q, k, v = operands()
    state = next_state(LayerState(), torch.randn_like(v))
    causal, full = (Elliptical(8)(q, k, c, v, state).q[0][:, :, -1] for c in (True, False))
    torch.testing.assert_close(causal, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean_scale", [False, True])
def test_gradient_flows_through_the_metric(mean_scale):
    q, k, v, previous = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    kernel, filter = Elliptical(3, mean_scale), SoftmaxFilter()

    def function(q, k, v, previous):
        return filter(kernel(q, k, False, v, next_state(LayerState(), previous))).dense()

    assert torch.autograd.gradcheck(function, (q, k, v, previous))


def test_detached_in_training_never_in_evaluation():
    """In evaluation, the gradient flows through the metric."""
    q, k, v = operands()
    previous = torch.randn_like(v).requires_grad_()
    for training, detach, flows in [(True, True, False), (False, True, True), (True, False, True)]:
        kernel = Elliptical(8, detach=detach).train(training)
        assert kernel(q, k, False, v, next_state(LayerState(), previous)).q[0].requires_grad == flows


@pytest.mark.parametrize("state", [None, LayerState()])
def test_elliptical_without_a_layer_in_front_is_refused(state):
    q, k, v = operands()
    with pytest.raises(ValueError, match="state of Elliptical must hold the values of the previous layer, got none"):
        Elliptical(8)(q, k, False, v, state)
