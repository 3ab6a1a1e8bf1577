"""Weights of plain vision transformers in filter models: what fits is loaded; what is new keeps its start, and is named."""

import argparse
import json
import logging
import math
import pickle
import re
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, to_2tuple
from timm.models import VisionTransformer, adapt_input_conv, clean_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from typing_extensions import TypedDict

from ..core.positions import RelativeTable, stretch_loaded
from ..utils.io import read_json
from ..utils.manifest import check_listed

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what timm looks for in a folder

_logger = logging.getLogger(__name__)

_TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order of their rows in a position table
_BLOCK = re.compile(r"blocks\.\d+\.")


def component_names(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers of the components: bandwidths, gates, tables; what a plain ViT does not have."""
    blocks: Any = getattr(model, "blocks", [])
    own = ((i, block) for i, block in enumerate(blocks) if hasattr(block, "added_names"))
    return [f"blocks.{i}.{name}" for i, block in own for name in block.added_names()]


def _projection_names(model: nn.Module) -> set[str]:
    """Names of the parameters of the blocks' input maps."""
    blocks: Any = model.blocks
    return {f"blocks.{i}.attn.qkv.{name}" for i, block in enumerate(blocks) for name in block.attn.qkv.state_dict()}


def adapt_vit_checkpoint(model: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Complete the checkpoint of another vision transformer before it is loaded, and log the changes.

    A member of the components the checkpoint holds in no block keeps its initial values; one it holds in some blocks alone is
    refused as usual. Class and distillation tokens the model does not have are left out, with their rows of the position table
    and the distillation head; a final norm moves behind the pooling where the model has it there. Rules without parameters
    leave no trace in a checkpoint: whether it was trained with fixed twicing only its recipe tells.

    Registered on `FilterVisionTransformer`, so it serves ``checkpoint_path=``, ``pretrained=True`` and ``load_state_dict``.
    """
    own = {prefix + name: value for name, value in model.state_dict().items()}
    if not any(prefix + name in state_dict for name in _projection_names(model)):
        return
    new = _add_components(state_dict, own, [prefix + name for name in component_names(model)])
    left_out = [
        name
        for name in list(state_dict)
        if name.startswith(tuple(prefix + n for n in ("cls_token", "dist_token", "head_dist.", "pos_embed")))
        and name not in own
    ]
    moved = _move_norm(state_dict, own, prefix, "norm", "fc_norm")
    rows = _drop_prefix_rows(state_dict, own, prefix, left_out)
    for name in left_out:
        del state_dict[name]
    notes = (("new, at initial values", new), ("left out", left_out + rows), ("now behind the pooling", moved))
    text = "; ".join(f"{what}: {', '.join(dict.fromkeys(map(_in_any_block, names)))}" for what, names in notes if names)
    if text:
        _logger.warning("Weights of another model loaded into %s. %s.", type(model).__name__, text)


def _add_components(state_dict: dict[str, Tensor], own: dict[str, Tensor], components: list[str]) -> list[str]:
    """Add the model's own values of the components that the checkpoint holds in no block, and return their names."""
    held = set(map(_in_any_block, state_dict))
    new = [name for name in components if _in_any_block(name) not in held]
    state_dict.update({name: own[name] for name in new})
    return new


def _move_norm(state_dict: dict[str, Tensor], own: dict[str, Tensor], prefix: str, here: str, there: str) -> list[str]:
    """Rename a norm that the model has at another place, and return its names in the checkpoint."""
    moved = []
    for part in ("weight", "bias"):
        old, new = f"{prefix}{here}.{part}", f"{prefix}{there}.{part}"
        if old in state_dict and old not in own and new in own and new not in state_dict:
            state_dict[new] = state_dict.pop(old)
            moved.append(old)
    return moved


def _drop_prefix_rows(state_dict: dict[str, Tensor], own: dict[str, Tensor], prefix: str, missing: list[str]) -> list[str]:
    """Take out the rows of the position table of tokens the model does not have: class first, distillation second."""
    name = f"{prefix}pos_embed"
    if name not in own or name not in state_dict:
        return []
    table = state_dict[name]
    rows = [i for i, token in enumerate(("cls_token", "dist_token")) if prefix + token in missing]
    if not rows or table.shape[1] - len(rows) != own[name].shape[1]:
        return []
    state_dict[name] = torch.cat([table[:, i : i + 1] for i in range(table.shape[1]) if i not in rows], dim=1)
    return [f"{name}[{i}]" for i in rows]


def _in_any_block(name: str) -> str:
    """The name with its block's number replaced by a star."""
    return _BLOCK.sub("blocks.*.", name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, or in a folder as `save_weights` leaves it; nothing in it is executed.

    Safetensors, or what ``torch.save`` writes: weights alone, or a dictionary with them under ``state_dict_ema``,
    ``state_dict`` or ``model`` (timm's, ours, DeiT's and MAE's), ``teacher`` (DINO's) or ``encoder`` (I-JEPA's).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, or holds no weights.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
    check_listed(file, "Copy it again, or load another checkpoint.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments in timm's and DeiT's checkpoints
            content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds objects other than tensors, numbers and text, which could run code when loaded, or is no "
            "checkpoint. Save its weights alone, best as safetensors."
        ) from error
    except Exception as error:  # zip and tensor readers each have their own
        raise ValueError(f"{file} is cut off or no checkpoint: {first_line(error)}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "encoder"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{file} holds no weights, neither as such nor under state_dict or model.")
    return clean_state_dict(content)


def own_config(pretrained_cfg: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """What timm knows of a folder (``local-dir:``) or of the hub (``hf-hub:``), for models built of others by name; else None.

    What the caller says of weights is of the model inside then, and stays in ``kwargs``; for one with weights of its own it is
    taken out.
    """
    kwargs.pop("pretrained_model_args", None)
    overlay = kwargs.pop("pretrained_cfg_overlay", None)
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") in ("local-dir", "hf-hub"):
        return {**pretrained_cfg, **(overlay or {})}
    given = {"pretrained_cfg": pretrained_cfg, "pretrained_cfg_overlay": overlay}
    kwargs.update({name: value for name, value in given.items() if value})
    return None


def load_own_weights(model: nn.Module, own: dict[str, Any]) -> None:
    """Load the weights that lie beside such a configuration.

    Raises:
        ValueError: As `load_weights`.
    """
    if own["source"] == "local-dir":
        load_weights(model, Path(own["file"]))
    else:
        _load(model, clean_state_dict(load_state_dict_from_hf(own["hf_hub_id"])), own["hf_hub_id"], [])


@dataclass
class Started:
    """How a checkpoint was fitted to the model that training starts from; as text, the notes for the user.

    Attributes:
        num_classes: Of the model.
        head: Names of the classifier or decoder that keep their initial values.
        components: Names of the components that keep their initial values; see `component_names`.
        left_out: Names of the checkpoint that the model has no place for.
        resampled: Names of tables and embeddings that were made for other image sizes or patches.
        channels: Names of convolutions that were made for other input channels.
        moved: Names of a norm that the model has on the other side of the pooling.
    """

    num_classes: int
    head: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = [f"{', '.join(self.head)} ({self.num_classes} classes)"] if self.head else []
        notes = (
            ("new", [*head, *_listed(self.components)]),
            ("left out", _listed(self.left_out)),
            ("resampled", _listed(self.resampled)),
            ("for other input channels", self.channels),
            ("on the other side of the pooling", self.moved),
        )
        return "; ".join(f"{note}: {', '.join(names)}" for note, names in notes if names)


def _listed(names: Sequence[str], most: int = 8) -> list[str]:
    """Names for a line of text: one per kind of block, and the first ``most`` only."""
    kinds = list(dict.fromkeys(map(_in_any_block, names)))
    return kinds[:most] + [f"… ({len(kinds)} in all)"] * (len(kinds) > most)


def start_from(model: nn.Module, path: Path) -> Started:
    """Load a checkpoint to train on from: all of the model's backbone must be in it, and the rest is adapted.

    A classifier, or a segmenter's decoder, keeps its initial values where the checkpoint has none, or one of other classes.
    Position tables, patch embeddings and input channels are resampled by timm's functions. Layouts that timm converts to its
    names of vision transformers (DINOv2, MAE, CLIP, DeiT-3) are converted, and a prefix of all names (``backbone.``) is taken
    off. The weights of a classifier go to a segmenter's encoder, and the other way round. For which images the weights were
    made is told by the ``config.json`` beside them; without one a position table is taken for that of a square grid.

    Raises:
        ValueError: Weights of the backbone are missing, of another shape, or have no place in it; the message lists them. Or a
            position table of an unknown grid that is not square. Or as `read_weights`.
        FileNotFoundError: There is no such file.
    """
    read, notes = read_weights(path), Started(getattr(model, "num_classes", 0))
    encoder = getattr(model, "encoder", None)
    segments = isinstance(encoder, nn.Module) and hasattr(model, "decoder")
    backbone, at = (encoder, "encoder.") if isinstance(encoder, nn.Module) and segments else (model, "")
    own, known = model.state_dict(), backbone.state_dict()
    prefix = _common_prefix(read, known)
    inner = {name.removeprefix(prefix): tensor for name, tensor in read.items() if name.startswith(prefix)}
    inner = _for_backbone(inner, backbone, _made_for(path), notes)
    outer = {name: tensor for name, tensor in read.items() if not name.startswith(prefix)}

    heads = tuple(f"{name}." for name in _names_in_config(backbone, "classifier"))
    parts = {name.partition(".")[0] for name in known} | dict(backbone.named_children()).keys()
    unused = {n for n in inner if n not in known and (n.startswith(heads) or n.partition(".")[0] not in parts)}
    notes.left_out += [*(prefix + name for name in inner if name in unused), *(name for name in outer if name not in own)]
    weights = {name: tensor for name, tensor in outer.items() if name in own}
    weights |= {at + name: tensor for name, tensor in inner.items() if name not in unused}
    new = [n for n in own if n.startswith("decoder." if segments else heads)]
    new = [n for n in new if n not in weights or weights[n].shape != own[n].shape]
    _load(model, {name: tensor for name, tensor in weights.items() if name not in new}, path, new)
    whole = segments and not any(name.startswith("decoder.") for name in own.keys() - new)
    notes.head = ["decoder"] if whole else new
    return notes


def _common_prefix(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """The prefix under which most of a model's names are found; empty where two of them are equally good."""
    found = Counter(name[: -len(end)] for name in weights for end in _ends_of(name) if end in own).most_common(2)
    tie = len(found) == 2 and found[0][1] == found[1][1]
    return "" if not found or tie else found[0][0]


def _ends_of(name: str) -> list[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _names_in_config(model: nn.Module, key: str) -> list[str]:
    """Names of the modules that timm's configuration has under ``key``: ``classifier`` or ``first_conv``."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get(key) or ()
    return [names] if isinstance(names, str) else list(names)


class Config(TypedDict):
    """What a folder's ``config.json`` must hold, for timm and for us."""

    architecture: str
    model_args: NotRequired[dict[str, Any] | None]
    pretrained_cfg: NotRequired[dict[str, Any]]


def check_folder(folder: Path) -> None:
    """Refuse a folder whose configuration or weights are damaged, before timm meets them.

    Raises:
        FileNotFoundError: There is no ``config.json``.
        ValueError: It is damaged, the weights are cut off, or a file has changed since a run wrote it; the message names the
            file.
    """
    remedy = "Copy the folder again, or evaluate another checkpoint."
    read_json(folder / CONFIG, Config, remedy)
    check_listed(folder / CONFIG, remedy)
    file = folder / WEIGHTS
    if not file.is_file():  # timm knows other names
        return
    try:
        with safe_open(file, "pt"):  # compares the length of the file with its header
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file} is cut off or no checkpoint: {first_line(error)}. Copy it again, or evaluate another checkpoint."
        ) from error
    check_listed(file, remedy)


def config_beside(path: Path) -> dict[str, Any]:
    """The ``config.json`` in the folder of weights, as timm writes it; empty where there is none, or another program's."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("pretrained_cfg"), dict) else {}


def _made_for(path: Path) -> tuple[int, int] | None:
    """(height, width) of the images that weights were made for, by the configuration beside them."""
    config = config_beside(path)
    size = (config.get("model_args") or {}).get("img_size") or config.get("pretrained_cfg", {}).get("input_size", ())[-2:]
    return to_2tuple(size) if size else None


def _for_backbone(
    weights: dict[str, Tensor], model: nn.Module, size: tuple[int, int] | None, notes: Started
) -> dict[str, Tensor]:
    """Weights in the names, grid and channels of a model.

    Args:
        weights: Made for images of ``size``.
        model: Made for its own.
        size: (height, width), if known.
        notes: What is done is added to them.
    """
    own = model.state_dict()
    weights = _for_vit(weights, model, size, notes) if isinstance(model, VisionTransformer) else dict(weights)
    for here, there in (("norm", "fc_norm"), ("fc_norm", "norm"), ("head.norm", "norm_pre")):
        notes.moved += _move_norm(weights, own, "", here, there)
    for name in (f"{conv}.weight" for conv in _names_in_config(model, "first_conv")):
        if name in weights and name in own and weights[name].dim() == 4 and 3 == weights[name].shape[1] != own[name].shape[1]:
            weights[name] = adapt_input_conv(own[name].shape[1], weights[name])
            notes.channels.append(name)
    notes.components += _add_components(weights, own, component_names(model))
    return weights


class _OfTheSameGrid:
    """A stand-in for the model, for which timm's filter finds no table to resample: `_fit_table` knows more of its grid."""

    pretrained_model_args = types.MappingProxyType({"img_size": 1})  # too small for any grid

    def __init__(self, model: VisionTransformer, weights: dict[str, Tensor]) -> None:
        table = weights.get("pos_embed", weights.get("visual.positional_embedding"))
        rows = 0 if table is None or table.dim() < 2 else table.shape[-2] - ("register_tokens" in weights)
        self.pos_embed = torch.empty(1, rows, 0)
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _for_vit(
    weights: dict[str, Tensor], model: VisionTransformer, size: tuple[int, int] | None, notes: Started
) -> dict[str, Tensor]:
    """As `_for_backbone`: timm's names, and the model's image and patch size."""
    weights, embedding = dict(weights), "patch_embed.proj.weight"
    for name, module in model.named_modules():
        if isinstance(module, RelativeTable):
            before = weights.get(f"{name}.table")
            stretch_loaded(module, weights, f"{name}.")
            notes.resampled += [f"{name}.table"] * (weights.get(f"{name}.table") is not before)
    patch = weights.get(embedding)
    try:
        stand_in: Any = _OfTheSameGrid(model, weights)
        weights = checkpoint_filter_fn(weights, stand_in, adapt_layer_scale=True)
    except RuntimeError:  # a patch embedding of another width, which `_load` refuses by its name
        return weights
    tokens = {name for name in _TOKENS if name in model.state_dict()}
    if model.pos_embed is not None and weights.keys() >= {"pos_embed", *tokens} and weights["pos_embed"].dim() == 3:
        _fit_table(weights, model, patch, size, notes)
    notes.resampled += [embedding] * (patch is not None and weights[embedding].shape != patch.shape)
    return weights


def _fit_table(
    weights: dict[str, Tensor], model: VisionTransformer, patch: Tensor | None, size: tuple[int, int] | None, notes: Started
) -> None:
    """Give the position table the rows of the model's tokens, and the places of its grid.

    Args:
        weights: In timm's names; the table is replaced.
        model: The model, which has a table.
        patch: The checkpoint's own patch embedding, if known.
        size: As in `_for_backbone`.
        notes: As in `_for_backbone`.

    Raises:
        ValueError: Nothing says which grid the table was made for.
    """
    own, table = model.state_dict(), weights["pos_embed"]
    tokens = [name for name in _TOKENS if name in weights and weights[name].dim() == 3]
    owners = [name for name in tokens for _ in range(weights[name].shape[1])]
    if _grid_of(table.shape[1] - len(owners), patch, size) is None and _grid_of(table.shape[1], patch, size) is not None:
        owners = []  # the checkpoint's tokens have no rows, as in models with no_embed_class
    rows, places = table[:, : len(owners)], table[:, len(owners) :]
    kept = [i for i, name in enumerate(owners) if name in own]
    notes.left_out += [f"pos_embed[{i}]" for i in range(len(owners)) if i not in kept]
    if model.no_embed_class:  # the table has no rows for tokens: a token's position is part of it
        for name in {owners[i] for i in kept}:
            weights[name] = weights[name] + rows[:, [i for i in kept if owners[i] == name]]
        kept = []
    old, new = _grid_of(places.shape[1], patch, size), tuple(model.patch_embed.grid_size)
    if old is None and places.shape[1] != new[0] * new[1]:
        raise ValueError(
            f"pos_embed has {places.shape[1]} places, no square grid, and nothing says for which images it was "
            f"made; give a folder whose {CONFIG} does (with pretrained_cfg.input_size), as runs and timm leave them."
        )
    if old is not None and old != new:
        places = resample_abs_pos_embed(places, list(new), list(old), num_prefix_tokens=0)
        notes.resampled.append("pos_embed")
    weights["pos_embed"] = torch.cat([rows[:, kept], places], dim=1)


def _grid_of(count: int, patch: Tensor | None, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a grid of ``count`` patches; a square one if ``size`` does not account for it, else None."""
    if size is not None and patch is not None and patch.dim() == 4:
        height, width = (-(-side // length) for side, length in zip(size, patch.shape[-2:]))
        if height * width == count:
            return height, width
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load all of a checkpoint into ``model``.

    Counters of batch normalization may be missing; half precision becomes the model's own type.

    Raises:
        ValueError: Missing, unexpected or mis-shaped names; the message lists them. Or as `read_weights`.
        FileNotFoundError: There is no such file.
    """
    _load(model, read_weights(path), path, [])


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path | str, left: list[str]) -> None:
    """All of ``weights``; every name of the model but those ``left`` must be among them."""
    own = model.state_dict()
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    fitting = {name: weights[name] for name in weights if name not in own or weights[name].shape == own[name].shape}
    result = model.load_state_dict(fitting, strict=False)  # filter models complete a plain ViT's weights here
    counters = [name for name in result.missing_keys if name.endswith("num_batches_tracked")]
    missing = [name for name in result.missing_keys if name not in (*weights, *left, *counters)]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unexpected", result.unexpected_keys), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{path} is of another model than {type(model).__name__} as built here: {'; '.join(problems)}.")


def first_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
