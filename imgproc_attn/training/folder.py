"""The folder of a run: whose it is, and whether there is room in it."""

import json
import shutil
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from ..environment import arithmetic, environment
from ..files import remove_unfinished, slug, write_json, write_text
from ..models.checkpoints import CONFIG, WEIGHTS
from ..records import changes
from .checkpoints import STATE
from .journal import CURVES, METRICS, PICTURE
from .recipe import load_recipe
from .schema import Recipe
from .yaml_text import write_yaml

RECIPE, ENVIRONMENT, FINAL, UNREADABLE = "recipe.yaml", "environment.json", "final.json", "unreadable.txt"
BEST, LAST = "best", "last"
# no weight depends on these
CHANGES_DRAWS = ("data.workers", "data.broken_images")  # where one runs, and what one finds there
FREE_TO_CHANGE = ("title", "data.root", "data.test_split", "data.test_images", "data.download", "run.log_every", "evaluation.")


def run_folder(label: str, seed: int) -> Path:
    """Where a variant of a comparison lies, below the comparison's own folder."""
    return Path("runs", f"{slug(label)}-seed{seed}")


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Into a run's folder, and into those of its weights: they know their data and windows wherever they are copied."""
    write_text(folder / RECIPE, write_yaml(recipe.model_dump()))


class Folder:
    """The folder of a run.

    Args:
        path: Made by `prepare`.
        recipe: What the run does.
        resume: Go on with what the folder holds.
        restart: Take it for empty; who calls `clear` once nothing else can go wrong.

    Attributes:
        begun: Whether it holds a whole epoch.

    Raises:
        FileExistsError: It holds a whole epoch or more, and ``resume`` was not asked for.
        ValueError: It holds such of another recipe; the message says what changed.
    """

    def __init__(self, path: Path, recipe: Recipe, resume: bool, restart: bool = False) -> None:
        self.path, self.recipe = path, recipe
        known, metrics = path / RECIPE, path / METRICS
        self.begun = not restart and known.exists() and metrics.exists() and metrics.stat().st_size > 0
        if self.begun and not resume:
            raise FileExistsError(
                f"{path} holds a run already: go on with --resume, begin anew with --restart, or give another --output."
            )
        if self.begun:
            self._refuse_changes(load_recipe(known))

    @staticmethod
    def clear(path: Path) -> None:
        """Remove the run in ``path``, and nothing else."""
        for name in (FINAL, METRICS, RECIPE, ENVIRONMENT, STATE, PICTURE, UNREADABLE):  # what says that there is one goes first
            (path / name).unlink(missing_ok=True)
        for part in (BEST, LAST):
            for name in (WEIGHTS, CONFIG, RECIPE):
                (path / part / name).unlink(missing_ok=True)
        for events in (path / CURVES).glob("events.out.tfevents.*"):
            events.unlink()

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

    @property
    def tested_on(self) -> dict[str, Any]:
        """What may change and yet changes the test."""
        return self.recipe.data.model_dump(include={"root", "test_split", "test_images"})

    def finished(self) -> dict[str, Any] | None:
        """What the run ended with, if it did, tested on what the recipe says now."""
        file = self.path / FINAL
        result = json.loads(file.read_text(encoding="utf-8")) if self.begun and file.exists() else {}
        return result if result.pop("tested_on", None) == self.tested_on else None

    def prepare(self, model: nn.Module, device: str, processes: int) -> None:
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
        for folder in (self.path, self.path / BEST, self.path / LAST):
            if folder.is_dir():
                write_recipe(self.recipe, folder)
        now = {**environment(device), "arithmetic": arithmetic(device), "processes": processes}
        self._write_environment({**now, "command": sys.argv, "started": datetime.now(UTC).isoformat(timespec="seconds")})

    def _write_environment(self, now: dict[str, Any]) -> None:
        file = self.path / ENVIRONMENT
        before = json.loads(file.read_text(encoding="utf-8"))["sessions"] if file.exists() else []
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
