"""Progress of long runs: bars on a terminal, plain lines elsewhere. Only this module decides which."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

SECONDS = 60.0  # between two lines about one condition where there is no terminal


def on_terminal() -> bool:
    """Whether bars can be drawn. Pipes, files and the logs of batch systems get plain lines."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def print_line(text: str) -> None:
    """Print a line at once, above the bars if there are any."""
    if on_terminal():
        tqdm.write(text)
    else:
        print(text, flush=True)


class Lines:
    """Stand in for a bar: print a line per condition, one per minute during it, and one at the end.

    Args:
        total: Number of units; None if unknown.
        unit: What is counted, in the plural.
        desc: Name of the condition.
        initial: Units that were done before.
        shown: Whether to print at all.
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
        """Print a line if a new condition begins."""
        if desc != self.desc:
            self.desc = desc
            self._print()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Take no notice: the state of a bar is for terminals."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self.n != self._printed:
            self._print()

    def _print(self) -> None:
        self._time, self._printed = time.monotonic(), self.n
        gone, done = self._time - self._started, self.n - self._initial
        parts = [f"{self.n} {self.unit}" if self.total is None else f"{self.n} of {self.total} {self.unit}"]
        parts.append(f"{tqdm.format_interval(gone)} gone")
        if done and self.total is not None:
            parts.append(f"{tqdm.format_interval(gone * (self.total - self.n) / done)} left")
        if self.shown:
            print_line(f"{self.desc}: " * bool(self.desc) + ", ".join(parts))


def progress_bar(
    total: int | None, unit: str = "images", desc: str = "", initial: int = 0, shown: bool = True, **options: Any
) -> "tqdm | Lines":
    """Return a bar on a terminal, and what prints plain lines in its place elsewhere.

    Args:
        total: Number of units; None if unknown.
        unit: What is counted, in the plural.
        desc: Name of what runs.
        initial: Units that were done before.
        shown: False in processes other than the first.
        options: Of tqdm's bars.
    """
    if not on_terminal():
        return Lines(total, unit, desc, initial, shown)
    bar: tqdm = tqdm(total=total, unit=f" {unit}", desc=desc, initial=initial, dynamic_ncols=True, disable=not shown, **options)
    return bar


class JobsProgress:
    """Progress of several jobs: one bar with their states on a terminal, a line per message elsewhere.

    Args:
        jobs: Number of jobs.
        steps: Of each job.
    """

    def __init__(self, jobs: int, steps: int) -> None:
        self._steps, self._lines = steps, not on_terminal()
        self._states: dict[Any, str] = {}
        self._done: dict[Any, int] = {}
        # smoothing=0: the rate is that of the whole run, for examinations are slower than epochs
        self._bar: tqdm = tqdm(total=jobs * steps, unit="step", smoothing=0, dynamic_ncols=True, disable=self._lines)

    def say(self, job: object, text: str) -> None:
        """Show what ``job`` does now."""
        if self._states.get(job) == text:
            return
        self._states[job] = text
        if self._lines:
            print_line(f"{job}: {text}")
        # of "epoch 2/50  loss 0.1234  2500 img/s" the first part, so that several jobs fit beside the bar
        states = (f"{name}: {state.partition('  ')[0][:30]}" for name, state in self._states.items())
        self._bar.set_postfix_str(" | ".join(states))

    def step(self, job: object, done: int) -> None:
        """Show that ``done`` steps of ``job`` are done."""
        self._bar.update(done - self._done.get(job, 0))
        self._done[job] = done

    def end(self, job: object) -> None:
        """Show that ``job`` is done."""
        self.step(job, self._steps)
        self._states.pop(job, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
