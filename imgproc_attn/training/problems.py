"""What a recipe is about: classification or segmentation. All that differs between them in a run stands here."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..data import Images, Preprocessing, Unreadable, World, evaluation_loader, random_subset, training_loader
from ..evaluation.classification import evaluate_loader
from ..evaluation.normalization import NormalizedModel
from ..recipe.schema import Recipe, Segmentation
from ..segmentation.data import READERS as LABELED
from ..segmentation.data import LabeledPictures
from ..segmentation.inference import evaluate_pictures
from ..segmentation.measure import PixelsAsGiven, SlidingWindow
from ..segmentation.overlays import draw_looks
from ..segmentation.transforms import SegmentationPreprocessing, joint_transform
from .augmentation import training_transform
from .splits import Splits, open_splits, shares
from .tasks import build_segmentation, build_task


class Loading(NamedTuple):
    """How a process gets its batches.

    Attributes:
        preprocessing: Of the images, as the model wants them.
        batch_size: Of this process.
        workers: Processes that read.
        device: Where batches go.
        world: Rank of this process and number of processes.
    """

    preprocessing: Preprocessing
    batch_size: int
    workers: int
    device: torch.device
    world: World


class Problem(Protocol):
    """What is learned from which images, and how it is judged."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the logits of an image."""
        ...

    def open(self, unreadable: Unreadable, batch_size: int) -> Splits:
        """The images."""
        ...

    def training_loader(self, images: Any, loading: Loading) -> Any:
        """Shuffled batches, augmented."""
        ...

    def task(self, model: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Any:
        """Model and loss."""
        ...

    def evaluate(
        self, model: nn.Module, images: Any, evaluator: Any, loading: Loading, autocast: Callable[[], Any]
    ) -> dict[str, Any]:
        """Metrics on a split, over all processes."""
        ...

    def a_few(self, images: Any, preprocessing: Preprocessing, device: torch.device) -> Tensor | None:
        """A few images as the model gets them, to look at its filters; None if looking would disturb the reader."""
        ...

    def examples(self, model: nn.Module, images: Any, loading: Loading) -> Figure | None:
        """What the model makes of a few images, if that is worth a picture."""
        ...


class ClassificationProblem:
    """One label an image.

    Args:
        recipe: Of a single model.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.output_shape: tuple[int, ...] = (recipe.data.num_classes,)

    def open(self, unreadable: Unreadable, batch_size: int) -> Splits:
        """As `open_splits`."""
        return open_splits(self.recipe, unreadable, batch_size)

    def training_loader(self, images: Any, loading: Loading) -> Any:
        """By timm's transforms."""
        a = self.recipe.augmentation
        images.transform = training_transform(a, loading.preprocessing)
        return training_loader(images, *loading, aug_repeats=a.aug_repeats, random_erasing=a.random_erasing)

    def task(self, model: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Any:
        """As `build_task`."""
        return build_task(self.recipe, model, preprocessing, device)

    def evaluate(
        self, model: nn.Module, images: Any, evaluator: Any, loading: Loading, autocast: Callable[[], Any]
    ) -> dict[str, Any]:
        """Top-1 and its like."""
        loader = evaluation_loader(images, *loading)
        return evaluate_loader(model, loader, evaluator, autocast, loading.world.size > 1)

    def a_few(self, images: Any, preprocessing: Preprocessing, device: torch.device) -> Tensor | None:
        """The first, of what knows its images by number."""
        if isinstance(images, IterableDataset):
            return None
        four = Images(images.reader, images.num_classes, images.indices[:4], preprocessing.input_size[0], "ignore")
        return next(iter(evaluation_loader(four, preprocessing, 4, 0, device)))[0]

    def examples(self, model: nn.Module, images: Any, loading: Loading) -> Figure | None:
        """Labels are not worth one."""
        return None


class SegmentationProblem:
    """A label a pixel.

    Args:
        recipe: Of a single model, with a section ``segmentation``.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.segmentation is not None
        self.recipe, self.section = recipe, recipe.segmentation
        self.crop = (recipe.data.input_size[1], recipe.data.input_size[2])
        self.output_shape: tuple[int, ...] = (recipe.data.num_classes, *self.crop)

    def open(self, unreadable: Unreadable, batch_size: int) -> Splits:
        """Pictures and label maps.

        Raises:
            FileNotFoundError: Data that is not there.
            ValueError: Another number of classes than the recipe's, or more pictures asked for than there are.
        """
        data = self.recipe.data
        train = self._opened(data.train_split)
        validation, test = (
            None if split is None else self._opened(split) for split in (data.validation_split, data.test_split)
        )
        splits = {"train": train, "validation": validation, "test": test}
        for (name, one), (other_name, other) in combinations([(n, s) for n, s in splits.items() if s is not None], 2):
            if set(one.pairs) & set(other.pairs):
                raise ValueError(f"The splits {name} and {other_name} share pictures; name another split.")
        kept, held_out = shares(data, train)
        few = None if test is None else random_subset(len(test), data.test_images, data.seed)
        return Splits(
            train if kept is None else train.some(kept),
            train.some(held_out) if held_out else validation,
            test if test is None or few is None else test.some(few),
        )

    def _opened(self, split: str) -> LabeledPictures:
        data = self.recipe.data
        pictures = LABELED[data.name](data.root, split)
        if len(pictures.classes) != data.num_classes:
            raise ValueError(f"data.num_classes is {data.num_classes}, but {data.root} names {len(pictures.classes)} classes.")
        pictures.check()
        return pictures

    def training_loader(self, images: Any, loading: Loading) -> Any:
        """By joint transforms."""
        s: Segmentation = self.section
        images.transform = joint_transform(
            self.crop, s.short_side, (s.scale[0], s.scale[1]), self.recipe.augmentation.hflip, s.photometric
        )
        return training_loader(images, *loading)

    def task(self, model: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Any:
        """Cross-entropy of the pixels that have a label."""
        return build_segmentation(model, self.recipe.data.num_classes, device)

    def evaluate(
        self, model: nn.Module, images: Any, evaluator: Any, loading: Loading, autocast: Callable[[], Any]
    ) -> dict[str, Any]:
        """MIoU and its like, each picture at its own size."""
        loader = evaluation_loader(images, self.whole(loading.preprocessing), 1, *loading[2:])
        windows = (self.section.window, self.section.stride)
        return evaluate_pictures(model, loader, evaluator, autocast, *windows, loading.world.size > 1)

    def a_few(self, images: Any, preprocessing: Preprocessing, device: torch.device) -> Tensor | None:
        """The first, no larger than crops in training."""
        height, width = self.crop
        first = next(iter(evaluation_loader(images.some([0]), self.whole(preprocessing), 1, 0, device)))[0]
        return first[..., :height, :width]

    @torch.no_grad()
    def examples(self, model: nn.Module, images: Any, loading: Loading) -> Figure | None:
        """Three pictures, their labels, and the model's."""
        three = images.some(range(0, len(images), -(-len(images) // 3)))
        whole = self.whole(loading.preprocessing)
        asked = NormalizedModel(model, whole.mean, whole.std).to(loading.device).eval()
        batches = evaluation_loader(three, whole.without_normalization(), 1, 0, loading.device)
        view = PixelsAsGiven(self.recipe.data.num_classes, SlidingWindow(self.section.window, self.section.stride))
        pictures = ((image[0], labels[0]) for image, labels in batches)
        return draw_looks("", pictures, {"model": partial(view.classes, asked)}, list(images.classes))

    def whole(self, preprocessing: Preprocessing) -> SegmentationPreprocessing:
        """How pictures are evaluated: not cropped."""
        return SegmentationPreprocessing(preprocessing.mean, preprocessing.std, self.section.short_side)


def problem_of(recipe: Recipe) -> Problem:
    """By the sections of the recipe."""
    return ClassificationProblem(recipe) if recipe.segmentation is None else SegmentationProblem(recipe)
