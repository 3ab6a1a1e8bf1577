"""Cache of one attention layer: keys and values of earlier tokens."""

from collections.abc import Sequence

from torch import Tensor, nn

from .geometry import Geometry

__all__ = ["LayerCache"]


class LayerCache:
    """Keys and values of earlier tokens, for a causal attention layer that gets new tokens only.

    Results of earlier tokens are final under causality. So a filter that is applied several times needs the inputs of each
    application for earlier tokens, and nothing else. A model keeps one such object per evaluation of a layer.

    Attributes:
        geometry: Positions of all tokens. The model sets it before each call.
    """

    geometry: Geometry

    def __init__(self) -> None:
        self._keys = Rows()
        self._columns: dict[nn.Module, list[Rows]] = {}
        self._values: list[Rows] = []
        self._applied = 0

    def append_keys(self, k: Tensor) -> tuple[Tensor, Geometry]:
        """Append keys ``[B, H, N, d]`` of new tokens, and return all keys ``[B, H, M, d]`` and their positions."""
        self._applied = 0
        return self._keys.append(k), self.geometry

    def append_columns(self, positions: nn.Module, columns: Sequence[Tensor]) -> list[Tensor]:
        """Append the key columns ``[1 or B, H, N, c]`` that a kernel on positions gives new tokens, and return all of them."""
        rows = self._columns.setdefault(positions, [Rows() for _ in columns])
        return [row.append(column) for row, column in zip(rows, columns)]

    def append_values(self, v: Tensor) -> Tensor:
        """Append the input ``[B, H, N, D]`` of the next application of the filter, and return it for all tokens."""
        if self._applied == len(self._values):
            self._values.append(Rows())
        self._applied += 1
        return self._values[self._applied - 1].append(v)


class Rows:
    """Tensor ``[B, H, M, d]`` that grows along M. Its memory doubles when it is full, so each row is copied a few times."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._length = 0

    def append(self, x: Tensor) -> Tensor:
        """Append ``x`` ``[B, H, N, d]`` and return all rows."""
        start, stop = self._length, self._length + x.shape[2]
        if self._memory is None or self._memory.shape[2] < stop:
            memory = x.new_empty(x.shape[0], x.shape[1], 2 * stop, x.shape[3])
            if self._memory is not None:
                memory[:, :, :start] = self._memory[:, :, :start]
            self._memory = memory
        self._memory[:, :, start:stop] = x
        self._length = stop
        return self._memory[:, :, :stop]
