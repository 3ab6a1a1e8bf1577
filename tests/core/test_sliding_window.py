"""The sliding window against the softmax filter with a band as its mask."""

import math

import pytest
import torch

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import line_geometry, take_tokens
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.positions import Alibi, RelativeTable, SpatialGaussian
from imgproc_attn.core.residuals import Twicing
from imgproc_attn.core.sliding_window import SlidingWindow
from imgproc_attn.core.terms import product

F64 = {"dtype": torch.float64}
HEADS, DIM = 2, 6
KERNELS = {"dot product": DotProduct(DIM), "gaussian": GaussianRange(HEADS, DIM, [1.3, 2.7], **F64)}
POSITIONS = {"none": None, "spatial": SpatialGaussian(HEADS, (1, 30), [1.5, 9.0], **F64), "alibi": Alibi(HEADS, **F64)}


def terms_of(kernel, positions, length, queries, is_causal):
    q, k = (torch.randn(2, HEADS, n, DIM, **F64) for n in (queries, length))
    terms = kernel(q, k, is_causal)
    if positions is None:
        return terms
    line = line_geometry(length, q)
    return product(positions(take_tokens(line, slice(length - queries, length)), line, q), terms)


def band(length, queries, window):
    p = torch.arange(length)
    return (p[length - queries :, None] - p).abs() < window


cases = pytest.mark.parametrize(
    ("positions", "is_causal"),
    [("none", True), ("none", False), ("spatial", True), ("spatial", False), ("alibi", True)],
)
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@kernels
@cases
def test_a_window_is_a_band_of_the_softmax(kernel, positions, is_causal):
    """For lengths that the window divides or not, and for a few last queries, as with a cache."""
    for length, queries in ((1, 1), (8, 8), (23, 23), (23, 5), (23, 1)):
        terms, v = terms_of(kernel, POSITIONS[positions], length, queries, is_causal), torch.randn(2, HEADS, length, 3, **F64)
        for window in (1, 4, 7, 40):
            expected = SoftmaxFilter()(terms, band(length, queries, window), is_causal).dense()
            found = SlidingWindow(window)(terms, is_causal=is_causal)
            torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.apply(v), expected @ v, rtol=1e-12, atol=1e-12)


@kernels
@cases
@pytest.mark.parametrize("additive", [True, False])
def test_hidden_keys_have_no_weight(kernel, positions, is_causal, additive):
    terms, v = terms_of(kernel, POSITIONS[positions], 23, 23, is_causal), torch.randn(2, HEADS, 23, 3, **F64)
    visible = (torch.arange(23) % 3 > 0) | (torch.arange(23) < 2)  # each token sees one within its window
    mask = visible[None, None, None].expand(2, 1, 1, -1)
    expected = SoftmaxFilter()(terms, band(23, 23, 4) & visible, is_causal).dense()
    if additive:
        mask = torch.zeros(mask.shape, **F64).masked_fill(~mask, -math.inf)
    found = SlidingWindow(4)(terms, mask, is_causal)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.apply(v), expected @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [True, False])
def test_twicing_and_gradients(is_causal):
    q, k, v = (torch.randn(1, 1, 7, 3, **F64, requires_grad=True) for _ in range(3))

    def smooth(q, k, v):
        operator = SlidingWindow(3)(DotProduct(3)(q, k), is_causal=is_causal)
        return Twicing(1)(operator.apply, v)

    a = SlidingWindow(3)(DotProduct(3)(q, k), is_causal=is_causal).dense()
    torch.testing.assert_close(smooth(q, k, v), a @ v + a @ (v - a @ v), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(smooth, (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_empty_batches(dtype):
    """A spatial kernel on a line has float32 columns beside half-precision values."""
    x, line = torch.randn(2, HEADS, 30, DIM), line_geometry(30, torch.empty(0))
    filter, kernel, positions = SlidingWindow(8), GaussianRange(HEADS, DIM), SpatialGaussian(HEADS, (1, 30))

    def smooth(x):
        return filter(product(positions(line, line, x), kernel(x, x, True)), is_causal=True).apply(x)

    exact, found = smooth(x), smooth(x.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - exact).square().mean().sqrt() < 0.01
    assert smooth(x[:0]).shape == (0, HEADS, 30, DIM)


def test_dropout_in_training_only():
    x = torch.randn(1, HEADS, 30, DIM)
    filter, terms = SlidingWindow(8, attn_drop=0.5), DotProduct(DIM)(x, x)
    assert not torch.equal(filter(terms).apply(x), filter(terms).apply(x))
    filter.eval()
    assert torch.equal(filter(terms).apply(x), filter(terms).apply(x))


def test_bad_input():
    terms = terms_of(DotProduct(DIM), None, 9, 9, False)
    with pytest.raises(ValueError, match="filter='sliding_window': mask must hide keys from all queries"):
        SlidingWindow(4)(terms, torch.ones(9, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"filter='sliding_window': kernels must not be dense biases, got 1\. Use positions="):
        SlidingWindow(4)(terms_of(DotProduct(DIM), RelativeTable(HEADS, (1, 9), **F64), 9, 9, True), is_causal=True)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        SlidingWindow(0)
    with pytest.raises(TypeError, match=r"window must be a whole number, got 2\.5"):
        SlidingWindow(2.5)
