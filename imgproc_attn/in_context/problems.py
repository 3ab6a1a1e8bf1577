"""Random regression problems as sequences x1, y1, x2, y2, … (Garg et al., arXiv 2208.01066)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..evaluation.per_sample_rng import mix_seeds
from ..utils.checks import check_sizes

__all__ = ["SPLITS", "RegressionProblem", "RegressionSequences", "interleave", "separate"]

SPLITS = ("train", "validation", "test")  # The place of a name is a part of the seed.


@dataclass(frozen=True)
class RegressionProblem:
    """Distribution of linear functions ``y = w x`` without noise and of their examples.

    Coordinates of x and w are independent and standard normal. So y has the variance `scale` and the mean 0.

    Args:
        dimensions: Number of coordinates of x, d.
        points: Number of examples per function, n.
        sparsity: Number of coordinates of w that are not zero, drawn at random. Default: all.
        active_dimensions: Number of first coordinates that are drawn. All others of x are 0. Default: all.

    Raises:
        TypeError: A size is not a whole number.
        ValueError: A size is less than 1, there are fewer than 2 points, or ``sparsity`` is above ``active_dimensions``, or
            that is above ``dimensions``.

    Example:
        >>> x, y = RegressionProblem(dimensions=5, points=11).draw(torch.Generator().manual_seed(0))
        >>> x.shape, y.shape
        (torch.Size([11, 5]), torch.Size([11]))
    """

    dimensions: int
    points: int
    sparsity: int | None = None
    active_dimensions: int | None = None

    def __post_init__(self) -> None:
        sizes = {"sparsity": self.sparsity, "active_dimensions": self.active_dimensions}
        given = {name: size for name, size in sizes.items() if size is not None}
        check_sizes({"dimensions": self.dimensions, "points": self.points, **given})
        if self.points < 2:
            raise ValueError(f"points must be at least 2, one to predict from another, got {self.points}. Give more points.")
        if self.active > self.dimensions:
            raise ValueError(
                f"active_dimensions must be at most dimensions, {self.dimensions}, got {self.active_dimensions}. Lower it."
            )
        if self.sparsity is not None and self.sparsity > self.active:
            rule = "dimensions" if self.active_dimensions is None else "active_dimensions"
            raise ValueError(f"sparsity must be at most {rule}, {self.active}, got {self.sparsity}. Lower it.")

    @property
    def active(self) -> int:
        """Number of coordinates of x that are drawn."""
        return self.active_dimensions or self.dimensions

    @property
    def scale(self) -> int:
        """Variance of y, which is the mean squared error of the prediction 0."""
        return self.sparsity or self.active

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one function and its examples.

        Args:
            generator: Source of the random numbers, on the CPU.

        Returns:
            x ``[n, d]`` and y ``[n]`` in float32.
        """
        x = torch.randn(self.points, self.active, generator=generator)
        w = torch.randn(self.active, generator=generator)
        if self.sparsity is not None:
            w[torch.randperm(self.active, generator=generator)[self.sparsity :]] = 0
        y = (x.double() @ w.double()).float()
        return torch.nn.functional.pad(x, (0, self.dimensions - self.active)), y


def interleave(x: Tensor, y: Tensor) -> Tensor:
    """Return the sequence x1, y1, …, xn of a model, where y is the first coordinate of a vector of zeros.

    The last y is left out: no prediction may depend on it.

    Args:
        x: ``[…, n, d]``.
        y: ``[…, n]``.

    Returns:
        ``[…, 2 n - 1, d]``.

    Example:
        >>> interleave(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])).tolist()
        [[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]]
    """
    values = torch.nn.functional.pad(y[..., None], (0, x.shape[-1] - 1))
    return torch.stack([x, values], dim=-2).flatten(-3, -2)[..., :-1, :]


def separate(sequence: Tensor) -> tuple[Tensor, Tensor]:
    """Return x ``[…, n, d]`` and the first n - 1 values of y of a sequence ``[…, 2 n - 1, d]``. The inverse of `interleave`.

    Example:
        >>> x, y = torch.randn(4, 11, 5), torch.randn(4, 11)
        >>> torch.equal(separate(interleave(x, y))[1], y[:, :-1])
        True
    """
    return sequence[..., ::2, :], sequence[..., 1::2, 0]


class RegressionSequences(Dataset):
    """Sequences of random functions, drawn from seeds when they are read.

    An item depends on the seed, the split and its number only. In training, it depends on the epoch too. So workers agree, and
    a resumed run continues with the same sequences.

    Args:
        problem: Distribution of the functions.
        count: Number of sequences, per epoch in training.
        split: ``train``, ``validation`` or ``test``. Each has functions of its own.
        seed: Seed of all draws.
        start: Curriculum of training: number of coordinates of x and of points in the first epoch. Each epoch has one more
            coordinate and two more points, up to those of ``problem``. Default: all from the start.

    Raises:
        TypeError: A size is not a whole number.
        ValueError: A size is less than 1, the split is unknown, or ``start`` is not a possible problem.

    Example:
        >>> sequences = RegressionSequences(RegressionProblem(dimensions=5, points=11), count=64, split="test")
        >>> sequence, y = sequences[0]
        >>> sequence.shape, y.shape
        (torch.Size([21, 5]), torch.Size([11]))
    """

    def __init__(
        self,
        problem: RegressionProblem,
        count: int,
        split: str = "train",
        seed: int = 0,
        start: tuple[int, int] | None = None,
    ) -> None:
        check_sizes({"count": count})
        if split not in SPLITS:
            raise ValueError(f"The split must be one of {', '.join(SPLITS)}, got {split!r}. Name one of them.")
        self.problem, self.count, self.split, self.seed, self.start = problem, count, split, seed, start
        self._draws: tuple[int, ...] = ()
        self.current = self._problem_of(0)

    def _problem_of(self, epoch: int) -> RegressionProblem:
        """Return the problem of an epoch of the curriculum."""
        if self.start is None:
            return self.problem
        dimensions, points = self.start[0] + epoch, self.start[1] + 2 * epoch
        return replace(
            self.problem,
            active_dimensions=min(dimensions, self.problem.dimensions),
            points=min(points, self.problem.points),
        )

    def set_epoch(self, draws: int) -> None:
        """Select the functions of an epoch by a number that is drawn from the seed of the training and the epoch."""
        self._draws = (draws,)

    def start_epoch(self, epoch: int) -> None:
        """Select the problem of an epoch, counted from 0."""
        self.current = self._problem_of(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the sequence ``[2 n - 1, d]`` and all values y ``[n]``."""
        key = mix_seeds(self.seed, SPLITS.index(self.split), *self._draws, index)
        x, y = self.current.draw(torch.Generator().manual_seed(key))
        return interleave(x, y), y

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yield what tells this split from others, for `imgproc_attn.data.fingerprint`."""
        yield self.split, self.seed, f"{self.problem} from {self.start}"

    def name(self, index: int) -> str:
        """Return the name of a sequence."""
        return f"{self.split}, sequence {index}"
