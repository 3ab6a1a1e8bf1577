"""The evaluation session: the one loop that asks a model under conditions. It can be killed and resumed."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import nn

from ..data import SINGLE_PROCESS, PreprocessingLike, StreamedImages, World, readable
from ..utils.environment import arithmetic, environment, sources_hash, versions
from ..utils.io import check_output_folder, read_json, write_atomically, write_csv, write_json
from ..utils.locks import locked
from ..utils.manifest import Manifest, claimed
from ..utils.progress import progress_bar
from ..utils.serialization import describe
from .conditions import Condition
from .findings import Finding, SanityReport
from .forms import ChecksForm
from .normalization import InPrecision
from .results import CHECKS, OUTPUTS, row, write_result
from .results_log import MemoryLog, NoneReadableError, ResultsLog, SampleResults, remove_results
from .samples import SampleSet, StreamSamples, only_readable
from .scorers import AnyAttack
from .scoring import Scoring, check_chance_level
from .specs import DatasetSpec, ModelSpec, about_model, model_hashes

__all__ = ["LOG_FOLDER", "EvaluationSession", "Runtime", "clear_results"]

LOG_FOLDER = "log"
BATCH_SIZE = 64  # by default


@dataclass(frozen=True)
class Runtime:
    """Device, batch size, processes and output folder of an evaluation. They change results by rounding only.

    Attributes:
        device: Device of this process.
        world: Rank of this process and number of processes.
        batch_size: Batch size of this process. Default: 64, or 1 for tasks whose images have sizes of their own.
        workers: Number of processes that read images.
        output: Folder of the results, one for all processes; None to keep results in memory.
    """

    device: torch.device
    world: World = SINGLE_PROCESS
    batch_size: int | None = None
    workers: int = 0
    output: Path | None = None


class EvaluationSession:
    """Asks one model under any number of conditions, and keeps one result per sample.

    Results depend on the model, the sample and the condition only: not on the batch size, the number of processes or an
    interruption. (Batches of another size may round differently.)

    Args:
        model: Maps images in [0, 1] to outputs, in evaluation mode, on the device.
        task: Scores the outputs.
        preprocessing: Preprocessing of the images. Normalization is left to the model.
        runtime: Device, batch size, processes and output folder.
        about: Facts that are recorded with the results: label, model, data and so on.
        protocol: Settings that results depend on, such as class maps and precision.
        seed: Seed of the samples for the sanity checks.
        progress: Called with a condition's name and the number of samples done. Default: a progress bar.

    Raises:
        OSError: The output folder cannot be written to.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Scoring,
        preprocessing: PreprocessingLike,
        runtime: Runtime,
        *,
        about: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
        seed: int = 0,
        progress: Callable[[str, int], Any] | None = None,
    ) -> None:
        if runtime.output is not None:
            check_output_folder(runtime.output)
        self.model, self.task, self.preprocessing, self.runtime = model, task, preprocessing, runtime
        self.about, self._protocol, self.seed, self.progress = dict(about or {}), dict(protocol or {}), seed, progress
        self.batch_size: int = runtime.batch_size or task.batch_limit or BATCH_SIZE
        self.inner: Any = model  # the bare model, where `open` built it
        self._group: Any = None

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        task_of: Callable[[Any], Scoring],
        runtime: Runtime,
        *,
        label: str | None = None,
        autocast: Callable[[], Any] | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> "EvaluationSession":
        """Build a model by name and open a session for it.

        Args:
            spec: The model.
            task_of: Returns the task of the model.
            runtime: Where and how it runs.
            label: Name of the model in reports. Default: the spec's.
            autocast: Context of the forward pass; None for float32.
            dtype: Name of its type, for the record.
            seed: As in the class.

        Raises:
            OSError: The output folder cannot be written to.
            ValueError: Model or weights are not there, or do not fit each other.
        """
        if runtime.output is not None:
            check_output_folder(runtime.output)
        inner, preprocessing = spec.build()
        task = task_of(inner)
        asked = task.restrict(inner)
        asked = asked if autocast is None else InPrecision(asked, autocast)
        model = task.wrap(asked, preprocessing.mean, preprocessing.std).to(runtime.device).eval()
        parameters = sum(p.numel() for p in inner.parameters())
        about = about_model(spec.model, parameters, label or spec.label, spec.checkpoint, spec.training_seed)
        options = {key: str(value) for key, value in spec.options.items()}
        protocol = {**model_hashes(inner), "options": options, **task.protocol, "dtype": dtype}
        session = cls(model, task, task.preprocess(preprocessing), runtime, about=about, protocol=protocol, seed=seed)
        session.inner = inner
        return session

    def samples(self, dataset: DatasetSpec, streams: bool = False) -> SampleSet:
        """Open images that fit the model, and record where they come from.

        Args:
            dataset: Reader, split and number of the images.
            streams: Whether a stream is allowed. Only the evaluation of unchanged images can use one.

        Raises:
            FileNotFoundError: There are no images.
            ValueError: The classes of the images are not those of the model, or a stream is not allowed.
        """
        images = self.task.open_dataset(dataset, self.inner, len(self.preprocessing.mean))
        self.about["data"] = {**dataset.record, **self.task.protocol}
        if isinstance(images, StreamedImages):
            if not streams:
                raise ValueError(
                    f"The data of attacks and corruptions must be images known by number, got the stream {dataset.data!r}. Use "
                    "another reader."
                )
            return StreamSamples(images, {"name": dataset.data, "split": dataset.split, **dataset.columns})
        return self.task.samples_of(images)

    @property
    def output(self) -> Path:
        """Folder of the results.

        Raises:
            ValueError: Results are kept in memory.
        """
        if self.runtime.output is None:
            raise ValueError("The session must have an output folder, got results in memory. Give Runtime(output=FOLDER).")
        return self.runtime.output

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that results depend on besides images and condition."""
        hashes = {} if "weights_sha256" in self._protocol else model_hashes(self.model)
        return {
            **hashes,
            "dtype": "float32",
            **self._protocol,
            "arithmetic": arithmetic(self.runtime.device),
            "versions": versions(),
            "sources_sha256": sources_hash(),
        }

    def run(self, conditions: Sequence[Condition]) -> dict[str, SampleResults]:
        """Return the results of every condition, by name, in all processes. What the folder holds is not computed again.

        Raises:
            ValueError: Two conditions of one name, results under another protocol, images or settings that do not fit the
                model, or another process that writes to the folder.
        """
        names = [condition.name for condition in conditions]
        if len(set(names)) < len(names):
            raise ValueError(f"Each condition must have its own name, got {', '.join(names)}. Rename one.")
        folder = None if self.runtime.output is None else self.runtime.output / LOG_FOLDER
        with locked(folder) if folder is not None and self.runtime.world.rank == 0 else nullcontext():
            if self.progress is not None:
                return self._run(conditions, self.progress)
            total = sum(len(condition.samples) for condition in conditions)
            one = len(conditions) == 1  # The images of several conditions are the same, so their sum is not called images.
            places = {name: name if one else f"{name} (condition {i + 1} of {len(names)})" for i, name in enumerate(names)}
            unit = self.task.sample_noun if one else "evaluations"
            with progress_bar(total or None, unit, shown=self.runtime.world.rank == 0) as bar:

                def progress(condition: str, samples: int) -> None:
                    bar.set_description(places[condition], refresh=False)
                    bar.update(min(samples, total - int(bar.n)) if total else samples)

                return self._run(conditions, progress)

    def _run(self, conditions: Sequence[Condition], progress: Callable[[str, int], Any]) -> dict[str, SampleResults]:
        self._wait()  # nobody reads what another process is about to remove
        logs = {condition.name: self._log(condition) for condition in conditions}
        done = {name: log.done for name, log in logs.items()}
        self._wait()  # nobody writes before everybody has read
        for condition in conditions:
            left = condition.samples.without(done[condition.name])
            progress(condition.name, len(condition.samples) - len(left))
            self._score(condition, left.share(*self.runtime.world), logs[condition.name], progress)
        self._wait()
        return {condition.name: self._read(condition, logs[condition.name]) for condition in conditions}

    def _log(self, condition: Condition) -> ResultsLog | MemoryLog:
        if self.runtime.output is None or isinstance(condition.samples, StreamSamples):
            return MemoryLog(condition.name, self.runtime.world)
        protocol = {
            **self.protocol,
            "images": condition.samples.identity,
            "preprocessing": (condition.preprocessing or self.preprocessing)._asdict(),
            "condition": {"name": condition.name, **condition.settings},
        }
        log = ResultsLog(self.runtime.output / LOG_FOLDER, condition.name, protocol, self.runtime.world.rank)
        log.check_ids(condition.samples.ids)
        return log

    @torch.no_grad()
    def _score(
        self, condition: Condition, samples: SampleSet, log: ResultsLog | MemoryLog, progress: Callable[[str, int], Any]
    ) -> None:
        runtime, preprocessing = self.runtime, condition.preprocessing or self.preprocessing
        for images, labels, ids in samples.batches(preprocessing, self.batch_size, runtime.workers, runtime.device):
            kept = readable(labels)
            there = kept.to(ids.device)
            result = condition.scorer(self.model, images[kept], labels[kept], ids[there]) if kept.any() else None
            log.add(ids[there], result, ids[~there])
            progress(condition.name, len(ids) * runtime.world.size)
        log.close()

    def _read(self, condition: Condition, log: ResultsLog | MemoryLog) -> SampleResults:
        try:
            results = log.read()
        except NoneReadableError as error:
            raise condition.samples.none_readable() from error
        if isinstance(condition.samples, StreamSamples):
            return results
        missing = condition.samples.without(torch.cat([results.ids, torch.tensor(results.unreadable, dtype=torch.int64)]))
        if len(missing):
            raise ValueError(
                f"{condition.name}: {len(missing)} of {len(condition.samples)} samples have no result in {self.output}. All "
                "processes must see one folder; give an --output that they share."
            )
        return results

    def _wait(self) -> None:
        world, output = self.runtime.world, self.runtime.output
        if world.size == 1 or output is None:
            return
        if self._group is None:  # gloo, and patient: attacks take some processes hours longer than others
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        dist.barrier(self._group)

    def probes(
        self,
        samples: SampleSet,
        attacks: Sequence[AnyAttack],
        count: int | None = None,
        preprocessing: PreprocessingLike | None = None,
    ) -> dict[str, Condition]:
        """Return the conditions of the sanity checks by the names of the task's probes. The arguments are those of `check`."""
        few = samples.random(count or self.task.num_checked, self.seed)
        scorers = self.task.probes(self.model, attacks, self.seed)
        return {name: Condition(f"sanity check: {name}", few, s, preprocessing) for name, s in scorers.items()}

    def check(
        self,
        samples: SampleSet,
        attacks: Sequence[AnyAttack] = (),
        count: int | None = None,
        preprocessing: PreprocessingLike | None = None,
    ) -> SanityReport:
        """Run the task's sanity checks on random samples, unless the folder holds their report already.

        Checks of attacks are conditions, which are logged and resumed as those of `run`. Call it in all processes.

        Args:
            samples: Samples to draw from.
            attacks: Attacks whose numbers are to be believed; none for the outputs only.
            count: Number of samples. Default: the task's.
            preprocessing: Preprocessing of the images. Default: the session's.

        Returns:
            The report; in processes other than the first, it may be empty.
        """
        count, file = count or self.task.num_checked, None if self.runtime.output is None else self.runtime.output / CHECKS
        key = {"protocol": self.protocol, "images": samples.identity, "seed": self.seed, "count": count}
        key = json.loads(json.dumps({**key, "attacks": [describe(attack) for attack in attacks]}))
        known = {} if file is None else _read_checks(file)
        if known.get("key") != key:
            few = samples.random(count, self.seed)
            batches = few.batches(preprocessing or self.preprocessing, self.batch_size, 0, self.runtime.device)
            kept = [batch for batch in map(only_readable, batches) if len(batch[0])]
            probed = self._probed(self.probes(samples, attacks, count, preprocessing), key) if kept else {}
            if self.runtime.world.rank:
                return SanityReport([], 0, [])
            known = {"key": key, **asdict(self.task.check(self.model, kept, attacks, probed))}
            if file is not None:
                write_json(file, known)
        return SanityReport(known["done"], known["images"], [Finding(**finding) for finding in known["findings"]])

    def _probed(self, probes: Mapping[str, Condition], key: Mapping[str, Any]) -> dict[str, SampleResults]:
        """Return the results of probes by name. Their logs lie in a folder of their own for each ``key``."""
        if not probes:
            return {}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        output = None if self.runtime.output is None else self.runtime.output / LOG_FOLDER / f"checks-{digest}"
        runtime = replace(self.runtime, output=output)
        session = EvaluationSession(
            self.model, self.task, self.preprocessing, runtime, protocol=self.protocol, progress=self.progress
        )
        results = session.run([*probes.values()])
        return {name: results[condition.name] for name, condition in probes.items()}

    def rows(self, conditions: Sequence[Condition], results: Mapping[str, SampleResults]) -> list[dict[str, Any]]:
        """Return the numbers of conditions, as in ``result.json``."""
        return [row(c, results[c.name], self.task, self.preprocessing.std) for c in conditions]

    def findings(
        self, rows: Sequence[Mapping[str, Any]], results: Mapping[str, SampleResults], report: SanityReport
    ) -> list[Finding]:
        """Return all reasons to doubt numbers: of the sanity checks, of comparisons of the numbers, and of chance level.

        Args:
            rows: Numbers of the conditions, the first one clean unless it has a family.
            results: Results by condition.
            report: Report of the sanity checks.
        """
        clean = rows[0] if rows[0]["family"] is None else None
        chance = [] if clean is None else check_chance_level(self.task, clean, results[clean["name"]])
        return [*chance, *report.findings, *self.task.cross_checks(rows, results)]

    def write(
        self,
        kind: str,
        conditions: Sequence[Condition],
        results: Mapping[str, SampleResults],
        report: SanityReport,
        figures: Mapping[str, Figure] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Write all numbers, tables and figures to the folder, and return what ``result.json`` holds.

        Args:
            kind: ``evaluate``, ``attack``, ``corrupt``, ``shift`` or ``compare``.
            conditions: The conditions; the first one is clean.
            results: Their results, by name.
            report: What the sanity checks found.
            figures: By file name, without its ending.
            **more: Further content of ``result.json``.
        """
        figures = figures or {}
        self.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            write_atomically(self.output / f"{name}.png", partial(figure.savefig, dpi=120))
        rows = self.rows(conditions, results)
        result = {
            "kind": kind,
            **self.about,
            **self.protocol,
            "seed": self.seed,
            "preprocessing": self.preprocessing._asdict(),
            "metrics": [metric._asdict() for metric in self.task.metrics],
            "bootstrap": self.task.bootstrapped,
            "samples": self.task.sample_noun,
            "conditions": rows,
            "checked": {"what": ", ".join(report.done), "images": report.images},
            "findings": [asdict(finding) for finding in self.findings(rows, results, report)],
            "figures": [f"{name}.png" for name in figures],
            "environment": {**environment(str(self.runtime.device)), "processes": self.runtime.world.size},
            **more,
        }
        tables = self.task.tables(results[conditions[0].name], rows[0], conditions[0].samples) if kind == "evaluate" else {}
        for name, table in tables.items():
            write_csv(self.output / name, table)
        remarks = [*(self.task.remarks(rows[0], tables) if tables else []), *self.task.notes(rows)]
        write_result(self.output, result, conditions, results, self.task, remarks)
        return result

    def claimed(self) -> AbstractContextManager[None]:
        """Keep the folder, if there is one, to this session from `run` to `write`; the first process sees to that."""
        if self.runtime.world.rank or self.runtime.output is None:
            return nullcontext()
        return claimed(self.runtime.output, [*OUTPUTS, *self.task.files])

    def clear(self) -> None:
        """Remove what an earlier evaluation left in the folder. Call it before `run`, in all processes."""
        if self.runtime.world.rank == 0:
            clear_results(self.output, self.task.files)


def clear_results(folder: Path, more: Sequence[str] = ()) -> None:
    """Remove the results and logs of an evaluation in a folder, and nothing else.

    Args:
        folder: Folder of the results.
        more: Further files of the task.

    Raises:
        ValueError: Another process writes to it.
    """
    with locked(folder):
        remove_results(folder / LOG_FOLDER)
        Manifest(folder).remove([*OUTPUTS, *more])


def _read_checks(file: Path) -> dict[str, Any]:
    """Return what was kept of checks; nothing of a damaged file, for they are soon done again."""
    try:
        return read_json(file, ChecksForm)
    except (OSError, ValueError):
        return {}
