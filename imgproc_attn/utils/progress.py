"""Progress of long runs: bars on a terminal, plain lines elsewhere. Only this module chooses between them."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

__all__ = ["JobsProgress", "Lines", "on_terminal", "print_line", "progress_bar"]

SECONDS = 60.0  # Interval between two lines of one condition without a terminal.


def on_terminal() -> bool:
    """Return whether bars can be drawn. Pipes, files and the logs of batch systems get plain lines."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def print_line(text: str) -> None:
    """Print a line without delay, above the progress bars if there are any."""
    if on_terminal():
        tqdm.write(text)
    else:
        print(text, flush=True)


class Lines:
    """Replacement of a tqdm bar that prints one line per condition, one per minute during it, and one at the end.

    Args:
        total: Number of units; None if unknown.
        unit: Name of the units, in the plural.
        desc: Name of the condition.
        initial: Number of units that were done before.
        shown: Whether to print.
    """

    def __init__(self, total: int | None, unit: str, desc: str = "", initial: int = 0, shown: bool = True) -> None:
        self.total, self.unit, self.desc, self.n, self.shown = total, unit, desc, initial, shown
        self._initial, self._printed, self._started = initial, initial, time.monotonic()
        self._time = self._started

    def update(self, n: int = 1) -> None:
        """Count ``n`` more units."""
        self.n += n
        if time.monotonic() - self._time >= SECONDS:
            self._print()

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """Set the name of the condition, and print a line if it is new."""
        if desc != self.desc:
            self.desc = desc
            self._print()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Ignore the text, which only bars on a terminal show."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self.n != self._printed:
            self._print()

    def _print(self) -> None:
        self._time, self._printed = time.monotonic(), self.n
        elapsed, done = self._time - self._started, self.n - self._initial
        parts = [f"{self.n} {self.unit}" if self.total is None else f"{self.n} of {self.total} {self.unit}"]
        parts.append(f"{tqdm.format_interval(elapsed)} elapsed")
        if done and self.total is not None:
            parts.append(f"{tqdm.format_interval(elapsed * (self.total - self.n) / done)} left")
        if self.shown:
            print_line(f"{self.desc}: " * bool(self.desc) + ", ".join(parts))


def progress_bar(
    total: int | None, unit: str = "images", desc: str = "", initial: int = 0, shown: bool = True, **options: Any
) -> "tqdm | Lines":
    """Return a tqdm bar on a terminal, and `Lines` elsewhere.

    Args:
        total: Number of units; None if unknown.
        unit: Name of the units, in the plural.
        desc: Name of the running condition.
        initial: Number of units that were done before.
        shown: Whether to show the progress. Pass False in all processes but the first.
        options: Keyword arguments of ``tqdm``.
    """
    if not on_terminal():
        return Lines(total, unit, desc, initial, shown)
    bar: tqdm = tqdm(total=total, unit=f" {unit}", desc=desc, initial=initial, dynamic_ncols=True, disable=not shown, **options)
    return bar


class JobsProgress:
    """Progress of several jobs: one bar with the states of all jobs on a terminal, one line per message elsewhere.

    Args:
        jobs: Number of jobs.
        steps: Number of steps per job.
    """

    def __init__(self, jobs: int, steps: int) -> None:
        self._steps, self._lines = steps, not on_terminal()
        self._states: dict[Any, str] = {}
        self._done: dict[Any, int] = {}
        # Without smoothing, the rate is that of the whole run. Evaluations are slower than epochs and would distort it.
        self._bar: tqdm = tqdm(total=jobs * steps, unit="step", smoothing=0, dynamic_ncols=True, disable=self._lines)

    def log(self, job: object, text: str) -> None:
        """Show the state of ``job``, for example ``epoch 2/50``."""
        if self._states.get(job) == text:
            return
        self._states[job] = text
        if self._lines:
            print_line(f"{job}: {text}")
        # The first part of "epoch 2/50  loss 0.1234  2500 img/s" is short enough for several jobs beside the bar.
        states = (f"{name}: {state.partition('  ')[0][:30]}" for name, state in self._states.items())
        self._bar.set_postfix_str(" | ".join(states))

    def step(self, job: object, done: int) -> None:
        """Set the number of finished steps of ``job``."""
        self._bar.update(done - self._done.get(job, 0))
        self._done[job] = done

    def end(self, job: object) -> None:
        """Mark ``job`` as finished."""
        self.step(job, self._steps)
        self._states.pop(job, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
