"""Schemas of the sections of recipes."""

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

from ..data.reader_names import LABEL_MAPS, REGRESSION, SEQUENCES, TEXT, check_columns, check_reader, reads_from_a_place
from ..evaluation.corruption_names import COMMON, EXTRA
from ..utils.checks import check_statistics
from ..utils.serialization import SEEDS
from .yaml_text import free_value, number_of

__all__ = [
    "Adversarial",
    "Augmentation",
    "Comparison",
    "Data",
    "EvaluationSection",
    "InContextRegression",
    "Language",
    "Model",
    "Optimizer",
    "RunSection",
    "Schedule",
    "Section",
    "Segmentation",
    "Sequences",
]


class Section(BaseModel):
    """Base class of sections. They refuse unknown keys and values of other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _rising(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError(f"the smallest value must come first, got {values}. Swap the two.")
    return values


def _shares(values: list[float]) -> list[float]:
    if values[1] > 1:
        raise ValueError(f"shares of the area must be at most 1, got {values}. Use zoom for larger factors.")
    return values


Number = Annotated[float, BeforeValidator(number_of)]  # YAML reads 1e-3 and 4/255 as text, which the validator converts.
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Radius = Annotated[Number, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class Model(BaseModel):
    """Section ``model``: a registered timm model.

    Attributes:
        name: Name of the model in timm. In a comparison, the variants may give it instead.
        pretrained: Start from the pretrained weights of that name.
        checkpoint: Start from the weights of this file or run folder.

    Further keys are keyword arguments of the model. The number of classes and channels comes from the section ``data``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = ""
    pretrained: bool = False
    checkpoint: str = ""

    @model_validator(mode="before")
    @classmethod
    def _keywords(cls, content: Any) -> Any:
        """Convert keyword arguments, which have no schema, and check that rates are in [0, 1)."""
        if not isinstance(content, dict):
            return content
        result = {key: value if key in cls.model_fields else free_value(value, key) for key, value in content.items()}
        for key, value in result.items():
            if key.endswith("_rate") and isinstance(value, int | float) and not 0 <= value < 1:
                raise ValueError(f"{key} must be at least 0 and below 1, got {value}. Give the share to drop.")
        return result


def _changes_of(label: str, options: dict[str, Any]) -> dict[str, Any]:
    """Validate the changes of a variant, which have the keys of the section ``model``."""
    try:
        return Model(**options).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, [label, *first["loc"]]))
        raise ValueError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None


class Data(Section):
    """Section ``data``: data set, splits and preprocessing.

    Attributes:
        name: Name of the reader, one of:

            - ``folder``: one folder per class, or a tar file of class folders.
            - ``npz``: packed JPEG files (`imgproc_attn.data.PackedImages`).
            - ``digits``: the 1,797 scanned digits that ship with scikit-learn.
            - ``torch/…``, ``wds/…``, ``hfds/…``, ``hfids/…``, ``tfds/…``: timm's names of torchvision sets, WebDataset,
              Hugging Face sets (``hfids/…`` iterable), TensorFlow sets.
            - ``pathfinder``: Pathfinder images of the Long Range Arena (`imgproc_attn.data.Pathfinder`).
            - ``ade20k``, ``camvid``, ``labeled``: images with label maps, for segmentation.
            - ``text``: a folder with ``train.txt``, ``valid.txt`` and ``test.txt``, or one text file that is cut into 90, 5
              and 5 %, for language models.
            - ``regression``: random functions of in-context regression. No key of this section is needed for them.
            - ``listops``, ``reviews``, ``retrieval``: labeled sequences of the Long Range Arena, for sequence classification
              (`imgproc_attn.sequences`).
        root: Folder or file. A relative path that does not exist is searched in ``$IMGPROC_ATTN_DATA`` too.
        train_split: Training split: its name, or a subfolder of ``root``; empty for ``root`` itself.
        validation_split: Split that selects the best checkpoint. Default: see ``validation_images``; ``valid`` for text,
            ``val`` for sequences, ``validation`` for ``regression``.
        test_split: Split of the final results. It selects nothing. Default: ``validation``; ``test`` for text, sequences and
            ``regression``.
        validation_images: Number of random images of the training split that are held out for validation. With 0 and no
            ``validation_split``, no checkpoint is selected, and the last one is the result.
        train_images: Number of random images of the remaining training split to train on. Default: all.
        test_images: Number of random images of the test split. Default: all.
        seed: Seed of these random choices, equal for all models and training seeds; also of the splits of ``digits``,
            ``pathfinder`` and ``reviews``.
        download: Download missing data (``torch/…``, ``hfids/…`` and ``tfds/…``).
        num_classes: Number of classes, at least 2. Labels are 0 to ``num_classes - 1``. Text and functions have none.
        image_column: Image column of ``hfds/…`` and ``hfids/…``. Default: ``image``, or the only column of images.
        label_column: Label column. Default: ``label``, or the only column of class labels. For ``wds/…``: field of the
            ``.json`` members that holds labels. Default: ``.cls`` members.
        input_size: ``[channels, height, width]`` of the model input. Default for text: ``[1, 1, language.context]``; for
            sequences: ``[1, 1, sequences.context]``; for ``regression``: one row per token.
        mean: Mean per channel, subtracted from images in [0, 1]. Default: that of the model's ``pretrained_cfg``.
        std: Standard deviation per channel, which images are divided by. Default: that of the model's ``pretrained_cfg``.
        interpolation: Interpolation of resizing. Default: that of the model's ``pretrained_cfg``.
        crop_pct: Evaluation resizes the short side to ``input_size / crop_pct`` and crops the center. Default: that of the
            model's ``pretrained_cfg``.
        on_broken_image: Treatment of an unreadable image. ``skip`` logs and skips it, ``stop`` ends the run with an error.
        workers: Number of processes per training process that read and augment images.
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
    num_classes: Annotated[int, Field(ge=0)] = 0
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
        check_reader(name, [*LABEL_MAPS, TEXT, REGRESSION, *SEQUENCES])
        return name

    @model_validator(mode="after")
    def _classes(self) -> "Data":
        if self.name not in (TEXT, REGRESSION) and self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}. Give the number of classes.")
        return self

    @model_validator(mode="after")
    def _one_validation(self) -> "Data":
        if self.validation_images and self.validation_split is not None:
            raise ValueError(
                "validation_images must be 0 if validation_split is given, got both. Hold images out, or name a split."
            )
        if reads_from_a_place(self.name) and not self.root:
            raise ValueError(f"root must be the folder or file that {self.name!r} reads, got ''. Give data.root=PATH.")
        check_columns(self.name, self.image_column, self.label_column)
        return self

    @model_validator(mode="after")
    def _images_by_number(self) -> "Data":
        for key in ("validation_images", "train_images", "test_images"):
            if self.iterates and getattr(self, key):
                raise ValueError(
                    f"{key} must be left out for the iterable reader {self.name!r}, got {getattr(self, key)}. Name a split."
                )
        if self.iterates and self.on_broken_image == "stop":
            raise ValueError(
                f"on_broken_image must be 'skip' for {self.name!r}, because this reader always skips broken images, got "
                "'stop'. Give data.on_broken_image=skip."
            )
        return self

    @property
    def columns(self) -> dict[str, Any]:
        """Keyword arguments of `imgproc_attn.data.open_images`."""
        return {"image_column": self.image_column, "label_column": self.label_column}

    @property
    def iterates(self) -> bool:
        """Whether the reader is iterable, without random access."""
        return self.name.startswith(("wds/", "hfids/", "tfds/"))


class Augmentation(Section):
    """Section ``augmentation``: names and order are those of timm's ``create_transform``, then of its ``Mixup``.

    Attributes:
        scale: Smallest and largest share of the area that a random resized crop keeps. ``[1, 1]`` disables the crop.
        ratio: Smallest and largest aspect ratio of the crop, relative to the model input. 1 does not distort.
        crop_padding: Number of pixels of mirror padding before a random crop, as for CIFAR. It needs ``scale: [1, 1]``.
        degrees: Largest rotation in degrees. Rotation, ``translate`` and ``zoom`` form one affine map.
        translate: Largest shift, as a share of the side.
        zoom: Smallest and largest magnification.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of color jitter. It is not used together with ``auto_augment``.
        auto_augment: timm's policy string, such as ``rand-m9-mstd0.5-inc1``.
        random_erasing: Probability of random erasing.
        mixup: Alpha of mixup.
        cutmix: Alpha of cutmix.
        mixup_prob: Probability of mixup or cutmix per batch.
        mixup_switch_prob: Probability of cutmix instead of mixup if both are on.
        interpolation: Interpolation of the random resized crop. ``random`` is bilinear or bicubic. Default: that of evaluation.
        aug_repeats: Number of augmented copies per image (repeated augmentation, arXiv 1901.09335).
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
        """Refuse parts of a policy that timm would silently ignore."""
        name, *parts = (policy or "").split("-")
        without = [part for part in parts if not re.search(r"\d", part) and not (name == "rand" and part.startswith("t"))]
        if name in ("rand", "augmix") and without:
            raise ValueError(f"each part must have a number, got {without[0]!r} in {policy!r}. Write it as in rand-m9-mstd0.5.")
        return policy

    @model_validator(mode="after")
    def _one_crop(self) -> "Augmentation":
        if self.crop_padding and list(self.scale) != [1.0, 1.0]:
            raise ValueError(f"scale must be [1, 1] with crop_padding {self.crop_padding}, got {self.scale}. Use one of them.")
        return self

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix makes the targets soft."""
        return self.mixup > 0 or self.cutmix > 0


class Adversarial(Section):
    """Section ``adversarial``: training on PGD examples instead of clean images (arXiv 1706.06083).

    Attributes:
        eps: Radius of the L-infinity ball, in units of [0, 1].
        steps: Number of steps of PGD.
        step_size: Step size of PGD, in units of [0, 1]. Default: ``2.5 eps / steps``.
        warmup_epochs: Number of first epochs over which the radius grows linearly.
    """

    eps: Radius
    steps: Count = 3
    step_size: Positive | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


class Segmentation(Section):
    """Section ``segmentation``: preparation of images and label maps, and sliding windows of evaluation.

    ``data.input_size`` is the size of training crops. Of the section ``augmentation``, only ``hflip`` is used.

    Attributes:
        short_side: Length in pixels that the short side of images is resized to. The long side is at most 4 times as long.
            Evaluation resizes images, but not their label maps. Default: no resizing.
        scale: Smallest and largest random factor of the image size in training.
        photometric: Random brightness, contrast, saturation and hue in training.
        window: Side of sliding windows in evaluation, in pixels. Default: the whole image at once.
        stride: Distance between windows in pixels. Default: ``window``.
    """

    short_side: Count | None = None
    scale: Range = [0.5, 2.0]
    photometric: bool = True
    window: Count | None = None
    stride: Count | None = None

    @model_validator(mode="after")
    def _no_gaps(self) -> "Segmentation":
        if self.stride is not None and (self.window is None or self.stride > self.window):
            rule = "left out without window" if self.window is None else f"at most window, {self.window}, to leave no gaps"
            raise ValueError(f"stride must be {rule}, got {self.stride}. Change one of the two.")
        return self


class Language(Section):
    """Section ``language``: tokens of a text, and windows of training and evaluation.

    The vocabulary comes from the training split, and is saved with the weights.

    Attributes:
        tokens: Kind of tokens, one of:

            - ``characters``: Unicode characters. Later texts must have no others.
            - ``bytes``: bytes of UTF-8.
            - ``words``: words between white space, with ``<eos>`` per line and ``<unk>`` for words outside the vocabulary.
            - ``bpe``: byte pairs, by the package ``tokenizers`` (``pip install 'imgproc-attn[text]'``).
        context: Number of tokens per window, and context of the model.
        stride: Distance between windows in evaluation. Each token is predicted once, with at least ``context - stride``
            tokens before it where the text has them. Default: ``context``, windows that do not overlap.
        max_vocabulary: Largest number of words or byte pairs. Default: no limit for words, 30,000 for byte pairs.
        min_count: Smallest number of occurrences of a word or byte pair in the training split.
        tokenizer: File ``tokenizer.json`` of byte pairs, instead of pairs from the training split.
    """

    tokens: Literal["characters", "bytes", "words", "bpe"]
    context: Annotated[int, Field(ge=2)]
    stride: Count | None = None
    max_vocabulary: Annotated[int, Field(ge=3)] | None = None
    min_count: Count = 1
    tokenizer: str = ""

    @model_validator(mode="after")
    def _possible(self) -> "Language":
        if self.stride is not None and self.stride > self.context:
            raise ValueError(f"stride must be at most context, {self.context}, got {self.stride}. Lower it to leave no gaps.")
        if self.tokens in ("characters", "bytes") and (self.max_vocabulary or self.min_count > 1):
            raise ValueError(f"max_vocabulary and min_count must be left out for {self.tokens}, got a limit. Remove it.")
        if self.tokenizer and (self.tokens != "bpe" or self.max_vocabulary or self.min_count > 1):
            raise ValueError(
                f"tokenizer must come with tokens bpe and without limits of the vocabulary, got {self.tokenizer}. Leave out "
                "one of them."
            )
        return self


class InContextRegression(Section):
    """Section ``in_context_regression``: random linear functions and their examples (arXiv 2208.01066).

    Attributes:
        dimensions: Number of coordinates of x.
        points: Number of examples per function.
        sparsity: Number of coordinates of w that are not zero. Default: all.
        epoch_sequences: Number of functions per epoch. Each is drawn once.
        evaluation_sequences: Number of functions of the validation set, and of the test set.
        start_dimensions: Curriculum: number of coordinates of x in the first epoch. Each epoch has one more. Default: all.
        start_points: Curriculum: number of examples in the first epoch. Each epoch has two more. Default: all.
    """

    dimensions: Count
    points: Annotated[int, Field(ge=2)]
    sparsity: Count | None = None
    epoch_sequences: Count
    evaluation_sequences: Count = 1280
    start_dimensions: Count | None = None
    start_points: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "InContextRegression":
        for key, most in (("start_dimensions", self.dimensions), ("start_points", self.points)):
            value = getattr(self, key)
            if value is not None and value > most:
                raise ValueError(f"{key} must be at most {key.removeprefix('start_')}, {most}, got {value}. Lower it.")
        key = "dimensions" if self.start_dimensions is None else "start_dimensions"
        if self.sparsity is not None and self.sparsity > getattr(self, key):
            raise ValueError(f"sparsity must be at most {key}, {getattr(self, key)}, got {self.sparsity}. Lower it.")
        return self


class Sequences(Section):
    """Section ``sequences``: token sequences with one label each (Long Range Arena, arXiv 2011.04006).

    With ``data.name`` ``listops``, ``reviews`` or ``retrieval``, tokens are those of the files. With images, tokens are their
    gray values, row by row.

    Attributes:
        context: Number of tokens that are kept of a sequence, and context of the model. Of images, the number of pixels.
    """

    context: Count


class Optimizer(Section):
    """Section ``optimizer``: one of timm's optimizers.

    Attributes:
        name: Name of the optimizer in timm's ``create_optimizer_v2``.
        lr: Peak learning rate for ``run.batch_size``.
        weight_decay: Weight decay. It is not applied to 1-D parameters, such as bandwidths.
        momentum: Momentum of optimizers that have one.
        betas: Betas of optimizers that have them. Default: those of the optimizer.
        layer_decay: Factor between the learning rates of a block and of the next one. Default: None, equal learning rates.
        clip_grad: Largest norm of the gradient. Default: None, no clipping.
    """

    name: str
    lr: Positive
    weight_decay: NotNegative = 0.0
    momentum: Share = 0.9
    betas: Annotated[list[Annotated[Number, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = None
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    clip_grad: Positive | None = None


class Schedule(Section):
    """Section ``schedule``: linear warm-up, then decay to ``min_lr``, per update.

    Attributes:
        name: Shape of the decay.
        epochs: Number of epochs, warm-up included.
        warmup_epochs: Number of warm-up epochs.
        warmup_lr: Learning rate at the begin of the warm-up.
        min_lr: Learning rate at the end of the decay.
        power: Exponent of ``poly``.
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
            raise ValueError(f"warmup_epochs must be below epochs, {self.epochs}, got {self.warmup_epochs}. Lower it.")
        return self


class RunSection(Section):
    """Section ``run``: seed, batches, loss and precision.

    Attributes:
        seed: Seed of initial weights, order of images, augmentation and drop path.
        batch_size: Images per update, over all processes and accumulated batches.
        grad_accum_steps: Number of accumulated batches per update.
        loss: ``ce``: cross-entropy; ``bce``: binary cross-entropy of every class.
        label_smoothing: Share of the target that is spread over all classes.
        amp: Data type of autocast. Default: None, float32.
        compile: Compile the model with ``torch.compile``.
        channels_last: Use the memory format ``channels_last`` for weights and images.
        grad_checkpointing: Recompute blocks in the backward pass to save memory.
        ema_decay: Decay of an exponential moving average of the weights. If given, the average is evaluated and saved.
        log_every: Number of updates between readings of the loss. Each reading waits for the device.
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
    def _whole_batches(self) -> "RunSection":
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size must be a multiple of grad_accum_steps, {self.grad_accum_steps}, got {self.batch_size}. Change it."
            )
        return self


class EvaluationSection(Section):
    """Section ``evaluation``: attacks and corruptions of a comparison, in units of images in [0, 1].

    Attributes:
        fgsm: Radii eps of FGSM.
        pgd: Radii eps of PGD.
        pgd_steps: Steps of PGD.
        pgd_restarts: Restarts of PGD.
        gaussian_noise: Standard deviations of Gaussian noise.
        gaussian_blur: Standard deviations of Gaussian blur in pixels.
        worst_case: Radii eps of the worst case over FGSM, PGD, APGD-CE and targeted APGD. A sample counts as robust if no
            attack fools it. Only for classification. For segmentation, read the lowest of PGD, SegPGD and MaskedPGD.
        worst_case_images: Number of the ``num_perturbed`` images that the worst case uses, drawn at random. Default: all.
        apgd_steps: Gradient steps per restart of the two APGD attacks.
        segpgd: Radii eps of SegPGD. Only for segmentation.
        maskedpgd: Radii eps of MaskedPGD, that is PGD on the pixels that are still correct. Only for segmentation.
        corruptions: Corruptions of ImageNet-C, name and severity, such as ``fog 3``.
        word_swap: Shares of words that are replaced by ``AAA`` in the test text, such as ``0.015``. Only for language models
            and reviews.
        num_perturbed: Number of random test images that are attacked and corrupted. Clean metrics use all test images.
            Default: all.
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
    word_swap: list[Radius] = []
    num_perturbed: Count | None = None

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: list[str]) -> list[str]:
        for text in corruptions:
            name, _, severity = text.partition(" ")
            if name == "frost":
                raise ValueError(
                    "corruptions must not include frost, whose photographs a recipe cannot name, got 'frost'. Use imgproc-attn "
                    "corrupt --frost-folder."
                )
            if name not in (*COMMON, *EXTRA) or severity not in ("1", "2", "3", "4", "5"):
                raise ValueError(
                    f"a corruption must be a name and a severity from 1 to 5, as 'fog 3', got {text!r}. Names are "
                    f"{', '.join([*COMMON, *EXTRA])}."
                )
        return corruptions


class Comparison(Section):
    """Section ``comparison``: several models with equal training, paired by seed.

    Attributes:
        seeds: Seeds, with one training run per variant and seed.
        variants: ``{label: changed keys of the section model}``. The first variant is the baseline of the paired differences.
        tolerance: Percentage points of the clean metric that a variant may lose. Reports list the variants whose one-sided
            95 % bound is worse.
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
            raise ValueError(f"seeds must be distinct, got {seeds}. Remove duplicates: runs of one seed are equal.")
        return seeds
