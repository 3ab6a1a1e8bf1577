"""From what a user writes (names, dictionaries, own factories) to a module a layer: the only place where strings are read.

A seam is given as a name (``"twicing"``), a dictionary with options (``{"name": "twicing", "steps": 2, "layers": [10, 11]}``),
or a factory of one's own: a callable from `LayerSpec` to a module. ``layers`` restricts a member to some layers; the others get
the seam's default.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from ..kernels import DotProduct, Elliptical, GaussianRange
from ..positions import Alibi2D, RelativeTable, Rotary, SinCos, SpatialGaussian, UntiedPositions
from ..residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Twicing


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


def _elliptical(layer: LayerSpec, scaling: str = "max", detach: bool = False) -> nn.Module:
    if scaling not in ("max", "mean"):
        raise ValueError(f"kernel='elliptical': scaling is {scaling!r}, but must be 'max' or 'mean'.")
    return Elliptical(layer.head_dim, scaling == "mean", detach)


def _spatial_gaussian(
    layer: LayerSpec,
    spatial_bandwidth=None,
    per_axis: bool = False,
    learned: bool = True,
    floor: float = 0.25,
    gate: float = 1.0,
    learned_gate: bool = False,
) -> nn.Module:
    return SpatialGaussian(
        layer.num_heads, layer.grid_size, spatial_bandwidth, per_axis, learned, floor, gate, learned_gate, **layer.dd
    )


def _alibi(
    layer: LayerSpec,
    spatial_bandwidth=None,
    learned: bool = False,
    floor: float = 0.25,
    gate: float = 1.0,
    learned_gate: bool = False,
) -> nn.Module:
    return Alibi2D(layer.num_heads, spatial_bandwidth, learned, floor, gate, learned_gate, **layer.dd)


def _relative_table(layer: LayerSpec) -> nn.Module:
    return RelativeTable(layer.num_heads, layer.grid_size, **layer.dd)


def _rotary(layer: LayerSpec, temperature: float = 100.0) -> nn.Module:
    return Rotary(layer.head_dim, temperature)


def _sincos(embed_dim: int, temperature: float = 10000.0) -> nn.Module:
    return SinCos(embed_dim, temperature)


def _untied(layer: LayerSpec) -> nn.Module:
    return UntiedPositions(layer.embed_dim, layer.num_heads, layer.head_dim, **layer.dd)


def _plain(layer: LayerSpec) -> nn.Module:
    return Plain()


def _twicing(layer: LayerSpec, steps: int = 1, gate: float = 1.0, learned: bool = False) -> nn.Module:
    return Twicing(layer.num_heads, steps, gate, learned, **layer.dd)


def _bregman(layer: LayerSpec, steps: int = 1, gate: float = 1.0, learned: bool = False) -> nn.Module:
    return Bregman(layer.num_heads, steps, gate, learned, **layer.dd)


def _sos(
    layer: LayerSpec, steps: int = 1, rho: float = 0.5, tau: float | None = None, gate: float = 1.0, learned: bool = False
) -> nn.Module:
    return SOS(layer.num_heads, steps, rho, tau, gate, learned, **layer.dd)


def _neutreno(layer: LayerSpec, gate: float = 0.6, learned: bool = False) -> nn.Module:
    return NeuTRENO(layer.num_heads, gate, learned, **layer.dd)


def _pid(
    layer: LayerSpec,
    proportional: float = 0.8,
    integral: float = 0.5,
    derivative: float = 0.05,
    gate: float = 1.0,
    learned: bool = False,
) -> nn.Module:
    return PID(layer.num_heads, proportional, integral, derivative, gate, learned, **layer.dd)


def _l2_boosting(layer: LayerSpec, gate: float = 1.0, learned: bool = False) -> nn.Module:
    return L2Boosting(layer.num_heads, gate, learned, **layer.dd)


def _nothing(layer: LayerSpec) -> None:
    return None


KERNELS: dict[str, Factory] = {"dot_product": _dot_product, "gaussian_range": _gaussian_range, "elliptical": _elliptical}
RESIDUALS: dict[str, Factory] = {
    "plain": _plain,
    "twicing": _twicing,
    "bregman": _bregman,
    "sos": _sos,
    "neutreno": _neutreno,
    "pid": _pid,
}
# Rules of the same kind around the whole branch; a stream has no heads.
STREAMS: dict[str, Factory] = {
    "plain": _plain,
    "twicing": _twicing,
    "bregman": _bregman,
    "sos": _sos,
    "l2_boosting": _l2_boosting,
}
LAYER_POSITIONS: dict[str, Factory] = {
    "spatial_gaussian": _spatial_gaussian,
    "alibi": _alibi,
    "relative_table": _relative_table,
    "rotary": _rotary,
    "untied": _untied,
}
# Members that use what earlier layers hand on: without `layers`, they leave the first layer its seam's default.
FROM_THE_SECOND_LAYER = frozenset({"elliptical", "neutreno", "pid", "l2_boosting"})
# Members that act once, on the tokens of the model, instead of in each layer. Untied positions do both: the model owns the
# table, the layers project it.
EMBEDDED_POSITIONS: dict[str, Factory] = {"sincos": _sincos}
MODEL_POSITIONS = ("absolute", "sincos", "untied")


def _unknown(seam: str, what: str, name: str, known: Iterable[str]) -> ValueError:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{seam}: unknown {what} {name!r}; there are {', '.join(map(repr, known))}.{hint}")


def _is_factory(seam: str, spec: Any) -> bool:
    """Whether ``spec`` is a factory; a module or a class in its place is a slip."""
    if isinstance(spec, nn.Module) or (isinstance(spec, type) and issubclass(spec, nn.Module)):
        name = spec.__name__ if isinstance(spec, type) else type(spec).__name__
        raise TypeError(f"{seam}: got {name} itself; give a factory, which makes one a layer: lambda layer: {name}(...).")
    return callable(spec)


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
    if _is_factory(seam, spec):
        return spec  # type: ignore[return-value]
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise TypeError(f"{seam}: {spec!r} is neither a name, nor a dictionary with 'name', nor a factory.")
    options = {key: value for key, value in spec.items() if key not in ("name", "layers")}
    name, layers = spec["name"], spec.get("layers")
    if name not in table:
        raise _unknown(seam, "member", name, table)
    factory = table[name]
    check_options(f"{seam}={name!r}", factory, options, ["layers"])
    if layers is None and name not in FROM_THE_SECOND_LAYER:
        return lambda layer: factory(layer, **options)
    chosen = frozenset(range(1, depth)) if layers is None else layer_indices(seam, layers, depth)
    if name in FROM_THE_SECOND_LAYER and 0 in chosen:
        raise ValueError(f"{seam}={name!r}: layer 0 has no layer in front that hands on its values; give layers from 1 on.")
    return lambda layer: factory(layer, **options) if layer.depth in chosen else default(layer)


def options_of(factory: Factory) -> list[str]:
    """Names of the options of a member's factory."""
    return list(inspect.signature(factory).parameters)[1:]


def check_options(where: str, factory: Factory, options: Iterable[str], more: Sequence[str] = ()) -> None:
    """Refuse options the factory does not take, naming the nearest it does."""
    known = options_of(factory)
    for option in options:
        if option not in known:
            raise _unknown(where, "option", option, [*known, *more])


def layer_indices(seam: str, layers: Iterable[int], depth: int) -> frozenset[int]:
    """Block indices, negative ones counted from the end."""
    chosen = set()
    for index in [layers] if isinstance(layers, int | str) else layers:
        if not isinstance(index, int):
            raise TypeError(
                f"{seam}: layers has {index!r}, but takes whole numbers, 0 to {depth - 1}, or negative from the end."
            )
        if not -depth <= index < depth:
            raise ValueError(f"{seam}: layer {index} does not exist in a model of depth {depth}; give 0 to {depth - 1}.")
        chosen.add(index % depth)
    return frozenset(chosen)


@dataclass(frozen=True)
class Positions:
    """What ``positions=`` came to: the model's part and the layers' factories.

    Attributes:
        table: The model owns a learned table.
        added: The table is added to the tokens; else it is carried beside them.
        embedded: From the width of the tokens to a module that adds to them, each.
        factories: For the layers.
    """

    table: bool = False
    added: bool = False
    embedded: tuple[Callable[[int], nn.Module], ...] = ()
    factories: tuple[Callable[[LayerSpec], Any], ...] = ()


def position_specs(spec: Spec | Iterable[Spec] | None) -> list[tuple[str | None, Spec]]:
    """``positions=`` as a list of members, each with its name; None for a factory of one's own.

    Raises:
        ValueError: Unknown names, a member twice, or ``"none"`` beside others.
        TypeError: ``spec`` is no member and no collection of members.
    """
    if spec is not None and not isinstance(spec, str | Iterable) and not _is_factory("positions", spec):
        raise TypeError(
            f"positions: {spec!r} is neither a name, nor a dictionary with 'name', nor a factory, nor several of these."
        )
    specs: list[Any] = [] if spec is None else [spec] if isinstance(spec, str | Mapping) or callable(spec) else list(spec)
    names = [None if _is_factory("positions", s) else s["name"] if isinstance(s, Mapping) and "name" in s else s for s in specs]
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
    return [(name, s) for name, s in zip(names, specs) if name != "none"]


def resolve_positions(spec: Spec | Iterable[Spec] | None, depth: int) -> Positions:
    """Split ``positions=``, one member or several, into the model's part and the layers'.

    Raises:
        ValueError: Unknown names, a member twice, or members that exclude each other.
        TypeError: ``spec`` is no member and no collection of members.
    """
    members = position_specs(spec)
    named = [name for name, _ in members]
    of_the_model = [name for name in MODEL_POSITIONS if name in named]
    if len(of_the_model) > 1:
        raise ValueError(
            f"positions: {of_the_model[0]!r} and {of_the_model[1]!r} exclude each other: tokens get one kind of absolute "
            "position, and untied positions are by definition never added to them; drop one."
        )
    embedded = []
    for name, s in members:
        options = {key: value for key, value in s.items() if key != "name"} if isinstance(s, Mapping) else {}
        if name == "absolute" and options:
            raise ValueError(f"positions: 'absolute' takes no options, got {sorted(options)}; it acts before layer 0.")
        if name in EMBEDDED_POSITIONS:
            factory = EMBEDDED_POSITIONS[name]
            check_options(f"positions={name!r}", factory, options)
            embedded.append(partial(factory, **options))
    factories = tuple(
        resolve("positions", s, LAYER_POSITIONS, _nothing, depth)
        for name, s in members
        if name != "absolute" and name not in EMBEDDED_POSITIONS
    )
    return Positions("absolute" in named or "untied" in named, "absolute" in named, tuple(embedded), factories)


@dataclass(frozen=True)
class Seams:
    """The seams of a model, resolved: from a `LayerSpec` to the modules of a layer."""

    kernel: Callable[[LayerSpec], nn.Module]
    positions: Positions
    residual: Callable[[LayerSpec], Any]
    stream: Callable[[LayerSpec], Any]

    @classmethod
    def resolve(
        cls, kernel: Spec, positions: Spec | Iterable[Spec] | None, residual: Spec, stream: Spec, depth: int
    ) -> "Seams":
        """From what a user wrote.

        Raises:
            ValueError: Unknown names or options, members that exclude each other, or a layer the model does not have.
            TypeError: A seam is neither a name, nor a dictionary, nor a factory.
        """
        return cls(
            resolve("kernel", kernel, KERNELS, _dot_product, depth),
            resolve_positions(positions, depth),
            resolve("residual", residual, RESIDUALS, _plain, depth),
            resolve("stream", stream, STREAMS, _plain, depth),
        )

    def positions_of(self, layer: LayerSpec) -> list[nn.Module]:
        """The layer's own kernels on positions."""
        return [member for factory in self.positions.factories if (member := factory(layer)) is not None]

    def stream_of(self, layer: LayerSpec) -> Any:
        """The rule around the layer; a stream has no heads."""
        return self.stream(replace(layer, num_heads=1))
