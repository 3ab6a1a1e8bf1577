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
    Unreadable,
    check_classes,
    evaluation_loader,
    open_images,
)
from ..environment import environment
from ..files import write_json, write_text
from ..models.checkpoints import load_weights
from .accuracy import accuracy_table, count_accuracy, count_real, names_hash, predict


@dataclass
class Subject:
    """What is evaluated.

    Attributes:
        model: A timm name, ``local-dir:FOLDER``, ``hf-hub:NAME``, or a folder with timm's ``config.json``, as training leaves.
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
        limit: Only the first so many images.
        real_labels: ``real.json``, for ImageNet's validation set.
        seed: Of the split of ``digits``.

    Returns:
        What ``result.json`` holds.
    """
    model, preparation = subject.build()
    model.to(device)
    channels, classes = preparation.input_size[0], int(model.num_classes)  # type: ignore[arg-type]
    reader: Any = open_images(data, root, split, seed, mode="L" if channels == 1 else "RGB")
    labels = getattr(reader, "class_to_idx", None)
    check_classes(labels, classes, names=(split or data, ""))
    unreadable = Unreadable()
    images: Any = reader
    if not isinstance(reader, IterableDataset):
        chosen = None if limit is None else range(min(limit, len(reader)))
        images = Images(reader, classes, chosen, channels, "ignore" if skip_broken else "stop", unreadable)
    loader = evaluation_loader(images, preparation, batch_size, workers, device, processes)
    total, hidden = None if images is reader else len(images), None if processes.rank == 0 else True
    with tqdm(total=total, unit="img", disable=hidden) as bar:
        predictions = predict(model, loader, autocast, processes, bar.update)
    result: dict[str, Any] = {
        "model": subject.model,
        "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
        "data": {"name": data, "root": root, "split": split},
        "preparation": preparation._asdict(),
        **count_accuracy(predictions, labels),
        "unreadable": unreadable.names(),
        "images_per_second": len(predictions.labels) / predictions.seconds,
        "environment": environment(str(device)),
    }
    if isinstance(images, Images):
        result["names_sha256"] = names_hash(images)
        if real_labels is not None:
            result["real"] = count_real(predictions, [images.name(i) for i in range(len(images))], real_labels)
    elif real_labels is not None:
        raise ValueError("ReaL labels belong to files by name; this reader has none. Use a folder.")
    if processes.rank == 0:
        _write(result, predictions, images, output)
    return result


def _write(result: dict[str, Any], predictions: Any, images: Any, output: Path) -> None:
    write_json(output / "result.json", result)
    write_text(output / "result.md", accuracy_table(result) + "\n")
    write_text(output / "per_class.csv", _csv(list(result["per_class"][0]), [list(r.values()) for r in result["per_class"]]))
    names = [images.name(i) for i in range(len(images))] if isinstance(images, Images) else range(len(predictions.labels))
    rows = [
        [name, label, *top]
        for name, label, top in zip(names, predictions.labels.tolist(), predictions.top.tolist())
        if label != IGNORED
    ]
    write_text(
        output / "predictions.csv", _csv(["image", "label", *(f"top{i + 1}" for i in range(predictions.top.shape[1]))], rows)
    )


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
