import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from imgproc_attn.core.feature_filters import EluFeatures, RandomFeatures
from imgproc_attn.core.filters import DenseFilter, SoftmaxFilter, log_weights
from imgproc_attn.core.geometry import line_geometry
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.landmark_filters import Linformer, Nystroem
from imgproc_attn.core.sliding_window import SlidingWindow
from imgproc_attn.core.terms import TensorBias, Terms, product


def operands(dtype=torch.float64, length=9):
    return [torch.randn(2, 3, length, 8, dtype=dtype) for _ in range(3)]


MASKS = {
    "none": lambda n: None,
    "boolean": lambda n: (torch.rand(2, 1, n, n) > 0.3) | torch.eye(n, dtype=torch.bool),
    "additive": lambda n: torch.randn(1, 3, n, n, dtype=torch.float64),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kernel", [DotProduct(8), GaussianRange(3, 8, dtype=torch.float64)])
def test_fused_equals_dense(mask, is_causal, kernel):
    q, k, v = operands()
    mask = MASKS[mask](9)
    results = []
    for fused in (True, False):
        filter = SoftmaxFilter() if fused else DenseFilter()
        results.append(filter(kernel(q, k, is_causal), mask, is_causal).apply(v))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    weights = SoftmaxFilter()(kernel(q, k, is_causal), mask, is_causal).dense()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
    if is_causal:
        assert torch.equal(weights, weights.tril())
    torch.testing.assert_close(weights @ v, results[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mask_dtype", [None, torch.bool, torch.float64])
def test_dense_bias_joins_the_mask(fused, mask_dtype):
    q, k, v = operands()
    bias = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    mask = None
    total = bias
    if mask_dtype == torch.bool:
        mask = (torch.rand(9, 9) > 0.3) | torch.eye(9, dtype=torch.bool)
        total = bias.masked_fill(~mask, float("-inf"))
    elif mask_dtype is not None:
        mask = torch.randn(9, 9, dtype=torch.float64)
        total = bias + mask
    filter = SoftmaxFilter() if fused else DenseFilter()
    terms = product(Terms(biases=[TensorBias(bias)]), DotProduct(8)(q, k))
    result = filter(terms, mask).apply(v)
    torch.testing.assert_close(result, scaled_dot_product_attention(q, k, v, attn_mask=total), rtol=1e-11, atol=1e-11)


def test_terms_without_columns_are_refused_by_name():
    with pytest.raises(ValueError, match=r"must hold columns or a distance, got neither\. Add zero columns"):
        SoftmaxFilter()(Terms(biases=[TensorBias(torch.zeros(1, 1, 3, 3))]))


@pytest.mark.parametrize("fused", [True, False])
def test_constants_pass_unchanged(fused):
    q, k, _ = operands()
    constant = torch.full_like(q, 2.5)
    filter = SoftmaxFilter() if fused else DenseFilter()
    torch.testing.assert_close(filter(GaussianRange(3, 8, dtype=torch.float64)(q, k)).apply(constant), constant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 2, 1, 8), (0, 2, 5, 8)])
@pytest.mark.parametrize("fused", [True, False])
def test_one_token_and_an_empty_batch_simply_work(dtype, shape, fused):
    q = torch.randn(shape).to(dtype).requires_grad_()
    filter = SoftmaxFilter() if fused else DenseFilter()
    result = filter(GaussianRange(2, 8)(q, q)).apply(q)
    result.float().sum().backward()
    assert result.shape == shape
    assert result.dtype == dtype
    if shape[2] == 1:
        torch.testing.assert_close(result, q)


@pytest.mark.parametrize("kernel", [DotProduct(8), GaussianRange(3, 8)])
def test_autocast_does_not_round_dense_log_weights(kernel):
    """Columns hold norms, which are far larger than the log-weights that they add up to."""
    q, k, _ = (50 + x for x in operands(torch.float32))
    terms, dense = kernel(q, k), DenseFilter()
    expected = dense(terms).dense(), log_weights(terms)
    with torch.autocast("cpu", torch.bfloat16):
        found = dense(terms).dense(), log_weights(terms)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("kernel", [DotProduct(8), GaussianRange(3, 8)])
def test_dense_filters_work_without_memory(kernel):
    """The meta device, on which recipes are checked before they run, does not support autocast."""
    q, k, v = (x.to("meta") for x in operands(torch.float32))
    dense = DenseFilter().to("meta")
    assert dense(kernel.to("meta")(q, k)).apply(v).shape == v.shape


def test_dropout_in_training_only():
    q, k, v = operands(torch.float32, length=64)
    for fused in (True, False):
        filter = (SoftmaxFilter if fused else DenseFilter)(0.5)
        terms = DotProduct(8)(q, k)
        filter.eval()
        expected = filter(terms).apply(v)
        torch.testing.assert_close(expected, scaled_dot_product_attention(q, k, v))
        filter.train()
        assert not torch.allclose(filter(terms).apply(v), expected)


def test_dense_dropout_is_the_same_in_each_pass():
    q, k, v = operands(torch.float32)
    filter = DenseFilter(0.5).train()
    operator = filter(DotProduct(8)(q, k))
    assert torch.equal(operator.apply(v), operator.apply(v))


def test_non_contiguous_operands():
    qkv = torch.randn(2, 9, 3, 3, 8).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    filter, kernel = SoftmaxFilter(), GaussianRange(3, 8)
    expected = filter(kernel(q.contiguous(), k.contiguous())).apply(v.contiguous())
    torch.testing.assert_close(filter(kernel(q, k)).apply(v), expected)


def test_a_mask_of_whole_numbers_is_refused():
    """A mask of integers would be read as log-weights of 0 and 1."""
    q, k, _ = operands()
    with pytest.raises(TypeError, match=r"mask must be .*, got torch.int64\. Give mask.bool\(\)"):
        SoftmaxFilter()(DotProduct(8)(q, k), torch.ones(9, 9, dtype=torch.long).tril())


LINEAR = {
    "random features": lambda tokens: RandomFeatures(8),
    "elu features": lambda tokens: EluFeatures(),
    "nystroem": lambda tokens: Nystroem(16),
    "linformer": lambda tokens: Linformer((1, tokens), 16),
    "sliding window": lambda tokens: SlidingWindow(16),
}


@pytest.mark.parametrize("name", [*LINEAR, "random features, causal", "sliding window, causal"])
def test_memory_grows_with_the_number_of_tokens(name):
    """Tensors that autograd keeps for the backward pass. Dense weights would need four times as much for twice the tokens."""
    name, _, causal = name.partition(", ")

    def kept(tokens):
        held = []  # so that no storage is freed and its address used again

        def pack(tensor):
            held.append(tensor)
            return tensor

        q, k, v = (torch.randn(1, 1, tokens, 8, requires_grad=True) for _ in range(3))
        filter = LINEAR[name](tokens)
        place = {"geometry": line_geometry(tokens, q)} if name == "linformer" else {}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            u = filter(DotProduct(8)(q, k), None, bool(causal), **place).apply(v)
        assert u.requires_grad
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        return sum(storages.values())

    assert kept(2048) < 2.1 * kept(1024)
