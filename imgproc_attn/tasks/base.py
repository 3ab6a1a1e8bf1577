"""Base class of tasks: the scoring of answers, and the data and loss they are learned from."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from matplotlib.figure import Figure
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..data import Images, Preprocessing, Unreadable, World, evaluation_loader, training_loader
from ..evaluation.normalization import NormalizedModel
from ..evaluation.samples import SampleSet
from ..evaluation.scoring import TASKS, Scoring, find_task
from ..recipe import Recipe
from .augmentation import training_transform
from .splits import Splits, open_splits

__all__ = ["Loading", "Task", "register_task", "task_of"]


class Loading(NamedTuple):
    """Settings of the loaders of one process.

    Attributes:
        preprocessing: Preprocessing of the images for the model.
        batch_size: Batch size of this process.
        workers: Number of worker processes that read images.
        device: Device of the batches.
        world: Rank of this process and number of processes.
    """

    preprocessing: Preprocessing
    batch_size: int
    workers: int
    device: torch.device
    world: World


@dataclass(frozen=True)
class Task(Scoring):
    """A task: what is learned from which images, and how it is evaluated.

    The fields of a task are its settings in evaluation; they are recorded with every result. The defaults here and in `Scoring`
    are those of images with one label each, as `imgproc_attn.data` reads them. A subclass must give ``metrics``, ``score``,
    ``per_sample``, `from_recipe` and `training_task`.
    """

    # settings

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """Return the task with the evaluation settings of a recipe."""

    @classmethod
    def for_model(cls, model: Any, recipe: Recipe | None = None, **options: Any) -> Self:
        """Return the task for the evaluation of a model.

        Args:
            model: The model.
            recipe: Recipe of the run that trained it; None if unknown.
            **options: Settings of the task from the command line, which take precedence.

        Raises:
            ValueError: An option that the task does not have.
        """
        if options:
            given = ", ".join(options)
            raise ValueError(f"The task {cls.name} must have no settings but those of its recipe, got {given}. Leave them out.")
        if recipe is None:
            raise ValueError(
                f"A model of the task {cls.name} must come from a run, got one without a recipe. Name the folder of a run."
            )
        return cls.from_recipe(recipe)

    # data

    def open_splits(self, recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
        """Open what a recipe trains, chooses and tests on. As `open_splits`."""
        return open_splits(recipe, unreadable, batch_size)

    def training_loader(self, recipe: Recipe, images: Any, loading: Loading) -> Any:
        """Return a loader of shuffled, augmented batches."""
        a = recipe.augmentation
        images.transform = training_transform(a, loading.preprocessing)
        return training_loader(images, *loading, aug_repeats=a.aug_repeats, random_erasing=a.random_erasing)

    # model and loss

    def model_kwargs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keyword arguments of a model that follow from the data of a recipe, which may replace some of them."""
        return {"num_classes": recipe.data.num_classes, "in_chans": recipe.data.input_size[0]}

    def example_input(self, recipe: Recipe, device: str) -> Tensor:
        """Return an input of one sample, without meaning, to try a model with."""
        return torch.empty(1, *recipe.data.input_size, device=device)

    def output_shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the shape of the output for one image."""
        return (recipe.data.num_classes,)

    def check_model(self, recipe: Recipe, model: Any, device: str) -> None:
        """Check further abilities of a model before training, without memory on the device ``meta``.

        Raises:
            ValueError: It lacks one.
        """
        training_transform(recipe.augmentation, Preprocessing.of(model.pretrained_cfg))

    @abstractmethod
    def training_task(
        self, recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> TrainingTask:
        """Return timm's training task: the model and its loss."""

    # figures

    def some_images(self, recipe: Recipe, images: Any, preprocessing: Preprocessing, device: torch.device) -> Tensor | None:
        """Return a few normalized images to look at filters with; None if reading them would disturb the reader."""
        if isinstance(images, IterableDataset):
            return None
        four = Images(images.reader, images.num_classes, images.indices[:4], preprocessing.input_size[0], "ignore")
        return next(iter(evaluation_loader(four, preprocessing, 4, 0, device)))[0]

    def examples_figure(self, recipe: Recipe, model: nn.Module, images: Any, loading: Loading) -> Figure | None:
        """Draw the outputs for a few images after an epoch; None if there is nothing worth a figure."""
        return None

    def comparison_figures(
        self, recipe: Recipe, models: Mapping[str, NormalizedModel], samples: SampleSet, loading: Loading
    ) -> dict[str, Figure]:
        """Draw the models of a comparison side by side, ``{name: figure}``."""
        return {}


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe.

    Raises:
        ValueError: No task has the name that the recipe gives.
    """
    return find_task(recipe.task).from_recipe(recipe)


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Register a task under a name, which recipes give as ``task: NAME``. Use it as a decorator.

    Raises:
        ValueError: The name is taken.
    """

    def register(task: type[Task]) -> type[Task]:
        known = TASKS.get(name, task)
        known = known if isinstance(known, str) else f"{known.__module__}:{known.__qualname__}"
        if known != f"{task.__module__}:{task.__qualname__}":
            raise ValueError(f"The name of a task must be new, got {name!r}, which is {known}. Choose another one.")
        task.name, TASKS[name] = name, task
        return task

    return register
