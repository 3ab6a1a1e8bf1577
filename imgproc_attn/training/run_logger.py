"""Logs of a run: one JSON line per epoch, TensorBoard curves and a figure of the learning curve."""

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

__all__ = ["RunLogger"]

METRICS, CURVES, FIGURE = "metrics.jsonl", "tensorboard", "learning.png"
OWN = ".imgproc-attn"  # ending of the names of this package's TensorBoard files
DRAW_EVERY = 60  # seconds between two drawings of the learning curve


class RunLogger:
    """Write the records of epochs to the folder of a run.

    Args:
        folder: Folder of the run.
        records: Records of earlier epochs, after a resume. Lines of later epochs, written before a crash, are removed.
        titles: Metrics to draw, ``{key: title}`` of validation records.
    """

    def __init__(self, folder: Path, records: Sequence[dict[str, Any]] = (), titles: Mapping[str, str] | None = None) -> None:
        self._folder, self.records, self._titles = folder, list(records), dict(titles or {})
        self._write()
        self._drawn = time.monotonic()
        self._board = SummaryWriter(str(folder / CURVES), purge_step=len(self.records), filename_suffix=OWN)

    def add(self, record: dict[str, Any], examples: Figure | None = None) -> None:
        """Write the record of an epoch.

        Args:
            record: Values of the epoch, with its number as ``epoch``.
            examples: Figure of predictions for some examples, for TensorBoard. Default: none.
        """
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
            gc.collect()  # Figures are reference cycles of some MB, and Python rarely collects old objects by itself.

    def close(self) -> None:
        """Draw the learning curve and close the TensorBoard file."""
        self._board.close()
        if self.records:
            self._draw()

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the TensorBoard files of the run in ``folder``. Other files are kept."""
        for events in (folder / CURVES).glob(f"events.out.tfevents.*{OWN}"):
            events.unlink()
        with suppress(OSError):  # The folder does not exist, or holds other files.
            (folder / CURVES).rmdir()

    def _draw(self) -> None:
        write_atomically(self._folder / FIGURE, partial(draw_run(self.records, self._titles)[0].savefig, dpi=120))
        self._drawn = time.monotonic()

    def _write(self) -> None:
        write_text(self._folder / METRICS, "".join(json.dumps(record) + "\n" for record in self.records))
