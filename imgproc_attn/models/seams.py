"""From what a user writes (names, dictionaries, own factories) to a module a layer: the only place where strings are read.

A seam is given as a name (``"twicing"``), a dictionary with options (``{"name": "twicing", "steps": 2, "layers": [10, 11]}``),
or a factory of one's own: a callable from `LayerSpec` to a module. ``layers`` restricts a member to some layers; the others get
the seam's default.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..kernels import DotProduct, GaussianRange
from ..positions import SpatialGaussian, UntiedPositions
from ..residuals import Plain, Twicing


@dataclass(frozen=True)
class LayerSpec:
    """What a factory may need to know of the layer it builds for.

    Attributes:
        depth: Index of the block, from 0.
        embed_dim: Width of the tokens.
        num_heads: Number of heads.
        head_dim: Width of a head.
        grid_size: (height, width) of the patch grid.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    depth: int
    embed_dim: int
    num_heads: int
    head_dim: int
    grid_size: tuple[int, int]
    device: Any = None
    dtype: Any = None

    @property
    def dd(self) -> dict[str, Any]:
        """``device`` and ``dtype`` as keyword arguments."""
        return {"device": self.device, "dtype": self.dtype}


Factory = Callable[..., nn.Module]
Spec = str | Mapping[str, Any] | Callable[[LayerSpec], nn.Module]


def _dot_product(layer: LayerSpec) -> nn.Module:
    return DotProduct(layer.head_dim)


def _gaussian_range(layer: LayerSpec, range_bandwidth=None, learned: bool = True, floor: float = 0.1) -> nn.Module:
    return GaussianRange(layer.num_heads, layer.head_dim, range_bandwidth, learned, floor, **layer.dd)


def _spatial_gaussian(
    layer: LayerSpec, spatial_bandwidth=None, per_axis: bool = False, learned: bool = True, floor: float = 0.25
) -> nn.Module:
    return SpatialGaussian(layer.num_heads, layer.grid_size, spatial_bandwidth, per_axis, learned, floor, **layer.dd)


def _untied(layer: LayerSpec) -> nn.Module:
    return UntiedPositions(layer.embed_dim, layer.num_heads, layer.head_dim, **layer.dd)


def _plain(layer: LayerSpec) -> nn.Module:
    return Plain()


def _twicing(layer: LayerSpec, steps: int = 1, gate: float = 1.0, learned: bool = False) -> nn.Module:
    return Twicing(layer.num_heads, steps, gate, learned, **layer.dd)


def _nothing(layer: LayerSpec) -> None:
    return None


KERNELS: dict[str, Factory] = {"dot_product": _dot_product, "gaussian_range": _gaussian_range}
RESIDUALS: dict[str, Factory] = {"plain": _plain, "twicing": _twicing}
LAYER_POSITIONS: dict[str, Factory] = {"spatial_gaussian": _spatial_gaussian, "untied": _untied}
# Members that act once, on the tokens of the model, instead of in each layer. Untied positions do both: the model owns the
# table, the layers project it.
MODEL_POSITIONS = ("absolute", "untied")


def _unknown(seam: str, what: str, name: str, known: Iterable[str]) -> ValueError:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{seam}: unknown {what} {name!r}; there are {', '.join(map(repr, known))}.{hint}")


def resolve(
    seam: str, spec: Spec, table: Mapping[str, Factory], default: Callable[[LayerSpec], Any], depth: int
) -> Callable[[LayerSpec], Any]:
    """A factory for every layer of a model.

    Args:
        seam: What messages call it.
        spec: Name, dictionary or factory, as in the module's docstring.
        table: Members by name.
        default: Factory of the layers that ``layers`` leaves out.
        depth: Number of layers of the model.

    Raises:
        ValueError: Unknown name or option (the nearest is named), or a layer the model does not have.
        TypeError: ``spec`` is none of the three forms.
    """
    if callable(spec):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise TypeError(f"{seam}: {spec!r} is neither a name, nor a dictionary with 'name', nor a factory.")
    options = {key: value for key, value in spec.items() if key not in ("name", "layers")}
    name, layers = spec["name"], spec.get("layers")
    if name not in table:
        raise _unknown(seam, "member", name, table)
    factory = table[name]
    known = list(inspect.signature(factory).parameters)[1:]
    for option in options:
        if option not in known:
            raise _unknown(f"{seam}={name!r}", "option", option, [*known, "layers"])
    if layers is None:
        return lambda layer: factory(layer, **options)
    chosen = layer_indices(seam, layers, depth)
    return lambda layer: factory(layer, **options) if layer.depth in chosen else default(layer)


def layer_indices(seam: str, layers: Iterable[int], depth: int) -> frozenset[int]:
    """Block indices, negative ones counted from the end."""
    chosen = set()
    for index in [layers] if isinstance(layers, int) else layers:
        if not -depth <= index < depth:
            raise ValueError(f"{seam}: layer {index} does not exist in a model of depth {depth}; give 0 to {depth - 1}.")
        chosen.add(index % depth)
    return frozenset(chosen)


@dataclass(frozen=True)
class Positions:
    """What ``positions=`` came to: the model's part and the layers' factories."""

    table: bool
    added: bool
    factories: tuple[Callable[[LayerSpec], Any], ...]


def resolve_positions(spec: Spec | Iterable[Spec] | None, depth: int) -> Positions:
    """Split ``positions=``, one member or several, into the model's part and the layers'.

    Raises:
        ValueError: Unknown names, a member twice, or members that exclude each other.
    """
    if spec is not None and not isinstance(spec, str | Iterable) and not callable(spec):
        raise TypeError(
            f"positions: {spec!r} is neither a name, nor a dictionary with 'name', nor a factory, nor several of these."
        )
    specs = [spec] if spec is None or isinstance(spec, str | Mapping) or callable(spec) else list(spec)
    names = [None if callable(s) else s["name"] if isinstance(s, Mapping) and "name" in s else s for s in specs]
    named = [name for name in names if isinstance(name, str) and name != "none"]
    for name in named:
        if name not in LAYER_POSITIONS and name not in MODEL_POSITIONS:
            raise _unknown("positions", "member", name, {*LAYER_POSITIONS, *MODEL_POSITIONS, "none"})
        if named.count(name) > 1:
            raise ValueError(
                f"positions: {name!r} is given twice; give it once, with per-head bandwidths if several are meant."
            )
    if "none" in names and len(names) > 1:
        raise ValueError(f"positions: 'none' excludes the other members {named}; leave it out.")
    if "absolute" in named and "untied" in named:
        raise ValueError(
            "positions: 'absolute' and 'untied' exclude each other: untied positions are by definition never added to the "
            "tokens; drop one."
        )
    for s, member in zip(specs, names):
        if member == "absolute" and isinstance(s, Mapping) and len(s) > 1:
            raise ValueError(
                f"positions: 'absolute' takes no options, got {sorted(set(s) - {'name'})}; it acts before layer 0."
            )
    factories = tuple(
        resolve("positions", s, LAYER_POSITIONS, _nothing, depth)
        for s, name in zip(specs, names)
        if name not in ("absolute", "none") and s is not None
    )
    return Positions(bool(named) and ("absolute" in named or "untied" in named), "absolute" in named, factories)
