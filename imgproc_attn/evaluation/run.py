"""`imgproc-attn evaluate`: a model by name, checkpoint or run folder, a reader, and the numbers in a folder."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ..data import (
    ALONE,
    IGNORED,
    Images,
    Preparation,
    Processes,
    check_classes,
    evaluation_loader,
    open_images,
    some_of,
)
from ..environment import environment
from ..files import write_json, write_text
from ..models.checkpoints import load_weights
from .accuracy import Predictions, accuracy_table, count_accuracy, count_real, load_real, names_hash, predict


@dataclass
class Subject:
    """What is evaluated.

    Attributes:
        model: A timm name, ``local-dir:FOLDER``, ``hf-hub:NAME``, a run's folder (its best weights, or its last), or one with
            timm's ``config.json``.
        checkpoint: File of weights to load; None for what the name brings.
        pretrained: Load timm's trained weights of that name; folders bring theirs.
        options: Keyword arguments of the model.
        input_size: Of what the model gets. Default: the model's.
        crop_pct: Default: the model's.
    """

    model: str
    checkpoint: Path | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int, int] | None = None
    crop_pct: float | None = None

    def build(self) -> tuple[nn.Module, Preparation]:
        """The model in evaluation mode, and how it wants its images.

        Raises:
            ValueError: Unknown names or options, or a checkpoint of another model.
        """
        name, pretrained = self.model, self.pretrained
        name = next((f"{name}/{part}" for part in ("best", "last") if (Path(name) / part / "config.json").is_file()), name)
        if (Path(name) / "config.json").is_file():
            name = f"local-dir:{name}"
        if name.startswith(("local-dir:", "hf-hub:")):
            pretrained = self.checkpoint is None
        if not pretrained and self.checkpoint is None:
            raise ValueError(f"{self.model} would be evaluated with random weights; give --checkpoint FILE, or --pretrained.")
        try:
            model = timm.create_model(name, pretrained=pretrained, **self.options)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(f"{self.model}: {error}") from error
        if self.checkpoint is not None:
            load_weights(model, self.checkpoint)
        config = resolve_model_data_config(model, use_test_size=True)
        if self.input_size is not None:
            config["input_size"] = self.input_size
        if self.crop_pct is not None:
            config["crop_pct"] = self.crop_pct
        return model.eval(), Preparation.of(config)


def evaluate_classifier(
    subject: Subject,
    data: str,
    root: str,
    split: str,
    output: Path,
    device: torch.device,
    processes: Processes = ALONE,
    *,
    batch_size: int = 128,
    workers: int = 2,
    autocast: Any,
    skip_broken: bool = False,
    limit: int | None = None,
    real_labels: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate on a split, and write ``result.json``, ``per_class.csv`` and ``predictions.csv`` to ``output``.

    Args:
        subject: Model and weights.
        data: Reader, as in a recipe's ``data.name``.
        root: Folder or file.
        split: Of the data; empty for ``root`` itself.
        output: Made if need be.
        device: Of this process.
        processes: Which process this is.
        batch_size: Of this process.
        workers: Processes that read.
        autocast: Context of the forward pass.
        skip_broken: Leave out unreadable images, and name them; else they stop it.
        limit: Only so many images, drawn at random from ``seed``.
        real_labels: ``real.json``, for ImageNet's validation set.
        seed: Of that draw, and of the split of ``digits``.

    Returns:
        What ``result.json`` holds.
    """
    model, preparation = subject.build()
    model.to(device)
    images = _open(data, root, split, seed, preparation.input_size[0], model, limit, skip_broken)
    names = [images.name(i) for i in range(len(images))] if isinstance(images, Images) else []
    if real_labels is not None and not names:
        raise ValueError(f"ReaL labels belong to files by name, and {data!r} has none; give --data folder.")
    real = None if real_labels is None else load_real(names, real_labels)
    loader = evaluation_loader(images, preparation, batch_size, workers, device, processes)
    with tqdm(total=len(names) or None, unit="img", disable=None if processes.rank == 0 else True) as bar:
        predictions = predict(model, loader, autocast, processes, bar.update)
    names = names or [str(i) for i in range(len(predictions.labels))]
    result: dict[str, Any] = {
        "model": subject.model,
        "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
        "data": {"name": data, "root": root, "split": split, "names_sha256": names_hash(names)},
        "preparation": preparation._asdict(),
        **count_accuracy(predictions, getattr(images, "classes", None)),
        **({} if real is None else {"real": count_real(predictions, real)}),
        "unreadable": [name for name, label in zip(names, predictions.labels.tolist()) if label == IGNORED],
        "images_per_second": len(names) / predictions.seconds,
        "environment": {**environment(str(device)), "processes": processes.world},
    }
    if processes.rank == 0:
        _write(result, predictions, names, output)
    return result


def _open(data: str, root: str, split: str, seed: int, channels: int, model: Any, limit: int | None, skip: bool) -> Any:
    """The images, with as many classes as the model has."""
    reader: Any = open_images(data, root, split, seed, mode="L" if channels == 1 else "RGB")
    known = model.pretrained_cfg.get("label_names")
    trained = {name: label for label, name in enumerate(known)} if known else None
    check_classes(getattr(reader, "class_to_idx", None), model.num_classes, trained, (split or data, "trained on"))
    if isinstance(reader, IterableDataset):
        if limit is not None or not skip:
            raise ValueError(f"{data!r} gives no images by number, and skips broken ones: no --limit, and say --skip-broken.")
        return reader
    chosen = some_of(len(reader), limit, seed)
    return Images(reader, model.num_classes, chosen, channels, "ignore" if skip else "stop")


def _write(result: dict[str, Any], predictions: Predictions, names: list[str], output: Path) -> None:
    write_json(output / "result.json", result)
    write_text(output / "result.md", accuracy_table(result) + "\n")
    write_text(output / "per_class.csv", _csv(list(result["per_class"][0]), [list(r.values()) for r in result["per_class"]]))
    found = zip(names, predictions.labels.tolist(), predictions.top.tolist())
    ranks = [f"top{i + 1}" for i in range(predictions.top.shape[1])]
    rows = [[name, label, *top] for name, label, top in found if label != IGNORED]
    write_text(output / "predictions.csv", _csv(["image", "label", *ranks], rows))


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
