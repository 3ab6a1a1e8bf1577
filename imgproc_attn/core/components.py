"""Components: names, dictionaries and factories that the user writes become one module per layer.

Only this module reads the names of members. You can give a component in three forms:

- a name, ``"twicing"``;
- a dictionary with options, ``{"name": "twicing", "steps": 2, "layers": [10, 11]}``;
- your own factory, a function that takes a `LayerSpec` and returns a module.

The option ``layers`` restricts a member to some layers. The other layers get the default of the component.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from timm.layers import use_fused_attn
from torch import nn

from ..utils.checks import check_flag
from ..utils.suggestions import did_you_mean
from .elementwise_filters import ReluFilter, ThresholdFilter
from .feature_filters import EluFeatures, RandomFeatures
from .filters import DenseFilter, SoftmaxFilter
from .kernels import DotProduct, Elliptical, GaussianRange
from .landmark_filters import Linformer, Nystroem
from .linear_filters import Representatives, TokenStatistics
from .pointwise import ISTA
from .positions import Alibi, RelativeTable, Rotary, SinCos, SpatialGaussian, UntiedPositions
from .projections import Projection, QueryKeyValue, SharedSubspaces, TiedOutput
from .relative_buckets import RelativeBuckets
from .residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Twicing
from .sliding_window import SlidingWindow

__all__ = ["Components", "LayerSpec", "Positions", "Spec"]


@dataclass(frozen=True)
class LayerSpec:
    """Description of a layer. A factory gets it and returns the module of this layer.

    Attributes:
        depth: Index of the block, from 0.
        embed_dim: Width of the tokens.
        num_heads: Number of heads.
        head_dim: Width of a head.
        grid_size: (height, width) of the patch grid. (1, longest) for tokens on a line.
        attn_drop: Probability of dropping a weight of the filter in training.
        qkv_bias: Whether the input projection has a bias.
        proj_bias: Whether the output projection has a bias.
        is_causal: Whether the model lets tokens see earlier tokens only.
        make_mlp: Function that builds the MLP that timm's arguments describe.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> import timm
        >>> wide = lambda layer: GaussianRange(layer.num_heads, layer.head_dim, range_bandwidth=10.0 + layer.depth)
        >>> model = timm.create_model("test_plain_vit", kernel=wide)
        >>> round(model.blocks[2].attn.kernel.range_bandwidth()[0].item(), 4)
        12.0
    """

    depth: int
    embed_dim: int
    num_heads: int
    head_dim: int
    grid_size: tuple[int, int]
    attn_drop: float = 0.0
    qkv_bias: bool = True
    proj_bias: bool = True
    is_causal: bool = False
    make_mlp: Callable[[], nn.Module] | None = None
    device: Any = None
    dtype: Any = None

    @property
    def dd(self) -> dict[str, Any]:
        """Device and dtype as keyword arguments."""
        return {"device": self.device, "dtype": self.dtype}


_LAYER_FIELDS = frozenset(field.name for field in fields(LayerSpec))

Factory = Callable[..., Any]
Spec = str | Mapping[str, Any] | Callable[[LayerSpec], nn.Module]


def _elliptical(head_dim: int, scaling: str = "max", detach: bool = False) -> nn.Module:
    if scaling not in ("max", "mean"):
        raise ValueError(f"kernel='elliptical': scaling must be 'max' or 'mean', got {scaling!r}. Give one of them.")
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


def _subspaces(
    embed_dim: int,
    num_heads: int,
    proj_bias: bool,
    subspace_dim: int | None = None,
    tied: bool = False,
    step: float = 1.0,
    learned_step: bool = False,
    device: Any = None,
    dtype: Any = None,
) -> Projection:
    dd = {"device": device, "dtype": dtype}
    subspaces = SharedSubspaces(embed_dim, num_heads, subspace_dim, **dd)
    if check_flag("projection='subspaces': tied", tied):
        return Projection(subspaces, TiedOutput(subspaces, step, learned_step, **dd))
    if step != 1.0 or learned_step:
        raise ValueError(
            f"projection='subspaces': step must be left out with a free output projection, got step={step}, learned_step="
            f"{learned_step}. The matrix absorbs it; or give tied=True."
        )
    return Projection(subspaces, nn.Linear(num_heads * subspaces.head_dim, embed_dim, bias=proj_bias, **dd))


def _mlp(make_mlp: Callable[[], nn.Module]) -> nn.Module:
    return make_mlp()


def _softmax(attn_drop: float) -> nn.Module:
    """Return the fused filter, or the dense one if timm's fused attention is off (`set_fused_attn`, ``TIMM_FUSED_ATTN``)."""
    return SoftmaxFilter(attn_drop) if use_fused_attn() else DenseFilter(attn_drop)


def _nothing(layer: LayerSpec) -> None:
    return None


# Constructors of the members, by name. Arguments named as a field of `LayerSpec` get its value. All others are options.
PROJECTIONS: dict[str, Factory] = {"qkv": _qkv, "subspaces": _subspaces}
KERNELS: dict[str, Factory] = {"dot_product": DotProduct, "gaussian_range": GaussianRange, "elliptical": _elliptical}
FILTERS: dict[str, Factory] = {
    "softmax": _softmax,
    "dense": DenseFilter,
    "relu": ReluFilter,
    "threshold": ThresholdFilter,
    "token_statistics": TokenStatistics,
    "representatives": Representatives,
    "random_features": RandomFeatures,
    "elu_features": EluFeatures,
    "nystroem": Nystroem,
    "linformer": Linformer,
    "sliding_window": SlidingWindow,
}
RESIDUALS: dict[str, Factory] = {
    "plain": Plain,
    "twicing": Twicing,
    "bregman": Bregman,
    "sos": SOS,
    "neutreno": NeuTRENO,
    "pid": PID,
}
# Rules around the whole attention branch. A block residual has no heads.
BLOCK_RESIDUALS: dict[str, Factory] = {
    "plain": Plain,
    "twicing": Twicing,
    "bregman": Bregman,
    "sos": SOS,
    "l2_boosting": L2Boosting,
}
# The pointwise half of a block. A member with ``has_skip = True`` has its own skip connection.
MLPS: dict[str, Factory] = {"mlp": _mlp, "none": lambda: None, "ista": ISTA}
LAYER_POSITIONS: dict[str, Factory] = {
    "spatial_gaussian": SpatialGaussian,
    "alibi": Alibi,
    "relative_table": RelativeTable,
    "relative_buckets": RelativeBuckets,
    "rotary": Rotary,
    "untied": UntiedPositions,
}
# Members that need the state of earlier layers. Without `layers`, the first layer keeps the default of its component.
NEED_EARLIER_LAYERS = frozenset({"elliptical", "neutreno", "pid", "l2_boosting"})
# Members that act once, on the tokens of the model, instead of in each layer. Untied positions do both: the model owns the
# table, and the layers project it.
EMBEDDED_POSITIONS: dict[str, Factory] = {"sincos": SinCos}
MODEL_POSITIONS = ("absolute", "sincos", "untied")


def _unknown(component: str, kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name, which suggests the nearest known one."""
    known = sorted(known)
    hint = did_you_mean(name, known, otherwise="Give one of them.")
    return ValueError(f"{component}: {kind} must be one of {', '.join(map(repr, known))}, got {name!r}. {hint}")


def _is_factory(component: str, spec: Any) -> bool:
    """Return whether ``spec`` is a factory. Fail for a module or a class, which users may pass by mistake."""
    if isinstance(spec, nn.Module) or (isinstance(spec, type) and issubclass(spec, nn.Module)):
        name = spec.__name__ if isinstance(spec, type) else type(spec).__name__
        raise TypeError(f"{component} must be a factory, one module per layer, got {name}. Give lambda layer: {name}(...).")
    return callable(spec)


def resolve(
    component: str, spec: Spec, table: Mapping[str, Factory], default: Callable[[LayerSpec], Any], depth: int
) -> Callable[[LayerSpec], Any]:
    """Return a factory that builds the component for every layer of a model.

    Args:
        component: Name of the component in error messages.
        spec: Name, dictionary or factory, as in the docstring of this module.
        table: Constructors of the members, by name.
        default: Factory for the layers that ``layers`` leaves out.
        depth: Number of layers of the model.

    Raises:
        ValueError: A name or option is unknown (the message suggests the nearest), or the model does not have a given layer.
        TypeError: ``spec`` has none of the three forms.
    """
    if _is_factory(component, spec):
        return spec  # type: ignore[return-value]
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise TypeError(f"{component} must be a name, a dictionary with 'name' or a factory, got {spec!r}. Give one of them.")
    options = {key: value for key, value in spec.items() if key not in ("name", "layers")}
    name, layers = spec["name"], spec.get("layers")
    if name not in table:
        raise _unknown(component, "member", name, table)
    factory = table[name]
    check_options(f"{component}={name!r}", factory, options, ["layers"])
    if layers is None and name not in NEED_EARLIER_LAYERS:
        return lambda layer: _build(factory, layer, options)
    chosen = frozenset(range(1, depth)) if layers is None else layer_indices(component, layers, depth)
    if not chosen and layers is not None:
        raise ValueError(
            f"{component}={name!r}: layers must name at least one layer, got {layers!r}. Leave layers out for all, "
            f"{component} for none."
        )
    if name in NEED_EARLIER_LAYERS and 0 in chosen:
        raise ValueError(
            f"{component}={name!r}: layers must be at least 1, got 0. Layer 0 has no previous layer; give layers from 1 on."
        )
    return lambda layer: _build(factory, layer, options) if layer.depth in chosen else default(layer)


def options_of(factory: Factory) -> list[str]:
    """Return the names of the options of a member's constructor."""
    return [name for name in inspect.signature(factory).parameters if name not in _LAYER_FIELDS]


def _default(factory: Callable[..., Any]) -> Callable[[LayerSpec], Any]:
    """Return a factory without options, for the layers that ``layers`` leaves out."""
    return lambda layer: _build(factory, layer, {})


def _build(factory: Factory, layer: LayerSpec, options: Mapping[str, Any]) -> nn.Module:
    """Return the module of a member for a layer."""
    layer_arguments = {name: getattr(layer, name) for name in inspect.signature(factory).parameters if name in _LAYER_FIELDS}
    return factory(**layer_arguments, **options)


def check_options(where: str, factory: Factory, options: Iterable[str], more: Sequence[str] = ()) -> None:
    """Fail for options that the factory does not have. The message suggests the nearest option."""
    known = options_of(factory)
    for option in options:
        if option not in known:
            raise _unknown(where, "option", option, [*known, *more])


def layer_indices(component: str, layers: Iterable[int], depth: int) -> frozenset[int]:
    """Return the set of block indices. Negative indices count from the end."""
    chosen = set()
    for index in [layers] if isinstance(layers, int | str) else layers:
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(
                f"{component}: block indices must be whole numbers, got {index!r}. Give 0 to {depth - 1}, or negative numbers."
            )
        if not -depth <= index < depth:
            raise ValueError(
                f"{component}: block indices must be from {-depth} to {depth - 1}, got {index}. Give one of the {depth} blocks."
            )
        chosen.add(index % depth)
    return frozenset(chosen)


@dataclass(frozen=True)
class Positions:
    """Resolved ``positions=``: the part of the model and the factories of the layers.

    Attributes:
        table: Whether the model owns a learned table.
        added: Whether the table is added to the tokens. Otherwise it is kept separate from them.
        embedded: Functions from the width of the tokens to a module that adds to the tokens.
        factories: Factories of the layers' modules.
    """

    table: bool = False
    added: bool = False
    embedded: tuple[Callable[[int], nn.Module], ...] = ()
    factories: tuple[Callable[[LayerSpec], Any], ...] = ()


def position_specs(spec: Spec | Iterable[Spec] | None) -> list[tuple[str | None, Spec]]:
    """Return the members of ``positions=`` as pairs (name, specification). The name of your own factory is None.

    Raises:
        ValueError: A name is unknown, a member is given twice, or ``"none"`` is given with other members.
        TypeError: ``spec`` is neither a member nor a collection of members.
    """
    if spec is not None and not isinstance(spec, str | Iterable) and not _is_factory("positions", spec):
        raise TypeError(
            f"positions must be a name, a dictionary with 'name' or a factory, or several of these, got {spec!r}. Give one."
        )
    specs: list[Any] = [] if spec is None else [spec] if isinstance(spec, str | Mapping) or callable(spec) else list(spec)
    names = [None if _is_factory("positions", s) else s["name"] if isinstance(s, Mapping) and "name" in s else s for s in specs]
    named = [name for name in names if isinstance(name, str) and name != "none"]
    for name in named:
        if name not in LAYER_POSITIONS and name not in MODEL_POSITIONS:
            raise _unknown("positions", "member", name, {*LAYER_POSITIONS, *MODEL_POSITIONS, "none"})
        if named.count(name) > 1:
            raise ValueError(
                f"positions must hold each member once, got {name!r} twice. Give it once, with one bandwidth per head."
            )
    if "none" in names and len(names) > 1:
        raise ValueError(f"positions must not mix 'none' with other members, got {named}. Leave 'none' out.")
    return [(name, s) for name, s in zip(names, specs) if name != "none"]


def resolve_positions(spec: Spec | Iterable[Spec] | None, depth: int) -> Positions:
    """Split ``positions=``, one member or several, into the part of the model and the part of the layers.

    Raises:
        ValueError: A name is unknown, a member is given twice, or two members exclude each other.
        TypeError: ``spec`` is neither a member nor a collection of members.
    """
    members = position_specs(spec)
    named = [name for name, _ in members]
    of_the_model = [name for name in MODEL_POSITIONS if name in named]
    if len(of_the_model) > 1:
        raise ValueError(
            f"positions must hold at most one of {MODEL_POSITIONS}, got {of_the_model}. Leave one out: tokens have one kind of "
            "absolute position, and untied positions are never added to tokens."
        )
    embedded = []
    for name, s in members:
        options = {key: value for key, value in s.items() if key != "name"} if isinstance(s, Mapping) else {}
        if name in ("absolute", *EMBEDDED_POSITIONS) and "layers" in options:
            raise ValueError(
                f"positions={name!r}: layers must be left out, got {options['layers']!r}. This member acts once, on the "
                "tokens, before the first layer."
            )
        if name == "absolute" and options:
            raise ValueError(f"positions: 'absolute' must have no options, got {sorted(options)}. Leave them out.")
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
    """Resolved components of a model. Each is a factory that takes a `LayerSpec` and returns the module of that layer."""

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
        """Return the components that the user describes by names, dictionaries or factories.

        Raises:
            ValueError: A name or option is unknown, two members exclude each other, or the model does not have a given layer.
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
        """Return the kernels on positions and rotations of a layer.

        Raises:
            TypeError: A factory returns a module that adds to the tokens, which a layer cannot do.
        """
        members = [member for factory in self.positions.factories if (member := factory(layer)) is not None]
        for member in members:
            if hasattr(member, "embed"):
                raise TypeError(
                    "positions: a factory must return modules that map a Geometry to Terms or turn queries and keys, got "
                    f"{type(member).__name__}, which adds to the tokens. Give the name 'sincos' or 'absolute'."
                )
        return members

    def block_residual_of(self, layer: LayerSpec) -> Any:
        """Return the rule around the layer. A block residual has no heads."""
        return self.block_residual(replace(layer, num_heads=1))
