"""Per-sample flags on disk: the single source of every number, appended batch by batch, whole after any crash."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..utils.io import cannot_write, slug
from ..utils.serialization import changes
from .conditions import Verdict
from .forms import Line

FILES = "*.process-*.jsonl"
_OF_THE_LINE = ("ids", "unreadable", "range")  # all else is a column


class SampleResults(NamedTuple):
    """What is known of the samples of a condition, in the order of their numbers.

    Attributes:
        ids: ``[n]``, without unreadable images.
        columns: What judges keep, by name: a value a sample.
        lowest: Value of any image that was judged.
        highest: Likewise.
        unreadable: Numbers of images that could not be read.
    """

    ids: Tensor
    columns: Mapping[str, list[Any]]
    lowest: float
    highest: float
    unreadable: list[int]

    def only(self, ids: Tensor) -> "SampleResults":
        """Of these samples alone, as far as they are here."""
        kept = torch.isin(self.ids, ids).nonzero()[:, 0].tolist()
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return self._replace(ids=self.ids[kept], columns=columns)

    def column(self, name: str) -> list[Any]:
        """A value a sample.

        Raises:
            ValueError: Judges keep no such column, or it was lost.
        """
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise ValueError(
                f"SampleResults must have {name!r}, got {known}. They are damaged: compute them anew with --restart."
            )
        return self.columns[name]

    @property
    def labels(self) -> Tensor:
        """``[n]``, of images with a label each."""
        return torch.tensor(self.column("labels"))

    @property
    def correct(self) -> Tensor:
        """``[n]`` bool, of images with a label each."""
        return torch.tensor(self.column("correct")).bool()

    @property
    def predictions(self) -> Tensor:
        """``[n]`` classes, where judges keep them."""
        return torch.tensor(self.column("predictions"))

    @property
    def scores(self) -> Tensor:
        """``[n]``, of the judge."""
        return torch.tensor(self.column("scores"))


def of_common_samples(flags: Mapping[str, SampleResults]) -> dict[str, SampleResults]:
    """Of the samples that all conditions have: an image may have become unreadable between two of them."""
    counts = Counter(i for found in flags.values() for i in found.ids.tolist())
    ids = torch.tensor(sorted(i for i, count in counts.items() if count == len(flags)), dtype=torch.int64)
    return {name: found if len(found.ids) == len(ids) else found.only(ids) for name, found in flags.items()}


class ResultsLog:
    """The flags of a condition that one process adds to, and those that others have added.

    Lines of JSON: first the protocol, then a line a batch. What a crash leaves of a last line is dropped.

    Args:
        folder: Of the flags; made if need be.
        name: Of the condition.
        protocol: All that the flags depend on.
        rank: Of this process.

    Raises:
        ValueError: The folder holds flags of another protocol, or files that are none of ours.
    """

    def __init__(self, folder: Path, name: str, protocol: Mapping[str, Any], rank: int = 0) -> None:
        self._pattern = FILES.replace("*", slug(name), 1)
        self._folder, self.protocol = folder, json.loads(json.dumps(protocol))
        self._file = folder / self._pattern.replace("*", str(rank))
        self._lines: dict[Path, list[dict[str, Any]]] = {}
        self._writer: BinaryIO | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Read what all processes have written."""
        self._lines = {file: self._read(file) for file in sorted(self._folder.glob(self._pattern))}

    def _read(self, file: Path) -> list[dict[str, Any]]:
        whole = file.read_bytes().rpartition(b"\n")[0].splitlines()
        try:
            lines = [json.loads(line) for line in whole]
            found = changes(dict(lines[0]["protocol"]), self.protocol) if lines else {}
            checked = [Line.model_validate(line) for line in lines[1:]]
            columns = {frozenset(line.model_extra or ()) for line in checked if line.ids}
            if len(columns) > 1:
                raise ValueError("lines have different columns")
        except (ValueError, KeyError, TypeError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
            raise ValueError(f"{file} is no file of flags, or damaged: {problem}. Remove it to compute them anew.") from error
        if found:
            raise ValueError(
                f"{file} holds flags of another protocol, which cannot be mixed with these: "
                + "; ".join(f"{key}: {change}" for key, change in list(found.items())[:5])
                + ". Give another --output, or begin anew with --restart."
            )
        return lines[1:]

    def check_ids(self, ids: Tensor) -> None:
        """Raise where there are flags of other samples than these."""
        strange = self.done[~torch.isin(self.done, ids)].tolist()
        if strange:
            raise ValueError(
                f"{self._folder / self._pattern} has flags of samples that are not there, {strange[:5]}. Remove it to compute "
                "them anew."
            )

    @property
    def done(self) -> Tensor:
        """Numbers of the samples that have a flag."""
        return torch.tensor([i for line in self._all() for i in line["ids"]], dtype=torch.int64)

    @property
    def unreadable(self) -> Tensor:
        """Numbers of the samples that could not be read, and were not repaired since."""
        ids = torch.tensor([i for line in self._all() for i in line["unreadable"]], dtype=torch.int64).unique()
        return ids[~torch.isin(ids, self.done)]

    @property
    def flags(self) -> SampleResults:
        """All that has been read, each sample once.

        Raises:
            ValueError: No image could be read.
        """
        lines = [line for line in self._all() if line["ids"]]
        if not lines:
            raise ValueError(f"{self._file.name}: none of the images could be read; see the list of unreadable ones.")
        ids, first = np.unique([i for line in lines for i in line["ids"]], return_index=True)
        names = [name for name in lines[0] if name not in _OF_THE_LINE]
        columns = {name: [value for line in lines for value in line[name]] for name in names}
        return SampleResults(
            torch.from_numpy(ids),
            {name: [values[i] for i in first] for name, values in columns.items()},
            min(line["range"][0] for line in lines),
            max(line["range"][1] for line in lines),
            self.unreadable.tolist(),
        )

    def _all(self) -> list[dict[str, Any]]:
        return [line for lines in self._lines.values() for line in lines]

    def add(self, ids: Tensor, judged: Verdict | None, unreadable: Tensor) -> None:
        """Keep a batch: numbers and flags of what could be read, numbers of what could not."""
        line: dict[str, Any] = {"ids": ids.tolist(), "unreadable": unreadable.tolist()}
        if judged is not None:
            line |= {**judged.columns, "range": torch.stack(judged.images.aminmax()).tolist()}
        self._append(line)

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
        """This process's own file, without what a crash left of a last line."""
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
    """Remove the flags in ``folder`` and below, and folders that are empty then; nothing else."""
    ours = [file for file in folder.rglob(FILES) if file.is_file() and _is_ours(file)]
    for file in ours:
        file.unlink()
    for place in sorted({folder, *(file.parent for file in ours)}, reverse=True):
        with suppress(OSError):  # it is not empty
            place.rmdir()


def _is_ours(file: Path) -> bool:
    """Whether it begins as a `ResultsLog` does; one that a kill left without a whole line is empty."""
    with file.open("rb") as lines:
        first = lines.readline()
    return not first or first.startswith(b'{"protocol": ')
