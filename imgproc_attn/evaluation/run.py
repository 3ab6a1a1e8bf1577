"""`imgproc-attn evaluate`: clean accuracy of a model, and the numbers in a folder."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..data import SINGLE_PROCESS, UNREADABLE_LABEL, Images, World, evaluation_loader
from ..utils.environment import arithmetic, environment
from ..utils.io import check_output_folder, write_csv, write_json, write_text
from ..utils.manifest import claimed
from ..utils.progress import progress_bar
from .accuracy import Predictions, accuracy_table, count_accuracy, count_real, load_real, names_hash, predict
from .evaluator import architecture_hash, weights_hash
from .results import BY_CLASS, MARKDOWN, OUTPUTS, PREDICTIONS, RESULT
from .subject import ImageSource, ModelSpec


def evaluate_classifier(
    subject: ModelSpec,
    source: ImageSource,
    output: Path,
    device: torch.device,
    world: World = SINGLE_PROCESS,
    *,
    batch_size: int = 128,
    workers: int = 2,
    autocast: Any,
    dtype: str = "float32",
    real: bool = False,
    real_labels: Path | None = None,
) -> dict[str, Any]:
    """Evaluate on a split, and write ``result.json``, ``per_class.csv`` and ``predictions.csv`` to ``output``.

    Args:
        subject: Model and weights.
        source: Images.
        output: Made if need be.
        device: Of this process.
        world: Rank of this process and number of processes.
        batch_size: Of this process.
        workers: Processes that read.
        autocast: Context of the forward pass.
        dtype: Its name, for the record.
        real: Also count by ReaL labels, for ImageNet's validation set.
        real_labels: Their file, ``real.json``. Default: timm's copy.

    Returns:
        What ``result.json`` holds.

    Raises:
        FileExistsError: ``output`` holds files that would be overwritten, and that no evaluation wrote.
        ValueError: Settings that do not fit model or images; another process writes to ``output``.
    """
    check_output_folder(output)
    model, preprocessing = subject.build()
    images = source.open(model, preprocessing.input_size[0])
    weights, architecture = weights_hash(model), architecture_hash(model)
    model = source.restrict(model).to(device)
    if isinstance(images, IterableDataset) and (source.limit is not None or not source.skip_broken):
        raise ValueError(
            f"{source.data!r} gives no images by number, and skips broken ones: no --limit, and say --skip-broken."
        )
    names = [images.name(i) for i in range(len(images))] if isinstance(images, Images) else []
    if real and not names:
        raise ValueError(f"ReaL labels belong to files by name, and {source.data!r} has none; give --data folder.")
    real_answers = load_real(names, real_labels) if real else None
    with nullcontext() if world.rank else claimed(output, OUTPUTS):
        loader = evaluation_loader(images, preprocessing, batch_size, workers, device, world)
        with progress_bar(len(names) or None, shown=world.rank == 0) as bar:
            predictions = predict(model, loader, autocast, world, bar.update)
        if isinstance(images, Images) and (predictions.labels == UNREADABLE_LABEL).all():
            raise images.none_readable()
        names = names or [str(i) for i in range(len(predictions.labels))]
        result: dict[str, Any] = {
            "model": subject.model,
            "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
            "options": {key: str(value) for key, value in subject.options.items()},
            "training_seed": subject.training_seed,
            "weights_sha256": weights,
            "architecture_sha256": architecture,
            "dtype": dtype,
            "arithmetic": arithmetic(device),
            "data": {**source.record, "names_sha256": names_hash(names)},
            "preprocessing": preprocessing._asdict(),
            **count_accuracy(predictions, getattr(images, "classes", None)),
            **({} if real_answers is None else {"real": count_real(predictions.top[:, 0], predictions.labels, real_answers)}),
            "unreadable": [name for name, label in zip(names, predictions.labels.tolist()) if label == UNREADABLE_LABEL],
            "images_per_second": len(names) / predictions.seconds,
            "environment": {**environment(str(device)), "processes": world.size},
        }
        if world.rank == 0:
            _write(result, predictions, names, output)
        return result


def _write(result: dict[str, Any], predictions: Predictions, names: list[str], output: Path) -> None:
    write_json(output / RESULT, result)
    write_text(output / MARKDOWN, accuracy_table(result) + "\n")
    write_csv(output / BY_CLASS, [list(result["per_class"][0]), *(list(r.values()) for r in result["per_class"])])
    found = zip(names, predictions.labels.tolist(), predictions.top.tolist())
    ranks = [f"top{i + 1}" for i in range(predictions.top.shape[1])]
    rows = [[name, label, *top] for name, label, top in found if label != UNREADABLE_LABEL]
    write_csv(output / PREDICTIONS, [["image", "label", *ranks], *rows])
