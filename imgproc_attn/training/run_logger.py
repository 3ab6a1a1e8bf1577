"""What a run leaves to read: one JSON line an epoch, TensorBoard curves, a picture of the learning curve."""

import gc
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ..diagnostics import draw_run
from ..utils.io import write_atomically, write_text

METRICS, CURVES, PICTURE = "metrics.jsonl", "tensorboard", "learning.png"
OWN = ".imgproc-attn"  # what the names of our files of curves end with
DRAW_EVERY = 60  # seconds


class RunLogger:
    """Keeps the records of a run's epochs in its folder.

    Args:
        folder: Of the run.
        records: Of the epochs done before, after a resume; lines of later epochs, written before a crash, are dropped.
        titles: Metrics to draw, ``{key: title}`` of validation records.
    """

    def __init__(self, folder: Path, records: Sequence[dict[str, Any]] = (), titles: Mapping[str, str] | None = None) -> None:
        self._folder, self.records, self._titles = folder, list(records), dict(titles or {})
        self._write()
        self._drawn = time.monotonic()
        self._board = SummaryWriter(str(folder / CURVES), purge_step=len(self.records), filename_suffix=OWN)

    def add(self, record: dict[str, Any], examples: Figure | None = None) -> None:
        """Keep an epoch's record; and in TensorBoard what the model makes of some examples."""
        self.records.append(record)
        self._write()
        for name, value in record.items():
            if name != "epoch" and isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(name, value, record["epoch"])
        if examples is not None:
            self._board.add_figure("examples", examples, record["epoch"])
        self._board.flush()
        if time.monotonic() - self._drawn > DRAW_EVERY:
            self._draw()
            gc.collect()  # figures are cycles of some MB, and Python's own collections of what is old are rare

    def close(self) -> None:
        """Draw the learning curve, close TensorBoard's file."""
        self._board.close()
        if self.records:
            self._draw()

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the curves of the run in ``folder``; their files have names of their own."""
        for events in (folder / CURVES).glob(f"events.out.tfevents.*{OWN}"):
            events.unlink()
        with suppress(OSError):  # there is none, or it holds other things
            (folder / CURVES).rmdir()

    def _draw(self) -> None:
        write_atomically(self._folder / PICTURE, partial(draw_run(self.records, self._titles).savefig, dpi=120))
        self._drawn = time.monotonic()

    def _write(self) -> None:
        write_text(self._folder / METRICS, "".join(json.dumps(record) + "\n" for record in self.records))
