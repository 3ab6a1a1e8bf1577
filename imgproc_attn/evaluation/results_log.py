"""Per-sample results on disk or in memory: every number of an evaluation is counted from them."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from ..data import SINGLE_PROCESS, World
from ..utils.io import cannot_write, slug
from ..utils.serialization import changes
from .forms import LineForm
from .scorers import BatchResult

__all__ = [
    "LOG_FILES",
    "MemoryLog",
    "NoneReadableError",
    "ProtocolMismatchError",
    "ResultsLog",
    "SampleResults",
    "line_of",
    "merge_lines",
    "of_common_samples",
    "remove_results",
]

LOG_FILES = "*.process-*.jsonl"
_OF_THE_LINE = ("ids", "unreadable", "range")  # all else is a column


class NoneReadableError(ValueError):
    """None of the images of a condition could be read."""


class ProtocolMismatchError(ValueError):
    """Error of a log that holds results under another protocol. New results cannot be mixed with them.

    Attributes:
        file: The file that holds them.
    """

    def __init__(self, message: str, file: Path) -> None:
        super().__init__(message)
        self.file = file


class SampleResults(NamedTuple):
    """The results of one condition, sorted by sample id.

    Attributes:
        ids: ``[n]`` ids of the samples that could be read.
        columns: By name, one value per sample, as the scorer returned them.
        lowest: Smallest pixel value of any scored image.
        highest: Largest pixel value of any scored image.
        unreadable: Ids of images that could not be read.
    """

    ids: Tensor
    columns: Mapping[str, list[Any]]
    lowest: float
    highest: float
    unreadable: list[int]

    def only(self, ids: Tensor) -> "SampleResults":
        """Return the results of the samples with these ids. Ids without a result are ignored."""
        kept = torch.isin(self.ids, ids).nonzero()[:, 0].tolist()
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return self._replace(ids=self.ids[kept], columns=columns)

    def column(self, name: str) -> list[Any]:
        """Return one column: one value per sample.

        Raises:
            ValueError: There is no such column.
        """
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise ValueError(f"Per-sample results must have {name!r}, got {known}. Compute them again with --restart.")
        return self.columns[name]

    def _tensor(self, name: str) -> Tensor:
        """Return a column of numbers as a tensor."""
        values = self.column(name)
        try:
            return torch.tensor(values)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Per-sample results must have numbers as {name!r}, got other values ({error}). Compute them again with "
                "--restart."
            ) from error

    @property
    def labels(self) -> Tensor:
        """``[n]`` class indices."""
        return self._tensor("labels")

    @property
    def correct(self) -> Tensor:
        """``[n]`` bool, whether the sample counts as correct."""
        return self._tensor("correct").bool()

    @property
    def predictions(self) -> Tensor:
        """``[n]`` predicted classes. Classification attacks on images in [0, 1] do not store them."""
        return self._tensor("predictions")

    @property
    def scores(self) -> Tensor:
        """``[n]`` scores of the samples.

        - Classification without attack: the largest class probability.
        - Segmentation without attack: 0.
        - Under attack: the size of the perturbation, in the norm of the threat model.
        """
        return self._tensor("scores")


def of_common_samples(results: Mapping[str, SampleResults]) -> dict[str, SampleResults]:
    """Keep only the samples that all conditions have. An image may become unreadable between two conditions."""
    counts = Counter(i for result in results.values() for i in result.ids.tolist())
    ids = torch.tensor(sorted(i for i, count in counts.items() if count == len(results)), dtype=torch.int64)
    return {name: result if len(result.ids) == len(ids) else result.only(ids) for name, result in results.items()}


def merge_lines(lines: Sequence[Mapping[str, Any]], name: str) -> SampleResults:
    """Merge the lines of a log into the results of a condition. If a sample occurs twice, its first result counts.

    Args:
        lines: One mapping per batch, with ``ids``, ``unreadable``, ``range`` and the scorer's columns.
        name: Name of the condition or file, for the error message.

    Raises:
        NoneReadableError: No image could be read.
    """
    scored = [line for line in lines if line["ids"]]
    if not scored:
        raise NoneReadableError(f"{name}: at least one image must be readable, got none. Give other images.")
    ids, first = np.unique([i for line in scored for i in line["ids"]], return_index=True)
    names = [column for column in scored[0] if column not in _OF_THE_LINE]
    columns = {column: [value for line in scored for value in line[column]] for column in names}
    return SampleResults(
        torch.from_numpy(ids),
        {column: [values[i] for i in first] for column, values in columns.items()},
        min(line["range"][0] for line in scored),
        max(line["range"][1] for line in scored),
        sorted({i for line in lines for i in line["unreadable"]} - set(ids.tolist())),
    )


def line_of(ids: Tensor, result: BatchResult | None, unreadable: Tensor) -> dict[str, Any]:
    """Return the line of a batch.

    Args:
        ids: Ids of the samples that could be read.
        result: Their results; None if there are none.
        unreadable: Ids of the samples that could not be read.
    """
    line: dict[str, Any] = {"ids": ids.tolist(), "unreadable": unreadable.tolist()}
    if result is not None:
        columns = {name: values.tolist() if isinstance(values, Tensor) else values for name, values in result.columns.items()}
        line |= {**columns, "range": torch.stack(result.images.aminmax()).tolist()}
    return line


class MemoryLog:
    """The results of a condition in memory, for evaluations without a folder.

    Args:
        name: Name of the condition.
        world: The processes that share the samples.
    """

    def __init__(self, name: str, world: World = SINGLE_PROCESS) -> None:
        self._name, self._world = name, world
        self._lines: list[dict[str, Any]] = []
        self.done = torch.empty(0, dtype=torch.int64)

    def add(self, ids: Tensor, result: BatchResult | None, unreadable: Tensor) -> None:
        """Keep the results of a batch."""
        self._lines.append(line_of(ids, result, unreadable))

    def close(self) -> None:
        """Do nothing: there is no file."""

    def read(self) -> SampleResults:
        """Merge the results of all processes. Each process must call this method."""
        shares = [self._lines]
        if self._world.size > 1:
            shares = [self._lines] * self._world.size
            dist.all_gather_object(shares, self._lines)
        return merge_lines([line for lines in shares for line in lines], self._name)


class ResultsLog:
    """The results of a condition on disk: one file per process, one line of JSON per batch.

    The first line holds the protocol. A last line that a crash left incomplete is dropped.

    Args:
        folder: Folder of the log. It is created if it does not exist.
        name: Name of the condition.
        protocol: Everything that the results depend on.
        rank: Rank of this process.

    Raises:
        ProtocolMismatchError: The folder holds results under another protocol.
        ValueError: It holds damaged files.
    """

    def __init__(self, folder: Path, name: str, protocol: Mapping[str, Any], rank: int = 0) -> None:
        self._pattern = LOG_FILES.replace("*", slug(name), 1)
        self._folder, self.protocol = folder, json.loads(json.dumps(protocol))
        self._file = folder / self._pattern.replace("*", str(rank))
        self._lines: list[dict[str, Any]] = []
        self._writer: BinaryIO | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._refresh()

    def _refresh(self) -> None:
        """Read the files of all processes."""
        self._lines = [line for file in sorted(self._folder.glob(self._pattern)) for line in self._read(file)]

    def read(self) -> SampleResults:
        """Merge the results of all processes.

        Raises:
            NoneReadableError: No image could be read.
        """
        self._refresh()
        return merge_lines(self._lines, self._file.name)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        whole = file.read_bytes().rpartition(b"\n")[0].splitlines()
        try:
            lines = [json.loads(line) for line in whole]
            found = changes(dict(lines[0]["protocol"]), self.protocol) if lines else {}
            checked = [LineForm.model_validate(line) for line in lines[1:]]
            columns = {frozenset(line.model_extra or ()) for line in checked if line.ids}
            if len(columns) > 1:
                raise ValueError(f"all lines must have the same columns, got {sorted(map(sorted, columns))}")
        except (ValueError, KeyError, TypeError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
            raise ValueError(
                f"{file} must be a log of per-sample results, but is damaged: {problem}. Remove it to compute them again."
            ) from error
        if found:
            raise ProtocolMismatchError(
                f"{file} must hold results under the same protocol, got results under another protocol: "
                + "; ".join(f"{key}: {change}" for key, change in list(found.items())[:5])
                + ". Give another --output, or start again with --restart.",
                file,
            )
        return lines[1:]

    def check_ids(self, ids: Tensor) -> None:
        """Check that all results belong to these samples.

        Raises:
            ValueError: Some results belong to other samples.
        """
        unknown = self.done[~torch.isin(self.done, ids)].tolist()
        if unknown:
            raise ValueError(
                f"{self._folder / self._pattern} must hold results of the samples of the data set, got unknown ids "
                f"{unknown[:5]}. Remove it to compute them again."
            )

    @property
    def done(self) -> Tensor:
        """Ids of the samples that have a result."""
        return torch.tensor([i for line in self._lines for i in line["ids"]], dtype=torch.int64)

    def add(self, ids: Tensor, result: BatchResult | None, unreadable: Tensor) -> None:
        """Append the results of a batch to this process's file."""
        self._append(line_of(ids, result, unreadable))

    def _append(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            if self._writer is None:
                self._writer = self._open()
            self._writer.write(content)
            self._writer.flush()
            os.fsync(self._writer.fileno())
        except OSError as error:
            raise cannot_write(self._file, error) from error

    def _open(self) -> BinaryIO:
        """Open this process's file, without a last line that a crash left incomplete."""
        writer = self._file.open("ab")
        content = self._file.read_bytes()
        writer.truncate(content.rfind(b"\n") + 1)
        if b"\n" not in content:
            writer.write(json.dumps({"protocol": self.protocol}).encode() + b"\n")
        return writer

    def close(self) -> None:
        """Close this process's own file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def remove_results(folder: Path) -> None:
    """Remove the logs in ``folder`` and its subfolders, and then the folders that are empty. Other files stay."""
    ours = [file for file in folder.rglob(LOG_FILES) if file.is_file() and _is_ours(file)]
    for file in ours:
        file.unlink()
    for place in sorted({folder, *(file.parent for file in ours)}, reverse=True):
        with suppress(OSError):  # it is not empty
            place.rmdir()


def _is_ours(file: Path) -> bool:
    """Return whether a file begins like a `ResultsLog`. A log that a kill left without a complete line is empty."""
    with file.open("rb") as lines:
        first = lines.readline()
    return not first or first.startswith(b'{"protocol": ')
