"""What is evaluated: a model by name, checkpoint or run folder, and the images of a reader."""

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


@dataclass
class ModelSpec:
    """What is evaluated.

    Attributes:
        model: A timm name, ``local-dir:FOLDER``, ``hf-hub:NAME``, a run's folder (its best weights, or its last), or one with
            timm's ``config.json``.
        checkpoint: File of weights to load; None for what the name brings.
        pretrained: Load timm's trained weights of that name; folders bring theirs.
        options: Keyword arguments of the model.
        input_size: Of what the model gets. Default: the model's.
        crop_pct: Default: the model's.
        training_seed: Of its training, by which models are paired; None if unknown.
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
        """What reports call it, unless told otherwise: the end of its folder's path, or its name and its checkpoint's."""
        path = Path(self.model.removeprefix("local-dir:"))
        name = (
            "/".join(path.resolve().parts[-2:] if path.name in ("", "..") else path.parts[-2:]) if path.is_dir() else self.model
        )
        return printable(name if self.checkpoint is None else f"{name} {self.checkpoint.stem}")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for equal models as seen from the working folder, which `label` is not."""
        path = Path(self.model.removeprefix("local-dir:"))
        name = os.path.relpath(path.resolve()) if path.is_dir() else self.model
        checkpoint = None if self.checkpoint is None else os.path.relpath(self.checkpoint.resolve())
        return name, checkpoint, self.pretrained, self.options, self.input_size, self.crop_pct

    def build(self) -> tuple[nn.Module, Preprocessing]:
        """The model in evaluation mode, and how it wants its images.

        Raises:
            ValueError: Unknown names or options, or a checkpoint of another model.
        """
        name, pretrained = self.model, self.pretrained
        if (Path(name) / "metrics.jsonl").is_file() and not (Path(name) / "final.json").is_file():
            warnings.warn(f"{name} holds a run that has not ended; its weights are those so far.", stacklevel=2)
        name = next((f"{name}/{part}" for part in ("best", "last") if (Path(name) / part / "config.json").is_file()), name)
        if (Path(name) / "config.json").is_file():
            name = f"local-dir:{name}"
        if name.startswith("local-dir:"):
            check_folder(Path(name.removeprefix("local-dir:")))
        if name.startswith(("local-dir:", "hf-hub:")):
            pretrained = self.checkpoint is None
        if not pretrained and self.checkpoint is None:
            raise ValueError(f"{self.model} would be evaluated with random weights; give --checkpoint FILE, or --pretrained.")
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, **self.options)
        except (RuntimeError, TypeError, AssertionError, UnpicklingError, EOFError) as error:
            raise ValueError(f"{self.model}: {error}{plugins.hint(str(error))}") from error
        known = model.pretrained_cfg.get("num_classes")
        if pretrained and known is not None and known != model.num_classes:  # timm then leaves the classifier random
            raise ValueError(
                f"num_classes must be {known}, as the weights of {self.model} have it, got {model.num_classes}. Leave it out, "
                "or train a new classifier from them (model.checkpoint of a recipe)."
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
        """Many of timm's models take one size alone, and say so by an assertion."""
        embed = getattr(model, "patch_embed", None)
        built = tuple(getattr(embed, "img_size", None) or ())
        if self.input_size and built and getattr(embed, "strict_img_size", False) and built != self.input_size[1:]:
            (height, width), asked = built, " x ".join(map(str, self.input_size[1:]))
            raise ValueError(
                f"{self.model} takes {height} x {width} pixels alone, not --input-size {asked}; build it for that size, "
                f"with img_size=[{','.join(map(str, self.input_size[1:]))}]."
            )


def _size_of(model: Any, known: tuple[int, int, int]) -> tuple[int, int, int]:
    """What a model takes that was built for another size or other channels than its configuration says."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or known[1:]
    return (getattr(model, "in_chans", known[0]), *size)


@dataclass
class DatasetSpec:
    """Which images are evaluated.

    Attributes:
        data: Name of the reader, as in a recipe's ``data.name``.
        root: Folder or file.
        split: Split of the data; empty for ``root`` itself.
        limit: Number of images, drawn at random from ``seed``. Default: all.
        skip_broken: Leave out unreadable images and name them; otherwise they stop the evaluation.
        seed: Seed of that draw, and of the split of ``digits``.
        image_column: Column of images in Hugging Face data, as in a recipe's section ``data``.
        label_column: Column of labels, likewise.
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
            raise ValueError(f"limit must be at least 1, got {self.limit}. Leave it out for all images.")

    @property
    def record(self) -> dict[str, Any]:
        """The settings, for reports."""
        drawn = {"limit": self.limit, "seed": self.seed}
        return {"name": self.data, "root": self.root, "split": self.split, **self.columns, **drawn}

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that are named."""
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {key: column for key, column in columns.items() if column is not None}


def weights_hash(model: nn.Module) -> str:
    """Return a hash that is equal for models of equal weights."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def architecture_hash(model: nn.Module) -> str:
    """Return a hash of everything but weights: heads, temperatures, a fixed residual rule."""
    settings = [
        sorted((name, value) for name, value in vars(module).items() if isinstance(value, bool | int | float | str))
        for module in model.modules()
    ]
    return hashlib.sha256(f"{model!r}{settings}".encode()).hexdigest()


def model_hashes(model: nn.Module) -> dict[str, str]:
    """Return ``weights_sha256`` and ``architecture_sha256``, which tell models apart."""
    return {"weights_sha256": weights_hash(model), "architecture_sha256": architecture_hash(model)}
