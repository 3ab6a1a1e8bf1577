"""Training loop over a task and a loader, with timm's optimizers and schedules. It is the same for all tasks."""

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
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..data import SINGLE_PROCESS, World
from ..evaluation.per_sample_rng import mix_seeds
from ..recipe import Recipe
from ..recipe.sections import Optimizer, Schedule
from ..utils.suggestions import did_you_mean

__all__ = ["NotFinite", "Trainer", "autocast", "build_optimizer", "build_scheduler", "seed_everything", "set_epoch"]


def seed_everything(*numbers: int) -> None:
    """Seed the generators of Python, NumPy and torch from several numbers.

    Example:
        >>> seed_everything(0, 1)
        >>> first = torch.rand(())
        >>> seed_everything(0, 1)
        >>> torch.equal(first, torch.rand(()))
        True
    """
    seed = mix_seeds(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from the global generator
    torch.manual_seed(seed)


def build_optimizer(model: nn.Module, o: Optimizer) -> torch.optim.Optimizer:
    """Build timm's optimizer.

    There is no weight decay for 1-D parameters, such as bandwidths, and for the parameters that ``no_weight_decay`` of the
    model names.

    Args:
        model: Model that is neither compiled nor wrapped in DDP. Otherwise, timm would not find its parameter groups.
        o: Section ``optimizer`` of the recipe.

    Raises:
        ValueError: The optimizer is unknown, is not installed, does not work on this machine, or has no betas although the
            recipe gives some.

    Example:
        >>> build_optimizer(nn.Linear(2, 2), Optimizer(name="sgd", lr=0.1)).param_groups[0]["lr"]
        0.1
    """
    if o.name.lower() not in list_optimizers():
        hint = did_you_mean(o.name.lower(), map(str, list_optimizers()), otherwise="Use 'adamw' or 'lion'.")
        raise ValueError(f"optimizer.name must be an optimizer of timm, got {o.name!r}. {hint}")
    if o.betas is not None and not get_optimizer_info(o.name).has_betas:
        raise ValueError(f"optimizer.betas must be left out for {o.name}, which has none, got {o.betas}. Remove it.")
    given: dict[str, Any] = {} if o.betas is None else {"betas": tuple(o.betas)}
    try:
        return create_optimizer_v2(
            model,
            o.name,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            layer_decay=o.layer_decay,
            fallback_no_weight_decay=True,  # Muon must not orthogonalize tables of positions.
            **given,
        )
    except (AssertionError, ImportError) as error:  # timm asserts that APEX, bitsandbytes and CUDA are there
        raise ValueError(
            f"optimizer.name must be an optimizer that is installed and works on this machine, got {o.name!r} ({error}). Use "
            "one of timm's own, such as 'adamw' or 'lion', or install what it needs."
        ) from error


def build_scheduler(optimizer: torch.optim.Optimizer, s: Schedule, updates: int) -> Any:
    """Build timm's schedule of the learning rate, with one step per update.

    Args:
        optimizer: Optimizer whose learning rate is set.
        s: Section ``schedule`` of the recipe.
        updates: Number of updates per epoch.
    """
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
    """Error of a loss, or of weights, that are not finite.

    Attributes:
        images: Names of the images of the batch in this process. Empty if weights are not finite.
    """

    def __init__(self, message: str, images: list[str]) -> None:
        super().__init__(message)
        self.images = images


@dataclass
class Trainer:
    """Train a task epoch by epoch.

    An epoch depends only on the state before it, the seed and its number. Data sets that can only be iterated over are an
    exception, because they shuffle by themselves.

    Args:
        task: timm's task: model, loss and optionally a moving average of the weights. If it has ``start_epoch``, this is
            called with the number of each epoch before it.
        loader: Batches ``(input, target)`` on the device: a ``DataLoader``, or timm's ``PrefetchLoader`` around one. Before
            each epoch, ``set_epoch`` of its sampler and data set is called with a random number, and ``start_epoch`` of its
            data set with the number of the epoch, if they have these methods. If its data set has ``name``, errors name the
            images.
        recipe: Recipe with optimizer, schedule and run.
        world: Rank of this process and number of processes.
        mixup: timm's mixup, applied to batches. Default: none.
        progress: Function that is called after each batch with its number of images over all processes.
        report: Function that is called with a line of text every ``run.log_every`` updates, except at the end of an epoch.

    Attributes:
        optimizer: timm's optimizer.
        scaler: Gradient scaler for float16.
        updates: Number of updates per epoch.

    Raises:
        ValueError: An epoch has fewer batches than ``run.grad_accum_steps``.
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
                f"run.grad_accum_steps must be at most the number of batches per epoch, {len(self.loader)}, got "
                f"{run.grad_accum_steps}. Lower run.batch_size."
            )
        self.optimizer = build_optimizer(unwrap_model(self.task.get_trainable_module()), self.recipe.optimizer)
        self._scheduler = build_scheduler(self.optimizer, self.recipe.schedule, self.updates)
        device = self.task.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=run.amp == "float16")
        self.autocast = autocast(device, run.amp)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            ``loss``, the mean training loss; ``lr``, the largest learning rate of the last update; ``seconds``;
            ``images_per_second``.

        Raises:
            NotFinite: A loss is not finite, or weights are not finite after the last update. For a loss, the message names
                the update and its images.
            ValueError: The loader gave fewer batches than its length.
        """
        run, start = self.recipe.run, time.perf_counter()
        seed_everything(run.seed, epoch, self.world.rank)
        set_epoch(self.loader, mix_seeds(run.seed, epoch) % 2**31)
        for part in (self.task, _data_loader(self.loader).dataset):
            getattr(part, "start_epoch", lambda epoch: None)(epoch)
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
                loss = self._checked(recent, epoch, i + 1 - len(recent))
                total += loss
                if i + 1 < self.updates * run.grad_accum_steps:
                    self._report(epoch, i // run.grad_accum_steps, loss / len(recent), time.perf_counter() - start)
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
        place = f"epoch {epoch + 1}, update {update + 1}/{self.updates}"
        self.report(f"{place}: loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} samples/s")

    def _backward(self, images: Tensor, targets: Tensor, last: bool) -> Tensor:
        """Add the gradient of a batch. Processes average their gradients in the last batch of an update."""
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
        """Return the sum of the losses, or raise an error if one is not finite."""
        values = torch.stack(losses).tolist()
        for batch, value in enumerate(values, first):
            if not math.isfinite(value):
                names, update = self.batch_names(batch), batch // self.recipe.run.grad_accum_steps + 1
                raise NotFinite(
                    f"The loss must be finite, got {value} in epoch {epoch + 1}, update {update}/{self.updates}; "
                    f"samples: {', '.join(names[:8]) or 'not known'}{', …' if len(names) > 8 else ''}. {self.remedy}",
                    names,
                )
        return sum(values)

    def _check_weights(self, epoch: int) -> None:
        """Check that the weights are finite after the last update, so that the last checkpoint is not replaced otherwise.

        The losses do not show this, because none was computed after the last update.
        """
        weights = unwrap_model(self.task.get_trainable_module()).parameters()
        if not torch.stack([w.detach().isfinite().all() for w in weights]).all():
            raise NotFinite(
                f"The weights must be finite, got inf or nan after the last update of epoch {epoch + 1}. {self.remedy}", []
            )

    @property
    def remedy(self) -> str:
        o = self.recipe.optimizer
        return f"Lower optimizer.lr, now {o.lr}, or optimizer.clip_grad, now {o.clip_grad}."

    def batch_names(self, batch: int) -> list[str]:
        """Return the names of the images of a batch of the current epoch in this process.

        The list is empty for data sets that can only be iterated over or that do not name images.
        """
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
        """Return all state on which the next epoch depends. ``torch.load(weights_only=True)`` can load it."""
        averaged = self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}
        return {
            **self.task.get_checkpoint_state(),
            **averaged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def autocast(device: str, dtype: str | None) -> Callable[[], AbstractContextManager]:
    """Return a factory of contexts that autocast to a dtype.

    Args:
        device: Type of the device, ``cpu`` or ``cuda``.
        dtype: ``bfloat16`` or ``float16``; None for no autocast.

    Example:
        >>> with autocast("cpu", "bfloat16")():
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.bfloat16
    """
    return nullcontext if dtype is None else partial(torch.autocast, device, getattr(torch, dtype))


def _data_loader(loader: Any) -> Any:
    """Return torch's loader, which may be inside timm's."""
    return getattr(loader, "loader", loader)


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of the sampler and of the data set, if they have ``set_epoch``, so that they shuffle again."""
    for part in (_data_loader(loader).sampler, _data_loader(loader).dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
