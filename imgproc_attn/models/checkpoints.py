"""Weights of plain vision transformers in filter models: what fits is loaded; what is new keeps its start, and is named."""

import logging
import re
from typing import Any

import torch
from torch import Tensor, nn

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
