"""In-context regression: sequences of examples of a random function, causal models that predict the next value, baselines."""

from .baselines import BASELINES, averaging, lasso, least_squares, nearest_neighbors, posterior_mean
from .figures import draw_error_curves
from .model import InContextRegressor
from .problems import RegressionProblem, RegressionSequences, interleave, separate

__all__ = [
    "BASELINES",
    "InContextRegressor",
    "RegressionProblem",
    "RegressionSequences",
    "averaging",
    "draw_error_curves",
    "interleave",
    "lasso",
    "least_squares",
    "nearest_neighbors",
    "posterior_mean",
    "separate",
]
