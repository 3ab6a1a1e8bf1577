"""Predictors without training, which in-context regression is compared with (Garg et al., arXiv 2208.01066).

Each takes examples x ``[B, n, d]`` and y ``[B, n]`` and returns predictions ``[B, n]``. The prediction at place i is made from
the i examples before it. Without examples it is 0.
"""

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["BASELINES", "averaging", "lasso", "least_squares", "nearest_neighbors", "posterior_mean"]

NOISE = 1e-8  # variance of y that `posterior_mean` allows for rounding

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, i, d], y [B, i] and the next x [B, d] to the next y [B]


def _from_all_before(x: Tensor, y: Tensor, predict: Predict) -> Tensor:
    """Return the predictions at all places."""
    first = torch.zeros_like(y[:, 0])
    return torch.stack([first, *(predict(x[:, :i], y[:, :i], x[:, i]) for i in range(1, y.shape[1]))], dim=1)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """Predict by least squares. With fewer examples than dimensions, take the solution of the smallest norm.

    For functions with normal coefficients and without noise, this is the mean of the posterior, so no predictor has a smaller
    expected error. Its expected error after i examples is ``max(0, d - i)``.

    Args:
        x: ``[B, n, d]``.
        y: ``[B, n]``.

    Returns:
        Predictions ``[B, n]``.

    Example:
        >>> x = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> y = x[..., 0] - 2 * x[..., 1]
        >>> (least_squares(x, y) - y)[0, 3:].abs().max().item() < 1e-9
        True
    """

    def predict(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        w = torch.linalg.lstsq(x.cpu(), y.cpu()[..., None], driver="gelsd").solution  # the driver for any rank
        return (new[:, None] @ w.to(new.device))[:, 0, 0]

    return _from_all_before(x.double(), y.double(), predict).to(y.dtype)


def averaging(x: Tensor, y: Tensor) -> Tensor:
    """Predict by ``w = mean(y x)``. Arguments are those of `least_squares`.

    Example:
        >>> averaging(torch.ones(1, 2, 1), torch.tensor([[3.0, 3.0]])).tolist()
        [[0.0, 3.0]]
    """
    return _from_all_before(x, y, lambda x, y, new: ((x * y[..., None]).mean(dim=1) * new).sum(dim=-1))


def nearest_neighbors(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """Predict the mean y of the ``k`` nearest x, or of all if there are fewer. Further arguments are those of `least_squares`.

    Example:
        >>> nearest_neighbors(torch.tensor([[[0.0], [5.0], [1.0]]]), torch.tensor([[2.0, 9.0, 0.0]]), k=1).tolist()
        [[0.0, 2.0, 2.0]]
    """

    def predict(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        nearest = torch.cdist(new[:, None], x)[:, 0].topk(min(k, x.shape[1]), largest=False).indices
        return y.gather(1, nearest).mean(dim=1)

    return _from_all_before(x, y, predict)


def lasso(x: Tensor, y: Tensor, alpha: float = 0.01) -> Tensor:
    """Predict by scikit-learn's Lasso. Further arguments are those of `least_squares`.

    Args:
        x: ``[B, n, d]``.
        y: ``[B, n]``.
        alpha: Factor of the penalty. Default: that of the paper's figure.

    Example:
        >>> x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
        >>> (lasso(x, x[..., 0]) - x[..., 0])[0, 6:].abs().max().item() < 0.1
        True
    """
    from sklearn.linear_model import Lasso  # The import takes a second.

    model = Lasso(alpha=alpha, fit_intercept=False, max_iter=100_000)

    def predict(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        problems = zip(x.numpy(), y.numpy(), new.numpy())
        return torch.tensor([(b @ model.fit(a, c).coef_).item() for a, c, b in problems], dtype=y.dtype)

    return _from_all_before(x.double().cpu(), y.double().cpu(), predict).to(y)


def posterior_mean(x: Tensor, y: Tensor, sparsity: int) -> Tensor:
    """Predict the mean of the posterior of sparse functions. No predictor has a smaller expected error.

    It weights the least-squares solutions on all sets of ``sparsity`` coordinates by the probability of the examples.

    Args:
        x: ``[B, n, d]``.
        y: ``[B, n]``.
        sparsity: Number of coordinates of w that are not zero. The work grows with the number of such sets.

    Example:
        >>> x = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
        >>> (posterior_mean(x, x[..., 0], sparsity=1) - x[..., 0])[0, 2:].abs().max().item() < 1e-3  # two examples tell all
        True
    """
    sets = torch.tensor(list(combinations(range(x.shape[-1]), sparsity)), device=x.device)

    def predict(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        parts = x[..., sets].transpose(1, 2)  # [B, sets, i, sparsity]
        gram = parts.mT @ parts + NOISE * torch.eye(sparsity, dtype=x.dtype, device=x.device)
        moment = parts.mT @ y[:, None, :, None]
        w = torch.linalg.solve(gram, moment)
        residual = y.square().sum(dim=1)[:, None] - (moment * w).sum(dim=(2, 3))
        log_evidence = -0.5 * (residual / NOISE + torch.linalg.slogdet(gram).logabsdet)  # up to a constant
        predictions = (new[:, sets] * w[..., 0]).sum(dim=-1)
        return (log_evidence.softmax(dim=1) * predictions).sum(dim=1)

    return _from_all_before(x.double(), y.double(), predict).to(y.dtype)


BASELINES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "least squares": least_squares,
    "averaging": averaging,
    "3 nearest neighbors": nearest_neighbors,
}
