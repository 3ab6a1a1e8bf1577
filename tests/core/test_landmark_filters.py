"""Nystroem and Linformer: each against a plain reading of its formula."""

import math
from itertools import pairwise

import pytest
import torch

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry, line_geometry, take_tokens
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.landmark_filters import Linformer, Nystroem, pseudo_inverse
from imgproc_attn.core.positions import Alibi, SpatialGaussian
from imgproc_attn.core.residuals import Twicing
from imgproc_attn.core.terms import product

F64 = {"dtype": torch.float64}
HEADS, DIM = 2, 6
KERNELS = {"dot product": DotProduct(DIM), "gaussian": GaussianRange(HEADS, DIM, [1.3, 2.7], **F64)}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def operands(length=12, queries=None):
    return [torch.randn(2, HEADS, n, DIM, **F64) for n in (queries or length, length, length)]


def weights(kernel, q, k):
    """The softmax of the scores, from explicit differences."""
    if isinstance(kernel, DotProduct):
        return (q @ k.mT * kernel.scale).softmax(-1)
    h = kernel.range_bandwidth()[:, None, None]
    return (-(q[:, :, :, None] - k[:, :, None]).square().sum(-1) / h**2).softmax(-1)


def segment_means(x, count):
    """Means over segments whose sizes differ by at most 1."""
    edges = [-(-i * x.shape[2] // count) for i in range(count + 1)]
    return torch.stack([x[:, :, a:b].mean(2) for a, b in pairwise(edges)], dim=2)


@kernels
@pytest.mark.parametrize("landmarks", [4, 5])
@pytest.mark.parametrize("queries", [12, 7])
def test_nystroem_is_its_formula(kernel, landmarks, queries):
    q, k, v = operands(queries=queries)
    operator = Nystroem(landmarks, num_iterations=3)(kernel(q, k))
    few_q, few_k = segment_means(q, landmarks), segment_means(k, landmarks)
    middle = weights(kernel, few_q, few_k)
    expected = weights(kernel, q, few_k) @ pseudo_inverse(middle, 3) @ weights(kernel, few_q, k)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.apply(v), expected @ v, rtol=1e-12, atol=1e-12)
    if queries == 12:
        twice = Twicing(HEADS)(operator.apply, v)
        torch.testing.assert_close(twice, expected @ v + expected @ (v - expected @ v), rtol=1e-12, atol=1e-12)


@kernels
@pytest.mark.parametrize("prefix", [0, 1])
def test_as_many_landmarks_as_tokens_are_the_exact_filter(kernel, prefix):
    """With positions in the layer too."""
    q, k, _ = operands(prefix + 12)
    place = grid_geometry(3, 4, prefix, like=q)
    spatial = SpatialGaussian(HEADS, (3, 4), [1.5, 4.0], **F64)
    for terms in (kernel(2 * q, 2 * k), product(spatial(place, place, q), kernel(2 * q, 2 * k))):
        exact = SoftmaxFilter()(terms).dense()
        torch.testing.assert_close(Nystroem(12 + prefix, num_iterations=40)(terms).dense(), exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(Nystroem(99, num_iterations=40)(terms).dense(), exact, rtol=0, atol=1e-6)


def test_positions_of_landmarks_are_means():
    """A spatial Gaussian without content, on a line: means of 4 indices are exact."""
    line, zero = line_geometry(12, torch.empty(0)), torch.zeros(1, HEADS, 12, DIM, **F64)
    h = torch.tensor([1.5, 9.0], **F64)
    terms = product(SpatialGaussian(HEADS, (1, 12), h.tolist(), **F64)(line, line, zero), DotProduct(DIM)(zero, zero))
    operator = Nystroem(3)(terms)
    p, few = torch.arange(12, **F64), torch.tensor([1.5, 5.5, 9.5], **F64)
    for found, a, b in ((operator.from_landmarks, p, few), (operator.to_landmarks, few, p)):
        expected = (-((a[:, None] - b) / h[:, None, None]).square()).softmax(-1)
        torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)


def test_more_landmarks_come_closer_to_the_exact_filter():
    """On features that change slowly along the tokens, as those of an image do."""
    q, k, v = (torch.randn(2, HEADS, 96, DIM, **F64).cumsum(2) / 8 for _ in range(3))
    terms = GaussianRange(HEADS, DIM, **F64)(q, k)
    exact = SoftmaxFilter()(terms).apply(v)
    errors = [(Nystroem(count, 12)(terms).apply(v) - exact).norm() / exact.norm() for count in (4, 16, 48)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@kernels
@pytest.mark.parametrize("landmarks", [4, 11])
@pytest.mark.parametrize("spatial", [False, True])
def test_hidden_tokens_are_as_good_as_absent(kernel, landmarks, spatial):
    """Each sample has its own tokens, fewer than there may be landmarks."""
    q, k, v = operands()
    line, like = line_geometry(12, torch.empty(0)), torch.empty(0, **F64)
    positions = SpatialGaussian(HEADS, (1, 12), [1.5, 9.0], **F64)
    visible = torch.stack([torch.arange(12) < 9, torch.arange(12) % 2 == 0])

    def terms(index):
        place, some = take_tokens(line, index), kernel(q[:, :, index], k[:, :, index])
        return product(positions(place, place, like), some) if spatial else some

    found = Nystroem(landmarks, 30)(terms(torch.arange(12)), visible[:, None, None]).apply(v)
    for sample, kept in enumerate(visible):
        index = kept.nonzero()[:, 0]
        expected = Nystroem(landmarks, 30)(terms(index)).apply(v[:, :, index])
        torch.testing.assert_close(found[sample, :, index], expected[sample], rtol=1e-8, atol=1e-8)


@kernels
def test_hidden_tokens_are_in_no_sum(kernel):
    """Short lines have the first columns of the maps."""
    q, k, v = operands()
    filter, visible = Linformer((1, 12), 5, **F64), torch.arange(12)[None, None, None] < 9
    found = filter(kernel(q, k), visible, geometry=line_geometry(12, q)).apply(v)
    expected = filter(kernel(q[:, :, :9], k[:, :, :9]), geometry=line_geometry(9, q, longest=12)).apply(v[:, :, :9])
    torch.testing.assert_close(found[:, :, :9], expected, rtol=1e-12, atol=1e-12)


def test_pseudo_inverse_is_that_of_torch():
    """Compare well-conditioned matrices, and singular ones, whose rows sum to 1."""
    a = (3 * torch.eye(8, **F64) + torch.randn(5, 8, 8, **F64)).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(a, 40), torch.linalg.pinv(a), rtol=1e-8, atol=1e-8)
    singular = a[:, [0, 1, 2, 3, 0, 1, 2, 3]]
    torch.testing.assert_close(pseudo_inverse(singular, 20), torch.linalg.pinv(singular, rtol=1e-9), rtol=1e-6, atol=1e-6)


@kernels
@pytest.mark.parametrize("prefix", [0, 2])
def test_linformer_is_its_formula(kernel, prefix):
    """Learned sums of the patches, and prefix tokens, which stay as they are."""
    q, k, v = operands(prefix + 12)
    filter = Linformer((3, 4), num_landmarks=5, **F64)
    operator = filter(kernel(q, k), geometry=grid_geometry(3, 4, prefix, like=q))

    def few(x, maps):
        return torch.cat([x[:, :, :prefix], torch.einsum("mn,bhnd->bhmd", maps.flatten(1), x[:, :, prefix:])], dim=2)

    expected = weights(kernel, q, few(k, filter.key_maps)) @ few(v, filter.value_maps)
    torch.testing.assert_close(operator.apply(v), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.dense() @ v, expected, rtol=1e-12, atol=1e-12)
    a = operator.dense()
    torch.testing.assert_close(Twicing(HEADS)(operator.apply, v), a @ v + a @ (v - a @ v), rtol=1e-12, atol=1e-12)


def test_linformer_resizes_its_maps():
    """A map that is linear in the coordinates stays so. A line is a grid of one row."""
    filter = Linformer((3, 4), num_landmarks=1)
    ramp = torch.linspace(0, 1, 3)[:, None] + torch.linspace(0, 2, 4)
    filter.value_maps.data = ramp[None]
    q = torch.randn(1, HEADS, 35, DIM)
    sums = filter(DotProduct(DIM)(q, q), geometry=grid_geometry(5, 7, 0, like=q)).value_sums
    expected = torch.linspace(0, 1, 5)[:, None] + torch.linspace(0, 2, 7)
    torch.testing.assert_close(sums.detach().reshape(5, 7), expected)
    line = Linformer((1, 20), num_landmarks=3)
    q = q[:, :, :20]
    assert line(DotProduct(DIM)(q, q), geometry=line_geometry(20, q, longest=20)).value_sums.shape == (3, 20)


def test_maps_start_with_the_spread_of_xavier():
    maps = Linformer((20, 30), num_landmarks=40).key_maps
    assert maps.std().item() == pytest.approx(1 / math.sqrt(640), rel=0.05)


@pytest.mark.parametrize("make", [lambda: Nystroem(2, 3), lambda: Linformer((1, 4), 2, **F64)], ids=["nystroem", "linformer"])
@kernels
def test_gradients(make, kernel):
    q, k, v = (t[:1, :, :, :6].requires_grad_() for t in operands(4))
    filter = make()
    place = {"geometry": line_geometry(4, q)} if isinstance(filter, Linformer) else {}

    def smooth(q, k, v):
        return filter(kernel(q, k), **place).apply(v)

    assert torch.autograd.gradcheck(smooth, (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_empty_batches(dtype):
    q, k, v = (t.float() for t in operands(12))
    place = grid_geometry(3, 4, 0, like=q)
    spatial, kernel = SpatialGaussian(HEADS, (3, 4)), GaussianRange(HEADS, DIM)
    linformer = Linformer((3, 4), 3)

    def smooth(q, k, v):
        terms = kernel(q, k)
        return Nystroem(3)(product(spatial(place, place, q), terms)).apply(v), linformer(terms, geometry=place).apply(v)

    for exact, found in zip(smooth(q, k, v), smooth(*(t.to(dtype) for t in (q, k, v)))):
        assert found.dtype == dtype
        assert (found.float() - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()
    assert [u.shape for u in smooth(q[:0], k[:0], v[:0])] == [(0, HEADS, 12, DIM)] * 2


@pytest.mark.parametrize("name", ["nystroem", "linformer"])
def test_what_they_refuse(name):
    q, k, _ = operands()
    place = grid_geometry(3, 4, 0, like=q)
    filter = Nystroem(4) if name == "nystroem" else Linformer((3, 4), 4, **F64)
    terms, where = DotProduct(DIM)(q, k), {} if name == "nystroem" else {"geometry": place}
    with pytest.raises(ValueError, match=rf"filter='{name}': mask must hide keys from all queries, .* got \[12, 12\]"):
        filter(terms, torch.ones(12, 12, dtype=torch.bool), **where)
    with pytest.raises(TypeError, match=rf"filter='{name}': mask must be bool \(True: visible\), got torch\.float64"):
        filter(terms, torch.zeros(1, 1, 1, 12, **F64), **where)
    prefixed, mask = grid_geometry(3, 3, 3, like=q), torch.ones(1, 1, 1, 12, dtype=torch.bool)
    spatial = product(SpatialGaussian(HEADS, (3, 3), **F64)(prefixed, prefixed, q), terms)
    with pytest.raises(ValueError, match=rf"filter='{name}': mask must be None beside prefix tokens, got a mask"):
        filter(*(spatial, mask) if name == "nystroem" else (terms, mask), **({"geometry": prefixed} if where else {}))
    with pytest.raises(ValueError, match=rf"filter='{name}': is_causal must be False, .* got True\. Use filter='softmax'"):
        filter(terms, is_causal=True, **where)
    with pytest.raises(ValueError, match=rf"filter='{name}': .* dense biases.*got .*1.* Use positions="):
        filter(product(Alibi(HEADS, **F64)(place, place, q), terms), **where)
    with pytest.raises(ValueError, match=rf"filter='{name}': num_landmarks must be at least 1, got 0"):
        type(filter)(**({"grid_size": (3, 4)} if name == "linformer" else {}), num_landmarks=0)


def test_what_linformer_refuses():
    q, k, _ = operands()
    filter, place, terms = Linformer((3, 4), 4, **F64), grid_geometry(3, 4, 0, like=q), DotProduct(DIM)(q, k)
    with pytest.raises(ValueError, match=r"filter='linformer': geometry must be that of the tokens, got None"):
        filter(terms)
    few = take_tokens(place, slice(0, 11))
    with pytest.raises(ValueError, match=r"tokens must be 0 prefix tokens and all patches of the grid 3 x 4, got 11 tokens"):
        filter(DotProduct(DIM)(q[:, :, :11], k[:, :, :11]), geometry=few)
    with pytest.raises(ValueError, match=r"filter='linformer': .* got 1 and 0, because sums of tokens have no position"):
        filter(product(SpatialGaussian(HEADS, (3, 4), **F64)(place, place, q), terms), geometry=place)
