"""Specifications of the model and the data set to evaluate, and hashes that identify models."""

import hashlib
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from ..data import Preprocessing
from ..models.checkpoints import check_folder, load_weights
from ..utils import plugins
from ..utils.checks import check_flag, check_whole
from ..utils.io import printable

__all__ = ["DatasetSpec", "ModelSpec", "about_model", "architecture_hash", "folder_of_run", "model_hashes", "weights_hash"]


@dataclass
class ModelSpec:
    """Specification of the model to evaluate.

    Attributes:
        model: A timm name, ``local-dir:FOLDER``, ``hf-hub:NAME``, the folder of a run (its best weights, or else its last), or
            a folder with timm's ``config.json``.
        checkpoint: File of weights to load. Default: the weights that ``model`` or ``pretrained`` gives.
        pretrained: Load timm's pretrained weights of that name. Folders always load their own weights.
        options: Keyword arguments of the model.
        input_size: Size ``(C, H, W)`` of the input. Default: that of the model.
        crop_pct: Share of the image side that the center crop keeps. Default: that of the model.
        training_seed: Seed of the training, by which models are paired in reports; None if unknown.

    Raises:
        TypeError: ``pretrained`` is not a bool.

    Example:
        >>> ModelSpec("vit_tiny_patch16_224", pretrained=True).label
        'vit_tiny_patch16_224'
    """

    model: str
    checkpoint: Path | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int, int] | None = None
    crop_pct: float | None = None
    training_seed: int | None = None

    def __post_init__(self) -> None:
        check_flag("pretrained", self.pretrained)

    @property
    def label(self) -> str:
        """Default name in reports: the end of the path of the folder, or the names of the model and the checkpoint."""
        path = Path(self.model.removeprefix("local-dir:"))
        name = (
            "/".join(path.resolve().parts[-2:] if path.name in ("", "..") else path.parts[-2:]) if path.is_dir() else self.model
        )
        return printable(name if self.checkpoint is None else f"{name} {self.checkpoint.stem}")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Key that is equal for equal models, with paths relative to the working folder. `label` may be ambiguous."""
        path = Path(self.model.removeprefix("local-dir:"))
        name = os.path.relpath(path.resolve()) if path.is_dir() else self.model
        checkpoint = None if self.checkpoint is None else os.path.relpath(self.checkpoint.resolve())
        return name, checkpoint, self.pretrained, self.options, self.input_size, self.crop_pct

    def build(self) -> tuple[nn.Module, Preprocessing]:
        """Return the model in evaluation mode, and its preprocessing.

        Raises:
            ValueError: A name or an option is unknown, there are no weights, or the checkpoint does not fit the model.
        """
        name, pretrained = self.model, self.pretrained
        if (Path(name) / "metrics.jsonl").is_file() and not (Path(name) / "final.json").is_file():
            warnings.warn(f"{name} holds a run that has not finished. Its weights so far are evaluated.", stacklevel=2)
        name = next((f"{name}/{part}" for part in ("best", "last") if (Path(name) / part / "config.json").is_file()), name)
        if (Path(name) / "config.json").is_file():
            name = f"local-dir:{name}"
        if name.startswith("local-dir:"):
            check_folder(Path(name.removeprefix("local-dir:")))
        if name.startswith(("local-dir:", "hf-hub:")):
            pretrained = self.checkpoint is None
        if not pretrained and self.checkpoint is None:
            raise ValueError(
                f"{self.model} must have trained weights, got random weights. Give --checkpoint FILE, or --pretrained."
            )
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, **self.options)
        except (RuntimeError, TypeError, AssertionError, UnpicklingError, EOFError) as error:
            raise ValueError(f"{self.model}: {error}{plugins.hint(str(error))}") from error
        known = model.pretrained_cfg.get("num_classes")
        if pretrained and known is not None and known != model.num_classes:  # In this case timm leaves the classifier random.
            raise ValueError(
                f"num_classes must be {known}, as in the weights of {self.model}, got {model.num_classes}. Leave it out, or "
                "train a new classifier on these weights (model.checkpoint in a recipe)."
            )
        self._check_size(model)
        if self.checkpoint is not None:
            load_weights(model, self.checkpoint)
        config = resolve_model_data_config(model, use_test_size=True)
        config["input_size"] = self.input_size or _size_of(model, config["input_size"])
        config = Preprocessing.for_channels(config, config["input_size"][0])
        if self.crop_pct is not None:
            config["crop_pct"] = self.crop_pct
        return model.eval(), Preprocessing.of(config)

    def _check_size(self, model: Any) -> None:
        """Check the input size. Many models of timm take only one size, and raise a bare assertion error otherwise."""
        embed = getattr(model, "patch_embed", None)
        built = tuple(getattr(embed, "img_size", None) or ())
        if self.input_size and built and getattr(embed, "strict_img_size", False) and built != self.input_size[1:]:
            (height, width), asked = built, " x ".join(map(str, self.input_size[1:]))
            raise ValueError(
                f"--input-size of {self.model} must be {height} x {width}, got {asked}. Build the model for that size, with "
                f"img_size=[{','.join(map(str, self.input_size[1:]))}]."
            )


def _size_of(model: Any, known: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the input size of a model that was built for another size or other channels than in its configuration."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or known[1:]
    return (getattr(model, "in_chans", known[0]), *size)


@dataclass
class DatasetSpec:
    """Specification of the images to evaluate.

    Attributes:
        data: Name of the reader, as in a recipe's ``data.name``.
        root: Folder or file of the data.
        split: Split of the data. Empty for ``root`` itself.
        limit: Number of images in a random subset, drawn with ``seed``. Default: all images.
        skip_broken: Skip unreadable images and list them. Otherwise an unreadable image stops the evaluation.
        seed: Seed of the random subset, and of the split of ``digits``.
        image_column: Column of images in Hugging Face data, as in the section ``data`` of a recipe.
        label_column: Column of labels in Hugging Face data, as in the section ``data`` of a recipe.

    Raises:
        TypeError: ``skip_broken`` is not a bool, or ``limit`` is not a whole number.
        ValueError: ``limit`` is below 1.

    Example:
        >>> DatasetSpec("folder", "/data/imagenet", split="val", limit=1000).record
        {'name': 'folder', 'root': '/data/imagenet', 'split': 'val', 'limit': 1000, 'seed': 0}
    """

    data: str
    root: str
    split: str = ""
    limit: int | None = None
    skip_broken: bool = False
    seed: int = 0
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        check_flag("skip_broken", self.skip_broken)
        if self.limit is not None and check_whole("limit", self.limit) < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}. Leave it out to use all samples.")

    @property
    def record(self) -> dict[str, Any]:
        """Settings as in reports."""
        drawn = {"limit": self.limit, "seed": self.seed}
        return {"name": self.data, "root": self.root, "split": self.split, **self.columns, **drawn}

    @property
    def columns(self) -> dict[str, Any]:
        """Columns that are not None, by the names of their settings."""
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {key: column for key, column in columns.items() if column is not None}


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the weights, which is equal for models with equal weights."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def architecture_hash(model: nn.Module) -> str:
    """Return a hash of everything except weights: modules and their settings, such as the number of heads."""
    settings = [
        sorted((name, value) for name, value in vars(module).items() if isinstance(value, bool | int | float | str))
        for module in model.modules()
    ]
    return hashlib.sha256(f"{model!r}{settings}".encode()).hexdigest()


def folder_of_run(model: str) -> Path | None:
    """Return the folder of the run that ``model`` names, directly or by one of its checkpoints; None for other models."""
    folder = Path(model.removeprefix("local-dir:"))
    places = (folder, folder.parent) if folder.is_dir() else ()
    return next((place for place in places if (place / "recipe.yaml").is_file()), None)


def about_model(
    name: str,
    parameters: int,
    label: str | None = None,
    checkpoint: Path | None = None,
    training_seed: int | None = None,
) -> dict[str, Any]:
    """Return what a result says about its model.

    Args:
        name: Name of the model.
        parameters: Number of parameters.
        label: Label in tables and figures. Default: ``name``.
        checkpoint: File or folder of its weights. Default: none.
        training_seed: Seed of its training, which pairs models in reports. Default: unknown.

    Example:
        >>> about_model("nlm_vit_tiny", 5_717_416)["label"]
        'nlm_vit_tiny'
    """
    return {
        "label": printable(label or name),
        "model": name,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "training_seed": training_seed,
        "parameters": parameters,
    }


def model_hashes(model: nn.Module) -> dict[str, str]:
    """Return ``weights_sha256`` and ``architecture_sha256``, which tell models apart."""
    return {"weights_sha256": weights_hash(model), "architecture_sha256": architecture_hash(model)}
