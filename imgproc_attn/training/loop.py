"""The loop: a task, a loader, timm's optimizer and schedule; the same for classification, segmentation and text."""

import itertools
import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..data import SINGLE_PROCESS, World
from ..evaluation.per_sample_rng import mix_seeds
from ..recipe.schema import Optimizer, Recipe, Schedule


def seed_everything(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's generators from several numbers."""
    seed = mix_seeds(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(seed)


def build_optimizer(model: nn.Module, o: Optimizer) -> torch.optim.Optimizer:
    """Timm's optimizer; 1-D parameters, bandwidths among them, and what the model says do not decay.

    Args:
        model: Bare: wrapped in DDP or compiled, it would hide its groups from timm.
        o: The recipe's section.

    Raises:
        ValueError: No such optimizer, or one that takes no betas and is given some.
    """
    if o.betas is not None and not get_optimizer_info(o.name).has_betas:
        raise ValueError(f"optimizer.betas is {o.betas}, but {o.name} has none; leave it out.")
    given: dict[str, Any] = {} if o.betas is None else {"betas": tuple(o.betas)}
    return create_optimizer_v2(
        model,
        o.name,
        lr=o.lr,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        layer_decay=o.layer_decay,
        fallback_no_weight_decay=True,  # tables of positions are no matrices that Muon could orthogonalise
        **given,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, s: Schedule, updates: int) -> Any:
    """Timm's schedule, stepped by update."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=s.name,
        num_epochs=s.epochs,
        warmup_epochs=s.warmup_epochs,
        warmup_lr=s.warmup_lr,
        min_lr=s.min_lr,
        decay_rate=s.power,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return scheduler


class NotFinite(FloatingPointError):
    """A loss, or weights, that are not finite.

    Attributes:
        images: Names of the batch, in this process; none of weights.
    """

    def __init__(self, message: str, images: list[str]) -> None:
        super().__init__(message)
        self.images = images


@dataclass
class Trainer:
    """Trains a task, epoch by epoch; an epoch depends on the state before it, the seed and its number alone.

    (But for sets that can only be iterated over: they shuffle by themselves.)

    Args:
        task: Model and loss, and the moving average of the weights if there is to be one; its ``start_epoch``, if it has
            one, is called before each epoch.
        loader: Batches ``(input, target)`` on the device: a ``DataLoader``, or one inside timm's ``PrefetchLoader``. Its
            sampler or set is told the epoch if it has ``set_epoch``; its set names images if it has ``name``.
        recipe: Optimizer, schedule and run.
        world: Rank of this process and number of processes.
        mixup: timm's, applied to batches.
        progress: Called with the number of images of each batch, over all processes.
        report: Called with a line at each look at the loss but the last of an epoch.

    Attributes:
        optimizer: timm's.
        scaler: For float16.
        updates: Updates an epoch.
    """

    task: TrainingTask
    loader: Any
    recipe: Recipe
    world: World = SINGLE_PROCESS
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    progress: Callable[[int], Any] = lambda images: None
    report: Callable[[str], Any] = lambda line: None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        run = self.recipe.run
        self.updates = len(self.loader) // run.grad_accum_steps
        if self.updates == 0:
            raise ValueError(
                f"run.grad_accum_steps is {run.grad_accum_steps}, but an epoch has {len(self.loader)} batches of "
                f"{run.batch_size // run.grad_accum_steps} images; lower run.batch_size."
            )
        self.optimizer = build_optimizer(unwrap_model(self.task.get_trainable_module()), self.recipe.optimizer)
        self._scheduler = build_scheduler(self.optimizer, self.recipe.schedule, self.updates)
        device = self.task.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=run.amp == "float16")
        self.autocast = autocast(device, run.amp)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the images.

        Returns:
            ``loss``, ``lr``, ``seconds`` and ``images_per_second``.

        Raises:
            NotFinite: A loss that is not finite, the message names the update and its images; or weights after the last one.
            ValueError: The loader gave fewer batches than it announces.
        """
        run, start = self.recipe.run, time.perf_counter()
        seed_everything(run.seed, epoch, self.world.rank)
        set_epoch(self.loader, mix_seeds(run.seed, epoch) % 2**31)
        getattr(self.task, "start_epoch", lambda epoch: None)(epoch)
        self.task.train()
        total, recent, seen = 0.0, [], 0
        batches = itertools.islice(self.loader, self.updates * run.grad_accum_steps)
        for i, (images, targets) in enumerate(batches):
            seen += 1
            last = (i + 1) % run.grad_accum_steps == 0
            if last:
                self._scheduler.step_update(epoch * self.updates + i // run.grad_accum_steps)
            recent.append(self._backward(images, targets, last))
            if last:
                self._update(epoch * self.updates + i // run.grad_accum_steps)
            if len(recent) == run.log_every * run.grad_accum_steps or i + 1 == self.updates * run.grad_accum_steps:
                found = self._checked(recent, epoch, i + 1 - len(recent))
                total += found
                if i + 1 < self.updates * run.grad_accum_steps:
                    self._report(epoch, i // run.grad_accum_steps, found / len(recent), time.perf_counter() - start)
                recent = []
            self.progress(len(images) * self.world.size)
        if seen < self.updates * run.grad_accum_steps:
            raise ValueError(
                f"Epoch {epoch + 1} must have {self.updates * run.grad_accum_steps} batches, as the training split announces, "
                f"got {seen}. Look for images that are missing or were skipped, or correct the number of images announced."
            )
        self._check_weights(epoch)
        seconds = time.perf_counter() - start
        count = self.updates * run.grad_accum_steps
        return {
            "loss": self._mean_over_processes(total / count),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "seconds": seconds,
            "images_per_second": self.updates * run.batch_size / seconds,
        }

    def _report(self, epoch: int, update: int, loss: float, seconds: float) -> None:
        speed = (update + 1) * self.recipe.run.batch_size / seconds
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.report(f"epoch {epoch + 1}, update {update + 1}/{self.updates}: loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} img/s")

    def _backward(self, images: Tensor, targets: Tensor, last: bool) -> Tensor:
        """Add the batch's gradient; between processes it is averaged with the last batch of an update."""
        if self.recipe.run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with nullcontext() if last else self.task.no_sync():
            with self.autocast():
                loss = self.task(images, targets)["loss"]
            self.scaler.scale(loss / self.recipe.run.grad_accum_steps).backward()
        return loss.detach()

    def _update(self, update: int) -> None:
        clip = self.recipe.optimizer.clip_grad
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.task.get_clip_parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.task.update_ema(step=update + 1)

    def _checked(self, losses: list[Tensor], epoch: int, first: int) -> float:
        """Their sum, if all are finite."""
        values = torch.stack(losses).tolist()
        for batch, value in enumerate(values, first):
            if not math.isfinite(value):
                names, update = self.batch_names(batch), batch // self.recipe.run.grad_accum_steps + 1
                raise NotFinite(
                    f"The loss is {value} in epoch {epoch + 1}, update {update}/{self.updates}; its "
                    f"images: {', '.join(names[:8]) or 'not known'}{', …' if len(names) > 8 else ''}. {self._remedy}",
                    names,
                )
        return sum(values)

    def _check_weights(self, epoch: int) -> None:
        """No loss has seen the last update yet, and what is not finite must not replace the last checkpoint."""
        weights = unwrap_model(self.task.get_trainable_module()).parameters()
        if not torch.stack([w.detach().isfinite().all() for w in weights]).all():
            raise NotFinite(f"The weights are not finite after the last update of epoch {epoch + 1}. {self._remedy}", [])

    @property
    def _remedy(self) -> str:
        o = self.recipe.optimizer
        return f"Lower optimizer.lr, now {o.lr}, or optimizer.clip_grad, now {o.clip_grad}."

    def batch_names(self, batch: int) -> list[str]:
        """The images of a batch of the present epoch, in this process; empty where the reader has no order of its own."""
        loader = _data_loader(self.loader)
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "name"):
            return []
        indices = itertools.islice(iter(loader.sampler), batch * loader.batch_size, (batch + 1) * loader.batch_size)
        return [loader.dataset.name(i) for i in indices]

    def _mean_over_processes(self, value: float) -> float:
        if self.world.size == 1:
            return value
        mean = torch.tensor(value, dtype=torch.float64, device=self.task.device)
        dist.all_reduce(mean)
        return mean.item() / self.world.size

    def state_dict(self) -> dict[str, Any]:
        """All an epoch depends on, as ``torch.load(weights_only=True)`` takes it."""
        averaged = self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}
        return {
            **self.task.get_checkpoint_state(),
            **averaged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def autocast(device: str, dtype: str | None) -> Callable[[], AbstractContextManager]:
    """Torch's autocast to ``bfloat16`` or ``float16``; for None nothing happens."""
    return nullcontext if dtype is None else partial(torch.autocast, device, getattr(torch, dtype))


def _data_loader(loader: Any) -> Any:
    """Torch's, inside timm's or by itself."""
    return getattr(loader, "loader", loader)


def set_epoch(loader: Any, epoch: int) -> None:
    """Reshuffle: of the sampler, or of a set that shuffles itself."""
    for part in (_data_loader(loader).sampler, _data_loader(loader).dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
