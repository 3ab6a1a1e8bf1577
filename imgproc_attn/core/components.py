"""Components: from what a user writes (names, dictionaries, factories) to one module per layer.

This is the only place where names of members are read. A component is given as a name (``"twicing"``), as a dictionary with
options (``{"name": "twicing", "steps": 2, "layers": [10, 11]}``), or as a factory of your own: a callable from `LayerSpec` to a
module. ``layers`` restricts a member to some layers. The other layers get the component's default.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from timm.layers import use_fused_attn
from torch import nn

from .filters import DenseFilter, SoftmaxFilter
from .kernels import DotProduct, Elliptical, GaussianRange
from .positions import Alibi2D, RelativeTable, Rotary, SinCos, SpatialGaussian, UntiedPositions
from .projections import Projection, QueryKeyValue
from .residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Twicing


@dataclass(frozen=True)
class LayerSpec:
    """What a factory may need to know of the layer it builds for.

    Attributes:
        depth: Index of the block, from 0.
        embed_dim: Width of the tokens.
        num_heads: Number of heads.
        head_dim: Width of a head.
        grid_size: (height, width) of the patch grid.
        attn_drop: Probability of dropping a weight of the filter in training.
        qkv_bias: Whether the input map has an offset.
        proj_bias: Whether the output map has an offset.
        make_mlp: Makes the MLP that timm's arguments describe.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    depth: int
    embed_dim: int
    num_heads: int
    head_dim: int
    grid_size: tuple[int, int]
    attn_drop: float = 0.0
    qkv_bias: bool = True
    proj_bias: bool = True
    make_mlp: Callable[[], nn.Module] | None = None
    device: Any = None
    dtype: Any = None

    @property
    def dd(self) -> dict[str, Any]:
        """``device`` and ``dtype`` as keyword arguments."""
        return {"device": self.device, "dtype": self.dtype}


_OF_A_LAYER = frozenset(field.name for field in fields(LayerSpec))

Factory = Callable[..., Any]
Spec = str | Mapping[str, Any] | Callable[[LayerSpec], nn.Module]


def _elliptical(head_dim: int, scaling: str = "max", detach: bool = False) -> nn.Module:
    if scaling not in ("max", "mean"):
        raise ValueError(f"kernel='elliptical': scaling is {scaling!r}, but must be 'max' or 'mean'.")
    return Elliptical(head_dim, scaling == "mean", detach)


def _qkv(
    embed_dim: int,
    num_heads: int,
    qkv_bias: bool,
    proj_bias: bool,
    qk_dim: int | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Projection:
    qkv = QueryKeyValue(embed_dim, num_heads, qkv_bias, qk_dim, device, dtype)
    return Projection(qkv, nn.Linear(embed_dim, embed_dim, bias=proj_bias, device=device, dtype=dtype))


def _mlp(make_mlp: Callable[[], nn.Module]) -> nn.Module:
    return make_mlp()


def _softmax(attn_drop: float) -> nn.Module:
    """Fused unless timm's switch says otherwise (`timm.layers.set_fused_attn`, ``TIMM_FUSED_ATTN``)."""
    return SoftmaxFilter(attn_drop) if use_fused_attn() else DenseFilter(attn_drop)


def _nothing(layer: LayerSpec) -> None:
    return None


# Members by name: constructors. What a `LayerSpec` has is handed to them by name; the rest of their arguments are options.
PROJECTIONS: dict[str, Factory] = {"qkv": _qkv}
KERNELS: dict[str, Factory] = {"dot_product": DotProduct, "gaussian_range": GaussianRange, "elliptical": _elliptical}
FILTERS: dict[str, Factory] = {"softmax": _softmax, "dense": DenseFilter}
RESIDUALS: dict[str, Factory] = {
    "plain": Plain,
    "twicing": Twicing,
    "bregman": Bregman,
    "sos": SOS,
    "neutreno": NeuTRENO,
    "pid": PID,
}
# Rules of the same kind around the whole branch; a block residual has no heads.
BLOCK_RESIDUALS: dict[str, Factory] = {
    "plain": Plain,
    "twicing": Twicing,
    "bregman": Bregman,
    "sos": SOS,
    "l2_boosting": L2Boosting,
}
# The pointwise half of a block. A member whose ``has_skip`` is True brings its own skip connection.
MLPS: dict[str, Factory] = {"mlp": _mlp, "none": lambda: None}
LAYER_POSITIONS: dict[str, Factory] = {
    "spatial_gaussian": SpatialGaussian,
    "alibi": Alibi2D,
    "relative_table": RelativeTable,
    "rotary": Rotary,
    "untied": UntiedPositions,
}
# Members that use what earlier layers hand on: without `layers`, they leave the first layer its component's default.
FROM_THE_SECOND_LAYER = frozenset({"elliptical", "neutreno", "pid", "l2_boosting"})
# Members that act once, on the tokens of the model, instead of in each layer. Untied positions do both: the model owns the
# table, the layers project it.
EMBEDDED_POSITIONS: dict[str, Factory] = {"sincos": SinCos}
MODEL_POSITIONS = ("absolute", "sincos", "untied")


def _unknown(component: str, what: str, name: str, known: Iterable[str]) -> ValueError:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{component}: unknown {what} {name!r}; there are {', '.join(map(repr, known))}.{hint}")


def _is_factory(component: str, spec: Any) -> bool:
    """Whether ``spec`` is a factory; a module or a class in its place is a slip."""
    if isinstance(spec, nn.Module) or (isinstance(spec, type) and issubclass(spec, nn.Module)):
        name = spec.__name__ if isinstance(spec, type) else type(spec).__name__
        raise TypeError(f"{component}: got {name} itself; give a factory, which makes one a layer: lambda layer: {name}(...).")
    return callable(spec)


def resolve(
    component: str, spec: Spec, table: Mapping[str, Factory], default: Callable[[LayerSpec], Any], depth: int
) -> Callable[[LayerSpec], Any]:
    """A factory for every layer of a model.

    Args:
        component: What messages call it.
        spec: Name, dictionary or factory, as in the module's docstring.
        table: Members by name.
        default: Factory of the layers that ``layers`` leaves out.
        depth: Number of layers of the model.

    Raises:
        ValueError: Unknown name or option (the nearest is named), or a layer the model does not have.
        TypeError: ``spec`` is none of the three forms.
    """
    if _is_factory(component, spec):
        return spec  # type: ignore[return-value]
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise TypeError(f"{component}: {spec!r} is neither a name, nor a dictionary with 'name', nor a factory.")
    options = {key: value for key, value in spec.items() if key not in ("name", "layers")}
    name, layers = spec["name"], spec.get("layers")
    if name not in table:
        raise _unknown(component, "member", name, table)
    factory = table[name]
    check_options(f"{component}={name!r}", factory, options, ["layers"])
    if layers is None and name not in FROM_THE_SECOND_LAYER:
        return lambda layer: _build(factory, layer, options)
    chosen = frozenset(range(1, depth)) if layers is None else layer_indices(component, layers, depth)
    if not chosen and layers is not None:
        raise ValueError(
            f"{component}={name!r}: layers must name at least one layer, got {layers!r}. Leave layers out for all, "
            f"{component} for none."
        )
    if name in FROM_THE_SECOND_LAYER and 0 in chosen:
        raise ValueError(
            f"{component}={name!r}: layer 0 has no layer in front that hands on its values; give layers from 1 on."
        )
    return lambda layer: _build(factory, layer, options) if layer.depth in chosen else default(layer)


def options_of(factory: Factory) -> list[str]:
    """Names of the options of a member's constructor."""
    return [name for name in inspect.signature(factory).parameters if name not in _OF_A_LAYER]


def _default(factory: Callable[..., Any]) -> Callable[[LayerSpec], Any]:
    """Return the member that layers have which ``layers`` leaves out."""
    return lambda layer: _build(factory, layer, {})


def _build(factory: Factory, layer: LayerSpec, options: Mapping[str, Any]) -> nn.Module:
    """A member for a layer."""
    of_the_layer = {name: getattr(layer, name) for name in inspect.signature(factory).parameters if name in _OF_A_LAYER}
    return factory(**of_the_layer, **options)


def check_options(where: str, factory: Factory, options: Iterable[str], more: Sequence[str] = ()) -> None:
    """Refuse options the factory does not take, naming the nearest it does."""
    known = options_of(factory)
    for option in options:
        if option not in known:
            raise _unknown(where, "option", option, [*known, *more])


def layer_indices(component: str, layers: Iterable[int], depth: int) -> frozenset[int]:
    """Block indices, negative ones counted from the end."""
    chosen = set()
    for index in [layers] if isinstance(layers, int | str) else layers:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(
                f"{component}: layers has {index!r}, but takes whole numbers, 0 to {depth - 1}, or negative from the end."
            )
        if not -depth <= index < depth:
            raise ValueError(f"{component}: layer {index} does not exist in a model of depth {depth}; give 0 to {depth - 1}.")
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
class Components:
    """The components of a model, resolved: from a `LayerSpec` to the modules of a layer."""

    projection: Callable[[LayerSpec], Any]
    kernel: Callable[[LayerSpec], nn.Module]
    positions: Positions
    filter: Callable[[LayerSpec], nn.Module]
    residual: Callable[[LayerSpec], Any]
    block_residual: Callable[[LayerSpec], Any]
    mlp: Callable[[LayerSpec], Any]

    @classmethod
    def resolve(
        cls,
        depth: int,
        *,
        kernel: Spec,
        positions: Spec | Iterable[Spec] | None,
        filter: Spec,
        residual: Spec,
        block_residual: Spec,
        projection: Spec = "qkv",
        mlp: Spec = "mlp",
    ) -> "Components":
        """From what a user wrote.

        Raises:
            ValueError: Unknown names or options, members that exclude each other, or a layer the model does not have.
            TypeError: A component is neither a name, nor a dictionary, nor a factory.
        """
        return cls(
            resolve("projection", projection, PROJECTIONS, _default(_qkv), depth),
            resolve("kernel", kernel, KERNELS, _default(DotProduct), depth),
            resolve_positions(positions, depth),
            resolve("filter", filter, FILTERS, _default(_softmax), depth),
            resolve("residual", residual, RESIDUALS, _default(Plain), depth),
            resolve("block_residual", block_residual, BLOCK_RESIDUALS, _default(Plain), depth),
            resolve("mlp", mlp, MLPS, _default(_mlp), depth),
        )

    def positions_of(self, layer: LayerSpec) -> list[nn.Module]:
        """The layer's own kernels on positions.

        Raises:
            TypeError: A factory makes what adds to the tokens, which a layer has no place for.
        """
        members = [member for factory in self.positions.factories if (member := factory(layer)) is not None]
        for member in members:
            if hasattr(member, "embed"):
                raise TypeError(
                    f"positions: {type(member).__name__} adds to the tokens before the first layer, but a factory makes "
                    "members of layers, which map a Geometry to Terms or turn queries and keys; name 'sincos' or 'absolute'."
                )
        return members

    def block_residual_of(self, layer: LayerSpec) -> Any:
        """The rule around the layer; a block residual has no heads."""
        return self.block_residual(replace(layer, num_heads=1))
