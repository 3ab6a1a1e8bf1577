"""Contracts of all members: fewer queries than keys, causality, and keys that later tokens do not change."""

import pytest
import torch

from imgproc_attn.core.elementwise_filters import ReluFilter, ThresholdFilter
from imgproc_attn.core.filters import DenseFilter, SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry, take_tokens
from imgproc_attn.core.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.core.layer_state import LayerState, next_state
from imgproc_attn.core.lifting import lift
from imgproc_attn.core.positions import Alibi, RelativeTable, Rotary, SpatialGaussian, UntiedPositions
from imgproc_attn.core.terms import product

HEADS, WIDTH, GRID, PREFIX = 2, 8, (3, 4), 1
TOKENS = PREFIX + GRID[0] * GRID[1]
QUERIES = [0, 3, 7]  # the prefix token is one of them
KERNELS = {
    "dot product": lambda: DotProduct(WIDTH),
    "gaussian range": lambda: GaussianRange(HEADS, WIDTH, [1.5, 4.0], dtype=torch.float64),
    "elliptical": lambda: Elliptical(WIDTH),
}
POSITIONS = {
    "none": lambda: [],
    "spatial gaussian": lambda: [SpatialGaussian(HEADS, GRID, dtype=torch.float64)],
    "per axis": lambda: [SpatialGaussian(HEADS, GRID, per_axis=True, dtype=torch.float64)],
    "alibi": lambda: [Alibi(HEADS, dtype=torch.float64)],
    "relative table": lambda: [table()],
    "untied": lambda: [UntiedPositions(6, HEADS, WIDTH, dtype=torch.float64)],
    "rotary": lambda: [Rotary(WIDTH)],
    "two": lambda: [SpatialGaussian(HEADS, GRID, dtype=torch.float64), UntiedPositions(6, HEADS, WIDTH, dtype=torch.float64)],
}
FILTERS = {"softmax": SoftmaxFilter, "dense": DenseFilter, "relu": ReluFilter, "threshold": ThresholdFilter}


def table():
    member = RelativeTable(HEADS, GRID, dtype=torch.float64)
    torch.nn.init.normal_(member.table)
    return member


def tokens():
    q, k, v, previous = torch.randn(4, 2, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    embeddings = torch.randn(1, TOKENS, 6, dtype=torch.float64)
    embeddings[:, :PREFIX] = 0
    geometry = grid_geometry(*GRID, PREFIX, q)._replace(position_embeddings=embeddings)
    return q, k, v, geometry, next_state(LayerState(), previous)


def terms_of(kernel, positions, q, k, v, query, key, state, is_causal=False):
    """Return the terms as the attention layer composes them."""
    for member in positions:
        if hasattr(member, "rotate"):
            q, k = member.rotate(q, k, query, key)
    more = (v, state) if getattr(kernel, "needs_state", False) else ()
    terms = kernel(q, k, is_causal, *more)
    for member in positions:
        if not hasattr(member, "rotate"):
            terms = product(member(query, key, v), terms)
    return terms


def cut(state, length):
    return LayerState(*(None if t is None else t[:, :, :length] for t in state))


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]()


@pytest.fixture(params=POSITIONS)
def positions(request):
    return POSITIONS[request.param]()


@pytest.fixture(params=FILTERS)
def filter(request, kernel, positions):
    member = FILTERS[request.param]()
    distances = any(isinstance(part, GaussianRange | SpatialGaussian) for part in (kernel, *positions))
    if isinstance(member, ReluFilter) and distances:
        pytest.skip("ReLU refuses distances")
    return member


def test_fewer_queries_than_keys_are_rows_of_the_square(kernel, positions, filter):
    q, k, v, geometry, state = tokens()
    square = filter(terms_of(kernel, positions, q, k, v, geometry, geometry, state))
    query = take_tokens(geometry, torch.tensor(QUERIES))
    few = filter(terms_of(kernel, positions, q[:, :, QUERIES], k, v, query, geometry, state))
    assert few.dense().shape == (2, HEADS, len(QUERIES), TOKENS)
    torch.testing.assert_close(few.dense(), square.dense()[:, :, QUERIES])
    torch.testing.assert_close(few.apply(v), square.apply(v)[:, :, QUERIES])


def test_an_operator_is_linear_and_averages(kernel, positions, filter):
    q, k, v, geometry, state = tokens()
    operator = filter(terms_of(kernel, positions, q, k, v, geometry, geometry, state))
    if getattr(filter, "rows_sum_to_one", True):
        torch.testing.assert_close(operator.dense().sum(-1), torch.ones(2, HEADS, TOKENS, dtype=torch.float64))
    torch.testing.assert_close(operator.apply(v), operator.dense() @ v)
    torch.testing.assert_close(operator.apply(2 * v + k), 2 * operator.apply(v) + operator.apply(k))


def test_a_causal_call_on_a_prefix_is_the_prefix_of_the_whole(kernel, positions, filter):
    q, k, v, geometry, state = tokens()
    whole = filter(terms_of(kernel, positions, q, k, v, geometry, geometry, state, True), None, True)
    for length in (1, 5):
        part = [t[:, :, :length] for t in (q, k, v)]
        places = take_tokens(geometry, slice(0, length))
        operator = filter(terms_of(kernel, positions, *part, places, places, cut(state, length), True), None, True)
        torch.testing.assert_close(operator.dense(), whole.dense()[:, :, :length, :length])
        torch.testing.assert_close(operator.apply(part[2]), whole.apply(v)[:, :, :length])


def test_causal_queries_at_the_end_see_all_before_them(kernel, positions, filter):
    """The queries are the last tokens, as in decoding with a cache."""
    q, k, v, geometry, state = tokens()
    whole = filter(terms_of(kernel, positions, q, k, v, geometry, geometry, state, True), None, True)
    places = take_tokens(geometry, slice(-2, None))
    last = filter(terms_of(kernel, positions, q[:, :, -2:], k, v, places, geometry, state, True), None, True)
    torch.testing.assert_close(last.apply(v), whole.apply(v)[:, :, -2:])


def test_keys_of_a_prefix_do_not_change_when_tokens_are_appended(kernel, positions):
    q, k, v, geometry, state = tokens()
    _, keys = lift(terms_of(kernel, positions, q, k, v, geometry, geometry, state, True))
    part, places = [t[:, :, :5] for t in (q, k, v)], take_tokens(geometry, slice(0, 5))
    _, prefix = lift(terms_of(kernel, positions, *part, places, places, cut(state, 5), True))
    torch.testing.assert_close(prefix, keys[:, :, :5], rtol=1e-12, atol=1e-12)  # a product of fewer rows may round differently
