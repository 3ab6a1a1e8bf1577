"""Baselines against plain readings of their formulas, and against the smallest possible error."""

from itertools import combinations

import numpy as np
import pytest
import torch
from functions import drawn
from scipy.special import softmax
from scipy.stats import multivariate_normal

from imgproc_attn.in_context import RegressionProblem, averaging, lasso, least_squares, nearest_neighbors, posterior_mean


def best_for_two(x, y):
    return posterior_mean(x, y, sparsity=2)


PREDICTORS = [least_squares, averaging, nearest_neighbors, lasso, best_for_two]


@pytest.fixture(scope="module")
def examples():
    x, y = drawn(RegressionProblem(5, 12), 12)
    return x.double(), y.double()


def by_loops(x, y, rule):
    predictions = np.zeros(y.shape)
    for b in range(len(x)):
        for i in range(1, y.shape[1]):
            predictions[b, i] = rule(x[b, :i], y[b, :i], x[b, i])
    return torch.from_numpy(predictions)


def nearest_three(x, y, new):
    order = np.argsort(((x - new) ** 2).sum(axis=1))
    return y[order[:3]].mean()


def weighted_solutions(x, y, new):
    """Bayes' rule by the density of y for every pair of coordinates."""
    densities, predictions = [], []
    for pair in combinations(range(x.shape[1]), 2):
        part = x[:, pair]
        covariance = part @ part.T + 1e-8 * np.eye(len(y))
        densities.append(multivariate_normal(np.zeros(len(y)), covariance).logpdf(y))
        predictions.append(new[list(pair)] @ part.T @ np.linalg.solve(covariance, y))
    return softmax(densities) @ predictions


RULES = {
    least_squares: lambda x, y, new: new @ np.linalg.lstsq(x, y, rcond=None)[0],
    averaging: lambda x, y, new: sum(b * (a @ new) for a, b in zip(x, y)) / len(x),
    nearest_neighbors: nearest_three,
    best_for_two: weighted_solutions,
}


@pytest.mark.parametrize("predictor", RULES, ids=lambda p: p.__name__)
def test_plain_readings(examples, predictor):
    expected = by_loops(*(part.numpy() for part in examples), RULES[predictor])
    precision = 1e-5 if predictor is best_for_two else 1e-10  # the plain reading divides by a variance of 1e-8
    assert (predictor(*examples) - expected).abs().max() < precision


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.__name__)
def test_predictions_depend_on_earlier_examples_only(examples, predictor):
    x, y = (part[:2, :9] for part in examples)
    whole, changed = predictor(x, y), y.clone()
    changed[:, 6:] += 5
    assert torch.equal(predictor(x, changed)[:, :7], whole[:, :7])
    assert (predictor(x, changed)[:, 7:] != whole[:, 7:]).any()
    assert (whole[:, 0] == 0).all()


def test_no_predictor_is_better_than_least_squares():
    """Its error falls as ``1 - i / d``, which is the error of the mean of the posterior."""
    x, y = drawn(RegressionProblem(5, 9))
    errors = {p: (p(x, y) - y).double().square() / 5 for p in (least_squares, averaging, nearest_neighbors)}
    mean = errors[least_squares].mean(dim=0)
    spread = errors[least_squares].std(dim=0) / len(x) ** 0.5
    best = torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], dtype=torch.float64)
    assert ((mean - best).abs() < 4 * spread + 1e-6).all()
    assert mean[0] == pytest.approx(1, abs=0.15)  # without examples it predicts 0
    for other in (averaging, nearest_neighbors):
        assert (errors[other].mean(dim=0)[2:] > mean[2:] + 0.05).all()


def test_lasso_solves_its_problem():
    """The conditions of Karush, Kuhn and Tucker: coefficients are read at unit vectors."""
    x, y = drawn(RegressionProblem(6, 9, sparsity=2), 4)
    x, y = x.double(), y.double()
    w = torch.stack(
        [lasso(torch.cat([x, unit.expand(4, 1, 6)], 1), torch.cat([y, y[:, :1]], 1), 0.05)[:, -1] for unit in torch.eye(6)], 1
    )
    slope = (x.mT @ (y - (x @ w[..., None])[..., 0])[..., None])[..., 0] / 9
    assert (slope.abs() <= 0.05 + 1e-3).all()
    assert ((slope - 0.05 * w.sign()).abs()[w.abs() > 1e-6] < 1e-3).all()
    assert (w.abs() < 1e-6).any()


def test_sparse_functions_need_fewer_examples():
    x, y = drawn(RegressionProblem(10, 9, sparsity=2), 60)
    errors = {p: (p(x, y) - y).square().mean(dim=0) / 2 for p in (least_squares, lasso, best_for_two)}
    assert errors[lasso][-1] < 0.5 * errors[least_squares][-1]
    assert errors[best_for_two][4:].max() < 1e-4  # three examples tell all, up to rounding
    assert errors[best_for_two].mean() < 0.8 * errors[lasso].mean()


def test_functions_that_are_not_sparse_have_one_best_predictor():
    x, y = drawn(RegressionProblem(4, 9), 20)
    assert (posterior_mean(x, y, sparsity=4) - least_squares(x, y)).abs().max() < 1e-2
