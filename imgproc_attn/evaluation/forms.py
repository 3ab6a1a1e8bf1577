"""Schemas of the files that an evaluation reads back. Files that do not fit are refused with their name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ChecksForm", "FindingForm", "LineForm", "ResultForm"]

_Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Form(BaseModel):
    """Base class of schemas. Readers use them only to check, and keep the dictionary."""

    model_config = ConfigDict(extra="allow", strict=True)


class LineForm(_Form):
    """Line of a log of results. Each further key is a column with one value per id."""

    __pydantic_extra__: dict[
        str, list[float] | list[bool] | list[str] | list[list[float]] | list[list[list[int]]] | list[dict[str, Any]]
    ]

    ids: list[int]
    unreadable: list[int]
    range: _Interval | None = None

    @model_validator(mode="after")
    def _whole(self) -> "LineForm":
        columns = self.__pydantic_extra__
        short = [name for name, values in columns.items() if len(values) != len(self.ids)]
        if short:
            raise ValueError(f"{short[0]} has {len(columns[short[0]])} values for {len(self.ids)} ids")
        if self.ids and (self.range is None or not columns):
            raise ValueError(f"{'columns are' if self.range else 'range is'} missing")
        return self


class FindingForm(_Form):
    """Fields of `imgproc_attn.evaluation.findings.Finding`."""

    check: str
    message: str


class ChecksForm(_Form):
    """Content of ``checks.json``: the results of the sanity checks."""

    key: dict[str, Any]
    done: list[str]
    images: int
    findings: list[FindingForm]


class _Images(_Form):
    n: int
    names_sha256: str


class _Row(_Form):
    """Numbers of one condition."""

    name: str
    n: int
    family: str | None
    strength: float | None
    images: _Images
    scorer: Any
    corruption: Any
    unreadable: list[str]
    intervals: dict[str, _Interval]


class _AttackedRow(_Row):
    """Numbers of one condition under attack."""

    eps: Annotated[float, Field(gt=0)]
    norm: Literal["Linf", "L2"]
    space: Literal["images", "normalized"]
    pixel_eps: list[float]
    largest_perturbation: float


class _Checked(_Form):
    what: str
    images: int


class _Data(_Form):
    name: str


class _Environment(_Form):
    device: str
    processes: int


class _Preparation(_Form):
    input_size: Annotated[list[int], Field(min_length=3, max_length=3)] = [3, 224, 224]


class _Real(_Form):
    n: int
    top1: float


class _Metric(_Form):
    key: str
    title: str
    unit: str


class _Summary(_Form):
    """Means over conditions."""

    real: _Real | None = None
    unknown: _Images | None = None
    aupr: float | None = None


class ResultForm(_Form):
    """Content of ``result.json``."""

    kind: Literal["evaluate", "attack", "corrupt", "shift", "compare"]
    label: str
    training_seed: int | None
    parameters: int
    weights_sha256: str
    architecture_sha256: str
    options: dict[str, Any]
    dtype: str
    data: _Data
    seed: int
    preprocessing: _Preparation
    metrics: Annotated[list[_Metric], Field(min_length=1)]
    bootstrap: bool = False
    conditions: Annotated[list[_AttackedRow | _Row], Field(min_length=1)]
    checked: _Checked
    findings: list[FindingForm]
    figures: list[str]
    environment: _Environment
    summary: _Summary = _Summary()

    @model_validator(mode="after")
    def _counted(self) -> "ResultForm":
        for row in self.conditions:
            if not isinstance(row, _AttackedRow) and "eps" in (row.model_extra or {}):
                raise ValueError(f"{row.name}: the settings of the attack are missing or of another type")
            for metric in self.metrics:
                if not isinstance((row.model_extra or {}).get(metric.key), int | float) or metric.key not in row.intervals:
                    raise ValueError(f"{row.name}: {metric.key} or its interval is missing")
        values = [value for key, value in (self.summary.model_extra or {}).items() if key.startswith("m")]
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError("summary: a mean is not a number")
        return self
