"""Train the model of a recipe: build it, write checkpoints, and resume after a crash."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.utils import unwrap_model
from torch import nn

from ..data import Preprocessing, Unreadable, World
from ..evaluation.conditions import CLEAN, clean_condition
from ..evaluation.normalization import InPrecision
from ..evaluation.scoring import Metric
from ..evaluation.session import EvaluationSession, Runtime
from ..models.checkpoints import WEIGHTS, start_from
from ..recipe import Recipe
from ..recipe.loading import check_one_model
from ..tasks.augmentation import mixup
from ..tasks.base import Loading, Task, task_of
from ..utils.cores import OtherPrograms
from ..utils.io import check_output_folder, write_json
from ..utils.locks import locked
from ..utils.manifest import Manifest
from ..utils.progress import on_terminal, print_line, progress_bar
from .checkpoints import STATE, Files, load_state, state_file, weight_files
from .distributed import first_alone, start_processes, wait
from .loop import NotFinite, Trainer
from .model_factory import build_model, check_round_trip, checkpoint_of, dry_run, model_kwargs
from .run_dir import BEST, LAST, UNREADABLE, RunDir, below, check_name, not_finite, recipe_file
from .run_logger import RunLogger
from .saturation_callback import SaturationCallback

__all__ = ["Run", "train"]


@dataclass
class Run:
    """State of a training run in one of its processes.

    Args:
        recipe: Recipe of one model.
        folder: Folder of the run.
        device: Device of this process.
        world: Rank of this process and number of processes.
        log: Function that prints a line.

    Attributes:
        trainer: Trainer of the run.
        best: Best validation metric so far, in the first process; None without validation.

    Raises:
        ValueError: The batch size, the data or the checkpoint does not fit the recipe or the number of processes.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    world: World
    log: Callable[[str], Any] = print_line
    best: float | None = None
    trainer: Trainer = field(init=False)

    def __post_init__(self) -> None:
        recipe, self.manifest = self.recipe, Manifest(self.folder)
        self.unreadable = Unreadable(self.folder / UNREADABLE)
        self.task = task_of(recipe)
        with first_alone(self.world) if recipe.data.download else nullcontext():
            self.splits = self.task.open_splits(recipe, self.unreadable, self._share_of_batch())
        evaluated = [images for images in (self.splits.validation, self.splits.test) if images is not None]
        if self.world.size > 1 and evaluated and recipe.data.iterates:
            raise ValueError(
                f"data.name must be a data set with random access to evaluate it in {self.world.size} processes, got "
                f"{recipe.data.name!r}. Set data.test_split=null, leave out data.validation_split, and evaluate in one process."
            )
        few = [len(images) for images in evaluated if not recipe.data.iterates and len(images) < self.world.size]
        if few:
            raise ValueError(
                f"The number of processes must be at most the number of {self.task.sample_noun} to evaluate, {few[0]}, got "
                f"{self.world.size}. Use fewer processes."
            )
        self.model = build_model(recipe)
        if recipe.model.checkpoint:
            notes = str(start_from(self.model, checkpoint_of(Path(recipe.model.checkpoint))))
            self.log(f"From {recipe.model.checkpoint}{notes and '; '}{notes}.")
        self.preprocessing = Preprocessing.of(self.model.pretrained_cfg)
        self.model.to(self.device, memory_format=torch.channels_last if recipe.run.channels_last else torch.contiguous_format)
        if recipe.run.grad_checkpointing:
            self.model.set_grad_checkpointing(True)
        training_task = self.task.training_task(recipe, self.model, self.preprocessing, self.device)
        loader = self.task.training_loader(recipe, self.splits.train, self._loading)
        if recipe.run.ema_decay is not None:
            training_task.setup_ema(
                decay=recipe.run.ema_decay
            )  # The average copies the model, so it is set up before the model is wrapped.
        if recipe.run.compile:
            training_task.compile()
        if self.world.size > 1:
            training_task.prepare_distributed(device_ids=[self.device] if self.device.type == "cuda" else None)
        mix = mixup(recipe.augmentation, recipe.data.num_classes, recipe.run.label_smoothing)
        self.trainer = Trainer(training_task, loader, recipe, self.world, mix)
        self.seen = next(i for i in (self.splits.validation, self.splits.test, self.splits.train) if i is not None)
        images = self.task.some_images(recipe, self.seen, self.preprocessing, self.device)
        self.watch = None if images is None else SaturationCallback(images)

    @property
    def _loading(self) -> Loading:
        return Loading(self.preprocessing, self._share_of_batch(), self.recipe.data.workers, self.device, self.world)

    def _share_of_batch(self) -> int:
        run, parts = self.recipe.run, self.recipe.run.grad_accum_steps * self.world.size
        if run.batch_size % parts:
            raise ValueError(
                f"run.batch_size must be a multiple of {parts} ({self.world.size} processes times run.grad_accum_steps, "
                f"{run.grad_accum_steps}), got {run.batch_size}. Change one of them."
            )
        if self.recipe.augmentation.mixes and run.batch_size // parts % 2:
            raise ValueError(
                f"The number of images per batch and process must be even for mixup and cutmix, got {run.batch_size // parts} "
                f"in each of {self.world.size} processes. Change run.batch_size."
            )
        return run.batch_size // parts

    @property
    def metric(self) -> str:
        """Key of the metric in an epoch's record that selects the best checkpoint."""
        return f"validation_{self.task.metrics[0].key}"

    @property
    def chosen(self) -> str:
        """Name of the checkpoint that the run ends with. It is the same in every process."""
        return LAST if self.splits.validation is None else BEST

    @property
    def evaluated(self) -> nn.Module:
        """Model that is evaluated and saved: the trained model, or the moving average of its weights."""
        task = self.trainer.task
        return unwrap_model(task.get_eval_model(ema=task.has_ema()))

    def evaluate(self, images: Any) -> dict[str, Any]:
        """Return the metrics of the task on a split, over all processes."""
        inner: nn.Module = self.evaluated.eval()
        inner = InPrecision(inner, self.trainer.autocast) if self.recipe.run.amp else inner
        model = self.task.wrap(inner, self.preprocessing.mean, self.preprocessing.std).to(self.device).eval()
        batch_size = self.task.batch_limit or self._share_of_batch()
        runtime = Runtime(self.device, self.world, batch_size, self.recipe.data.workers)
        preprocessing, samples = self.task.preprocess(self.preprocessing), self.task.samples_of(images)
        session = EvaluationSession(model, self.task, preprocessing, runtime, progress=lambda name, samples: None)
        return self.task.count(session.run([clean_condition(samples, self.task)])[CLEAN])

    def introduce(self, records: list[dict[str, Any]], resume: bool) -> None:
        """Print a summary of model, data and schedule before training."""
        recipe, updates = self.recipe, self.trainer.updates
        parameters = sum(p.numel() for p in self.model.parameters())
        splits: dict[str, Any] = {"training": self.splits.train}
        splits |= {"validation": self.splits.validation, "test": self.splits.test}
        counts = ", ".join(f"{len(images)} {name}" for name, images in splits.items() if images is not None)
        self.log(f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters, on {self.device} in {self.world.size} process(es)")
        kinds = f"{self.task.sample_noun} of {self.model.num_classes} {self.task.output_noun}"
        self.log(f"{counts} {kinds}; {updates} updates per epoch; {self.folder}")
        if records:
            self.log(f"Resuming after epoch {len(records)} of {recipe.schedule.epochs}.")
        elif resume:
            self.log(f"Nothing to resume in {self.folder}. Starting a new run.")
        if self.world.rank == 0:
            _warn_of_slow_average(recipe.run.ema_decay, updates * recipe.schedule.epochs)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train for one epoch, validate, check the filters for saturation, and return the record of the epoch."""
        trained = self.trainer.train_epoch(epoch)
        record: dict[str, Any] = {"epoch": epoch, "train_loss": trained.pop("loss"), **trained}
        if self.splits.validation is not None:
            try:
                numbers = self.evaluate(self.splits.validation)
            except FloatingPointError as error:  # float16 overflows, for one
                raise NotFinite(f"Validation after epoch {epoch + 1}: {error} {self.trainer.remedy}", []) from error
            record |= {f"validation_{key}": value for key, value in numbers.items()}
        if self.world.rank == 0:
            record |= self.watch(self.model) if self.watch else {}
            record["unreadable_images"] = len(self.unreadable.names())
        return record

    def keep(self, record: dict[str, Any], journal: RunLogger) -> None:
        """Write checkpoints and logs. A crash at any point leaves the complete state of this epoch or of the one before."""
        metric = record.get(self.metric)
        better = metric is not None and (self.best is None or self.task.metrics[0].sign * (metric - self.best) > 0)
        self.best = metric if better else self.best
        classes = getattr(self.splits.train, "classes", None)
        kept = weight_files(self.evaluated.state_dict(), self.model, model_kwargs(self.recipe), classes)
        files: Files = {}
        for part in [BEST] * better + [LAST]:
            files |= below(part, kept | recipe_file(self.recipe))
        self.manifest.write(files | self.state([*journal.records, record]))
        journal.add(record, self.task.examples_figure(self.recipe, self.evaluated.eval(), self.seen, self._loading))

    def state(self, records: list[dict[str, Any]]) -> Files:
        """Return the file of the state from which a run resumes after the epochs of ``records``."""
        return state_file({**self.trainer.state_dict(), "best": self.best, "records": records})

    def restore(self) -> list[dict[str, Any]]:
        """Restore the state of the folder, and return the records of its epochs.

        Raises:
            ValueError: The state is missing, or has changed since it was written.
        """
        if not (self.folder / STATE).is_file():
            raise ValueError(
                f"{self.folder} must hold {STATE} to resume the run, got no such file. Start again with --restart, or give "
                "another --output. You can still evaluate the saved weights with `imgproc-attn evaluate`."
            )
        self.manifest.check(STATE, "Restore it, start again with --restart, or give another --output.")
        state = load_state(self.folder)
        self.trainer.load_state_dict(state)
        self.best = state["best"]
        return state["records"]

    def conclude(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Test the best checkpoint, or the last one without validation, and return the result of the run."""
        self.evaluated.load_state_dict(load_file(self.folder / self.chosen / WEIGHTS))
        values = [self.task.metrics[0].sign * r[self.metric] for r in records] if self.best is not None else []
        return {
            "title": self.recipe.title,
            "model": self.recipe.model.name,
            "seed": self.recipe.run.seed,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": len(records),
            "seconds": sum(r["seconds"] for r in records),
            "losses": [r["train_loss"] for r in records],
            "checkpoint": self.chosen,
            "best_epoch": 1 + values.index(max(values)) if values else None,
            "validation": self.best,
            "test": None if self.splits.test is None else self.evaluate(self.splits.test),
        }


def _warn_of_slow_average(decay: float | None, updates: int) -> None:
    """Warn of a moving average whose ``1 / (1 - decay)`` updates are more than the run has."""
    if decay is None or updates >= round(1 / (1 - decay)):
        return
    warnings.warn(
        f"run.ema_decay must be at most {1 - 1 / updates:.4g} for {updates} updates, got {decay:g}: the average, which is "
        f"evaluated and saved, keeps {100 * decay**updates:.0f} % of the initial weights. Lower it, set run.ema_decay=null, or "
        "train for more epochs.",
        stacklevel=2,
    )


def train(
    recipe: Recipe,
    output: str | Path,
    device: str = "auto",
    resume: bool = False,
    restart: bool = False,
    log: Callable[[str], Any] = print_line,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Train the model of a recipe. All results are written to ``output``.

    Under ``torchrun``, each process calls this function. The batch of the recipe is divided among the processes. You can
    kill a run at any time. It resumes after the last finished epoch and ends with bit-identical weights (tested on CPU).

    Files in ``output``:

    - ``recipe.yaml``, ``data.json``, ``environment.json``: recipe, fingerprint of the images, versions and hardware,
    - ``metrics.jsonl``, ``tensorboard/``, ``learning.png``: one record per epoch, and curves,
    - ``state.pt``: state for resuming,
    - ``last/`` and, with validation images, ``best/``: weights and configuration for
      ``timm.create_model("local-dir:…")``,
    - ``final.json``: the result.

    Args:
        recipe: Recipe of one model.
        output: Folder of the run.
        device: ``cpu``, ``cuda`` or a device such as ``cuda:1``; ``auto`` for a GPU if there is one, else the CPU.
        resume: Whether to resume the run in ``output`` after its last finished epoch.
        restart: Whether to remove the run in ``output``. It is removed when model and data of the new run are ready.
        log: Function that prints a line of text.
        progress: Function that is called with the number of finished epochs, instead of a progress bar on the terminal.

    Returns:
        The content of ``final.json``: metrics on the test split of the best checkpoint by validation, or of the last
        checkpoint without validation.

    Raises:
        FileNotFoundError: Data is missing.
        FileExistsError: ``output`` holds a run, and neither ``resume`` nor ``restart`` is set; or it holds files that the run
            would overwrite and that no run wrote.
        FloatingPointError: The loss is not finite.
        ValueError: The recipe, the data, the checkpoint or files of the run are wrong (this is checked before training), or
            another process writes to ``output``.
        OSError: ``output`` cannot be written, or the disk is full. The last checkpoint stays complete.
    """
    check_one_model(recipe.comparison)
    if resume and restart:
        raise ValueError("resume and restart must not both be set, got True for both. Set restart to remove the run.")
    output = Path(output)
    check_name(output)
    check_output_folder(output)
    dry_run(recipe)
    own_device, world = start_processes(device)
    with locked(output) if world.rank == 0 else nullcontext():
        return _train_in(RunDir(output, recipe, resume, restart), own_device, world, resume, restart, log, progress)


def _train_in(
    folder: RunDir,
    device: torch.device,
    world: World,
    resume: bool,
    restart: bool,
    log: Callable[[str], Any],
    progress: Callable[[int], Any] | None,
) -> dict[str, Any]:
    """Train in a locked folder."""
    output, recipe, first = folder.path, folder.recipe, world.rank == 0
    finished = folder.finished()
    wait(world)  # All processes have checked the folder before one writes to it.
    if finished is not None:
        if first:
            log(f"{output} is finished. {_summary(finished, output, task_of(recipe))}")
        return finished
    run = _build(folder, device, world, log)
    if first and not folder.begun:
        check_round_trip(recipe, run.model, output)
    if restart and first:  # The old run is removed only when data and model of the new run are ready.
        RunDir.clear(output)
    if first:
        if folder.begun:
            folder.check_data(run.splits)
        folder.prepare(run.model, run.splits, str(device), world.size)
    wait(world)
    folder.check_shared(world.rank)
    records = run.restore() if folder.begun else []
    if records:
        folder.check_weights(run.chosen)
    if first and not folder.begun:
        run.manifest.write(run.state([]))
    run.introduce(records, resume)
    _train(run, records, progress)
    wait(world)  # The chosen weights are written by the first process.
    result = run.conclude(records)
    if first:
        folder.finish(result, run.splits)
    run.log(_summary(result, output, run.task))
    return result


def _build(folder: RunDir, device: torch.device, world: World, log: Callable[[str], Any]) -> Run:
    """Build the run.

    The first process lists the files of the run in the manifest before, because opening the data may write a list of
    unreadable images.
    """
    first = world.rank == 0
    if first:
        folder.claim()
    try:
        return Run(folder.recipe, folder.path, device, world, log if first else lambda line: None)
    except BaseException:
        if first:
            folder.manifest.settle()
        raise


def _train(run: Run, records: list[dict[str, Any]], progress: Callable[[int], Any] | None) -> None:
    """Train the remaining epochs."""
    epochs, first = run.recipe.schedule.epochs, run.world.rank == 0
    journal = RunLogger(run.folder, records, {m.key: m.label for m in run.task.metrics}) if first else None
    images = run.trainer.updates * run.recipe.run.batch_size
    shown = first and progress is None and on_terminal()  # In files, one line per epoch is printed.
    alone = progress is None and run.device.type == "cpu" and run.world.size == 1
    others = OtherPrograms(torch.get_num_threads()) if alone else None
    done = progress or (lambda epochs: None)
    noun = run.task.sample_noun
    with progress_bar(epochs * images, noun, initial=len(records) * images, shown=shown, unit_scale=True) as bar:
        run.trainer.progress = bar.update
        run.trainer.report = bar.set_postfix_str if shown else run.log
        done(len(records))
        for epoch in range(len(records), epochs):
            start = time.perf_counter()
            try:
                record = run.epoch(epoch)
            except NotFinite as error:
                good = f"Last good checkpoint: {run.folder / LAST}, of epoch {epoch}." if epoch else "No epoch was finished."
                message = f"{error} {good}"
                if error.images:
                    file = run.folder / not_finite(run.world.rank)
                    write_json(file, {"message": message, "images": error.images})
                    message = f"{message} All samples of the batch: {file}."
                raise FloatingPointError(message) from error
            records.append(record)
            if journal is not None:
                run.keep(record, journal)
                run.log(_line(record, epochs, (time.perf_counter() - start) * (epochs - epoch - 1), run.task.metrics))
            done(len(records))
            if others is not None and (remark := others.remark()):
                run.log(remark + " Use --threads 1 so that threads do not wait for each other." * (torch.get_num_threads() > 1))
    if journal is not None:
        journal.close()


def _line(record: dict[str, Any], epochs: int, seconds_left: float, metrics: Sequence[Metric]) -> str:
    parts = [f"epoch {record['epoch'] + 1}/{epochs}", f"loss {record['train_loss']:.4f}"]
    for metric in metrics:
        if (key := f"validation_{metric.key}") in record:
            parts.append(f"validation {metric.title} {metric.shown(record[key])} {metric.unit}".rstrip())
    if record["unreadable_images"]:
        parts.append(f"{record['unreadable_images']} unreadable images skipped ({UNREADABLE})")
    return "  ".join([*parts, f"{record['images_per_second']:.0f} samples/s", f"left {timedelta(seconds=round(seconds_left))}"])


def _summary(result: dict[str, Any], output: Path, task: Task) -> str:
    test, weights = result["test"], output / result["checkpoint"]
    message = "no test split"
    if test:
        numbers = ", ".join(f"{m.title} {m.shown(test[m.key])} {m.unit}".rstrip() for m in task.metrics)
        samples = f"{test['n']} {task.sample_noun}"
        count = next((f"{test[unit]} {unit}" for unit in ("pixels", "tokens") if unit in test), samples)
        message = f"{numbers} of {count}"
    return f'Test: {message}. Weights: import imgproc_attn; timm.create_model("local-dir:{weights}", pretrained=True)'
