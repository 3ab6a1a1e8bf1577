"""Output layers against a plain reading, and models with an adaptive softmax."""

import copy
import math

import pytest
import torch
from causal_variants import CONTEXT, VOCABULARY, small

from imgproc_attn.language import AdaptiveSoftmax, TiedLogits

F64 = {"dtype": torch.float64}
CUTOFFS = [10, 30, 31]


def layer(cutoffs=CUTOFFS):
    embedding = torch.nn.Embedding(VOCABULARY, 8, **F64)
    return (AdaptiveSoftmax(embedding, cutoffs, **F64) if cutoffs else TiedLogits(embedding)), embedding


def targets(*shape):
    """Tokens of all clusters, and a place that does not count."""
    result = torch.arange(math.prod(shape)).reshape(shape) * 7 % VOCABULARY
    result[-1, -1] = -100
    return result


def test_adaptive_softmax_is_its_formula():
    """p(token) is p(cluster) p(token in its cluster), one token at a time."""
    module, embedding = layer()
    x = torch.randn(2, 5, 8, **F64)
    frequent = torch.cat([embedding.weight[:10], module.clusters.weight])
    first, expected = (x @ frequent.T).softmax(-1), torch.empty(2, 5, VOCABULARY, **F64)
    for token in range(VOCABULARY):
        expected[..., token] = first[..., token] if token < 10 else 0
        for cluster, (start, stop) in enumerate(((10, 30), (30, 31), (31, VOCABULARY))):
            if start <= token < stop:
                inside = (x @ embedding.weight[start:stop].T).softmax(-1)
                expected[..., token] = first[..., 10 + cluster] * inside[..., token - start]
    torch.testing.assert_close(module(x).exp(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 5, **F64))


@pytest.mark.parametrize("cutoffs", [CUTOFFS, [49], []], ids=str)
@pytest.mark.parametrize("shape", [(2, 25), (1, 2), (1, 1)])
def test_losses_are_those_of_the_scores(cutoffs, shape):
    module, _ = layer(cutoffs)
    x, wanted = torch.randn(*shape, 8, **F64), targets(*shape)
    expected = -module(x).log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(module.losses(x, wanted), expected * (wanted >= 0), rtol=1e-12, atol=1e-12)


def test_losses_need_no_scores_of_all_tokens(monkeypatch):
    """Only clusters with a target are looked at."""
    module, _ = layer()
    seen = []
    for cluster, part in enumerate(module.parts.tail):
        part.register_forward_hook(lambda part, args, scores, cluster=cluster: seen.append((cluster, len(scores))))
    module.losses(torch.randn(1, 6, 8, **F64), torch.tensor([[3, 9, 40, 0, 45, 5]]))
    assert seen == [(2, 2)]


def test_all_weights_get_gradients():
    module, embedding = layer()
    x = torch.randn(2, 25, 8, **F64, requires_grad=True)
    losses = module.losses(x, targets(2, 25)).sum()
    scores = -module(x).gather(-1, targets(2, 25).clamp(min=0)[..., None])[..., 0]
    weights = (x, embedding.weight, module.clusters.weight)
    expected = torch.autograd.grad((scores * (targets(2, 25) >= 0)).sum(), weights)
    for found, gradient in zip(torch.autograd.grad(losses, weights), expected):
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("cutoffs", [CUTOFFS, []], ids=str)
@torch.no_grad()
def test_models_return_scores_or_losses(cutoffs):
    model, ids = small(cutoffs=cutoffs), torch.randint(VOCABULARY, (2, 20))
    wanted = targets(2, 20)
    expected = -model(ids).log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0] * (wanted >= 0)
    torch.testing.assert_close(model(ids, targets=wanted), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_tied_in_checkpoints_and_copies():
    model = small(cutoffs=CUTOFFS)
    assert [name for name in model.state_dict() if name.startswith("head.")] == ["head.clusters.weight"]
    other, ids = copy.deepcopy(model), torch.randint(VOCABULARY, (1, CONTEXT))
    with torch.no_grad():
        model.token_embed.weight.zero_()
        model.head.clusters.weight.zero_()
    assert other.head.parts.tail[0]._weights[0] is other.token_embed
    assert other.head.parts.head._weights[1] is other.head.clusters
    torch.testing.assert_close(model(ids).exp()[0, 0, :10], torch.full((10,), 1 / 13, **F64))
    assert other(ids).std() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Losses of half-precision weights, and of float32 weights under autocast, are float32."""
    model, ids = small(torch.float32, cutoffs=CUTOFFS), torch.randint(VOCABULARY, (2, 20))
    expected = model(ids, targets=targets(2, 20))
    with torch.autocast("cpu", dtype):
        automatic = model(ids, targets=targets(2, 20))
    for losses in (automatic, model.to(dtype)(ids, targets=targets(2, 20))):
        assert losses.dtype == torch.float32
        assert (losses - expected).square().mean().sqrt() < 0.1 * expected.std()


@pytest.mark.parametrize(
    ("cutoffs", "error", "message"),
    [
        ([10, 50], ValueError, r"cutoffs must increase from 1 to 49, .* got \[10, 50\]\. Give others, or cutoffs=\[\]"),
        ([0, 10], ValueError, r"got \[0, 10\]"),
        ([20, 10], ValueError, r"got \[20, 10\]"),
        ([10, 10], ValueError, r"got \[10, 10\]"),
        ([-5], ValueError, r"got \[-5\]"),
        ([2.5], TypeError, r"cutoffs must be a whole number, got 2\.5"),
    ],
)
def test_bad_cutoffs(cutoffs, error, message):
    with pytest.raises(error, match=message):
        small(cutoffs=cutoffs)
