"""Typed schema of recipes. It refuses unknown keys and invalid values before anything is built."""

from typing import Any

from pydantic import model_validator

from ..data.reader_names import LABEL_MAPS, REGRESSION, SEQUENCES, TEXT
from .sections import (
    Adversarial,
    Augmentation,
    Comparison,
    Data,
    EvaluationSection,
    InContextRegression,
    Language,
    Model,
    Optimizer,
    RunSection,
    Schedule,
    Section,
    Segmentation,
    Sequences,
)

__all__ = ["Recipe"]


class Recipe(Section):
    """Recipe of one training run, or of a comparison of several runs.

    Attributes:
        title: Title of reports.
        task: Name of the task. Default: ``segmentation``, ``language``, ``in_context_regression`` or ``sequences`` with a
            section of that name, otherwise ``classification``.
        model: Model to train.
        data: Data set, splits and preprocessing.
        augmentation: Augmentation of training images.
        adversarial: Adversarial training. Default: None, training on clean images.
        segmentation: Settings of segmentation. Default: None, no segmentation.
        language: Settings of language modeling. Default: None, no text.
        in_context_regression: Settings of in-context regression. Default: None, no random functions.
        sequences: Settings of sequence classification. Default: None, no sequences.
        optimizer: Optimizer.
        schedule: Number of epochs and learning rate schedule.
        run: Seed, batches, loss and precision.
        evaluation: Attacks and corruptions of a comparison.
        comparison: Variants and seeds of a comparison. Default: None, a single run.

    Example:
        >>> from imgproc_attn.recipe import load_recipe
        >>> recipe = load_recipe("quickstart")
        >>> recipe.schedule.epochs, list(recipe.comparison.variants)[:2]
        (30, ['plain', 'twicing'])
    """

    title: str
    task: str
    model: Model = Model()
    data: Data
    augmentation: Augmentation = Augmentation()
    adversarial: Adversarial | None = None
    segmentation: Segmentation | None = None
    language: Language | None = None
    in_context_regression: InContextRegression | None = None
    sequences: Sequences | None = None
    optimizer: Optimizer
    schedule: Schedule
    run: RunSection
    evaluation: EvaluationSection = EvaluationSection()
    comparison: Comparison | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        """Fill in the task and the data of text and functions, so that they stand in the recipe of every run."""
        if not isinstance(content, dict):
            return content
        sections = ("segmentation", "language", "in_context_regression", "sequences")
        named = next((name for name in sections if content.get(name)), "classification")
        content = {"task": named, **content}
        for complete in (_with_text, _with_functions, _with_sequences):
            content = complete(content)
        return content

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        self._loads_batches()
        self._agrees_on_the_task()
        self._uses_its_settings()
        self._trains_adversarially()
        for label, options in (self.comparison.variants if self.comparison else {"model": {}}).items():
            if not (self.model.name or options.get("name")):
                raise ValueError(f"{label}: the name of the model must be given, got ''. Give model.name.")
        return self

    def _loads_batches(self) -> None:
        """Check that the data can be mixed and repeated as the augmentation asks."""
        batch = self.run.batch_size // self.run.grad_accum_steps
        if self.augmentation.mixes and batch % 2:
            raise ValueError(
                f"run.batch_size / grad_accum_steps must be even for mixup and cutmix, which mix pairs, got {batch}. Change it."
            )
        if self.data.iterates and self.augmentation.aug_repeats > 1:
            raise ValueError(
                f"augmentation.aug_repeats must be 1 for the iterable reader {self.data.name!r}, got "
                f"{self.augmentation.aug_repeats}. Set it to 1."
            )

    def _agrees_on_the_task(self) -> None:
        """Check that task, section of the task and data belong together."""
        if (self.data.name in LABEL_MAPS) != (self.segmentation is not None):
            raise ValueError(
                f"a section segmentation must be given if and only if data.name is one of {', '.join(LABEL_MAPS)}, got "
                f"{self.data.name!r} {'without' if self.segmentation is None else 'with'} it. Change one of the two."
            )
        if (self.task == "segmentation") != (self.segmentation is not None):
            raise ValueError(
                f"task must be segmentation if and only if there is a section of that name, got {self.task!r}. Leave out the "
                "key task, or correct it."
            )
        if len({self.data.name == TEXT, self.task == "language", self.language is not None}) > 1:
            raise ValueError(
                "a section language, data.name text and task language must come together, got "
                f"{'no' if self.language is None else 'a'} section, {self.data.name!r} and {self.task!r}. Change one of them."
            )
        functions = self.in_context_regression
        if len({self.data.name == REGRESSION, self.task == "in_context_regression", functions is not None}) > 1:
            raise ValueError(
                "a section in_context_regression, data.name regression and task in_context_regression must come together, got "
                f"{'no' if functions is None else 'a'} section, {self.data.name!r} and {self.task!r}. Change one of them."
            )
        if functions:
            self._refuse_unused([1, functions.points * 2 - 1, functions.dimensions])
        if (self.task == "sequences") != (self.sequences is not None):
            raise ValueError(
                f"task must be sequences if and only if there is a section of that name, got {self.task!r}. Leave out the key "
                "task, or correct it."
            )

    def _uses_its_settings(self) -> None:
        """Refuse settings that the task would ignore."""
        if self.language:
            used = ("data.root", "data.train_split", "run.label_smoothing", "evaluation.word_swap")
            self._refuse_unused([1, 1, self.language.context], *used)
        elif self.sequences:
            self._classifies_sequences(self.sequences.context)
        elif self.evaluation.word_swap:
            raise ValueError(
                f"evaluation.word_swap must be empty for {self.task}, got {self.evaluation.word_swap}. Leave it out."
            )
        if self.segmentation:
            self._segments()
        elif self.evaluation.segpgd or self.evaluation.maskedpgd:
            name = "segpgd" if self.evaluation.segpgd else "maskedpgd"
            value = getattr(self.evaluation, name)
            raise ValueError(f"evaluation.{name} must be empty for classification, got {value}. Leave it out.")

    def _trains_adversarially(self) -> None:
        """Check the settings of adversarial training."""
        if self.adversarial and self.augmentation.random_erasing:
            raise ValueError(
                "augmentation.random_erasing must be 0 in adversarial training, because erased pixels leave [0, 1], got "
                f"{self.augmentation.random_erasing}. Set it to 0."
            )
        if self.adversarial and self.adversarial.warmup_epochs >= self.schedule.epochs:
            raise ValueError(
                f"adversarial.warmup_epochs must be below schedule.epochs, {self.schedule.epochs}, got "
                f"{self.adversarial.warmup_epochs}. Lower it, or the radius never reaches eps."
            )
        if self.adversarial and self.run.amp == "float16":
            raise ValueError(
                "run.amp must not be float16 in adversarial training, because the gradients of the attack would round to zero, "
                "got 'float16'. Use bfloat16."
            )

    def _segments(self) -> None:
        """Refuse settings that segmentation would ignore."""
        changed = self.augmentation.model_dump(exclude_defaults=True, exclude={"hflip"})
        changed |= self.run.model_dump(include={"loss", "label_smoothing"}, exclude_defaults=True)
        changed |= {"adversarial": True} if self.adversarial else {}
        changed |= self.evaluation.model_dump(include={"gaussian_noise", "gaussian_blur", "worst_case"}, exclude_defaults=True)
        given = {"interpolation": None, "crop_pct": None, "download": False, "on_broken_image": "stop"}
        changed |= {key: True for key, unused in given.items() if getattr(self.data, key) != unused}
        if changed:
            raise ValueError(f"segmentation must not have the settings {', '.join(changed)}, got a value. Leave them out.")
        if self.data.input_size[0] != 3:
            raise ValueError(
                f"data.input_size must have 3 channels for segmentation, got {self.data.input_size[0]}. Change it."
            )

    def _refuse_unused(self, size: list[int], *used: str) -> None:
        """Refuse settings that tasks of sequences would ignore.

        Args:
            size: Size of the input, ``[channels, height, width]``.
            *used: Used keys such as ``data.root``, beside those that all such tasks use.
        """
        images_only = {
            "run": {"loss", "label_smoothing", "channels_last", "grad_checkpointing"},
            "data": Data.model_fields.keys() - {"name", "validation_split", "test_split", "seed", "input_size", "workers"},
            "evaluation": EvaluationSection.model_fields.keys(),
            "augmentation": Augmentation.model_fields.keys(),
        }
        changed = [
            key
            for section, keys in images_only.items()
            for key in getattr(self, section).model_dump(include=set(keys), exclude_defaults=True)
            if f"{section}.{key}" not in used
        ]
        changed += ["adversarial"] if self.adversarial else []
        if changed:
            raise ValueError(f"{self.task} must not have the settings {', '.join(changed)}, got a value. Leave them out.")
        if self.data.input_size != size:
            raise ValueError(
                f"data.input_size must be {size} for the sizes in the section {self.task}, got "
                f"{self.data.input_size}. Leave it out."
            )

    def _classifies_sequences(self, context: int) -> None:
        """Check settings of sequence classification."""
        numbers = ("num_classes", "train_images", "validation_images", "test_images")
        used = {f"data.{key}" for key in ("root", "train_split", *numbers, "download", "image_column", "label_column")}
        used |= {"run.label_smoothing", "evaluation.num_perturbed"}
        if self.data.name in SEQUENCES:
            used |= {"evaluation.word_swap"} if self.data.name == "reviews" else set()
            return self._refuse_unused([1, 1, context], *used)
        if self.data.iterates:
            raise ValueError(
                f"data.name must be a reader of images known by number for sequences, got {self.data.name!r}. Use another one."
            )
        self._refuse_unused(self.data.input_size, *used, "evaluation.corruptions")
        channels, height, width = self.data.input_size
        if height * width != context or channels not in (1, 3):
            raise ValueError(
                f"data.input_size must have 1 or 3 channels and as many pixels as sequences.context, {context}, got "
                f"{self.data.input_size}. Change one of them."
            )

    def variant(self, label: str, seed: int) -> "Recipe":
        """Return the recipe of one run of a comparison.

        Args:
            label: Label of the variant.
            seed: Training seed.

        Raises:
            ValueError: There is no such variant.

        Example:
            >>> from imgproc_attn.recipe import load_recipe
            >>> load_recipe("quickstart").variant("twicing", seed=1).model.name
            'twicing_vit_tiny'
        """
        variants = self.comparison.variants if self.comparison else {}
        if label not in variants:
            raise ValueError(f"The variant must be one of {', '.join(variants) or 'none'}, got {label!r}. Name one of them.")
        return self.model_copy(
            update={
                "title": f"{self.title}: {label}",
                "model": Model(**{**self.model.model_dump(), **variants[label]}),
                "run": self.run.model_copy(update={"seed": seed}),
                "comparison": None,
            }
        )


def _with_text(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in the splits and the size of text."""
    language, data = content.get("language"), content.get("data")
    if not (isinstance(data, dict) and data.get("name") == TEXT):
        return content
    if not isinstance(language, dict):
        raise ValueError("a section language must come with data.name text, got none. Add one with tokens and context.")
    return {**content, "data": {"validation_split": "valid", "test_split": "test", **_line(language), **data}}


def _with_functions(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in the data of in-context regression, which needs no section of data."""
    functions, data = content.get("in_context_regression"), content.get("data")
    if not (isinstance(functions, dict) and isinstance(data, dict | None)):
        return content
    points, dimensions = functions.get("points"), functions.get("dimensions")
    tokens = {"input_size": [1, 2 * points - 1, dimensions]} if isinstance(points, int) else {}
    splits = {"validation_split": "validation", "test_split": "test"}
    return {**content, "data": {"name": REGRESSION, **splits, **tokens, **(data or {})}}


def _with_sequences(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in the splits and the size of sequences that are no images."""
    sequences, data = content.get("sequences"), content.get("data")
    if not (isinstance(data, dict) and data.get("name") in SEQUENCES):
        return content
    if not isinstance(sequences, dict):
        raise ValueError(f"a section sequences must come with data.name {data['name']}, got none. Add one with context.")
    held_out = {} if data.get("validation_images") else {"validation_split": "val"}
    return {**content, "data": {**held_out, "test_split": "test", **_line(sequences), **data}}


def _line(section: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the input size of a line of tokens."""
    return {"input_size": [1, 1, section.get("context")]} if "context" in section else {}
