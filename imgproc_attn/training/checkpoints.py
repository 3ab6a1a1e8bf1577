"""What is kept of a run: its full state, to go on from, and weights that timm loads."""

import errno
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import cannot_write, write_atomically, write_json
from ..models.checkpoints import CONFIG, WEIGHTS, first_line

STATE = "state.pt"


def save_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write ``state`` to ``folder/state.pt``: the old file or the new, whole, whatever happens."""
    _write(folder / STATE, partial(torch.save, dict(state)))


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; nothing in it is executed.

    Raises:
        ValueError: The file is cut off, or none of ours.
    """
    file = folder / STATE
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, pickle and tensor readers each have their own
        raise ValueError(
            f"{file} is cut off or no state of a run: {first_line(error)}. Start anew in another folder."
        ) from error


def save_weights(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    arguments: Mapping[str, Any],
    classes: Mapping[str, int] | None,
    folder: Path,
) -> None:
    """Write weights, and the model's configuration beside them, so that ``timm.create_model("local-dir:…")`` loads both.

    Args:
        weights: State of ``model``'s form.
        model: Gives name, classes and ``pretrained_cfg``.
        arguments: Keyword arguments that made it.
        classes: ``{name: label}``, where names are known.
        folder: Made if need be.
    """
    # safetensors wants each tensor to own its memory
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_json(folder / CONFIG, timm_config(model, arguments, classes))
    _write(folder / WEIGHTS, partial(save_file, own))


def _write(file: Path, write: Callable[[Path], Any]) -> None:
    """As `write_atomically`; torch and safetensors have errors of their own for a full disk."""
    try:
        write_atomically(file, write)
    except (RuntimeError, SafetensorError) as error:
        raise cannot_write(file, OSError(errno.ENOSPC, first_line(error))) from error


def timm_config(model: nn.Module, arguments: Mapping[str, Any], classes: Mapping[str, int] | None) -> dict[str, Any]:
    """``config.json`` as timm reads it: architecture, arguments, and how images are prepared."""
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    origin = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load", "tag", "label_offset")
    kept = {key: value for key, value in cfg.items() if key not in origin and value is not None}
    return {
        "architecture": kept.pop("architecture"),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": dict(arguments),
        **({"label_names": sorted(classes, key=classes.__getitem__)} if classes else {}),
        "pretrained_cfg": kept,
    }
