"""Random functions and their sequences: distribution, layout, reproducible draws and the curriculum."""

import numpy as np
import pytest
import torch
from functions import drawn
from torch.utils.data import DataLoader

from imgproc_attn.in_context import RegressionProblem, RegressionSequences, interleave, separate


@pytest.mark.parametrize("sparsity", [None, 3])
def test_moments_and_number_of_coefficients(sparsity):
    problem = RegressionProblem(8, 12, sparsity)
    x, y = drawn(problem)
    assert problem.scale == (sparsity or 8)
    assert x.mean().abs() < 0.01
    assert x.var().item() == pytest.approx(1, abs=0.02)
    assert y.var().item() / problem.scale == pytest.approx(1, abs=0.1)
    w = np.linalg.lstsq(x[0].double().numpy(), y[0].double().numpy(), rcond=None)[0]
    assert (np.abs(w) > 1e-5).sum() == (sparsity or 8)
    assert np.abs(x[0].double().numpy() @ w - y[0].double().numpy()).max() < 1e-5  # a linear function without noise


def test_coefficients_that_are_not_zero_are_anywhere():
    x, y = drawn(RegressionProblem(5, 6, sparsity=1), 300)
    w = torch.linalg.lstsq(x.double(), y.double()[..., None]).solution[..., 0]
    assert ((w.abs() > 1e-4).sum(dim=0) > 30).all()


def test_layout_of_a_sequence():
    x, y = torch.randn(3, 4, 2), torch.randn(3, 4)
    tokens = interleave(x, y)
    assert tokens.shape == (3, 7, 2)
    for i in range(4):
        assert torch.equal(tokens[:, 2 * i], x[:, i])
    for i in range(3):
        assert torch.equal(tokens[:, 2 * i + 1, 0], y[:, i])
        assert (tokens[:, 2 * i + 1, 1:] == 0).all()
    assert torch.equal(separate(tokens)[0], x)


def test_items_depend_on_seed_split_epoch_and_number_alone():
    def item(number=3, split="train", seed=0, epoch=7):
        sequences = RegressionSequences(RegressionProblem(5, 6), 10, split, seed)
        sequences.set_epoch(epoch)
        return sequences[number][0]

    assert torch.equal(item(), item())
    for other in (item(4), item(split="test"), item(split="validation"), item(seed=1), item(epoch=8)):
        assert (item() - other).abs().min(dim=0).values.max() > 1e-3


def test_worker_processes_draw_the_same():
    sequences = RegressionSequences(RegressionProblem(5, 6), 8)
    sequences.set_epoch(1)
    one, two = (torch.cat([tokens for tokens, _ in DataLoader(sequences, 2, num_workers=n)]) for n in (0, 2))
    assert torch.equal(one, two)


def test_the_curriculum_grows_with_the_epoch():
    sequences = RegressionSequences(RegressionProblem(8, 17), 64, start=(5, 11))
    sizes = []
    for epoch in range(5):
        sequences.start_epoch(epoch)
        x = torch.stack([separate(sequences[i][0])[0] for i in range(8)])
        sizes.append(((x != 0).any(dim=0).any(dim=0).sum().item(), x.shape[1]))
        assert (x[..., : sizes[-1][0]] != 0).all()
        assert x.shape[2] == 8
        assert sequences.current.scale == sizes[-1][0]
    assert sizes == [(5, 11), (6, 13), (7, 15), (8, 17), (8, 17)]


BAD = [
    ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
    ({"points": 1}, "points must be at least 2, one to predict from another, got 1"),
    ({"sparsity": 6}, "sparsity must be at most dimensions, 5, got 6. Lower it"),
    ({"sparsity": 0}, "sparsity must be at least 1, got 0"),
    ({"active_dimensions": 6}, "active_dimensions must be at most dimensions, 5, got 6"),
    ({"active_dimensions": 2, "sparsity": 3}, "sparsity must be at most active_dimensions, 2, got 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_impossible_problems(change, message):
    with pytest.raises(ValueError, match=message):
        RegressionProblem(**{"dimensions": 5, "points": 11, **change})


def test_impossible_sequences():
    problem = RegressionProblem(5, 11)
    with pytest.raises(TypeError, match="points must be a whole number, got 2.5"):
        RegressionProblem(5, 2.5)
    with pytest.raises(ValueError, match="The split must be one of train, validation, test, got 'valid'"):
        RegressionSequences(problem, 4, "valid")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        RegressionSequences(problem, 0)
    with pytest.raises(ValueError, match="sparsity must be at most active_dimensions, 2, got 3"):
        RegressionSequences(RegressionProblem(5, 11, sparsity=3), 4, start=(2, 5))
