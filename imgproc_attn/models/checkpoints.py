"""Weights of plain vision transformers in filter models: what fits is loaded; what is new keeps its start, and is named."""

import argparse
import json
import logging
import math
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, to_2tuple
from timm.models import VisionTransformer, clean_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from ..positions import RelativeTable, stretch_loaded

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # what timm looks for in a folder

_logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"blocks\.\d+\.")
# where the seams keep what a plain vision transformer does not have
_SEAMS = re.compile(r"^blocks\.\d+\.(attn\.(kernel|positions|rotations|residual)|stream)\.")


def seam_names(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers of the seams: bandwidths, gates, tables; what a plain ViT does not have."""
    return [name for name in model.state_dict() if _SEAMS.match(name)]


def adapt_vit_checkpoint(model: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: complete the checkpoint of another vision transformer, plain or with other seams, and log what was done.

    A member of the seams the checkpoint holds in no block keeps its initial values; one it holds in some blocks alone is
    refused as usual. Class and distillation tokens the model does not have are left out, with their rows of the position table
    and the distillation head; a final norm moves behind the pooling where the model has it there. Rules without parameters
    leave no trace in a checkpoint: whether it was trained with fixed twicing only its recipe tells.

    Registered on `FilterVisionTransformer`, so it serves ``checkpoint_path=``, ``pretrained=True`` and ``load_state_dict``.
    """
    own = {prefix + name: value for name, value in model.state_dict().items()}
    if not any(".attn.qkv." in name for name in state_dict if name in own):
        return
    held = set(map(_in_any_block, state_dict))
    new = [prefix + name for name in seam_names(model) if _in_any_block(prefix + name) not in held]
    left_out = [
        name
        for name in list(state_dict)
        if name.startswith(tuple(prefix + n for n in ("cls_token", "dist_token", "head_dist.", "pos_embed")))
        and name not in own
    ]
    moved = _move_norm(state_dict, own, prefix)
    rows = _drop_prefix_rows(state_dict, own, prefix, left_out)
    for name in left_out:
        del state_dict[name]
    state_dict.update({name: own[name] for name in new})
    notes = (("new, at initial values", new), ("left out", left_out + rows), ("now behind the pooling", moved))
    text = "; ".join(f"{what}: {', '.join(dict.fromkeys(map(_in_any_block, names)))}" for what, names in notes if names)
    if text:
        _logger.warning("Weights of another model loaded into %s. %s.", type(model).__name__, text)


def _move_norm(state_dict: dict[str, Tensor], own: dict[str, Tensor], prefix: str) -> list[str]:
    moved = []
    for part in ("weight", "bias"):
        here, there = f"{prefix}norm.{part}", f"{prefix}fc_norm.{part}"
        if here in state_dict and here not in own and there in own and there not in state_dict:
            state_dict[there] = state_dict.pop(here)
            moved.append(here)
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
    ``state_dict`` or ``model``, as timm's, ours and DeiT's checkpoints have them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, or holds no weights.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {file}.")
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
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
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


class Started(NamedTuple):
    """What became of a checkpoint that training starts from.

    Attributes:
        left: Names that were not loaded.
        resampled: Names of tables and embeddings that were made for other image or patch sizes.
    """

    left: list[str]
    resampled: list[str]


def start_from(model: nn.Module, path: Path) -> Started:
    """Load a checkpoint to train on from: as `load_weights`, but other classes, image sizes and patches are adapted.

    Position tables and patch embeddings of vision transformers are resampled by timm; a classifier of another number of
    classes stays as it was initialised, and so does what a segmenter's decoder has of other classes. Into a segmenter, the
    weights of a classifier go to its encoder. For which images the weights were made is told by the ``config.json`` beside
    them; without one a position table is taken for that of a square grid.

    Raises:
        ValueError: As `load_weights`; or a position table of an unknown grid that is not square.
        FileNotFoundError: There is no such file.
    """
    weights, size = read_weights(path), _made_for(path)
    encoder = getattr(model, "encoder", None)
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    heads = cfg.get("classifier", ())
    prefixes = tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    own, found = model.state_dict(), weights
    if not isinstance(encoder, nn.Module):
        weights = _resampled(weights, model, size)
    elif any(name.startswith("encoder.") for name in weights):
        inner = {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
        inner = {f"encoder.{name}": t for name, t in _resampled(inner, encoder, size).items()}
        weights = {name: t for name, t in weights.items() if not name.startswith("encoder.")} | inner
        prefixes = ("decoder.",)
    else:
        left = ["decoder", *_start_encoder(encoder, weights, path, size)]
        return Started(left, _of_other_shapes(weights, encoder.state_dict()))
    left = [n for n in _of_other_shapes(weights, own) if n.startswith(prefixes)]
    _load(model, {name: tensor for name, tensor in weights.items() if name not in left}, path, left)
    return Started(left, [n for n in _of_other_shapes(found, own) if n not in left])


def _of_other_shapes(weights: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in weights.items() if name in own and own[name].shape != tensor.shape]


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


def _resampled(weights: dict[str, Tensor], model: nn.Module, size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Position tables and patch embedding for the model's image and patch size, if it is a vision transformer.

    Args:
        weights: Made for images of ``size``.
        model: Made for its own.
        size: (height, width), if known.
    """
    if not isinstance(model, VisionTransformer):
        return weights
    weights = dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, RelativeTable):
            stretch_loaded(module, weights, f"{name}.")
    if "mask_token" in weights or model.pos_embed is None or "pos_embed" not in weights:  # timm knows DINOv2's own format
        return checkpoint_filter_fn(weights, model)
    tokens = [name for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    table = _table_for(model, weights.pop("pos_embed"), tokens, weights, size)
    own = model.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name in own or name not in tokens}
    return {**checkpoint_filter_fn(weights, model), "pos_embed": table}


def _table_for(
    model: Any, table: Tensor, tokens: Sequence[str], weights: dict[str, Tensor], size: tuple[int, int] | None
) -> Tensor:
    """The position table without the rows of tokens that the model does not have, resampled to its grid."""
    own = model.state_dict()
    owners = [] if model.no_embed_class else [name for name in tokens for _ in range(weights[name].shape[1])]
    kept = [i for i, name in enumerate(owners) if name in own]
    old, new = _grid_of(table.shape[1] - len(owners), weights, size), tuple(model.patch_embed.grid_size)
    table = torch.cat([table[:, kept], table[:, len(owners) :]], dim=1)
    if old is None and table.shape[1] - len(kept) != new[0] * new[1]:
        raise ValueError(
            f"pos_embed has {table.shape[1] - len(kept)} places, no square grid, and nothing says for which images it was "
            f"made; give a folder whose {CONFIG} does (with pretrained_cfg.input_size), as runs and timm leave them."
        )
    if old is None or old == new:
        return table
    return resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=len(kept))


def _grid_of(count: int, weights: dict[str, Tensor], size: tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a grid of so many patches; a square one if ``size`` does not account for it, else None."""
    patch = weights.get("patch_embed.proj.weight")
    if size is not None and patch is not None and patch.dim() == 4:
        height, width = (-(-side // length) for side, length in zip(size, patch.shape[-2:]))
        if height * width == count:
            return height, width
    side = math.isqrt(count)
    return (side, side) if side**2 == count else None


def _start_encoder(encoder: nn.Module, weights: dict[str, Tensor], path: Path, size: tuple[int, int] | None) -> list[str]:
    """Weights of a classifier in the same model without its head; the names that only the head has."""
    weights, own = _resampled(weights, encoder, size), encoder.state_dict()
    for part in ("weight", "bias"):  # the norm behind the pooling is the one before it, of all tokens
        here, there = f"fc_norm.{part}", f"norm.{part}"
        if here in weights and here not in own and there in own and there not in weights:
            weights[there] = weights.pop(here)
    head = [name for name in weights if name not in own and name.startswith(("head", "fc.", "classifier."))]
    _load(encoder, {name: tensor for name, tensor in weights.items() if name not in head}, path, head)
    return head


def load_weights(model: nn.Module, path: Path) -> None:
    """Load all of a checkpoint into ``model``.

    Counters of batch normalisation may be missing; half precision becomes the model's own type.

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
