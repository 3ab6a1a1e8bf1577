"""Files of a run: its full state for resuming, and weights that timm can load."""

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

__all__ = ["load_state", "save_weights", "state_file", "timm_config", "weight_files"]

STATE = "state.pt"

Files = dict[str, Callable[[Path], Any]]  # {name of a file: function that writes it}


def state_file(state: Mapping[str, Any]) -> Files:
    """Return the file of the full state of a run, for `Manifest.write`."""
    return {STATE: _reported(partial(torch.save, dict(state)))}


def load_state(folder: Path) -> dict[str, Any]:
    """Load the state that `state_file` wrote, to the CPU. No code in the file is executed.

    Raises:
        FileNotFoundError: There is no state.
        ValueError: The file is cut off, or is not the state of a run.
    """
    file = folder / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state["records"], state["best"]
    except FileNotFoundError:
        raise
    except Exception as error:  # The readers of zip, pickle and tensors each have their own errors.
        raise ValueError(
            f"{file} must be the complete state of a run, got an error: {first_line(error)}. Start again in another folder."
        ) from error
    return state


def weight_files(
    weights: Mapping[str, Tensor], model: nn.Module, arguments: Mapping[str, Any], classes: Mapping[str, int] | None
) -> Files:
    """Return the files of weights and configuration that ``timm.create_model("local-dir:…")`` loads.

    Args:
        weights: State dict that fits ``model``.
        model: Model whose name, number of classes and ``pretrained_cfg`` are written.
        arguments: Keyword arguments with which the model was built.
        classes: ``{name: label}``; None if the names are unknown.
    """
    # safetensors needs tensors that do not share memory.
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
    """Write the files of `weight_files` to a folder, which is created if it does not exist.

    Args:
        weights: State dict that fits ``model``.
        model: Model whose name, number of classes and ``pretrained_cfg`` are written.
        arguments: Keyword arguments with which the model was built.
        classes: ``{name: label}``; None if the names are unknown.
        folder: Folder of the files.
    """
    for name, write in weight_files(weights, model, arguments, classes).items():
        write_atomically(folder / name, write)


def _reported(write: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Turn the errors of torch and safetensors for a full disk into the `OSError` of the system."""

    def reported(file: Path) -> None:
        try:
            write(file)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(errno.ENOSPC, first_line(error)) from error

    return reported


def timm_config(model: nn.Module, arguments: Mapping[str, Any], classes: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the content of timm's ``config.json``: architecture, arguments and preprocessing.

    Args:
        model: Model whose name, number of classes and ``pretrained_cfg`` are written.
        arguments: Keyword arguments with which the model was built.
        classes: ``{name: label}``; None if the names are unknown.
    """
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
