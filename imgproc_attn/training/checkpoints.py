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

from ..models.checkpoints import CONFIG, WEIGHTS, first_line
from ..utils.io import dump_json, write_atomically

STATE = "state.pt"

Files = dict[str, Callable[[Path], Any]]  # what fills each, by name


def state_file(state: Mapping[str, Any]) -> Files:
    """What writes the full state of a run, for `Manifest.write`."""
    return {STATE: _reported(partial(torch.save, dict(state)))}


def load_state(folder: Path) -> dict[str, Any]:
    """What `state_file` wrote, on the CPU; nothing in it is executed.

    Raises:
        ValueError: The file is cut off, or none of ours.
    """
    file = folder / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state["records"], state["best"]
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, pickle and tensor readers each have their own
        raise ValueError(
            f"{file} is cut off or no state of a run: {first_line(error)}. Start anew in another folder."
        ) from error
    return state


def weight_files(
    weights: Mapping[str, Tensor], model: nn.Module, arguments: Mapping[str, Any], classes: Mapping[str, int] | None
) -> Files:
    """What writes weights, and the model's configuration beside them, so that ``timm.create_model("local-dir:…")`` loads both.

    Args:
        weights: State of ``model``'s form.
        model: Gives name, classes and ``pretrained_cfg``.
        arguments: Keyword arguments that made it.
        classes: ``{name: label}``, where names are known.
    """
    # safetensors wants each tensor to own its memory
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    config = timm_config(model, arguments, classes)
    return {CONFIG: partial(dump_json, config), WEIGHTS: _reported(partial(save_file, own))}


def save_weights(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    arguments: Mapping[str, Any],
    classes: Mapping[str, int] | None,
    folder: Path,
) -> None:
    """Write the files of `weight_files` to a folder, which is made if need be."""
    for name, write in weight_files(weights, model, arguments, classes).items():
        write_atomically(folder / name, write)


def _reported(write: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Torch and safetensors have errors of their own for a full disk: they become the system's."""

    def reported(file: Path) -> None:
        try:
            write(file)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(errno.ENOSPC, first_line(error)) from error

    return reported


def timm_config(model: nn.Module, arguments: Mapping[str, Any], classes: Mapping[str, int] | None) -> dict[str, Any]:
    """``config.json`` as timm reads it: architecture, arguments, and how images are prepared."""
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    origin = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load", "tag", "label_offset")
    kept = {key: value for key, value in cfg.items() if key not in origin and value is not None}
    return {
        "architecture": kept.pop("architecture"),
        "num_classes": model.num_classes,
        "num_features": getattr(model, "num_features", None),
        "model_args": dict(arguments),
        **({"label_names": sorted(classes, key=classes.__getitem__)} if classes else {}),
        "pretrained_cfg": kept,
    }
