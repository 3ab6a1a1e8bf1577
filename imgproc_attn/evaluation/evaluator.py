"""The evaluator: streams samples through a model under several conditions, and can be killed at any moment."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data import SINGLE_PROCESS, World, readable
from ..utils.locks import locked
from .conditions import Condition, Verdict
from .flags import ResultsLog, SampleResults
from .samples import Prepared, Samples


def weights_hash(model: nn.Module) -> str:
    """Equal for models of equal weights."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def architecture_hash(model: nn.Module) -> str:
    """Equal for models that compute alike: weights do not tell of heads, temperatures, or a fixed residual rule."""
    settings = [
        sorted((name, value) for name, value in vars(module).items() if isinstance(value, bool | int | float | str))
        for module in model.modules()
    ]
    return hashlib.sha256(f"{model!r}{settings}".encode()).hexdigest()


@dataclass
class Evaluator:
    """Asks a model under conditions, and keeps a flag a sample.

    SampleResults depend on nothing but the model, the sample and the condition: on no batch, no number of processes, no interruption.
    (Up to rounding: batches of another size may be summed in another order.) Data is told apart by names, and by the content
    of a few images.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        preprocessing: How it wants its images; normalization is the model's own business.
        folder: Where flags are kept, one for all processes. What it holds already is not computed again.
        protocol: What else the flags depend on; flags of another protocol are refused.
        device: Of this process.
        world: Rank of this process and number of processes.
        batch_size: Of this process.
        workers: Processes that read.
        progress: Called with the number of samples that have been done, all processes together.
    """

    model: nn.Module
    preprocessing: Prepared
    folder: Path
    protocol: Mapping[str, Any]
    device: torch.device
    world: World = SINGLE_PROCESS
    batch_size: int = 64
    workers: int = 0
    progress: Callable[[str, int], Any] = lambda condition, samples: None

    _group: Any = None

    def __call__(self, conditions: Sequence[Condition]) -> dict[str, SampleResults]:
        """The flags of every condition, by name; in all processes.

        Raises:
            ValueError: Two conditions of one name; flags of another protocol; images or settings that do not fit the model;
                another process that writes to the folder.
        """
        names = [condition.name for condition in conditions]
        if len(set(names)) < len(names):
            raise ValueError(f"Conditions need names of their own, but these are {', '.join(names)}.")
        with locked(self.folder) if self.world.rank == 0 else nullcontext():
            return self._ask(conditions)

    def _ask(self, conditions: Sequence[Condition]) -> dict[str, SampleResults]:
        self._wait()  # nobody reads what another one is about to remove
        files = {condition.name: self._file(condition) for condition in conditions}
        done = {name: file.done for name, file in files.items()}
        self._wait()  # nobody writes before everybody has read
        for condition in conditions:
            left = condition.samples.without(done[condition.name])
            self.progress(condition.name, len(condition.samples) - len(left))
            self._judge(condition, left.share(*self.world), files[condition.name])
        self._wait()
        return {condition.name: self._flags(condition, files[condition.name]) for condition in conditions}

    def _file(self, condition: Condition) -> ResultsLog:
        protocol = {
            **self.protocol,
            "images": condition.samples.identity,
            "preprocessing": self._preprocessing(condition)._asdict(),
            "condition": {"name": condition.name, **condition.settings},
        }
        file = ResultsLog(self.folder, condition.name, protocol, self.world.rank)
        file.check_ids(condition.samples.ids)
        return file

    def _preprocessing(self, condition: Condition) -> Prepared:
        return condition.preprocessing or self.preprocessing

    @torch.no_grad()
    def _judge(self, condition: Condition, samples: Samples, file: ResultsLog) -> None:
        preprocessing = self._preprocessing(condition)
        for images, labels, ids in samples.batches(preprocessing, self.batch_size, self.workers, self.device):
            kept = readable(labels)
            judged: Verdict | None = None
            if kept.any():
                judged = condition.judge(self.model, images[kept], labels[kept], ids[kept])
            file.add(ids[kept], judged, ids[~kept])
            self.progress(condition.name, len(ids) * self.world.size)
        file.close()

    def _flags(self, condition: Condition, file: ResultsLog) -> SampleResults:
        file.read()
        missing = condition.samples.without(torch.cat([file.done, file.unreadable]))
        if len(missing):
            raise ValueError(
                f"{condition.name}: {len(missing)} of {len(condition.samples)} samples have no flag in {self.folder}. All "
                "processes must see one folder; give an --output that they share."
            )
        return file.flags

    def _wait(self) -> None:
        if self.world.size == 1:
            return
        if self._group is None:  # gloo, and patient: attacks take some processes hours longer than others
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        dist.barrier(self._group)


Batch = tuple[Tensor, Tensor, Tensor]  # images in [0, 1], labels, numbers


def only_readable(batch: Batch) -> Batch:
    """A batch of `Samples.batches` without the images that could not be read."""
    kept = readable(batch[1])
    return batch[0][kept], batch[1][kept], batch[2][kept]


def images_of(samples: Samples, preprocessing: Prepared, device: torch.device, ids: Tensor) -> Batch:
    """Images in [0, 1], labels and numbers of a few samples of one size, by number; unreadable ones left out."""
    return only_readable(next(samples.only(ids).batches(preprocessing, max(len(ids), 1), 0, device)))
