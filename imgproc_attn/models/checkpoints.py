"""Checkpoints: read weights, fit them to a model, and report which parameters are new, left out or changed."""

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
from timm.layers import resample_abs_pos_embed, to_2tuple
from timm.models import VisionTransformer, adapt_input_conv, clean_state_dict, load_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from typing_extensions import TypedDict

from ..core.positions import RelativeTable, stretch_loaded
from ..utils.io import read_json
from ..utils.manifest import check_listed
from .crate import is_crate, translate_crate

__all__ = ["CheckpointReport", "component_names", "load_weights", "read_weights", "start_from"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # timm reads these two files of a folder

_logger = logging.getLogger(__name__)

_TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order of their rows in a position table
_BLOCK = re.compile(r"blocks\.\d+\.")


def component_names(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that a plain ViT does not have: bandwidths, gates and tables.

    Example:
        >>> import timm, imgproc_attn
        >>> component_names(timm.create_model("test_nlm_vit"))[0]
        'blocks.0.attn.kernel.range_bandwidth.log_excess'
    """
    blocks: Any = getattr(model, "blocks", [])
    own = ((i, block) for i, block in enumerate(blocks) if hasattr(block, "added_names"))
    return [f"blocks.{i}.{name}" for i, block in own for name in block.added_names()]


def _projection_names(model: nn.Module) -> set[str]:
    """Return the parameter names of the query, key and value projections of all blocks."""
    blocks: Any = model.blocks
    return {f"blocks.{i}.attn.qkv.{name}" for i, block in enumerate(blocks) for name in block.attn.qkv.state_dict()}


def adapt_vit_checkpoint(model: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Complete the checkpoint of another vision transformer before it is loaded, and log the changes.

    - The names of the authors' CRATE become ours (`imgproc_attn.models.crate`).
    - A component that is missing in all blocks of the checkpoint keeps its initial values. If it is missing in some blocks
      only, loading fails as usual.
    - Class and distillation tokens that the model does not have are left out, with their rows of the position table and the
      distillation head.
    - A final norm moves behind the pooling if the model has it there.

    Rules without parameters are not visible in a checkpoint. Only its recipe shows, for example, that it was trained with
    fixed twicing.

    `FilterVisionTransformer` registers this function, so it also acts on ``checkpoint_path=``, ``pretrained=True`` and
    ``load_state_dict``.
    """
    inner = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    if is_crate(inner):
        for name in inner:
            del state_dict[prefix + name]
        translated = translate_crate(inner, model.patch_embed.patch_size)
        state_dict.update({prefix + name: value for name, value in translated.items()})
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
    notes = (("new, at initial values", new), ("left out", left_out + rows), ("moved behind the pooling", moved))
    text = "; ".join(f"{note}: {', '.join(dict.fromkeys(map(_in_any_block, names)))}" for note, names in notes if names)
    if text:
        _logger.warning("Weights of another model loaded into %s. %s.", type(model).__name__, text)


def _add_components(state_dict: dict[str, Tensor], own: dict[str, Tensor], components: list[str]) -> list[str]:
    """Add the model's own values of components that are missing in all blocks of the checkpoint, and return their names."""
    held = set(map(_in_any_block, state_dict))
    new = [name for name in components if _in_any_block(name) not in held]
    state_dict.update({name: own[name] for name in new})
    return new


def _move_norm(state_dict: dict[str, Tensor], own: dict[str, Tensor], prefix: str, here: str, there: str) -> list[str]:
    """Rename a norm that the model has under another name, and return its old names."""
    moved = []
    for part in ("weight", "bias"):
        old, new = f"{prefix}{here}.{part}", f"{prefix}{there}.{part}"
        if old in state_dict and old not in own and new in own and new not in state_dict:
            state_dict[new] = state_dict.pop(old)
            moved.append(old)
    return moved


def _drop_prefix_rows(state_dict: dict[str, Tensor], own: dict[str, Tensor], prefix: str, missing: list[str]) -> list[str]:
    """Remove the rows of tokens that the model does not have from the position table: class first, distillation second."""
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
    """Return the name with the block number replaced by a star."""
    return _BLOCK.sub("blocks.*.", name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file, or in a folder that `save_weights` has written. No code in the file is executed.

    The file is safetensors or written by ``torch.save``. It holds the weights themselves, or a dictionary with the weights
    under one of these keys: ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model`` (timm, this package, DeiT, MAE),
    ``teacher`` (DINO) or ``encoder`` (I-JEPA).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not complete, or does not hold weights.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"Checkpoint must be an existing file, got {file}. Check the path.")
    check_listed(file, "Copy it again, or load another checkpoint.")
    try:
        content: Any = load_state_dict(str(file))  # timm's: of a training state the averaged weights, if there are any
    except Exception as error:  # Each reader of archives and tensors raises its own types.
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(
                f"{file} must be a checkpoint of tensors, numbers and text, got other objects, which could run code. Save only "
                "its weights, best as safetensors."
            ) from error
        raise ValueError(f"{file} must be a complete checkpoint, got {first_line(error)}. Copy it again.") from error
    content = next((content[key] for key in ("teacher", "encoder") if isinstance(content.get(key), dict)), content)
    if not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{file} must hold weights, also under state_dict or model, got none. Save model.state_dict().")
    return clean_state_dict(content)


def own_config(pretrained_cfg: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return timm's configuration of a folder (``local-dir:``) or of the hub (``hf-hub:``), or None for other sources.

    Models that contain another model call it. Without a folder or the hub, settings of pretrained weights describe the inner
    model and stay in ``kwargs``. With one, they describe the outer model and are removed from ``kwargs``.
    """
    kwargs.pop("pretrained_model_args", None)
    overlay = kwargs.pop("pretrained_cfg_overlay", None)
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") in ("local-dir", "hf-hub"):
        return {**pretrained_cfg, **(overlay or {})}
    given = {"pretrained_cfg": pretrained_cfg, "pretrained_cfg_overlay": overlay}
    kwargs.update({name: value for name, value in given.items() if value})
    return None


def load_own_weights(model: nn.Module, own: dict[str, Any]) -> None:
    """Load the weights that belong to a configuration from `own_config`.

    Raises:
        ValueError: As `load_weights`.
    """
    if own["source"] == "local-dir":
        load_weights(model, Path(own["file"]))
    else:
        _load(model, clean_state_dict(load_state_dict_from_hf(own["hf_hub_id"])), own["hf_hub_id"], [])


@dataclass
class CheckpointReport:
    """Report of how `start_from` fitted a checkpoint to a model. ``str()`` of it is the message for the user.

    Attributes:
        num_classes: Number of classes of the model.
        head: Names in the classifier or decoder that keep their initial values.
        components: Names in the components that keep their initial values (see `component_names`).
        left_out: Names in the checkpoint that the model does not have.
        resampled: Names of tables and embeddings that were resampled from other image or patch sizes.
        channels: Names of convolutions that were adapted to other input channels.
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
            ("adapted to other input channels", self.channels),
            ("moved to the other side of the pooling", self.moved),
        )
        return "; ".join(f"{note}: {', '.join(names)}" for note, names in notes if names)


def _listed(names: Sequence[str], most: int = 8) -> list[str]:
    """Return names for one line of text: the first ``most`` names, with all blocks joined into one name."""
    kinds = list(dict.fromkeys(map(_in_any_block, names)))
    return kinds[:most] + [f"… ({len(kinds)} in all)"] * (len(kinds) > most)


def start_from(model: nn.Module, path: Path) -> CheckpointReport:
    """Load a checkpoint as the start of training. It must hold the whole backbone of the model. The rest is adapted.

    - A classifier, or the decoder of a segmenter, keeps its initial values if the checkpoint has none, or one for another
      number of classes.
    - timm's functions resample position tables, patch embeddings and input channels.
    - Layouts that timm can convert (DINOv2, MAE, CLIP, DeiT-3) and that of the authors' CRATE are converted. A common prefix
      of all names, such as ``backbone.``, is removed.
    - A segmenter's encoder accepts the weights of a classifier, and a classifier accepts those of a segmenter's encoder.
    - The ``config.json`` next to the weights gives the image size that they were made for. Without it, the position table
      must belong to a square grid.

    Returns:
        The report of what was new, left out or changed.

    Raises:
        ValueError: Weights of the backbone are missing, have another shape, or do not exist in the model (the message lists
            them); or the position table belongs to an unknown grid that is not square; or as `read_weights`.
        FileNotFoundError: The file does not exist.

    Example:
        >>> import tempfile, timm, imgproc_attn
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(timm.create_model("test_vit").state_dict(), Path(folder, "vit.safetensors"))
        ...     print(start_from(timm.create_model("test_nlm_vit", num_classes=5), Path(folder, "vit.safetensors")))
        new: head.weight, head.bias (5 classes), blocks.*.attn.kernel.range_bandwidth.log_excess
    """
    read, notes = read_weights(path), CheckpointReport(getattr(model, "num_classes", 0))
    encoder = getattr(model, "encoder", None)
    segments = isinstance(encoder, nn.Module) and hasattr(model, "decoder")
    backbone, at = (encoder, "encoder.") if isinstance(encoder, nn.Module) and segments else (model, "")
    own, known = model.state_dict(), backbone.state_dict()
    if isinstance(backbone, VisionTransformer) and is_crate(read):
        read = translate_crate(read, to_2tuple(backbone.patch_embed.patch_size))
    prefix = _common_prefix(read, known)
    inner = {name.removeprefix(prefix): tensor for name, tensor in read.items() if name.startswith(prefix)}
    inner = _for_backbone(inner, backbone, _image_size_of(path), notes)
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
    """Return the prefix that most of the model's names have in the checkpoint, or an empty one if two are equally common."""
    prefixes = Counter(name[: -len(end)] for name in weights for end in _ends_of(name) if end in own).most_common(2)
    tie = len(prefixes) == 2 and prefixes[0][1] == prefixes[1][1]
    return "" if not prefixes or tie else prefixes[0][0]


def _ends_of(name: str) -> list[str]:
    """Return all ends of a dotted name, such as ``a.b.c``, ``b.c`` and ``c``."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _names_in_config(model: nn.Module, key: str) -> list[str]:
    """Return the module names under ``key`` of timm's configuration: ``classifier`` or ``first_conv``."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get(key) or ()
    return [names] if isinstance(names, str) else list(names)


class FolderConfig(TypedDict):
    """Required content of the ``config.json`` of a folder, for timm and for this package."""

    architecture: str
    model_args: NotRequired[dict[str, Any] | None]
    pretrained_cfg: NotRequired[dict[str, Any]]


def check_folder(folder: Path) -> None:
    """Fail for a folder with damaged configuration or weights, before timm reads them.

    Raises:
        FileNotFoundError: There is no ``config.json``.
        ValueError: The configuration is damaged, the weights are not complete, or a file has changed since a run wrote it.
            The message names the file.
    """
    remedy = "Copy the folder again, or evaluate another checkpoint."
    read_json(folder / CONFIG, FolderConfig, remedy)
    check_listed(folder / CONFIG, remedy)
    file = folder / WEIGHTS
    if not file.is_file():  # timm also loads files of other names
        return
    try:
        with safe_open(file, "pt"):  # safetensors compares the length of the file with its header
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file} must be a complete checkpoint, got {first_line(error)}. Copy it again, or evaluate another checkpoint."
        ) from error
    check_listed(file, remedy)


def config_beside(path: Path) -> dict[str, Any]:
    """Return timm's ``config.json`` in the folder of the weights, or an empty dictionary if there is none of timm's."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("pretrained_cfg"), dict) else {}


def _image_size_of(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of the images that weights were made for, from the configuration next to them."""
    config = config_beside(path)
    size = (config.get("model_args") or {}).get("img_size") or config.get("pretrained_cfg", {}).get("input_size", ())[-2:]
    return to_2tuple(size) if size else None


def _for_backbone(
    weights: dict[str, Tensor], model: nn.Module, size: tuple[int, int] | None, notes: CheckpointReport
) -> dict[str, Tensor]:
    """Return weights converted to the names, grid and input channels of a model.

    Args:
        weights: Weights of a model for images of ``size``.
        model: Target model.
        size: (height, width) of the images that the weights were made for, if known.
        notes: Report, to which all changes are added.
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


class _SameGridModel:
    """Stand-in for a model that stops timm from resampling the position table. `_fit_table` knows more about its grid."""

    pretrained_model_args = types.MappingProxyType({"img_size": 1})  # too small for any grid

    def __init__(self, model: VisionTransformer, weights: dict[str, Tensor]) -> None:
        table = weights.get("pos_embed", weights.get("visual.positional_embedding"))
        rows = 0 if table is None or table.dim() < 2 else table.shape[-2] - ("register_tokens" in weights)
        self.pos_embed = torch.empty(1, rows, 0)
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _for_vit(
    weights: dict[str, Tensor], model: VisionTransformer, size: tuple[int, int] | None, notes: CheckpointReport
) -> dict[str, Tensor]:
    """Return weights in timm's names, for the image and patch size of a model. Arguments as `_for_backbone`."""
    weights, embedding = dict(weights), "patch_embed.proj.weight"
    for name, module in model.named_modules():
        if isinstance(module, RelativeTable):
            before = weights.get(f"{name}.table")
            stretch_loaded(module, weights, f"{name}.")
            notes.resampled += [f"{name}.table"] * (weights.get(f"{name}.table") is not before)
    patch = weights.get(embedding)
    try:
        stand_in: Any = _SameGridModel(model, weights)
        weights = checkpoint_filter_fn(weights, stand_in, adapt_layer_scale=True)
    except RuntimeError:  # The patch embedding has another width. `_load` fails for it and gives its name.
        return weights
    tokens = {name for name in _TOKENS if name in model.state_dict()}
    if model.pos_embed is not None and weights.keys() >= {"pos_embed", *tokens} and weights["pos_embed"].dim() == 3:
        _fit_table(weights, model, patch, size, notes)
    notes.resampled += [embedding] * (patch is not None and weights[embedding].shape != patch.shape)
    return weights


def _fit_table(
    weights: dict[str, Tensor],
    model: VisionTransformer,
    patch: Tensor | None,
    size: tuple[int, int] | None,
    notes: CheckpointReport,
) -> None:
    """Convert the position table to the tokens and the grid of the model.

    Args:
        weights: Weights in timm's names. The table is replaced.
        model: Target model, which has a table.
        patch: Patch embedding of the checkpoint, if known.
        size: As in `_for_backbone`.
        notes: As in `_for_backbone`.

    Raises:
        ValueError: The grid that the table was made for is unknown.
    """
    own, table = model.state_dict(), weights["pos_embed"]
    tokens = [name for name in _TOKENS if name in weights and weights[name].dim() == 3]
    owners = [name for name in tokens for _ in range(weights[name].shape[1])]
    if _grid_of(table.shape[1] - len(owners), patch, size) is None and _grid_of(table.shape[1], patch, size) is not None:
        owners = []  # tokens have no rows in this table, as in models with no_embed_class
    rows, patches = table[:, : len(owners)], table[:, len(owners) :]
    kept = [i for i, name in enumerate(owners) if name in own]
    notes.left_out += [f"pos_embed[{i}]" for i in range(len(owners)) if i not in kept]
    if model.no_embed_class:  # The table has no rows for tokens, so a token includes its position.
        for name in {owners[i] for i in kept}:
            weights[name] = weights[name] + rows[:, [i for i in kept if owners[i] == name]]
        kept = []
    old, new = _grid_of(patches.shape[1], patch, size), tuple(model.patch_embed.grid_size)
    if old is None and patches.shape[1] != new[0] * new[1]:
        raise ValueError(
            f"pos_embed must have a square grid if its image size is unknown, got {patches.shape[1]} positions. Give a folder "
            f"with a {CONFIG} that has pretrained_cfg.input_size, as runs and timm write it."
        )
    if old is not None and old != new:
        patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)
        notes.resampled.append("pos_embed")
    weights["pos_embed"] = torch.cat([rows[:, kept], patches], dim=1)


def _grid_of(count: int, patch: Tensor | None, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a grid of ``count`` patches: from ``size`` if it fits, else square if possible, else None."""
    if size is not None and patch is not None and patch.dim() == 4:
        height, width = (-(-side // length) for side, length in zip(size, patch.shape[-2:]))
        if height * width == count:
            return height, width
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a whole checkpoint into ``model``.

    Counters of batch normalization may be missing. Weights in half precision are cast to the dtype of the model.

    Raises:
        ValueError: Names are missing or unexpected, or have another shape (the message lists them); or as `read_weights`.
        FileNotFoundError: The file does not exist.

    Example:
        >>> import tempfile, timm
        >>> from safetensors.torch import save_file
        >>> model = timm.create_model("test_vit")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(model.state_dict(), Path(folder, "vit.safetensors"))
        ...     load_weights(model, Path(folder, "vit.safetensors"))
    """
    _load(model, read_weights(path), path, [])


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path | str, left: list[str]) -> None:
    """Load ``weights``. They must hold every name of the model except those in ``left``."""
    own = model.state_dict()
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    fitting = {name: weights[name] for name in weights if name not in own or weights[name].shape == own[name].shape}
    result = model.load_state_dict(fitting, strict=False)  # filter models complete the weights of a plain ViT here
    counters = [name for name in result.missing_keys if name.endswith("num_batches_tracked")]
    missing = [name for name in result.missing_keys if name not in (*weights, *left, *counters)]
    problems = [
        f"{len(names)} {problem}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for problem, names in (("missing", missing), ("unexpected", result.unexpected_keys), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} must hold the weights of the {type(model).__name__} built here, got {'; '.join(problems)}. Give "
            "weights of the same architecture, or change the options of the model."
        )


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
