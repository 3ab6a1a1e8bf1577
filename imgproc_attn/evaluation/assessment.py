"""One model under many conditions: what ``attack``, ``corrupt`` and ``shift`` share, from its name to a folder of results."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import IterableDataset

from ..data import SINGLE_PROCESS, Preprocessing, World
from ..utils.environment import arithmetic, environment, sources_hash, versions
from ..utils.io import check_output_folder, printable, read_json, write_atomically, write_json
from ..utils.manifest import claimed
from ..utils.progress import print_line, progress_bar
from ..utils.serialization import describe
from .conditions import Condition, SampleAttack
from .evaluator import Evaluator, architecture_hash, only_readable, weights_hash
from .findings import Finding, SanityReport
from .flags import SampleResults
from .forms import Kept
from .measures import Measure
from .normalization import InPrecision, NormalizedModel
from .results import CHECKS, OUTPUTS, forget, row, write_result
from .samples import Prepared, Samples
from .subject import ModelSpec

FLAG_FOLDER = "flags"


@dataclass
class Place:
    """Where and how an evaluation runs; no flag depends on it, but for the kind of device, whose rounding differs.

    Attributes:
        output: Folder of the results, made if need be; one for all processes.
        device: Of this process.
        world: Rank of this process and number of processes.
        batch_size: Of this process.
        workers: Processes that read.
    """

    output: Path
    device: torch.device
    world: World = SINGLE_PROCESS
    batch_size: int = 64
    workers: int = 2


class Source(Protocol):
    """Where images come from: `ImageSource`, or its like for pictures with label maps."""

    data: str
    seed: int

    def open(self, model: nn.Module, channels: int) -> Any:
        """The images, by number."""
        ...

    def prepare(self, preprocessing: Preprocessing) -> Prepared:
        """How they are prepared for the model."""
        ...

    def measure(self, model: nn.Module) -> Measure:
        """What is counted."""
        ...

    def restrict(self, model: nn.Module) -> nn.Module:
        """What of the model is asked."""
        ...

    @property
    def protocol(self) -> dict[str, Any]:
        """What answers depend on beside images and model."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """For reports."""
        ...


class Assessment:
    """A model, ready to be asked about the images of a source.

    Args:
        subject: The model.
        source: The images.
        place: Where it runs.
        label: What the model is called in reports. Default: the subject's.
        autocast: Context of the forward pass; None for float32.
        dtype: Its name, for the record.
        seed: Of all draws.

    Raises:
        OSError: The output folder cannot be written to.
        ValueError: Model, weights or images are not there or do not fit each other.
    """

    def __init__(
        self,
        subject: ModelSpec,
        source: Source,
        place: Place,
        label: str | None = None,
        autocast: Callable[[], Any] | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        check_output_folder(place.output)
        self.subject, self.source, self.place, self.seed = subject, source, place, seed
        self.label, self.dtype = printable(label or subject.label), dtype
        inner, preprocessing = subject.build()
        self.preprocessing = source.prepare(preprocessing)
        self.weights, self.architecture = weights_hash(inner), architecture_hash(inner)
        self.parameters = sum(p.numel() for p in inner.parameters())
        self.measure, self.inner = source.measure(inner), inner
        asked = source.restrict(inner)
        asked = asked if autocast is None else InPrecision(asked, autocast)
        self.model = NormalizedModel(asked, self.preprocessing.mean, self.preprocessing.std).to(place.device).eval()

    def samples(self) -> Samples:
        """The images of the source.

        Raises:
            ValueError: A reader that only iterates: flags belong to numbered images.
        """
        images = self.source.open(self.inner, len(self.preprocessing.mean))
        if isinstance(images, IterableDataset):
            raise ValueError(f"{self.source.data!r} gives no images by number, which flags are kept by; use another reader.")
        return Samples(images)

    @property
    def protocol(self) -> dict[str, Any]:
        """What flags depend on beside images and condition."""
        return {
            "weights_sha256": self.weights,
            "architecture_sha256": self.architecture,
            "options": {key: str(value) for key, value in self.subject.options.items()},
            **self.source.protocol,
            "dtype": self.dtype,
            "arithmetic": arithmetic(self.place.device),
            "versions": versions(),
            "sources_sha256": sources_hash(),
        }

    def ask(self, conditions: Sequence[Condition]) -> dict[str, SampleResults]:
        """The flags of all conditions; what the folder holds already is not computed again."""
        place = self.place
        total = sum(len(condition.samples) for condition in conditions)
        with progress_bar(total, shown=place.world.rank == 0) as bar:

            def progress(condition: str, samples: int) -> None:
                bar.set_description(condition, refresh=False)
                bar.update(min(samples, total - int(bar.n)))

            evaluator = Evaluator(
                self.model,
                self.preprocessing,
                place.output / FLAG_FOLDER,
                self.protocol,
                place.device,
                place.world,
                place.batch_size,
                place.workers,
                progress,
            )
            return evaluator(conditions)

    def check(
        self,
        samples: Samples,
        attacks: Sequence[SampleAttack] = (),
        count: int | None = None,
        preprocessing: Prepared | None = None,
    ) -> SanityReport:
        """Sanity checks on ``count`` of the samples, drawn at random; not repeated if the folder holds them.

        Without attacks, those of the outputs alone. By default the measure says how many are enough.
        """
        file, count = self.place.output / CHECKS, count or self.measure.checked
        chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))[:count]
        key = {"protocol": self.protocol, "images": samples.identity, "seed": self.seed, "count": count}
        key = json.loads(json.dumps({**key, "attacks": [describe(attack) for attack in attacks]}))
        known = _read(file)
        if known.get("key") != key:
            few = samples.only(samples.ids[chosen])
            batches = list(few.batches(preprocessing or self.preprocessing, self.place.batch_size, 0, self.place.device))
            kept = [batch for batch in map(only_readable, batches) if len(batch[0])]
            if attacks:  # many attacks on few images: what else would look like standing still
                print_line(f"Sanity checks on {sum(len(batch[0]) for batch in kept)} images")
            found = self.measure.check(self.model, kept, attacks, self.seed)
            known = {"key": key, **asdict(found)}
            write_json(file, known)
        return SanityReport(known["done"], known["images"], [Finding(**found) for found in known["findings"]])

    def write(
        self,
        kind: str,
        conditions: Sequence[Condition],
        flags: Mapping[str, SampleResults],
        checked: SanityReport,
        figures: Mapping[str, Figure],
        **more: Any,
    ) -> dict[str, Any]:
        """Write all results to the folder; what ``result.json`` holds is returned."""
        place = self.place
        place.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            write_atomically(place.output / f"{name}.png", partial(figure.savefig, dpi=120))
        rows = [row(condition, flags[condition.name], self.measure, self.preprocessing.std) for condition in conditions]
        result = {
            "kind": kind,
            "label": self.label,
            "model": self.subject.model,
            "checkpoint": None if self.subject.checkpoint is None else str(self.subject.checkpoint),
            "training_seed": self.subject.training_seed,
            "parameters": self.parameters,
            **self.protocol,
            "data": self.source.record,
            "seed": self.seed,
            "preprocessing": self.preprocessing._asdict(),
            "metrics": list(self.measure.metrics),
            "conditions": rows,
            "checked": {"what": ", ".join(checked.done), "images": checked.images},
            "findings": [asdict(finding) for finding in [*checked.findings, *self.measure.doubt(rows, flags)]],
            "pictures": [f"{name}.png" for name in figures],
            "environment": {**environment(str(place.device)), "processes": place.world.size},
            **more,
        }
        write_result(place.output, result, conditions, flags, self.measure)
        return result

    def claimed(self) -> AbstractContextManager[None]:
        """From `ask` to `write`, nobody else writes to the folder; the first process sees to that, as `manifest.claimed`."""
        return nullcontext() if self.place.world.rank else claimed(self.place.output, OUTPUTS)

    def forget(self) -> None:
        """Remove what an earlier evaluation left in the folder; before `ask`, in all processes."""
        if self.place.world.rank == 0:
            forget(self.place.output, self.place.output / FLAG_FOLDER)


def _read(file: Path) -> dict[str, Any]:
    """What was kept of checks; nothing of a damaged file, for they are soon done again."""
    try:
        return read_json(file, Kept)
    except (OSError, ValueError):
        return {}
