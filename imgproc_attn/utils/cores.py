"""Processor cores: how many this process may use, how many threads it computes with, and what other programs take."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

TOLD_AFTER = 20.0  # seconds of work before a run says that it is slowed down


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and the limits of its container."""
    from joblib import cpu_count  # a third of a second to import

    return cpu_count()


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Compute with one thread on the CPU, so that the order of sums does not depend on the number of cores."""
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
        share: Of the cores, what they used, 0 to 1.
        factor: How many times as long the run took.
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
    """Decide whether other programs slowed a run down.

    Args:
        wall: Seconds since its start.
        own: Seconds of processor time that it got.
        busy: Seconds of processor time that all programs got.
        cores: Number of cores.
        workers: Processes or threads that it could keep busy.

    Returns:
        None if cores were left idle, others used less than a tenth, or it took less than 1.2 times as long.
    """
    if wall <= 0 or own <= 0:
        return None
    found = Slowdown(max(busy - own, 0.0) / (cores * wall), min(workers, cores) * wall / own, cores)
    full = busy >= 0.9 * cores * wall
    return found if full and found.share >= 0.1 and found.factor >= 1.2 else None


class OtherPrograms:
    """Watch what other programs take of the cores, from now on. Only Linux tells.

    Args:
        workers: Processes or threads that this run can keep busy.
    """

    def __init__(self, workers: int) -> None:
        self._workers, self._told = workers, False
        self._start = (time.monotonic(), own_seconds(), _busy_seconds())

    def remark(self, children: float = 0.0) -> str:
        """Return one line, once, if the run is slowed down; else an empty text.

        Args:
            children: Seconds of processor time of processes that have not ended yet.
        """
        wall, own, busy = time.monotonic() - self._start[0], own_seconds() - self._start[1] + children, _busy_seconds()
        if self._told or wall < TOLD_AFTER or busy is None or self._start[2] is None:
            return ""
        found = slowdown(wall, own, busy - self._start[2], len(os.sched_getaffinity(0)), self._workers)
        self._told = found is not None
        return str(found or "")


def own_seconds() -> float:
    """Seconds of processor time of this process, and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _busy_seconds() -> float | None:
    """Seconds of processor time of all programs on this process's cores since the system's start; None if not known."""
    try:
        lines = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
        times = [[int(ticks) for ticks in lines[f"cpu{core}"].split()] for core in os.sched_getaffinity(0)]
    except (OSError, AttributeError, KeyError, ValueError):
        return None
    return sum(sum(t[:8]) - sum(t[3:5]) for t in times) / os.sysconf("SC_CLK_TCK")  # without idle, and waiting for disks
