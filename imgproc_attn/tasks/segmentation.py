"""Segmentation: one label per pixel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.task import ClassificationTask as TimmClassification
from timm.task import TrainingTask
from torch import Tensor, nn

from ..data import Preprocessing, Unreadable, evaluation_loader, random_subset, training_loader
from ..evaluation.attacks import Passes
from ..evaluation.findings import SanityReport
from ..evaluation.normalization import NormalizedModel
from ..evaluation.results import BY_CLASS
from ..evaluation.results_log import SampleResults
from ..evaluation.samples import Batch, SampleSet
from ..evaluation.scorers import AnyAttack, AttackScorer, Scorer
from ..evaluation.scoring import Metric, check_trained_classes
from ..evaluation.specs import DatasetSpec
from ..evaluation.statistics import normal_interval
from ..recipe import Recipe
from ..segmentation.attacks import PixelAttack
from ..segmentation.data import LABEL_MAP_READERS, LabeledImages
from ..segmentation.inference import SlidingWindow, check_scales, segment
from ..segmentation.metrics import IGNORE_INDEX, bootstrap, constant_areas, count_pixels, metrics_of
from ..segmentation.model import Segmenter
from ..segmentation.overlays import draw_predictions, draw_segmented
from ..segmentation.presets import PIXEL_ATTACKS, PIXEL_PRESETS
from ..segmentation.sanity import Crop, judge_pixels, pixel_probes
from ..segmentation.transforms import SegmentationPreprocessing, joint_transform
from .base import Loading, Task, register_task
from .splits import Splits, shares

__all__ = ["PixelCrossEntropy", "SegmentationTask"]

_REFUSED_OPTIONS = ("image_column", "label_column", "crop_pct", "input_size", "skip_broken", "real_labels", "classes")
CHECKED_SIDE = 512  # pixels of the middle of an image that sanity checks look at, without sliding windows


@register_task("segmentation")
@dataclass(frozen=True)
class SegmentationTask(Task):
    """One label per pixel: mIoU, pixel accuracy and mean accuracy, with intervals from a bootstrap over images.

    Args:
        num_classes: Number of classes.
        short_side: Shorter side in pixels to which images are resized; labels keep their size. Default: not at all.
        windows: Sliding window of the model.
        scales: Factors of the image size over which probabilities are averaged, where images are not attacked.
        flip: Whether to average over mirror images too.

    Raises:
        ValueError: Scales that are not positive.
    """

    metrics: ClassVar = (
        Metric("miou", "mIoU"),
        Metric("pixel_accuracy", "pixel accuracy"),
        Metric("mean_accuracy", "mean accuracy"),
    )
    attacks: ClassVar = PIXEL_ATTACKS
    presets: ClassVar = PIXEL_PRESETS
    num_checked: ClassVar = 8
    bootstrapped: ClassVar = True
    sample_noun: ClassVar = "images"
    refused_options: ClassVar = _REFUSED_OPTIONS
    batch_limit: ClassVar = 1  # images have sizes of their own

    num_classes: int = field(metadata={"setting": False})
    short_side: int | None = field(default=None, metadata={"setting": False})
    windows: SlidingWindow = field(default_factory=SlidingWindow)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        check_scales(self.scales)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    # settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        s = _section(recipe)
        return cls(recipe.data.num_classes, s.short_side, SlidingWindow(s.window, s.stride))

    @classmethod
    def for_model(cls, model: Any, recipe: Recipe | None = None, **options: Any) -> Self:
        """Return the task of a model. The options are those of `views`.

        Raises:
            ValueError: A model that does not segment.
        """
        if not isinstance(model, Segmenter):
            raise ValueError(
                f"A model for label maps must be a Segmenter, got {type(model).__name__}. Name the run of a segmenter."
            )
        return cls(model.num_classes, **cls.views(recipe, **options))

    @staticmethod
    def views(
        recipe: Recipe | None,
        short_side: Any = None,
        window: Any = None,
        stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> dict[str, Any]:
        """Return how a model looks at images, as fields of the task.

        Args:
            recipe: Recipe of the model's run, whose settings are the defaults.
            short_side: In pixels; ``own`` for images as they are.
            window: Side of sliding windows; ``whole`` for the whole image at once.
            stride: Stride of the windows.
            scales: As the field.
            flip: As the field.
        """
        section = None if recipe is None else recipe.segmentation
        if section is not None:
            short_side = short_side or section.short_side
            if window is None:  # a run's stride belongs to its window
                window, stride = section.window, stride or section.stride
        windows = SlidingWindow(None if window == "whole" else window, stride)
        return {
            "short_side": None if short_side == "own" else short_side,
            "windows": windows,
            "scales": tuple(scales),
            "flip": flip,
        }

    @property
    def protocol(self) -> dict[str, Any]:
        return {"short_side": self.short_side}

    # data

    @classmethod
    def check_reader(cls, name: str) -> None:
        if name not in LABEL_MAP_READERS:
            raise ValueError(
                f"The data of a segmenter must have label maps, got {name!r}. Choose one of {', '.join(LABEL_MAP_READERS)}."
            )

    def open_splits(self, recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
        """Open images and label maps.

        Raises:
            FileNotFoundError: Data that is not there.
            ValueError: Another number of classes than the recipe's, or more images asked for than there are.
        """
        data = recipe.data
        train = _open_split(recipe, data.train_split)
        validation, test = (
            None if split is None else _open_split(recipe, split) for split in (data.validation_split, data.test_split)
        )
        splits = {"train": train, "validation": validation, "test": test}
        for (name, one), (other_name, other) in combinations([(n, s) for n, s in splits.items() if s is not None], 2):
            if set(one.pairs) & set(other.pairs):
                raise ValueError(
                    f"The splits {name} and {other_name} must not share images, got some in both. Name another split."
                )
        kept, held_out = shares(data, train)
        few = None if test is None else random_subset(len(test), data.test_images, data.seed)
        return Splits(
            train if kept is None else train.some(kept),
            train.some(held_out) if held_out else validation,
            test if test is None or few is None else test.some(few),
        )

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> LabeledImages:
        if channels != 3:
            raise ValueError(
                f"The model must take 3 channels for images with label maps, got {channels}. Choose another model."
            )
        self.check_reader(spec.data)
        images = LABEL_MAP_READERS[spec.data](spec.root, spec.split)
        check_trained_classes(images.classes, model, spec)
        chosen = random_subset(len(images), spec.limit, spec.seed)
        images = images if chosen is None else images.some(chosen)
        images.check()
        return images

    def kept(self, samples: SampleSet, *args: Any) -> SampleSet:
        """Return the samples: they are read one by one."""
        return samples

    def preprocess(self, preprocessing: Preprocessing) -> SegmentationPreprocessing:
        """Return the preprocessing of whole images, each at its own size or resized."""
        return SegmentationPreprocessing(preprocessing.mean, preprocessing.std, self.short_side)

    def training_loader(self, recipe: Recipe, images: Any, loading: Loading) -> Any:
        s = _section(recipe)
        images.transform = joint_transform(
            _crop(recipe), s.short_side, (s.scale[0], s.scale[1]), recipe.augmentation.hflip, s.photometric
        )
        return training_loader(images, *loading)

    # model and loss

    def model_kwargs(self, recipe: Recipe) -> dict[str, Any]:
        """Return number of classes, channels, and the size of training crops, which positions are made for."""
        return {**super().model_kwargs(recipe), "img_size": recipe.data.input_size[1:]}

    def output_shape(self, recipe: Recipe) -> tuple[int, ...]:
        return (recipe.data.num_classes, *_crop(recipe))

    def check_model(self, recipe: Recipe, model: Any, device: str) -> None:
        """Check that the backbone takes what evaluation shows it: whole images, or windows."""
        channels, window, crop = recipe.data.input_size[0], self.windows.window, _crop(recipe)
        size = [2 * side for side in crop] if window is None else [window, window]
        try:
            model(torch.empty(1, channels, *size, device=device))
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            looked_at = "whole images" if window is None else f"windows of {window}"
            raise ValueError(
                f"its backbone must take {looked_at} in evaluation, got one for crops of {crop[0]} x {crop[1]} ({error}). "
                "Train on square crops and set segmentation.window to their side."
            ) from error

    def training_task(
        self, recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> TrainingTask:
        return TimmClassification(model, PixelCrossEntropy(), device=device, verbose=False)

    # scorers

    def score(self, model: nn.Module, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        """Return ``areas``: of each image, per class that it has, ``[class, right, predicted, labeled]`` pixels."""
        size = (targets.shape[-2], targets.shape[-1])
        areas = [count_pixels(self.classes(model, x, size), y, self.num_classes) for x, y in zip(images, targets)]
        return {"areas": [_sparse(area) for area in areas], "scores": torch.zeros(len(images))}

    @torch.no_grad()
    def classes(self, model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the predicted classes ``[height, width]`` of an image ``[C, H, W]`` in [0, 1]."""
        window, stride = self.windows.window, self.windows.stride
        return segment(model, image, window, stride, size=size, scales=self.scales, flip=self.flip)

    @property
    def passes(self) -> Passes:
        return Passes(math.ceil(sum(scale**2 for scale in self.scales)) * (1 + self.flip), 0)  # in units of the image

    @property
    def one_view(self) -> Self:
        """The task with one view per image, as attacks see it."""
        return replace(self, scales=(1.0,), flip=False)

    def under(self, attack: AnyAttack) -> Scorer:
        if not isinstance(attack, PixelAttack):
            raise ValueError(
                f"An attack on a segmenter must be one of {', '.join(PIXEL_ATTACKS)}, got {type(attack).__name__}. Choose "
                "one of them."
            )
        return AttackScorer(self.one_view, attack)

    def view(self, model: nn.Module) -> nn.Module:
        return self.windows.over(model)

    # numbers

    def _areas(self, results: SampleResults) -> Tensor:
        """``[n, 3, classes]`` pixels."""
        areas = torch.zeros(len(results.ids), 3, self.num_classes, dtype=torch.int64)
        for i, image in enumerate(results.column("areas")):
            rows = torch.tensor(image, dtype=torch.int64).view(-1, 4)
            areas[i][:, rows[:, 0]] = rows[:, 1:].T
        return areas

    def per_sample(self, results: SampleResults) -> list[float]:
        sums = self._areas(results).sum(dim=2).tolist()
        return [round(right / labeled, 6) if labeled else math.nan for right, _, labeled in sums]

    def count(self, results: SampleResults) -> dict[str, Any]:
        return {"n": len(results.ids), **metrics_of(self._areas(results).sum(dim=0))}

    def intervals(self, results: SampleResults) -> dict[str, list[float]]:
        if len(results.ids) < 2:  # of one image all draws are equal
            return {metric.key: [0.0, 100.0] for metric in self.metrics}
        numbers = self.count(results)
        return {key: list(normal_interval(numbers[key], draws)) for key, draws in self.bootstrap(results).items()}

    def bootstrap(self, results: SampleResults) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in bootstrap(self._areas(results)).items()}

    def best_constant(self, results: SampleResults) -> float:
        return metrics_of(constant_areas(self._areas(results).sum(dim=0)[2]))["miou"]

    def tables(self, results: SampleResults, row: Mapping[str, Any], samples: SampleSet) -> dict[str, list[list[Any]]]:
        """Return ``per_class.csv``."""
        names = [samples.class_names[label] for label in range(self.num_classes)]
        rows = zip(names, row["iou"], row["accuracy_by_class"])
        return {BY_CLASS: [["class", "iou", "accuracy"], *(list(cells) for cells in rows)]}

    # trust

    def probes(self, model: nn.Module, attacks: Sequence[AnyAttack], seed: int) -> dict[str, Scorer]:
        return pixel_probes(model, _pixel_attacks(attacks), self._checked, seed)

    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        images = [(x, labels) for x, labels, _ in batches]
        return judge_pixels(model, images, _pixel_attacks(attacks), self._checked, probed)

    @property
    def _checked(self) -> Crop:
        """Part of the images that sanity checks see."""
        return Crop(self.windows.window or CHECKED_SIDE, self.windows)

    # figures

    def some_images(self, recipe: Recipe, images: Any, preprocessing: Preprocessing, device: torch.device) -> Tensor | None:
        """Return the first image, no larger than the crops of training."""
        height, width = _crop(recipe)
        first = next(iter(evaluation_loader(images.some([0]), self.preprocess(preprocessing), 1, 0, device)))[0]
        return first[..., :height, :width]

    @torch.no_grad()
    def examples_figure(self, recipe: Recipe, model: nn.Module, images: Any, loading: Loading) -> Figure | None:
        """Draw three images, their labels, and the model's."""
        three = images.some(range(0, len(images), -(-len(images) // 3)))
        whole = self.preprocess(loading.preprocessing)
        asked = NormalizedModel(model, whole.mean, whole.std).to(loading.device).eval()
        batches = evaluation_loader(three, whole.without_normalization(), 1, 0, loading.device)
        pairs = ((image[0], labels[0]) for image, labels in batches)
        return draw_predictions("", pairs, {"model": partial(self.classes, asked)}, list(images.classes))[0]

    def attacked_figure(self, model: Any, batch: Batch, condition: Any, label: str) -> Figure:
        images, labels, _ = batch
        adversarial, size = condition.scorer(model, *batch).images, (images.shape[-2], images.shape[-1])
        clean, attacked = ([self.one_view.classes(model, x, size) for x in inputs] for inputs in (images, adversarial))
        columns = {"image": list(images), "labels": list(labels), "clean": clean}
        columns |= {f"{condition.name}, image": list(adversarial), condition.name: attacked}
        return draw_segmented(label, columns, self._names(condition.samples))[0]

    @torch.no_grad()
    def comparison_figures(
        self, recipe: Recipe, models: Mapping[str, NormalizedModel], samples: SampleSet, loading: Loading
    ) -> dict[str, Figure]:
        """Draw three images, their labels, and those of all models."""
        few = samples.only(samples.ids[:: -(-len(samples) // 3)])
        batches = few.batches(self.preprocess(loading.preprocessing), 1, 0, loading.device)
        pairs = ((images[0], labels[0]) for images, labels, _ in batches)
        looks = {label: partial(self.classes, model) for label, model in models.items()}
        return {"segmented": draw_predictions(recipe.title, pairs, looks, self._names(samples))[0]}

    def _names(self, samples: SampleSet) -> list[str]:
        return [samples.class_names.get(label, f"class {label}") for label in range(self.num_classes)]


def _pixel_attacks(attacks: Sequence[AnyAttack]) -> list[PixelAttack]:
    return [attack for attack in attacks if isinstance(attack, PixelAttack)]


def _section(recipe: Recipe) -> Any:
    """Return the recipe's section ``segmentation``."""
    if recipe.segmentation is None:
        raise ValueError("A recipe of the task segmentation must have a section segmentation, got none. Add one.")
    return recipe.segmentation


def _crop(recipe: Recipe) -> tuple[int, int]:
    """Return the size of training crops."""
    return recipe.data.input_size[1], recipe.data.input_size[2]


def _open_split(recipe: Recipe, split: str) -> LabeledImages:
    data = recipe.data
    images = LABEL_MAP_READERS[data.name](data.root, split)
    if len(images.classes) != data.num_classes:
        raise ValueError(
            f"data.num_classes must be the number of classes of {data.root}, {len(images.classes)}, got {data.num_classes}. "
            "Correct data.num_classes."
        )
    images.check()
    return images


def _sparse(areas: Tensor) -> list[list[int]]:
    """Return the columns of ``areas [3, classes]`` that are not 0, as rows of ``[class, right, predicted, labeled]``."""
    areas = areas.cpu()
    there = areas.any(dim=0).nonzero()[:, 0]
    return torch.cat([there[:, None], areas[:, there].T], dim=1).tolist()


class PixelCrossEntropy(nn.Module):
    """Mean cross-entropy of the pixels that have a label; 0 where none has.

    The mean is over the pixels of all processes, whose gradients are averaged afterwards; otherwise a pixel would count more
    where fewer have a label. (Batches of one update, ``run.grad_accum_steps``, count equally.)
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
        count, processes = (labels != IGNORE_INDEX).sum(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            processes = dist.get_world_size()
        return processes * losses / count.clamp_min(1)
