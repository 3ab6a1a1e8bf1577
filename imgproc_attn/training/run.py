"""A training run from a recipe: what is built, what is kept, how it goes on after a crash."""

import time
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
from ..evaluation.normalization import InPrecision, NormalizedModel
from ..evaluation.scoring import Metric
from ..evaluation.session import EvaluationSession, Runtime
from ..models.checkpoints import WEIGHTS, start_from
from ..recipe import Recipe
from ..tasks.augmentation import mixup
from ..tasks.base import Loading, task_of
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


@dataclass
class Run:
    """A training run that is under way, in one of its processes.

    Args:
        recipe: Of a single model.
        folder: Where everything is kept.
        device: Of this process.
        world: Rank of this process and number of processes.
        say: Prints a line.

    Attributes:
        trainer: Trains.
        best: The best validation metric so far, in the first process; None without validation.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    world: World
    say: Callable[[str], Any] = print_line
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
                f"data.name={recipe.data.name!r} cannot be shared out exactly for evaluation in {self.world.size} "
                "processes; train with data.test_split=null and no data.validation_split, and evaluate in one process."
            )
        few = [len(images) for images in evaluated if not recipe.data.iterates and len(images) < self.world.size]
        if few:
            raise ValueError(f"There are {few[0]} images to evaluate on for {self.world.size} processes; train in fewer.")
        self.model = build_model(recipe)
        if recipe.model.checkpoint:
            notes = str(start_from(self.model, checkpoint_of(Path(recipe.model.checkpoint))))
            self.say(f"From {recipe.model.checkpoint}{notes and '; '}{notes}.")
        self.preprocessing = Preprocessing.of(self.model.pretrained_cfg)
        self.model.to(self.device, memory_format=torch.channels_last if recipe.run.channels_last else torch.contiguous_format)
        if recipe.run.grad_checkpointing:
            self.model.set_grad_checkpointing(True)
        training_task = self.task.training_task(recipe, self.model, self.preprocessing, self.device)
        loader = self.task.training_loader(recipe, self.splits.train, self._loading)
        if recipe.run.ema_decay is not None:
            training_task.setup_ema(decay=recipe.run.ema_decay)  # a copy of the bare model, before anything wraps it
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
                f"run.batch_size is {run.batch_size}, but must be a multiple of {parts}: {self.world.size} processes "
                f"times run.grad_accum_steps, {run.grad_accum_steps}."
            )
        if self.recipe.augmentation.mixes and run.batch_size // parts % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs, but each of {self.world.size} processes has {run.batch_size // parts} "
                "images a batch; change run.batch_size."
            )
        return run.batch_size // parts

    @property
    def metric(self) -> str:
        """Of an epoch's record, the number by which the best checkpoint is chosen."""
        return f"validation_{self.task.metrics[0].key}"

    @property
    def _sign(self) -> int:
        return 1 if self.task.metrics[0].higher_is_better else -1

    @property
    def chosen(self) -> str:
        """Which checkpoint the run ends with, the same in every process."""
        return LAST if self.splits.validation is None else BEST

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and kept: the model, or the moving average of its weights."""
        task = self.trainer.task
        return unwrap_model(task.get_eval_model(ema=task.has_ema()))

    def evaluate(self, images: Any) -> dict[str, Any]:
        """Return the numbers of the task on a split, over all processes."""
        asked: nn.Module = self.evaluated.eval()
        asked = InPrecision(asked, self.trainer.autocast) if self.recipe.run.amp else asked
        model = NormalizedModel(asked, self.preprocessing.mean, self.preprocessing.std).to(self.device).eval()
        batch_size = self.task.batch_limit or self._share_of_batch()
        runtime = Runtime(self.device, self.world, batch_size, self.recipe.data.workers)
        preprocessing, samples = self.task.preprocess(self.preprocessing), self.task.samples_of(images)
        session = EvaluationSession(model, self.task, preprocessing, runtime, progress=lambda name, samples: None)
        return self.task.count(session.run([clean_condition(samples, self.task)])[CLEAN])

    def introduce(self, records: list[dict[str, Any]], resume: bool) -> None:
        """Say what is about to happen, and on what."""
        recipe, updates = self.recipe, self.trainer.updates
        parameters = sum(p.numel() for p in self.model.parameters())
        splits: dict[str, Any] = {"training": self.splits.train}
        splits |= {"validation": self.splits.validation, "test": self.splits.test}
        counts = ", ".join(f"{len(images)} {name}" for name, images in splits.items() if images is not None)
        self.say(f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters, on {self.device} in {self.world.size} process(es)")
        self.say(f"{counts} images of {recipe.data.num_classes} classes; {updates} updates an epoch; {self.folder}")
        if records:
            self.say(f"Going on after epoch {len(records)} of {recipe.schedule.epochs}.")
        elif resume:
            self.say(f"Nothing to resume in {self.folder}: starting anew.")

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train, validate, look at the filters: the record of an epoch."""
        trained = self.trainer.train_epoch(epoch)
        record: dict[str, Any] = {"epoch": epoch, "train_loss": trained.pop("loss"), **trained}
        if self.splits.validation is not None:
            record |= {f"validation_{k}": v for k, v in self.evaluate(self.splits.validation).items()}
        if self.world.rank == 0:
            record |= self.watch(self.model) if self.watch else {}
            record["unreadable_images"] = len(self.unreadable.names())
        return record

    def keep(self, record: dict[str, Any], journal: RunLogger) -> None:
        """Write checkpoints and journal; a crash at any point leaves a whole state, of this epoch or the one before."""
        metric = record.get(self.metric)
        better = metric is not None and (self.best is None or self._sign * (metric - self.best) > 0)
        self.best = metric if better else self.best
        classes = getattr(self.splits.train, "classes", None)
        kept = weight_files(self.evaluated.state_dict(), self.model, model_kwargs(self.recipe), classes)
        files: Files = {}
        for part in [BEST] * better + [LAST]:
            files |= below(part, kept | recipe_file(self.recipe))
        self.manifest.write(files | self.state([*journal.records, record]))
        journal.add(record, self.task.draw_examples(self.recipe, self.evaluated.eval(), self.seen, self._loading))

    def state(self, records: list[dict[str, Any]]) -> Files:
        """What writes all it takes to go on after the epochs of ``records``."""
        return state_file({**self.trainer.state_dict(), "best": self.best, "records": records})

    def restore(self) -> list[dict[str, Any]]:
        """Go on from the folder's state; returns the records of the epochs behind it.

        Raises:
            ValueError: There is none, though there was; or it has changed since it was written.
        """
        if not (self.folder / STATE).is_file():
            raise ValueError(
                f"{self.folder} holds a run, but not its {STATE}, without which it cannot go on: begin anew with --restart, or "
                "give another --output. You can still evaluate the saved weights with `imgproc-attn evaluate`."
            )
        self.manifest.check(STATE, "Restore it, begin anew with --restart, or give another --output.")
        state = load_state(self.folder)
        self.trainer.load_state_dict(state)
        self.best = state["best"]
        return state["records"]

    def conclude(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Test what the run ends with, the best checkpoint or the last."""
        self.evaluated.load_state_dict(load_file(self.folder / self.chosen / WEIGHTS))
        values = [self._sign * r[self.metric] for r in records] if self.best is not None else []
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


def train(
    recipe: Recipe,
    output: str | Path,
    device: str = "auto",
    resume: bool = False,
    restart: bool = False,
    say: Callable[[str], Any] = print_line,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Train the model of a recipe; everything is kept in ``output``.

    Under ``torchrun`` each process calls it; the batch of the recipe is shared among them.

    Args:
        recipe: Of one model.
        output: Folder of the run: ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``,
            ``learning.png``, ``state.pt`` (to resume), ``last/`` and, with images held out to choose by, ``best/`` (weights and
            configuration, for ``timm.create_model("local-dir:…")``), ``final.json``.
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` for a GPU where there is one.
        resume: Go on after the last whole epoch, to exactly what an uninterrupted run ends with.
        restart: Remove the run in ``output``, once all that the new one needs is there.
        say: Prints a line.
        progress: Called with the number of epochs that are done, in place of a bar on the terminal.

    Returns:
        What ``final.json`` holds: metrics on the test split of the best checkpoint by validation, or of the last.

    Raises:
        FileNotFoundError: Data that is not there.
        FileExistsError: ``output`` holds a run, and neither ``resume`` nor ``restart`` was asked for; or files that the run
            would overwrite, and that no run wrote.
        FloatingPointError: The loss is not finite.
        ValueError: Whatever is wrong with recipe, data or checkpoint, or with files of the run, before anything is trained; or
            another process writes to ``output``.
        OSError: ``output`` cannot be written to, or the disk is full; the last checkpoint stays whole.
    """
    if not recipe.model.name or recipe.comparison is not None:
        raise ValueError("This recipe compares models: name one of its variants, or use `imgproc-attn compare`.")
    if resume and restart:
        raise ValueError("resume and restart must not both be set. Set restart to give up the run, resume to go on with it.")
    output = Path(output)
    check_name(output)
    check_output_folder(output)
    dry_run(recipe)
    place, world = start_processes(device)
    with locked(output) if world.rank == 0 else nullcontext():
        return _train_in(RunDir(output, recipe, resume, restart), place, world, resume, restart, say, progress)


def _train_in(
    folder: RunDir,
    device: torch.device,
    world: World,
    resume: bool,
    restart: bool,
    say: Callable[[str], Any],
    progress: Callable[[int], Any] | None,
) -> dict[str, Any]:
    """`train` in a folder that is free for it."""
    output, recipe, first = folder.path, folder.recipe, world.rank == 0
    finished = folder.finished()
    wait(world)  # all have looked before one writes
    if finished is not None:
        if first:
            say(f"{output} is finished. {_summary(finished, output, task_of(recipe).metrics)}")
        return finished
    run = _build(folder, device, world, say)
    if first and not folder.begun:
        check_round_trip(recipe, run.model, output)
    if restart and first:  # data and model are there: what was is given up for something
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
    wait(world)  # the chosen weights are written
    result = run.conclude(records)
    if first:
        folder.finish(result, run.splits)
    run.say(_summary(result, output, run.task.metrics))
    return result


def _build(folder: RunDir, device: torch.device, world: World, say: Callable[[str], Any]) -> Run:
    """The run, in a folder that lists what it may write already: the first images that it reads may be unreadable."""
    first = world.rank == 0
    if first:
        folder.claim()
    try:
        return Run(folder.recipe, folder.path, device, world, say if first else lambda line: None)
    except BaseException:
        if first:
            folder.manifest.settle()
        raise


def _train(run: Run, records: list[dict[str, Any]], progress: Callable[[int], Any] | None) -> None:
    """The epochs that are left."""
    epochs, first = run.recipe.schedule.epochs, run.world.rank == 0
    journal = RunLogger(run.folder, records, {m.key: m.label for m in run.task.metrics}) if first else None
    images = run.trainer.updates * run.recipe.run.batch_size
    shown = first and progress is None and on_terminal()  # elsewhere there is a line per epoch
    alone = progress is None and run.device.type == "cpu" and run.world.size == 1
    others = OtherPrograms(torch.get_num_threads()) if alone else None
    done = progress or (lambda epochs: None)
    with progress_bar(epochs * images, "images", initial=len(records) * images, shown=shown, unit_scale=True) as bar:
        run.trainer.progress = bar.update
        run.trainer.report = bar.set_postfix_str if shown else run.say
        done(len(records))
        for epoch in range(len(records), epochs):
            start = time.perf_counter()
            try:
                record = run.epoch(epoch)
            except NotFinite as error:
                good = f"The last good checkpoint: {run.folder / LAST}, of epoch {epoch}." if epoch else "No epoch was whole."
                message = f"{error} {good}"
                if error.images:
                    file = run.folder / not_finite(run.world.rank)
                    write_json(file, {"message": message, "images": error.images})
                    message = f"{message} All of its images: {file}."
                raise FloatingPointError(message) from error
            records.append(record)
            if journal is not None:
                run.keep(record, journal)
                run.say(_line(record, epochs, (time.perf_counter() - start) * (epochs - epoch - 1), run.task.metrics))
            done(len(records))
            if others is not None and (remark := others.remark()):
                run.say(remark + " With --threads 1, threads do not wait for each other." * (torch.get_num_threads() > 1))
    if journal is not None:
        journal.close()


def _line(record: dict[str, Any], epochs: int, seconds_left: float, metrics: Sequence[Metric]) -> str:
    parts = [f"epoch {record['epoch'] + 1}/{epochs}", f"loss {record['train_loss']:.4f}"]
    for metric in metrics:
        if (key := f"validation_{metric.key}") in record:
            parts.append(f"validation {metric.title} {record[key]:.2f} {metric.unit}")
    if record["unreadable_images"]:
        parts.append(f"{record['unreadable_images']} unreadable images skipped ({UNREADABLE})")
    return "  ".join([*parts, f"{record['images_per_second']:.0f} img/s", f"left {timedelta(seconds=round(seconds_left))}"])


def _summary(result: dict[str, Any], output: Path, metrics: Sequence[Metric]) -> str:
    test, weights = result["test"], output / result["checkpoint"]
    message = "no test split"
    if test:
        numbers = ", ".join(f"{metric.title} {test[metric.key]:.2f} {metric.unit}" for metric in metrics)
        count = f"{test['pixels']} pixels" if "pixels" in test else f"{test['n']} images"
        message = f"{numbers} of {count}"
    return f'Test: {message}. Weights: import imgproc_attn; timm.create_model("local-dir:{weights}", pretrained=True)'
