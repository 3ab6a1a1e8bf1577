"""Random features: against a plain reading of the formula, and against the exact filter as their number grows."""

import math

import pytest
import torch

from imgproc_attn.core.feature_filters import CHUNK, EluFeatures, RandomFeatures
from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import line_geometry
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.positions import Alibi, RelativeTable, SpatialGaussian
from imgproc_attn.core.residuals import Twicing
from imgproc_attn.core.terms import Terms, product

F64 = {"dtype": torch.float64}
HEADS, DIM = 2, 6
KERNELS = {"dot product": DotProduct(DIM), "gaussian": GaussianRange(HEADS, DIM, [1.3, 2.7], **F64)}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
causal = pytest.mark.parametrize("is_causal", [False, True])


def operands(length=9, queries=None, scale=1.0, dtype=torch.float64):
    return [scale * torch.randn(2, HEADS, n, DIM, dtype=dtype) for n in (queries or length, length, length)]


def features(num_features=5, **options):
    return RandomFeatures(DIM, num_features=num_features, **F64, **options)


def plain(kernel, q, k, directions, is_causal, log_weights=0.0):
    """Weights by the formula of the paper, one direction at a time. ``log_weights`` are those of positions."""
    key_bias = torch.zeros(1, 1, k.shape[2], 1, **F64)
    if isinstance(kernel, DotProduct):
        x, y = q * kernel.scale**0.5, k * kernel.scale**0.5
    else:
        h = kernel.range_bandwidth()[:, None, None]
        x, y = (math.sqrt(2) * t / h for t in (q, k))
        key_bias = -y.square().sum(-1, keepdim=True) / 2
    weights = torch.zeros(q.shape[0], HEADS, q.shape[2], k.shape[2], **F64)
    for w in directions:
        f, g = ((t @ w - t.square().sum(-1) / 2).exp() for t in (x, y))
        weights += f[..., None] * g[..., None, :]
    weights = weights * (key_bias.mT + log_weights).exp()
    if is_causal:
        weights = weights.tril(k.shape[2] - q.shape[2])
    return weights / weights.sum(-1, keepdim=True)


@kernels
@causal
def test_random_features_are_their_formula(kernel, is_causal):
    q, k, v = operands()
    filter = features()
    operator = filter(kernel(q, k, is_causal), None, is_causal)
    expected = plain(kernel, q, k, filter.directions, is_causal)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.apply(v), expected @ v, rtol=1e-12, atol=1e-12)
    twice = Twicing(HEADS)(operator.apply, v)
    torch.testing.assert_close(twice, expected @ v + expected @ (v - expected @ v), rtol=1e-12, atol=1e-12)


@kernels
@pytest.mark.parametrize("queries", [2 * CHUNK + 30, CHUNK + 3, 1])
def test_chunks_change_nothing(kernel, queries):
    """Also for a few last queries, as with a cache."""
    q, k, v = operands(2 * CHUNK + 30, queries)
    operator = features()(kernel(q, k, True), is_causal=True)
    torch.testing.assert_close(operator.apply(v), operator.dense() @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.apply(torch.ones_like(v)), torch.ones_like(q), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "is_causal"), [(DotProduct(DIM), True), (GaussianRange(HEADS, DIM, **F64), False)])
def test_more_features_come_closer_to_the_exact_filter(kernel, is_causal):
    """16 times as many features give about a quarter of the error, the mean over 40 draws."""
    q, k, v = operands(20, scale=0.4)
    terms = kernel(q, k, is_causal)
    exact = SoftmaxFilter()(terms, None, is_causal).apply(v)

    def error(count):
        draws = [features(count, seed=seed)(terms, None, is_causal).apply(v) - exact for seed in range(40)]
        return torch.stack(draws).square().mean().sqrt()

    errors = [error(count) for count in (64, 1024)]
    assert 2.8 < errors[0] / errors[1] < 5.6
    assert errors[1] < 0.1 * exact.square().mean().sqrt()


@kernels
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_later_tokens_change_nothing(kernel, scale):
    """Neither with ordinary later keys nor with huge ones."""
    q, k, v = operands(100)
    before = features()(kernel(q, k, True), is_causal=True).apply(v)
    later = slice(70, None)
    for t in (q, k, v):
        t[:, :, later] = scale * torch.randn_like(t[:, :, later])
    after = features()(kernel(q, k, True), is_causal=True).apply(v)
    torch.testing.assert_close(after[:, :, :70], before[:, :, :70], rtol=1e-9, atol=1e-9)
    short = features()(kernel(q[:, :, :70], k[:, :, :70], True), is_causal=True).apply(v[:, :, :70])
    torch.testing.assert_close(short, before[:, :, :70], rtol=1e-9, atol=1e-9)


@causal
@pytest.mark.parametrize("scale", [0.0, 20.0, 1000.0])
def test_huge_features_neither_overflow_nor_vanish(is_causal, scale):
    """In float32 all exponentials of such tokens would be 0 or infinite."""
    q, k, v = (t.requires_grad_() for t in operands(80, scale=scale, dtype=torch.float32))
    for kernel in (DotProduct(DIM), GaussianRange(HEADS, DIM)):
        u = RandomFeatures(DIM)(kernel(q, k, is_causal), None, is_causal).apply(v)
        assert u.isfinite().all()
        assert u.amax() <= v.amax() * 1.001
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(u.sum(), (q, k, v)))


def alibi(bandwidths, length, dtype=torch.float64):
    """Causal ALiBi as terms and as log-weights."""
    positions, line = Alibi(HEADS, bandwidths, dtype=dtype), line_geometry(length, torch.empty(0))
    p = torch.arange(length, dtype=dtype)
    return positions(line, line, torch.empty(0)), (p - p[:, None]) / torch.tensor(bandwidths, dtype=dtype)[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_causal_alibi_is_exact(dtype):
    """Without content all features are alike, so the filter is ALiBi. A chunk may span 240 nats."""
    content = torch.zeros(1, HEADS, 150, DIM, dtype=dtype)
    v = torch.randn(1, HEADS, 150, 3, dtype=dtype)
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    for bandwidths in ([0.26, 8.0], [1.0, 300.0]):
        terms, log_weights = alibi(bandwidths, 150, dtype)
        expected = log_weights.masked_fill(log_weights > 0, -math.inf).softmax(-1)
        found = features().to(dtype)(product(terms, DotProduct(DIM)(content, content)), is_causal=True)
        torch.testing.assert_close(found.dense()[0], expected, rtol=rounding, atol=rounding)
        torch.testing.assert_close(found.apply(v)[0], expected @ v[0], rtol=rounding, atol=rounding)


@kernels
def test_causal_alibi_with_content(kernel):
    """The factor of a dot product stays balanced between queries and keys."""
    q, k, _ = operands()
    (terms, log_weights), filter = alibi([2.0, 8.0], 9), features()
    found = filter(product(terms, kernel(q, k, True)), is_causal=True).dense()
    expected = plain(kernel, q, k, filter.directions, True, log_weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@causal
@pytest.mark.parametrize("additive", [False, True])
def test_hidden_keys_have_no_weight(is_causal, additive):
    q, k, v = operands(12)
    visible = torch.tensor([True, False, True, True] * 3)
    visible[0] = is_causal  # a query whose keys are all hidden has no result
    mask = visible[None, None, None]
    if additive:
        mask = torch.zeros(mask.shape, **F64).masked_fill(~mask, -math.inf)
    filter = features()
    found = filter(DotProduct(DIM)(q, k), mask, is_causal)
    expected = plain(DotProduct(DIM), q, k, filter.directions, is_causal) * visible
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.apply(v), expected @ v, rtol=1e-12, atol=1e-12)


@kernels
@causal
def test_gradients(kernel, is_causal):
    q, k, v = (t[:1, :, :5].requires_grad_() for t in operands(5))
    filter = features(3)

    def smooth(q, k, v):
        return filter(kernel(q, k, is_causal), None, is_causal).apply(v)

    assert torch.autograd.gradcheck(smooth, (q, k, v))


@pytest.mark.parametrize(("is_causal", "queries"), [(False, 70), (False, 7), (True, 70), (True, 7)])
def test_elu_features_are_their_formula(is_causal, queries):
    """With ALiBi and hidden keys too, and over more than one chunk."""
    q, k, v = operands(70, queries)
    terms, weights = DotProduct(DIM)(q, k), torch.where(q > 0, q + 1, q.exp()) @ torch.where(k > 0, k + 1, k.exp()).mT
    visible = (torch.arange(70) % 3 > 0) | (torch.arange(70) < 2)
    if is_causal and queries == 70:
        positions, log_weights = alibi([2.0, 8.0], 70)
        terms, weights = product(positions, terms), weights * log_weights.exp()
    expected = weights * visible
    if is_causal:
        expected = expected.tril(70 - queries)
    expected = expected / expected.sum(-1, keepdim=True)
    found = EluFeatures()(terms, visible[None, None, None], is_causal)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.apply(v), expected @ v, rtol=1e-12, atol=1e-12)


def test_elu_features_refuse_distances():
    q, k, _ = operands()
    with pytest.raises(
        ValueError, match=r"filter='elu_features': kernels must be inner products, got a distance\. Use kernel="
    ):
        EluFeatures()(KERNELS["gaussian"](q, k))
    with pytest.raises(ValueError, match="filter='elu_features': the layer must have one kernel on features"):
        EluFeatures()(Terms([q, q], [k, k]))


def test_directions_are_orthogonal_in_groups_and_normal():
    w = RandomFeatures(8, num_features=20, **F64).directions
    assert ((w[:8] @ w[:8].T).fill_diagonal_(0).abs() < 1e-12).all()
    assert ((w[16:] @ w[16:].T).fill_diagonal_(0).abs() < 1e-12).all()
    many = RandomFeatures(8, num_features=4000, **F64).directions
    assert many.mean().abs() < 0.02
    assert abs(many.square().mean() - 1) < 0.05
    assert abs(many.square().sum(-1).var() - 16) < 2.5  # chi-squared with 8 degrees of freedom


def test_directions_depend_on_seed_and_block_only():
    state = torch.random.get_rng_state()
    directions = [RandomFeatures(8, depth, seed=seed).directions for depth, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(directions[0], directions[1])
    assert not torch.equal(directions[0], directions[2])
    assert not torch.equal(directions[0], directions[3])
    assert directions[0].shape == (16, 8)  # 8 log 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@causal
def test_half_precision_and_empty_batches(dtype, is_causal):
    q, k, v = operands(80, dtype=torch.float32)
    filter, kernel = RandomFeatures(DIM), GaussianRange(HEADS, DIM)

    def smooth(q, k, v):
        return filter(kernel(q, k, is_causal), None, is_causal).apply(v)

    exact, found = smooth(q, k, v), smooth(*(t.to(dtype) for t in (q, k, v)))
    assert found.dtype == dtype
    assert (found.float() - exact).square().mean().sqrt() < 0.02
    assert smooth(q[:0], k[:0], v[:0]).shape == (0, HEADS, 80, DIM)


@pytest.mark.parametrize(
    ("positions", "got"),
    [
        (SpatialGaussian(HEADS, (1, 9), **F64), "1 blocks of columns, 0 distances of features, 1 of positions and 0 dense"),
        (RelativeTable(HEADS, (1, 9), **F64), "1 blocks of columns, 0 distances of features, 0 of positions and 1 dense"),
    ],
)
def test_positions_without_few_features_are_refused(positions, got):
    q, k, _ = operands()
    line = line_geometry(9, q)
    terms = product(positions(line, line, q), DotProduct(DIM)(q, k))
    with pytest.raises(ValueError, match=rf"filter='random_features': the layer must have .*, got {got}.* Use positions="):
        features()(terms, is_causal=True)


def test_bad_input():
    q, k, _ = operands()
    terms = DotProduct(DIM)(q, k)
    with pytest.raises(
        ValueError, match=r"mask must hide keys from all queries, .* got \[2, 1, 9, 9\]\. Use filter='softmax' for other"
    ):
        features()(terms, torch.ones(2, 1, 9, 9, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be bool .*, got torch\.int64"):
        features()(terms, torch.ones(2, 1, 1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"columns must be as wide as the directions, 4, got 6\. Give head_dim=6"):
        RandomFeatures(4, **F64)(terms)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        RandomFeatures(4, num_features=0)
    with pytest.raises(TypeError, match=r"seed must be a whole number, got 0\.5"):
        RandomFeatures(4, seed=0.5)
    with pytest.raises(ValueError, match="got 2 blocks of columns"):
        features()(Terms([q, q], [k, k]))
