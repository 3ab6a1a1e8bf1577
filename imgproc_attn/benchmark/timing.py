"""Interleaved timing of cases that do the same work."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

__all__ = ["WARM_UP_ROUNDS", "Case", "Step", "baseline_of", "build_cases", "measure", "summarize", "synchronizer"]

Step = Callable[[], Any]

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """One case of the benchmark, which is compared with the other cases of its section.

    Attributes:
        name: Name in tables and results.
        make: Function that takes the work of the section, such as `OperatorWork`, and returns the function to time.
        baseline: Whether ratios of the section are relative to this case.
        package: Package that the case needs. If it is not installed, the case is left out.
    """

    name: str
    make: Callable[[Any], Callable[..., Any]]
    baseline: bool = False
    package: str | None = None


def build_cases(cases: Iterable[Case], work: Any) -> dict[str, Callable[..., Any]]:
    """Return the functions to time, by name. Cases whose package is not installed are left out."""
    return {case.name: case.make(work) for case in cases if case.package is None or find_spec(case.package)}


def baseline_of(cases: Iterable[Case]) -> str:
    """Return the name of the baseline."""
    return next(case.name for case in cases if case.baseline)


def synchronizer(device: str) -> Step:
    """Return a function that waits until a device has finished."""
    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None


def measure(steps: dict[str, Step], runs: int, synchronize: Step, bar: Any = None) -> dict[str, list[float]]:
    """Return the seconds of each step for ``runs`` interleaved rounds, after `WARM_UP_ROUNDS` others."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(runs + WARM_UP_ROUNDS):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if i >= WARM_UP_ROUNDS:
                times[name].append(time.perf_counter() - start)
        if bar is not None:
            bar.update()
    return times


def summarize(times: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Return the median, the quartiles and the ratio of the median to the baseline's, per case.

    Example:
        >>> summarize({"fast": [1.0, 1.0], "slow": [2.0, 2.0]}, baseline="fast")[1]
        {'name': 'slow', 'median_s': 2.0, 'quartiles_s': [2.0, 2.0], 'ratio': 2.0}
    """
    base = statistics.median(times[baseline])
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append({"name": name, "median_s": median, "quartiles_s": [low, high], "ratio": median / base})
    return rows
