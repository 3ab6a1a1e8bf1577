"""Folder of a run: checks that it belongs to the recipe, that its files are intact and that there is room."""

import shutil
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import TypedDict

from ..data import Fingerprint, Unreadable, fingerprint
from ..models.checkpoints import CONFIG, WEIGHTS
from ..recipe.loading import load_recipe
from ..recipe.schema import Recipe
from ..recipe.yaml_text import write_yaml
from ..tasks.base import task_of
from ..tasks.splits import Splits
from ..utils.environment import arithmetic, environment
from ..utils.io import dump_json, printable, read_json, remove_unfinished, slug, write_json
from ..utils.manifest import Manifest
from ..utils.serialization import changes
from .checkpoints import STATE, Files, load_state
from .run_logger import FIGURE, METRICS, RunLogger

__all__ = ["RunDir", "run_folder"]

RECIPE, DATA, ENVIRONMENT, FINAL = "recipe.yaml", "data.json", "environment.json", "final.json"
UNREADABLE = "unreadable.txt"
BEST, LAST = "best", "last"
# Files of a run, besides TensorBoard's curves. They are removed in this order, and a run cannot resume without the first ones.
RUN_FILES = [RECIPE, DATA, FINAL, STATE, METRICS, ENVIRONMENT, FIGURE, UNREADABLE]
RUN_FILES += [f"{part}/{name}" for part in (BEST, LAST) for name in (WEIGHTS, CONFIG, RECIPE)]
# These settings may change in a resumed run, but they change its random draws.
CHANGES_DRAWS = ("data.workers", "data.on_broken_image")
# The weights do not depend on these settings, so they may change in a resumed run.
FREE_TO_CHANGE = ("title", "data.root", "data.test_split", "data.test_images", "data.download", "run.log_every", "evaluation.")


def check_name(folder: Path) -> None:
    """Check that TensorBoard and safetensors can open the folder of a run.

    Raises:
        ValueError: The name has bytes that are not UTF-8, or letters that the locale lacks.
    """
    if printable(str(folder)) != str(folder):
        raise ValueError(
            f"The name of the output must be valid UTF-8, got {printable(str(folder))}. Choose another name, or a locale that "
            "has its letters, as with LC_ALL=C.UTF-8."
        )


def run_folder(label: str, seed: int) -> Path:
    """Return the folder of a variant's run, relative to the folder of its comparison.

    Example:
        >>> run_folder("twicing", 0).as_posix()
        'runs/twicing-seed0'
    """
    return Path("runs", f"{slug(label)}-seed{seed}")


def not_finite(rank: int) -> str:
    """Return the name of the file in which a process lists the images of a batch whose loss was not finite."""
    return f"not-finite-{rank}.json"


def recipe_file(recipe: Recipe) -> Files:
    """Return the file of the recipe.

    It is written to the folder of the run and to the folders of its weights. Copied weights thus keep the settings of their
    data and sliding windows.
    """
    return {RECIPE: partial(Path.write_text, data=write_yaml(recipe.model_dump()), encoding="utf-8")}


def below(part: str, files: Files) -> Files:
    """Return the same files in the subfolder ``part``."""
    return {f"{part}/{name}" if part else name: write for name, write in files.items()}


def _trained_on(splits: Splits) -> dict[str, Fingerprint | None]:
    """Return fingerprints of the training images and of the validation images, on which the weights depend."""
    images = {"training": splits.train, "validation": splits.validation}
    return {name: None if split is None else fingerprint(split) for name, split in images.items()}


def _difference(before: Fingerprint | None, now: Fingerprint | None) -> str:
    """Return the most recognizable difference between two fingerprints in words."""
    before, now = before or _NO_IMAGES, now or _NO_IMAGES
    if before["images"] != now["images"]:
        return f"{before['images']} images -> {now['images']}"
    old, new = before["classes"] or [], now["classes"] or []
    gone, come = ([name for name in a if name not in b] for a, b in ((old, new), (new, old)))
    if gone or come:
        return f"classes {_few(gone)} -> {_few(come)}"
    return "the order of the classes" if old != new else "names, labels or sizes of some of its samples"


_NO_IMAGES = Fingerprint(images=0, classes=None, sha256="")


def _few(names: list[str]) -> str:
    return (", ".join(names[:5]) + ", …" * (len(names) > 5)) or "none"


class _Session(TypedDict):
    versions: dict[str, str]


class _Sessions(TypedDict):
    sessions: list[_Session]


class RunDir:
    """Folder of a run.

    Args:
        path: Path of the folder. `prepare` creates it.
        recipe: Recipe of the run.
        resume: Whether to resume the run in the folder.
        restart: Whether to treat the folder as empty. The caller calls `clear` when nothing else can fail.

    Attributes:
        begun: Whether the folder holds at least one finished epoch.

    Raises:
        FileExistsError: The folder holds a finished epoch and ``resume`` is False; or it holds files that a run would
            overwrite and that no run wrote.
        ValueError: The folder holds a run of another recipe, or a damaged run. The message names the changes.
    """

    def __init__(self, path: Path, recipe: Recipe, resume: bool, restart: bool = False) -> None:
        self.path, self.recipe, self.manifest = path, recipe, Manifest(path)
        self.manifest.refuse_foreign(RUN_FILES)
        self.begun = not restart and self._holds_an_epoch()
        if self.begun and not resume:
            raise FileExistsError(
                f"{path} must hold no run, got one already. Resume it with --resume, remove it with --restart, or give another "
                "--output."
            )
        if self.begun:
            self.manifest.check(
                RECIPE, f"Restore it ({LAST}/ has a copy), start again with --restart, or give another --output."
            )
            self._refuse_changes(load_recipe(path / RECIPE))

    def _holds_an_epoch(self) -> bool:
        """Return whether an epoch was finished.

        Any file that is written after an epoch shows this, even if others are missing.
        """
        later = (self.path / name for name in (METRICS, FINAL, *(f"{part}/{WEIGHTS}" for part in (BEST, LAST))))
        if any(file.is_file() and file.stat().st_size > 0 for file in later):
            return True
        return (self.path / STATE).is_file() and len(load_state(self.path)["records"]) > 0

    def claim(self, processes: int = 1) -> None:
        """List the files of a run in its manifest before any is written.

        Args:
            processes: Number of processes.

        Raises:
            FileExistsError: Some of the files exist and were not written by a run.
        """
        self.manifest.claim([*RUN_FILES, *map(not_finite, range(processes))])

    @staticmethod
    def clear(path: Path) -> None:
        """Remove the files of the run in ``path`` and no others. Files that are needed for resuming are removed first."""
        manifest = Manifest(path)
        RunLogger.clear(path)
        manifest.remove([*RUN_FILES, *(name for name in manifest.files if name.startswith("not-finite-"))])

    def _refuse_changes(self, before: Recipe) -> None:
        differences = changes(before.model_dump(), self.recipe.model_dump())
        changed = [f"{key}: {change}" for key, change in differences.items() if not key.startswith(FREE_TO_CHANGE)]
        harmless = [c for c in changed if c.startswith(CHANGES_DRAWS)]
        if harmless:
            warnings.warn(
                f"{'; '.join(harmless)}. The next epochs will differ from those of an uninterrupted run.", stacklevel=3
            )
        changed = [c for c in changed if c not in harmless]
        if changed:
            raise ValueError(
                f"{self.path} must hold a run of the same recipe, got another one. Changed: {'; '.join(changed)}. Undo the "
                "change, or give another --output."
            )

    def check_shared(self, rank: int) -> None:
        """Check that this process sees the files of the first one. Call it after `prepare` in the first process.

        Args:
            rank: Rank of this process.

        Raises:
            FileNotFoundError: The files are not visible.
        """
        if not (self.path / RECIPE).is_file():
            raise FileNotFoundError(
                f"{self.path.absolute()} must be visible to all processes, got no such folder in process {rank}. Give an "
                "--output on storage that the machines share."
            )

    def tested_on(self, splits: Splits) -> dict[str, Any]:
        """Return the settings of the test, which may change after training, with a fingerprint of the test images."""
        settings = self.recipe.data.model_dump(include={"test_split", "test_images"})
        return {**settings, "images": None if splits.test is None else fingerprint(splits.test)}

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a finished run that was tested with the present recipe, or None.

        Raises:
            ValueError: The training data, the result or the weights have changed.
        """
        if not self.begun or not (self.path / FINAL).exists():
            return None
        self.manifest.check(FINAL, "Remove it, and --resume tests the weights again.")
        result = read_json(self.path / FINAL)
        splits = task_of(self.recipe).open_splits(self.recipe, Unreadable())
        self.check_data(splits)
        if result.pop("tested_on") != self.tested_on(splits):
            return None
        self.check_weights(result["checkpoint"])
        return result

    def check_data(self, splits: Splits) -> None:
        """Check that the run was trained on these images. Their folder may have changed.

        Raises:
            ValueError: Names, labels or sizes of the images have changed.
        """
        self.manifest.check(DATA, "Restore it, start again with --restart, or give another --output.")
        before, now = read_json(self.path / DATA), _trained_on(splits)
        changed = [f"{split}: {_difference(before[split], now[split])}" for split in now if before[split] != now[split]]
        if changed:
            raise ValueError(
                f"{self.path} must hold a run on the same data, got other data. Changed: {'; '.join(changed)}. Restore the "
                "data, start again with --restart, or give another --output."
            )

    def check_weights(self, part: str) -> None:
        """Check that the weights and the configuration in ``best`` or ``last`` are those that the run wrote.

        Raises:
            ValueError: Weights or configuration are missing, or have changed.
        """
        for name in (WEIGHTS, CONFIG):
            self.manifest.check(f"{part}/{name}", "Restore it, start again with --restart, or give another --output.")

    def finish(self, result: Mapping[str, Any], splits: Splits) -> None:
        """Write the result of the run."""
        self.manifest.write({FINAL: partial(dump_json, {**result, "tested_on": self.tested_on(splits)})})

    def prepare(self, model: nn.Module, splits: Splits, device: str, processes: int) -> None:
        """Create the folder, check that there is room for the checkpoints, and write recipe, data and environment.

        Args:
            model: Model of the run.
            splits: Images of the run.
            device: Device of the run.
            processes: Number of processes.

        Raises:
            OSError: The folder cannot be written, or the disk has too little room.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / BEST, self.path / LAST):
            remove_unfinished(folder)
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        # The state holds weights, two moments and an average; best and last hold weights. While a file is replaced, it exists
        # twice.
        kept = [self.path / STATE, *(self.path / part / WEIGHTS for part in (BEST, LAST))]
        needed = 2 * 6 * weights + 2**24 - sum(file.stat().st_size for file in kept if file.is_file())
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path} must have {needed / 2**20:.0f} MiB of free space for the checkpoints of this run, got "
                f"{free / 2**20:.0f} MiB. Make room, or give another --output."
            )
        self.claim(processes)
        for part in ("", BEST, LAST):
            if (self.path / part).is_dir():
                self.manifest.write(below(part, recipe_file(self.recipe)))
        if not self.begun:
            self.manifest.write({DATA: partial(dump_json, _trained_on(splits))})
        now = {**environment(device), "arithmetic": arithmetic(device), "processes": processes}
        self._write_environment({**now, "command": sys.argv, "started": datetime.now(UTC).isoformat(timespec="seconds")})

    def _write_environment(self, now: dict[str, Any]) -> None:
        file = self.path / ENVIRONMENT
        lost = "Remove it. Only the record of earlier sessions is lost."
        before = read_json(file, _Sessions, lost)["sessions"] if file.exists() else []
        if before:
            last = before[-1]
            changed = [k for k in now["versions"] if last["versions"].get(k) != now["versions"][k]]
            changed += [k for k in ("commit", "extensions", "device", "processes") if last.get(k, {}) != now[k]]
            if changed:
                warnings.warn(
                    f"{self.path} was started with another {', '.join(changed)}. The next epochs may differ from those of an "
                    "uninterrupted run.",
                    stacklevel=3,
                )
        write_json(file, {"sessions": [*before, now]})
