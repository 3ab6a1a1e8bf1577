"""Processor cores: number of usable cores, number of threads, and the load of other programs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["OtherPrograms", "Slowdown", "one_thread", "own_seconds", "slowdown", "usable_cores"]

MIN_SECONDS = 20.0  # A shorter run does not report a slowdown, because short measurements are noisy.


def usable_cores() -> int:
    """Return the number of cores that the affinity and the container of this process allow."""
    from joblib import cpu_count  # The import takes a third of a second.

    return cpu_count()


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Use one thread on the CPU, so that the order of sums does not depend on the number of cores.

    Args:
        device: Device of the computation. Only ``cpu`` has an effect.
    """
    usual = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


class Slowdown(NamedTuple):
    """Effect of other programs on a run.

    Attributes:
        share: Share of the cores that other programs used, 0 to 1.
        factor: Run time divided by the run time without other programs.
        cores: Number of cores.
    """

    share: float
    factor: float
    cores: int

    def __str__(self) -> str:
        return (
            f"Other programs used {100 * self.share:.0f} % of the {self.cores} cores; "
            f"this took about {self.factor:.1f} times as long."
        )


def slowdown(wall: float, own: float, busy: float, cores: int, workers: int) -> Slowdown | None:
    """Estimate how much other programs slowed a run down.

    Args:
        wall: Seconds since the start of the run.
        own: Processor time of the run in seconds.
        busy: Processor time of all programs in seconds.
        cores: Number of cores.
        workers: Number of processes or threads that the run can keep busy.

    Returns:
        The slowdown. None in each of these cases: more than a tenth of the cores was idle, other programs used less than a
        tenth of the cores, or the factor is below 1.2.

    Example:
        >>> print(slowdown(wall=100, own=50, busy=200, cores=2, workers=1))
        Other programs used 75 % of the 2 cores; this took about 2.0 times as long.
    """
    if wall <= 0 or own <= 0:
        return None
    result = Slowdown(max(busy - own, 0.0) / (cores * wall), min(workers, cores) * wall / own, cores)
    full = busy >= 0.9 * cores * wall
    return result if full and result.share >= 0.1 and result.factor >= 1.2 else None


class OtherPrograms:
    """Monitor of the processor time of other programs, from its creation on. It works only on Linux.

    Args:
        workers: Number of processes or threads that this run can keep busy.
    """

    def __init__(self, workers: int) -> None:
        self._workers, self._reported = workers, False
        self._start = (time.monotonic(), own_seconds(), _busy_seconds())

    def remark(self, children: float = 0.0) -> str:
        """Return one line on the slowdown at its first detection, and an empty text otherwise.

        Args:
            children: Processor time in seconds of child processes that have not ended yet.
        """
        wall, own, busy = time.monotonic() - self._start[0], own_seconds() - self._start[1] + children, _busy_seconds()
        if self._reported or wall < MIN_SECONDS or busy is None or self._start[2] is None:
            return ""
        result = slowdown(wall, own, busy - self._start[2], len(os.sched_getaffinity(0)), self._workers)
        self._reported = result is not None
        return str(result or "")


def own_seconds() -> float:
    """Return the processor time in seconds of this process and of its ended child processes."""
    return sum(os.times()[:4])


def _busy_seconds() -> float | None:
    """Return the processor time in seconds of all programs on the usable cores since boot; None if unknown."""
    try:
        lines = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
        times = [[int(ticks) for ticks in lines[f"cpu{core}"].split()] for core in os.sched_getaffinity(0)]
    except (OSError, AttributeError, KeyError, ValueError):
        return None
    return sum(sum(t[:8]) - sum(t[3:5]) for t in times) / os.sysconf("SC_CLK_TCK")  # Columns 3 and 4 are idle time.
