"""What a recipe says: a typed schema that refuses what it does not know, before anything is built."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..data.readers import check_columns, check_reader, reads_from_a_place
from ..evaluation.corruption_names import COMMON, EXTRA
from ..segmentation.data import READERS as LABELED
from ..utils.checks import check_statistics
from ..utils.serialization import SEEDS
from .yaml_text import free_value, number_of


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _rising(found: list[float]) -> list[float]:
    if found[0] > found[1]:
        raise ValueError(f"the smallest value must come first, got {found}. Swap the two.")
    return found


def _shares(found: list[float]) -> list[float]:
    if found[1] > 1:
        raise ValueError(f"shares of the area must be at most 1, got {found}. Give zoom for larger factors.")
    return found


Number = Annotated[float, BeforeValidator(number_of)]  # 1e-3 and 4/255 too, which YAML has as text
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Radius = Annotated[Number, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class Model(BaseModel):
    """A registered timm model.

    Attributes:
        name: As ``timm.create_model`` takes it. A comparison may leave it to its variants.
        pretrained: Start from the trained weights of that name.
        checkpoint: Start from the weights of this file, or of this folder of a run.

    Further keys are keyword arguments of the model. Classes and channels come from the section ``data``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = ""
    pretrained: bool = False
    checkpoint: str = ""

    @model_validator(mode="before")
    @classmethod
    def _keywords(cls, content: Any) -> Any:
        """Give keyword arguments the types that they have without a schema, and refuse rates that are no shares."""
        if not isinstance(content, dict):
            return content
        found = {key: value if key in cls.model_fields else free_value(value, key) for key, value in content.items()}
        for key, value in found.items():
            if key.endswith("_rate") and isinstance(value, int | float) and not 0 <= value < 1:
                raise ValueError(f"{key} must be at least 0 and below 1, got {value}. It is the share that is dropped.")
        return found


def _changes_of(label: str, options: dict[str, Any]) -> dict[str, Any]:
    """Keys of the section ``model``, checked as there."""
    try:
        return Model(**options).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, [label, *first["loc"]]))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


class Data(_Section):
    """Which images.

    Attributes:
        name: The reader. ``folder``: a folder a class, or a tar file of such. ``npz``: packed JPEG files (`PackedImages`).
            ``digits``: the 1,797 scanned digits that ship with scikit-learn. ``torch/…``, ``wds/…``, ``hfds/…``, ``hfids/…``,
            ``tfds/…``: timm's names of torchvision sets, WebDataset, Hugging Face sets (iterable too), TensorFlow sets.
        root: Folder or file; a relative path that does not exist is looked for in ``$IMGPROC_ATTN_DATA`` too.
        train_split: Trained on: a split's name, or a subfolder of ``root``; empty for ``root`` itself.
        validation_split: What the best checkpoint is chosen on. Default: see ``validation_images``.
        test_split: What the final numbers come from; no choice looks at it.
        validation_images: So many random images of the training split are held out for validation. With 0 and no
            ``validation_split`` nothing is chosen, and the last checkpoint is the result.
        train_images: So many random images of the rest are trained on. Default: all.
        test_images: So many random images of the test split. Default: all.
        seed: Of these random choices, equal for all models and training seeds; for ``digits`` of the split too.
        download: Fetch what is not there; for ``torch/…``, ``hfids/…`` and ``tfds/…``.
        num_classes: Labels run from 0 to ``num_classes - 1``.
        image_column: Column of images of ``hfds/…`` and ``hfids/…``. Default: ``image``, or the only column of images.
        label_column: Column of labels. Default: ``label``, or the only column of class labels. For ``wds/…`` the field of the
            ``.json`` members that holds labels, in place of ``.cls`` members.
        input_size: ``[channels, height, width]`` of what the model gets.
        mean: Subtracted from images in [0, 1]. Default: of the model's ``pretrained_cfg``.
        std: What they are divided by. Default: of the model's ``pretrained_cfg``.
        interpolation: Of resizing. Default: of the model's ``pretrained_cfg``.
        crop_pct: Evaluation resizes the short side to ``input_size / crop_pct`` and crops the center. Default: as the mean.
        on_broken_image: An unreadable image is named and ``skip``ped, or ``stop``s the run.
        workers: Processes that read and augment, for each training process.
    """

    name: str
    root: str = ""
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = "validation"
    validation_images: Annotated[int, Field(ge=0)] = 0
    train_images: Count | None = None
    test_images: Count | None = None
    seed: Seed = 0
    download: bool = False
    num_classes: Annotated[int, Field(ge=2)]
    image_column: str | None = None
    label_column: str | None = None
    input_size: Annotated[list[Count], Field(min_length=3, max_length=3)]
    mean: Annotated[list[Number], Field(min_length=1)] | None = None
    std: Annotated[list[Positive], Field(min_length=1)] | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest"] | None = None
    crop_pct: Annotated[Number, Field(gt=0, le=1)] | None = None
    on_broken_image: Literal["skip", "stop"] = "stop"
    workers: Annotated[int, Field(ge=0)] = 2

    @field_validator("mean", "std")
    @classmethod
    def _of_images_in_0_to_1(cls, values: list[float] | None) -> list[float] | None:
        check_statistics("", values or [])
        return values

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        check_reader(name, LABELED)
        return name

    @model_validator(mode="after")
    def _one_validation(self) -> "Data":
        if self.validation_images and self.validation_split is not None:
            raise ValueError("validation_images and validation_split exclude each other: hold images out, or name a split")
        if reads_from_a_place(self.name) and not self.root:
            raise ValueError(f"root is empty, but {self.name!r} reads from it: give data.root=PATH")
        check_columns(self.name, self.image_column, self.label_column)
        return self

    @model_validator(mode="after")
    def _images_by_number(self) -> "Data":
        for key in ("validation_images", "train_images", "test_images"):
            if self.iterates and getattr(self, key):
                raise ValueError(f"{key} needs images by number, which {self.name!r} does not give; name a split instead")
        if self.iterates and self.on_broken_image == "stop":
            raise ValueError(f"{self.name!r} skips broken images by itself, and logs them; say on_broken_image: skip")
        return self

    @property
    def columns(self) -> dict[str, Any]:
        """Keyword arguments of `open_images`."""
        return {"image_column": self.image_column, "label_column": self.label_column}

    @property
    def iterates(self) -> bool:
        """Whether the reader gives images one after the other alone."""
        return self.name.startswith(("wds/", "hfids/", "tfds/"))


class Augmentation(_Section):
    """Random changes of training images; names and order are timm's ``create_transform``, then its ``Mixup``.

    Attributes:
        scale: Share of the area that a random resized crop keeps; ``[1, 1]`` turns it off.
        ratio: Aspect ratio of that crop, relative to that of the images a model takes: 1 does not distort.
        crop_padding: Mirror so many pixels outwards and crop at random (CIFAR's way); needs ``scale: [1, 1]``.
        degrees: Largest rotation; with ``translate`` and ``zoom`` one affine map.
        translate: Largest shift, as a share of the side.
        zoom: Smallest and largest magnification.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength; not used together with ``auto_augment``.
        auto_augment: timm's policy string, as ``rand-m9-mstd0.5-inc1``.
        random_erasing: Probability of random erasing.
        mixup: Alpha of mixup.
        cutmix: Alpha of cutmix.
        mixup_prob: Of mixup or cutmix for a batch.
        mixup_switch_prob: Probability of cutmix where both are on.
        interpolation: Of the random resized crop; ``random``: bilinear or bicubic. Default: that of evaluation.
        aug_repeats: Each image so many times in a row, augmented anew (repeated augmentation, arXiv 1901.09335).
    """

    scale: Annotated[Range, AfterValidator(_shares)] = [1.0, 1.0]
    ratio: Range = [1.0, 1.0]
    crop_padding: Annotated[int, Field(ge=0)] = 0
    degrees: Annotated[Number, Field(ge=0, le=180)] = 0.0
    translate: Share = 0.0
    zoom: Range = [1.0, 1.0]
    hflip: Share = 0.0
    color_jitter: NotNegative = 0.0
    auto_augment: str | None = None
    random_erasing: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5
    interpolation: Literal["bicubic", "bilinear", "nearest", "random"] | None = None
    aug_repeats: Count = 1

    @field_validator("auto_augment")
    @classmethod
    def _with_numbers(cls, policy: str | None) -> str | None:
        """Refuse parts of a policy that timm would leave out without a word."""
        name, *parts = (policy or "").split("-")
        without = [part for part in parts if not re.search(r"\d", part) and not (name == "rand" and part.startswith("t"))]
        if name in ("rand", "augmix") and without:
            raise ValueError(f"each part must have a number, got {without[0]!r} in {policy!r}. Write it as in rand-m9-mstd0.5.")
        return policy

    @model_validator(mode="after")
    def _one_crop(self) -> "Augmentation":
        if self.crop_padding and list(self.scale) != [1.0, 1.0]:
            raise ValueError(f"crop_padding is {self.crop_padding} and scale {self.scale}; only one of the two may crop")
        return self

    @property
    def mixes(self) -> bool:
        """Whether targets become soft."""
        return self.mixup > 0 or self.cutmix > 0


class Adversarial(_Section):
    """Adversarial training: each batch is attacked by PGD, and trained on instead (arXiv 1706.06083).

    Attributes:
        eps: Radius of the L-infinity ball, in units of [0, 1].
        steps: Of PGD.
        step_size: Of PGD. Default: ``2.5 eps / steps``.
        warmup_epochs: The radius grows linearly over the first of them.
    """

    eps: Radius
    steps: Count = 3
    step_size: Positive | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


class Segmentation(_Section):
    """A label a pixel: how pictures and label maps are prepared, and how pictures of any size are segmented.

    ``data.input_size`` is that of training crops; of ``augmentation``, ``hflip`` alone is used.

    Attributes:
        short_side: Pictures are resized to it, the longer one to 4 times as much at most, in evaluation too, where their labels
            are not. Default: as they are.
        scale: Smallest and largest random factor of the size in training.
        photometric: Random brightness, contrast, saturation and hue in training.
        window: Side of sliding windows in evaluation. Default: the whole picture at once.
        stride: Between windows. Default: ``window``.
    """

    short_side: Count | None = None
    scale: Range = [0.5, 2.0]
    photometric: bool = True
    window: Count | None = None
    stride: Count | None = None

    @model_validator(mode="after")
    def _no_gaps(self) -> "Segmentation":
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise ValueError(f"stride is {self.stride}, but must not be above window, {self.window}: there would be gaps")
        return self


class Optimizer(_Section):
    """One of timm's optimizers.

    Attributes:
        name: As timm's ``create_optimizer_v2`` takes it.
        lr: Peak learning rate, for the recipe's batch.
        weight_decay: Not applied to 1-D parameters, bandwidths among them.
        momentum: For optimizers that have one.
        betas: For optimizers that have them. Default: the optimizer's.
        layer_decay: Factor of the learning rate from each block to the one before it.
        clip_grad: Largest norm of the gradient; None for none.
    """

    name: str
    lr: Positive
    weight_decay: NotNegative = 0.0
    momentum: Share = 0.9
    betas: Annotated[list[Annotated[Number, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = None
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    clip_grad: Positive | None = None


class Schedule(_Section):
    """Linear warm-up, then a decay to ``min_lr``, by update.

    Attributes:
        name: Shape of the decay.
        epochs: Passes over the training images, warm-up included.
        warmup_epochs: The first of them.
        warmup_lr: Where the warm-up begins.
        min_lr: Where the decay ends.
        power: Of ``poly``.
    """

    name: Literal["cosine", "poly"] = "cosine"
    epochs: Count
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NotNegative = 1e-6
    min_lr: NotNegative = 0.0
    power: Positive = 0.9

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> "Schedule":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, but must be below epochs, {self.epochs}")
        return self


class Run(_Section):
    """How it is run.

    Attributes:
        seed: Of initial weights, order, augmentation and drop path.
        batch_size: Images an update, over all processes and accumulated batches.
        grad_accum_steps: So many batches an update.
        loss: ``ce``: cross-entropy; ``bce``: binary cross-entropy of every class.
        label_smoothing: Share of the target spread over all classes.
        amp: Autocast to this type; None for float32.
        compile: ``torch.compile`` the model.
        channels_last: Memory format of weights and images.
        grad_checkpointing: Recompute blocks in the backward pass, which saves memory.
        ema_decay: Decay of an exponential moving average of the weights, which then is what is evaluated and kept.
        log_every: Updates between looks at the loss; each waits for the device.
    """

    seed: Seed = 0
    batch_size: Count
    grad_accum_steps: Count = 1
    loss: Literal["ce", "bce"] = "ce"
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    amp: Literal["bfloat16", "float16"] | None = None
    compile: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    ema_decay: Annotated[Number, Field(gt=0, lt=1)] | None = None
    log_every: Count = 50

    @model_validator(mode="after")
    def _whole_batches(self) -> "Run":
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size is {self.batch_size}, but must be a multiple of grad_accum_steps, {self.grad_accum_steps}"
            )
        return self


class EvaluationSection(_Section):
    """What trained models go through in a comparison; images are in [0, 1], and so are the units.

    Attributes:
        fgsm: Radii eps of FGSM.
        pgd: Radii eps of PGD.
        pgd_steps: Steps of PGD.
        pgd_restarts: Restarts of PGD.
        gaussian_noise: Standard deviations.
        gaussian_blur: Standard deviations in pixels.
        worst_case: Radii eps at which FGSM, PGD, APGD-CE and targeted APGD attack together: a sample counts as robust if none
            fools it. Of classification alone; for segmentation read the lowest of PGD, SegPGD and MaskedPGD.
        worst_case_images: Number of random images of the disturbed ones that the worst case is measured on. Default: all of
            them.
        apgd_steps: Gradient steps per restart of the two APGD attacks.
        segpgd: Radii eps of SegPGD, of segmentation alone.
        maskedpgd: Radii eps of PGD on the pixels that are still right, likewise.
        corruptions: Of ImageNet-C, ``fog 3``: name and severity.
        num_perturbed: So many random test images are attacked and corrupted; clean accuracy is of all. Default: all.
    """

    fgsm: list[Radius] = []
    pgd: list[Radius] = []
    pgd_steps: Count = 20
    pgd_restarts: Count = 1
    worst_case: list[Radius] = []
    worst_case_images: Count | None = None
    apgd_steps: Count = 100
    gaussian_noise: list[Positive] = []
    gaussian_blur: list[Positive] = []
    segpgd: list[Radius] = []
    maskedpgd: list[Radius] = []
    corruptions: list[str] = []
    num_perturbed: Count | None = None

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: list[str]) -> list[str]:
        for text in corruptions:
            name, _, severity = text.partition(" ")
            if name == "frost":
                raise ValueError(
                    "frost needs photographs, which a recipe does not name; use imgproc-attn corrupt --frost-folder"
                )
            if name not in (*COMMON, *EXTRA) or severity not in ("1", "2", "3", "4", "5"):
                raise ValueError(
                    f"{text!r} is none; write a name and a severity, fog 3; there are {', '.join([*COMMON, *EXTRA])}"
                )
        return corruptions


class Comparison(_Section):
    """Several models under one training, paired by seed.

    Attributes:
        seeds: One training run a model and seed.
        variants: Keys of the section ``model`` that change, by label; the first is the baseline of the paired differences.
        tolerance: Points of the clean metric that a variant may lose: reports say whose one-sided 95 % bound is below that.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    tolerance: NotNegative = 1.0

    @field_validator("variants")
    @classmethod
    def _keywords(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {label: _changes_of(label, options) for label, options in variants.items()}

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds are {seeds}, but each may stand there once; runs of one seed are equal")
        return seeds


class Recipe(_Section):
    """One training run, or a comparison of several.

    Attributes:
        title: Stands over reports.
        task: Name of the task. Default: ``segmentation`` with a section of that name, otherwise ``classification``.
        model: What is trained.
        data: On which images.
        augmentation: How they are changed.
        adversarial: Attacks while training; None for none.
        segmentation: Of recipes that label pixels; None for classification.
        optimizer: How weights are updated.
        schedule: How long, and at what rate.
        run: Seed, batches, loss, precision.
        evaluation: Attacks and corruptions of a comparison.
        comparison: Models and seeds of a comparison.
    """

    title: str
    task: str
    model: Model = Model()
    data: Data
    augmentation: Augmentation = Augmentation()
    adversarial: Adversarial | None = None
    segmentation: Segmentation | None = None
    optimizer: Optimizer
    schedule: Schedule
    run: Run
    evaluation: EvaluationSection = EvaluationSection()
    comparison: Comparison | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_task(cls, content: Any) -> Any:
        """Fill in the task, so that it stands in the recipe of every run."""
        if not isinstance(content, dict) or "task" in content:
            return content
        return {"task": "segmentation" if content.get("segmentation") else "classification", **content}

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        batch = self.run.batch_size // self.run.grad_accum_steps
        if self.augmentation.mixes and batch % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs, but a batch has {batch} images; make run.batch_size / grad_accum_steps even"
            )
        if self.data.iterates and self.augmentation.aug_repeats > 1:
            raise ValueError(
                f"augmentation.aug_repeats needs images by number, which {self.data.name!r} does not give; set it to 1"
            )
        if (self.data.name in LABELED) != (self.segmentation is not None):
            raise ValueError(
                f"data.name={self.data.name!r} {'needs' if self.segmentation is None else 'excludes'} a section segmentation; "
                f"pictures with label maps are {', '.join(LABELED)}"
            )
        if (self.task == "segmentation") != (self.segmentation is not None):
            raise ValueError(
                f"task={self.task!r} {'needs' if self.segmentation is None else 'excludes'} a section segmentation; "
                "leave out the key task, or correct it"
            )
        if self.segmentation:
            self._segments()
        elif self.evaluation.segpgd or self.evaluation.maskedpgd:
            name = "segpgd" if self.evaluation.segpgd else "maskedpgd"
            raise ValueError(f"evaluation.{name} is of segmentation; leave it out")
        if self.adversarial and self.augmentation.random_erasing:
            raise ValueError(
                "adversarial training and augmentation.random_erasing exclude each other: erased pixels leave [0, 1]"
            )
        if self.adversarial and self.adversarial.warmup_epochs >= self.schedule.epochs:
            raise ValueError(
                f"adversarial.warmup_epochs is {self.adversarial.warmup_epochs}, but must be below schedule.epochs, "
                f"{self.schedule.epochs}, or eps would never be reached"
            )
        if self.adversarial and self.run.amp == "float16":
            raise ValueError("adversarial training in float16 would round the attack's gradients to zero; use run.amp=bfloat16")
        for label, options in (self.comparison.variants if self.comparison else {"model": {}}).items():
            if not (self.model.name or options.get("name")):
                raise ValueError(f"{label}: no model is named; give model.name")
        return self

    def _segments(self) -> None:
        """Refuse what segmentation has no use for, instead of leaving it out."""
        changed = self.augmentation.model_dump(exclude_defaults=True, exclude={"hflip"})
        changed |= self.run.model_dump(include={"loss", "label_smoothing"}, exclude_defaults=True)
        changed |= {"adversarial": True} if self.adversarial else {}
        changed |= self.evaluation.model_dump(include={"gaussian_noise", "gaussian_blur", "worst_case"}, exclude_defaults=True)
        given = {"interpolation": None, "crop_pct": None, "download": False, "on_broken_image": "stop"}
        changed |= {key: True for key, unused in given.items() if getattr(self.data, key) != unused}
        if changed:
            raise ValueError(f"segmentation has no {', '.join(changed)}; leave it out")
        if self.data.input_size[0] != 3:
            raise ValueError(f"data.input_size has {self.data.input_size[0]} channels, but pictures to segment have 3")

    def variant(self, label: str, seed: int) -> "Recipe":
        """The single run ``label`` with ``seed`` of a comparison.

        Raises:
            ValueError: There is no such variant.
        """
        variants = self.comparison.variants if self.comparison else {}
        if label not in variants:
            raise ValueError(f"No variant {label!r} in this recipe; there are {', '.join(variants) or 'none'}.")
        return self.model_copy(
            update={
                "title": f"{self.title}: {label}",
                "model": Model(**{**self.model.model_dump(), **variants[label]}),
                "run": self.run.model_copy(update={"seed": seed}),
                "comparison": None,
            }
        )
