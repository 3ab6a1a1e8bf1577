"""The folder of a run: whose it is, and whether there is room in it."""

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
from .run_logger import METRICS, PICTURE, RunLogger

RECIPE, DATA, ENVIRONMENT, FINAL = "recipe.yaml", "data.json", "environment.json", "final.json"
UNREADABLE = "unreadable.txt"
BEST, LAST = "best", "last"
# what a run writes, beside TensorBoard's curves; without the first ones it cannot go on
RUN_FILES = [RECIPE, DATA, FINAL, STATE, METRICS, ENVIRONMENT, PICTURE, UNREADABLE]
RUN_FILES += [f"{part}/{name}" for part in (BEST, LAST) for name in (WEIGHTS, CONFIG, RECIPE)]
# no weight depends on these
CHANGES_DRAWS = ("data.workers", "data.on_broken_image")  # where one runs, and what one finds there
FREE_TO_CHANGE = ("title", "data.root", "data.test_split", "data.test_images", "data.download", "run.log_every", "evaluation.")


def check_name(folder: Path) -> None:
    """Check that the name of a run's folder is one that TensorBoard and safetensors can open.

    Raises:
        ValueError: It has bytes that are no UTF-8, or letters that the locale lacks.
    """
    if printable(str(folder)) != str(folder):
        raise ValueError(
            f"The name of the output must be valid UTF-8, got {printable(str(folder))}. Choose another name, or a locale that "
            "has its letters, as with LC_ALL=C.UTF-8."
        )


def run_folder(label: str, seed: int) -> Path:
    """Where a variant of a comparison lies, below the comparison's own folder."""
    return Path("runs", f"{slug(label)}-seed{seed}")


def not_finite(rank: int) -> str:
    """The file in which a process names the images of a batch whose loss was not finite."""
    return f"not-finite-{rank}.json"


def recipe_file(recipe: Recipe) -> Files:
    """What writes it, into a run's folder and into those of its weights: they know their data and windows wherever they are."""
    return {RECIPE: partial(Path.write_text, data=write_yaml(recipe.model_dump()), encoding="utf-8")}


def below(part: str, files: Files) -> Files:
    """The same files in the folder ``part``."""
    return {f"{part}/{name}" if part else name: write for name, write in files.items()}


def _trained_on(splits: Splits) -> dict[str, Fingerprint | None]:
    """The images that weights depend on, by those they are trained on and those they are chosen on."""
    images = {"training": splits.train, "validation": splits.validation}
    return {name: None if split is None else fingerprint(split) for name, split in images.items()}


def _difference(before: Fingerprint | None, now: Fingerprint | None) -> str:
    """What the user will recognize first."""
    before, now = before or _NO_IMAGES, now or _NO_IMAGES
    if before["images"] != now["images"]:
        return f"{before['images']} images -> {now['images']}"
    old, new = before["classes"] or [], now["classes"] or []
    gone, come = ([name for name in a if name not in b] for a, b in ((old, new), (new, old)))
    if gone or come:
        return f"classes {_few(gone)} -> {_few(come)}"
    return "the order of the classes" if old != new else "names, labels or sizes of some of its images"


_NO_IMAGES = Fingerprint(images=0, classes=None, sha256="")


def _few(names: list[str]) -> str:
    return (", ".join(names[:5]) + ", …" * (len(names) > 5)) or "none"


class _Session(TypedDict):
    versions: dict[str, str]


class _Sessions(TypedDict):
    sessions: list[_Session]


class RunDir:
    """The folder of a run.

    Args:
        path: Made by `prepare`.
        recipe: What the run does.
        resume: Go on with what the folder holds.
        restart: Take it for empty; who calls `clear` once nothing else can go wrong.

    Attributes:
        begun: Whether it holds a whole epoch.

    Raises:
        FileExistsError: It holds a whole epoch or more, and ``resume`` was not asked for; or files that a run would overwrite
            and that no run wrote.
        ValueError: It holds a run of another recipe, and the message says what changed; or a damaged one.
    """

    def __init__(self, path: Path, recipe: Recipe, resume: bool, restart: bool = False) -> None:
        self.path, self.recipe, self.manifest = path, recipe, Manifest(path)
        self.manifest.refuse_foreign(RUN_FILES)
        self.begun = not restart and self._holds_an_epoch()
        if self.begun and not resume:
            raise FileExistsError(
                f"{path} holds a run already: go on with --resume, begin anew with --restart, or give another --output."
            )
        if self.begun:
            self.manifest.check(RECIPE, f"Undo that ({LAST}/ has a copy), begin anew with --restart, or give another --output.")
            self._refuse_changes(load_recipe(path / RECIPE))

    def _holds_an_epoch(self) -> bool:
        """Any file that is written after an epoch shows that there is one, whatever else is missing."""
        later = (self.path / name for name in (METRICS, FINAL, *(f"{part}/{WEIGHTS}" for part in (BEST, LAST))))
        if any(file.is_file() and file.stat().st_size > 0 for file in later):
            return True
        return (self.path / STATE).is_file() and len(load_state(self.path)["records"]) > 0

    def claim(self, processes: int = 1) -> None:
        """List the files that a run writes as its own, before it writes any.

        Raises:
            FileExistsError: Some of them are there, and are somebody else's.
        """
        self.manifest.claim([*RUN_FILES, *map(not_finite, range(processes))])

    @staticmethod
    def clear(path: Path) -> None:
        """Remove the run in ``path``, and nothing else. What it cannot go on without goes first."""
        manifest = Manifest(path)
        RunLogger.clear(path)
        manifest.remove([*RUN_FILES, *(name for name in manifest.files if name.startswith("not-finite-"))])

    def _refuse_changes(self, before: Recipe) -> None:
        found = changes(before.model_dump(), self.recipe.model_dump())
        changed = [f"{key}: {change}" for key, change in found.items() if not key.startswith(FREE_TO_CHANGE)]
        harmless = [c for c in changed if c.startswith(CHANGES_DRAWS)]
        if harmless:
            warnings.warn(
                f"{'; '.join(harmless)}: what follows will differ from what an uninterrupted run gives.", stacklevel=3
            )
        changed = [c for c in changed if c not in harmless]
        if changed:
            raise ValueError(
                f"{self.path} holds a run of another recipe, which cannot go on under this one. Changed: {'; '.join(changed)}. "
                "Undo the change, or give another --output."
            )

    def check_shared(self, rank: int) -> None:
        """After `prepare` in the first process.

        Raises:
            FileNotFoundError: This process does not see what that one wrote.
        """
        if not (self.path / RECIPE).is_file():
            raise FileNotFoundError(
                f"Process {rank} does not see {self.path.absolute()}, which the first process made: all processes need one "
                "folder, on storage that the machines share; give such a one as --output."
            )

    def tested_on(self, splits: Splits) -> dict[str, Any]:
        """What may change and yet changes the test."""
        told = self.recipe.data.model_dump(include={"test_split", "test_images"})
        return {**told, "images": None if splits.test is None else fingerprint(splits.test)}

    def finished(self) -> dict[str, Any] | None:
        """What the run ended with, if it did, tested on what the recipe says now.

        Raises:
            ValueError: Data that it was trained on, its result or its weights have changed.
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
        """Make sure that the run was trained on these images, wherever they lie now.

        Raises:
            ValueError: Other names, labels or sizes than it began with.
        """
        self.manifest.check(DATA, "Restore it, begin anew with --restart, or give another --output.")
        before, now = read_json(self.path / DATA), _trained_on(splits)
        changed = [f"{split}: {_difference(before[split], now[split])}" for split in now if before[split] != now[split]]
        if changed:
            raise ValueError(
                f"{self.path} holds a run on other data, and cannot go on with these. Changed: {'; '.join(changed)}. "
                "Put the data back, begin anew with --restart, or give another --output."
            )

    def check_weights(self, part: str) -> None:
        """Make sure that ``best`` or ``last`` holds what the run wrote.

        Raises:
            ValueError: Weights or configuration are missing, or have changed.
        """
        for name in (WEIGHTS, CONFIG):
            self.manifest.check(f"{part}/{name}", "Restore it, begin anew with --restart, or give another --output.")

    def finish(self, result: Mapping[str, Any], splits: Splits) -> None:
        """Keep what the run ends with."""
        self.manifest.write({FINAL: partial(dump_json, {**result, "tested_on": self.tested_on(splits)})})

    def prepare(self, model: nn.Module, splits: Splits, device: str, processes: int) -> None:
        """Write what the run is, and make sure that there is room for its checkpoints.

        Raises:
            OSError: The folder cannot be written to, or the disk has too little room.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / BEST, self.path / LAST):
            remove_unfinished(folder)
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        # weights, two moments and an average in the state, weights in best and last; each twice while it is being replaced
        kept = [self.path / STATE, *(self.path / part / WEIGHTS for part in (BEST, LAST))]
        needed = 2 * 6 * weights + 2**24 - sum(file.stat().st_size for file in kept if file.is_file())
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path}: {free / 2**20:.0f} MiB are free, but the checkpoints of this run need up to "
                f"{needed / 2**20:.0f} MiB; make room, or give another --output."
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
        lost = "Remove it: with it, no more is lost than what it tells of earlier sessions."
        before = read_json(file, _Sessions, lost)["sessions"] if file.exists() else []
        if before:
            last = before[-1]
            changed = [k for k in now["versions"] if last["versions"].get(k) != now["versions"][k]]
            changed += [k for k in ("commit", "extensions", "device", "processes") if last.get(k, {}) != now[k]]
            if changed:
                warnings.warn(
                    f"{self.path} was begun with another {', '.join(changed)}; what follows may differ from what an "
                    "uninterrupted run gives.",
                    stacklevel=3,
                )
        write_json(file, {"sessions": [*before, now]})
