"""A training run from a recipe: what is built, what its folder keeps, how it goes on after a crash."""

import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.utils import init_distributed_device, unwrap_model
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ..data import Images, Processes, Unreadable, check_classes, evaluation_loader, open_images, training_loader
from ..diagnostics import saturation
from ..environment import environment
from ..evaluation.classification import evaluate_loader
from ..files import write_json, write_text
from ..models import FilterVisionTransformer
from ..models.checkpoints import WEIGHTS, load_weights
from .augmentation import mixup, training_transform
from .checkpoints import STATE, load_state, save_state, save_weights
from .journal import Journal
from .loop import Trainer, seed_everything
from .recipe import Recipe
from .tasks import build_task

RECIPE, ENVIRONMENT, FINAL, UNREADABLE, BEST, LAST = (
    "recipe.yaml",
    "environment.json",
    "final.json",
    "unreadable.txt",
    "best",
    "last",
)
SATURATED = 0.01  # share of filter rows above which a warning is due


def start_processes(device: str) -> tuple[torch.device, Processes]:
    """Join the processes that torchrun or SLURM started, if any; with several GPUs, each takes its own."""
    if dist.is_available() and dist.is_initialized():
        processes = Processes(dist.get_rank(), dist.get_world_size())
        return torch.device(device if device == "cpu" else torch.cuda.current_device()), processes
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {device}, but torch sees no GPU; use --device cpu.")
    found = SimpleNamespace(device=device)
    place = init_distributed_device(found)
    return place, Processes(found.rank, found.world_size)


def create(recipe: Recipe, **kwargs: Any) -> nn.Module:
    """The recipe's model, freshly initialised from its seed, or with the trained weights it names.

    Its ``pretrained_cfg`` says how the recipe prepares images.
    """
    seed_everything(recipe.run.seed)
    model = timm.create_model(recipe.model.name, **{**arguments(recipe), "pretrained": recipe.model.pretrained, **kwargs})
    data = recipe.data
    given = data.model_dump(include={"input_size", "mean", "std", "interpolation", "crop_pct"}, exclude_none=True)
    for values in ("mean", "std"):
        if values in given and len(given[values]) not in (1, data.input_size[0]):
            raise ValueError(
                f"data.{values} has {len(given[values])} values for {data.input_size[0]} channels; give one a channel."
            )
    config = resolve_data_config(given, model=model)
    model.pretrained_cfg = {**model.pretrained_cfg, **config, "num_classes": data.num_classes}
    return model


def arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the recipe's model, without those that say which weights it starts from."""
    options = recipe.model.model_dump(exclude={"name", "pretrained", "checkpoint"})
    return {"num_classes": recipe.data.num_classes, "in_chans": recipe.data.input_size[0], **options}


def check(recipe: Recipe) -> None:
    """Build model and optimiser once without memory, and push an image through, so that no mistake waits behind a long start.

    Raises:
        ValueError: A model or an optimiser that cannot be built, or a model that does not take the recipe's images.
    """
    try:
        model = create(recipe, device="meta", pretrained=False)
        create_optimizer_v2(model, recipe.optimiser.name, lr=recipe.optimiser.lr)
        output = model.eval()(torch.empty(1, *recipe.data.input_size, device="meta"))
    except NotImplementedError:  # an operation without a meta form: nothing can be said
        return
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{recipe.model.name}: {error}") from error
    if tuple(output.shape) != (1, recipe.data.num_classes):
        raise ValueError(f"{recipe.model.name} gives {list(output.shape)}, not one logit for each of data.num_classes classes.")


@dataclass
class Splits:
    """The images of a recipe."""

    train: Images | IterableDataset
    validation: Images | IterableDataset | None
    test: Images | IterableDataset | None


def open_splits(recipe: Recipe, unreadable: Unreadable) -> Splits:
    """Open what a recipe trains, chooses and tests on.

    Raises:
        FileNotFoundError: Data that is not there.
        ValueError: Splits with differing classes, more images asked for than there are, or as `open_images`.
    """
    data, batch = recipe.data, recipe.run.batch_size
    skip = data.broken_images == "skip"

    def opened(split: str, training: bool = False) -> Any:
        mode = "L" if data.input_size[0] == 1 else "RGB"
        return open_images(data.name, data.root, split, data.seed, training, batch, mode)

    def images(reader: Any, indices: Any, training: bool = False) -> Images | IterableDataset:
        if isinstance(reader, IterableDataset):
            return reader
        policy: Any = ("replace" if training else "ignore") if skip else "stop"
        return Images(reader, data.num_classes, indices, data.input_size[0], policy, unreadable)

    train = opened(data.train_split, training=True)
    others = {name: None if split is None else opened(split) for name, split in _other_splits(recipe)}
    classes = getattr(train, "class_to_idx", None)
    for name, reader in others.items():
        check_classes(classes, data.num_classes, getattr(reader, "class_to_idx", None), (data.train_split, name))
    kept, held_out = _shares(recipe, train)
    validation = images(train, held_out) if held_out is not None else None
    if others["validation"] is not None:
        validation = images(others["validation"], None)
    test = others["test"]
    return Splits(
        images(train, kept, training=True),
        validation,
        None if test is None else images(test, None if data.test_images is None else range(min(data.test_images, len(test)))),
    )


def _other_splits(recipe: Recipe) -> list[tuple[str, str | None]]:
    return [("validation", recipe.data.validation_split), ("test", recipe.data.test_split)]


def _shares(recipe: Recipe, train: Any) -> tuple[list[int] | None, list[int] | None]:
    """Indices to train on and to hold out, drawn at random; None for all, and for none."""
    data = recipe.data
    if not data.validation_images and data.train_images is None:
        return None, None
    if isinstance(train, IterableDataset):
        raise ValueError(
            f"data.validation_images and data.train_images cannot be taken from {data.name!r}: name a split instead."
        )
    wanted = data.validation_images + (data.train_images or 1)
    if wanted > len(train):
        raise ValueError(
            f"data.validation_images and data.train_images ask for {wanted} images, but the split has {len(train)}."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(data.seed)).tolist()
    held_out, rest = order[: data.validation_images], order[data.validation_images :]
    return sorted(rest[: data.train_images]), sorted(held_out) if held_out else None


class Folder:
    """The folder of a run.

    Args:
        path: Made if need be.
        recipe: What the run does.
        resume: Go on with what the folder holds.

    Raises:
        FileExistsError: It holds a run, and ``resume`` was not asked for.
        ValueError: It holds a run of another recipe; the message says what changed.
    """

    def __init__(self, path: Path, recipe: Recipe, resume: bool) -> None:
        self.path, self.recipe = path, recipe
        known = path / RECIPE
        if known.exists() and not resume:
            raise FileExistsError(f"{path} holds a run already: go on with --resume, or give another --output.")
        if known.exists():
            self._refuse_changes(Recipe.model_validate(yaml.safe_load(known.read_text(encoding="utf-8"))))

    def _refuse_changes(self, before: Recipe) -> None:
        changed = []
        flat_before, flat_now = _flat(before.model_dump()), _flat(self.recipe.model_dump())
        for key in sorted(flat_before.keys() | flat_now.keys()):
            a, b = flat_before.get(key, "not there"), flat_now.get(key, "not there")
            if a != b and key not in ("data.root", "run.log_every", "title"):
                changed.append(f"{key}: {a} -> {b}")
        if changed:
            raise ValueError(
                f"{self.path} holds a run of another recipe, which cannot go on under this one. Changed: {'; '.join(changed)}. "
                "Undo the change, or give another --output."
            )

    def prepare(self, model: nn.Module, device: str) -> None:
        """Write what the run is, and make sure that there is room for its checkpoints.

        Raises:
            OSError: The folder cannot be written to, or the disk has too little room.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.rglob(".*-*"):  # of writes that a crash cut off
            left.unlink()
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        copies = 4 + (self.recipe.run.ema_decay is not None)  # weights, two moments, and one of each that is being replaced
        needed, free = 2 * copies * weights + 2**24, shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path}: {free / 2**20:.0f} MiB are free, but the checkpoints of this run need up to {needed / 2**20:.0f} MiB."
            )
        write_text(self.path / RECIPE, yaml.safe_dump(self.recipe.model_dump(), sort_keys=False, allow_unicode=True))
        write_json(self.path / ENVIRONMENT, environment(device))


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


@dataclass
class Run:
    """A training run that is under way.

    Attributes:
        recipe: Of a single model.
        folder: Where everything is kept.
        device: Of this process.
        processes: Which process this is.
        say: Prints a line.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    processes: Processes
    say: Callable[[str], Any]
    best: float | None = None
    trainer: Trainer = field(init=False)

    def __post_init__(self) -> None:
        recipe, data = self.recipe, self.recipe.data
        self.unreadable = Unreadable(self.folder / UNREADABLE)
        self.splits = open_splits(recipe, self.unreadable)
        self.model = create(recipe)
        if recipe.model.checkpoint:
            load_weights(self.model, Path(recipe.model.checkpoint))
        cfg: Any = self.model.pretrained_cfg
        self.mean, self.std = cfg["mean"], cfg["std"]
        form = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=form)
        if recipe.run.checkpoint_blocks:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.splits.train.transform = training_transform(  # type: ignore[union-attr]
            recipe.augmentation, data.input_size, data.interpolation
        )
        loader = training_loader(
            self.splits.train,
            self.mean,
            self.std,
            self._share_of_batch(),
            data.workers,
            self.device,
            self.processes,
            recipe.augmentation.repeats,
            recipe.augmentation.erasing,
        )
        task = build_task(recipe, self.model, self.mean, self.std, self.device)
        if recipe.run.compile:
            task.compile()
        if self.processes.count > 1:
            task.prepare_distributed(device_ids=[self.device] if self.device.type == "cuda" else None)
        self.trainer = Trainer(
            task, loader, recipe, self.processes, mixup(recipe.augmentation, data.num_classes, recipe.run.label_smoothing)
        )

    def _share_of_batch(self) -> int:
        run, parts = self.recipe.run, self.recipe.run.accumulate * self.processes.count
        if run.batch_size % parts:
            raise ValueError(
                f"run.batch_size is {run.batch_size}, but must be a multiple of {parts}: {self.processes.count} processes times "
                f"run.accumulate, {run.accumulate}."
            )
        return run.batch_size // parts

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and kept: the model, or the moving average of its weights."""
        task = self.trainer.task
        model = task.get_eval_model(ema=task.has_ema())
        return model if self.recipe.run.compile else unwrap_model(model)

    def evaluate(self, images: Images | IterableDataset) -> dict[str, float]:
        """Metrics of the task on a split, over all processes."""
        data, cfg = self.recipe.data, (self.mean, self.std)
        loader = evaluation_loader(
            images,
            data.input_size,
            *cfg,
            data.interpolation,
            data.crop_pct,
            self._share_of_batch(),
            data.workers,
            self.device,
            self.processes,
        )
        task: Any = self.trainer.task
        model = self.evaluated.eval()
        return evaluate_loader(model, loader, task.create_evaluator(), self.trainer.autocast, self.processes.count > 1)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train, validate, look at the filters: the record of an epoch."""
        trained = self.trainer.train_epoch(epoch)
        record: dict[str, Any] = {"epoch": epoch, "train_loss": trained.pop("loss"), **trained}
        if self.splits.validation is not None:
            record |= {f"validation_{k}": v for k, v in self.evaluate(self.splits.validation).items()}
        if self.processes.rank == 0:
            record |= self._look_at_filters()
            record["unreadable_images"] = len(self.unreadable.names())
        return record

    def _look_at_filters(self) -> dict[str, float]:
        """Warn of saturated filters: they train badly, and feign robustness to attacks that follow the gradient."""
        model = unwrap_model(self.trainer.task.get_trainable_module())
        if not isinstance(model, FilterVisionTransformer):
            return {}
        share = saturation(model.eval(), self._probe)
        if share > SATURATED:
            warnings.warn(
                f"{100 * share:.1f} % of the filter's rows copy one token (a weight above 1 - 1e-4): hardly any gradient reaches "
                "their bandwidths, queries and keys. A smaller learning rate or a larger initial bandwidth helps.",
                stacklevel=2,
            )
        return {"saturated_rows": share}

    @property
    def _probe(self) -> Tensor:
        """Four images as evaluation sees them."""
        if not hasattr(self, "_images"):
            source = self.splits.validation or self.splits.test
            data = self.recipe.data
            if isinstance(source, Images):
                source = Images(source.reader, data.num_classes, source.indices[:4], data.input_size[0])
                loader = evaluation_loader(
                    source, data.input_size, self.mean, self.std, data.interpolation, data.crop_pct, 4, 0, self.device
                )
                self._images = next(iter(loader))[0]
            else:
                self._images = next(iter(self.trainer.loader))[0][:4]
        return self._images

    def keep(self, record: dict[str, Any], journal: Journal) -> None:
        """Write checkpoints and journal; a crash at any point leaves a whole state, of this epoch or the one before."""
        epoch = record["epoch"] + 1
        metric = record.get("validation_" + self.trainer.task.create_evaluator().default_metric)
        weights = self.evaluated.state_dict() if not self.recipe.run.compile else unwrap_model(self.evaluated).state_dict()
        if metric is not None and (self.best is None or metric > self.best):
            self.best = metric
            save_weights(weights, self.model, arguments(self.recipe), self.folder / BEST)
        save_weights(weights, self.model, arguments(self.recipe), self.folder / LAST)
        records = [*journal.records, record]
        save_state({**self.trainer.state_dict(), "epoch": epoch, "best": self.best, "records": records}, self.folder)
        journal.add(record)

    def restore(self) -> list[dict[str, Any]]:
        """Go on from the folder's state; the records of the epochs behind it."""
        if not (self.folder / STATE).exists():
            return []
        state = load_state(self.folder)
        self.trainer.load_state_dict(state)
        self.best = state["best"]
        return state["records"]

    def conclude(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Test what the run ends with, the best checkpoint or the last."""
        chosen = BEST if self.best is not None else LAST
        unwrap_model(self.evaluated).load_state_dict(load_file(self.folder / chosen / WEIGHTS))
        result: dict[str, Any] = {"title": self.recipe.title, "model": self.recipe.model.name, "seed": self.recipe.run.seed}
        result |= {"checkpoint": chosen, "epochs": len(records), "parameters": sum(p.numel() for p in self.model.parameters())}
        result |= {"seconds": sum(r["seconds"] for r in records), "losses": [r["train_loss"] for r in records]}
        if self.best is not None:
            result["validation"] = self.best
        if self.splits.test is not None:
            result["test"] = self.evaluate(self.splits.test)
        return result


def train(
    recipe: Recipe, output: Path, device: str = "cpu", resume: bool = False, say: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Train the model of a recipe; everything is kept in ``output``.

    Under ``torchrun`` each process calls it; the batch of the recipe is shared among them.

    Args:
        recipe: Of one model.
        output: Folder of the run: ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``learning.png``,
            ``state.pt`` (to resume), ``best/`` and ``last/`` (weights and configuration, for ``timm.create_model("local-dir:…")``),
            ``final.json``.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        resume: Go on after the last whole epoch, to exactly what an uninterrupted run ends with.
        say: Prints a line.

    Returns:
        What ``final.json`` holds: metrics on the test split of the best checkpoint by validation, or of the last.

    Raises:
        FileNotFoundError: Data that is not there.
        FileExistsError: ``output`` holds a run, and ``resume`` was not asked for.
        FloatingPointError: The loss is not finite.
        ValueError: Whatever is wrong with recipe, data or checkpoint, before anything is trained.
    """
    if not recipe.model.name:
        raise ValueError("This recipe compares models: name one of its variants, or use `imgproc-attn compare`.")
    check(recipe)
    place, processes = start_processes(device)
    first = processes.rank == 0
    folder = Folder(output, recipe, resume)
    if processes.count > 1:
        dist.barrier()  # all have looked before one writes
    run = Run(recipe, output, place, processes, say if first else lambda line: None)
    if first:
        folder.prepare(run.model, str(place))
    if processes.count > 1:
        dist.barrier()
    records = run.restore() if resume else []
    if first:
        journal = Journal(output, records)
        if not records:
            save_state({**run.trainer.state_dict(), "epoch": 0, "best": None, "records": []}, output)
    with _bar(recipe, run.trainer, len(records), first) as bar:
        run.trainer.progress = bar.update
        for epoch in range(len(records), recipe.schedule.epochs):
            start = time.perf_counter()
            try:
                record = run.epoch(epoch)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} The last good checkpoint, after epoch {epoch - 1}: {output / LAST}."
                ) from error
            records.append(record)
            if first:
                run.keep(record, journal)
                left = timedelta(seconds=round((time.perf_counter() - start) * (recipe.schedule.epochs - epoch - 1)))
                run.say(_line(record, recipe.schedule.epochs, left))
    if processes.count > 1:
        dist.barrier()  # the chosen weights are written
    result = run.conclude(records)
    if first:
        journal.close()
        write_json(output / FINAL, result)
    return result


def _bar(recipe: Recipe, trainer: Trainer, done: int, shown: bool) -> tqdm:
    images = trainer.updates * recipe.run.batch_size
    return tqdm(
        total=recipe.schedule.epochs * images,
        initial=done * images,
        unit="img",
        unit_scale=True,
        dynamic_ncols=True,
        disable=None if shown else True,  # None: only on a terminal
    )


def _line(record: dict[str, Any], epochs: int, left: timedelta) -> str:
    parts = [f"epoch {record['epoch'] + 1}/{epochs}", f"loss {record['train_loss']:.4f}"]
    if "validation_top1" in record:
        parts.append(f"validation top-1 {record['validation_top1']:.2f} %")
    if record["unreadable_images"]:
        parts.append(f"{record['unreadable_images']} unreadable images skipped (unreadable.txt)")
    return "  ".join([*parts, f"{record['images_per_second']:.0f} img/s", f"left {left}"])
