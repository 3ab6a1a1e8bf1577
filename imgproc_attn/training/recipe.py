"""Recipes: a YAML file, read into a typed schema that refuses what it does not know, before anything is built."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Epsilon = Annotated[float, Field(ge=0, le=1)]


class Data(_Section):
    """Which images.

    Attributes:
        name: ``digits``: the 1,797 scanned digits of 8 x 8 pixels that ship with scikit-learn.
        test_images: How many are held out, as many of each class as the set has.
        seed: Of the split, which is the same for every model and training seed.
        mean: Subtracted from images in [0, 1], inside the model.
        std: What they are divided by, inside the model.
    """

    name: Literal["digits"]
    test_images: Count
    seed: int = 0
    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[Positive], Field(min_length=1)]


class Augmentation(_Section):
    """Random affine maps of the training images, drawn anew each epoch.

    Attributes:
        degrees: Largest rotation.
        translate: Largest shift, as a share of the side.
        scale: Smallest and largest magnification.
    """

    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [1.0, 1.0]


class Optimiser(_Section):
    """One of timm's optimisers.

    Attributes:
        name: As timm's ``create_optimizer_v2`` takes it.
        lr: Peak learning rate.
        weight_decay: Not applied to 1-D parameters, bandwidths among them.
        clip_grad: Largest norm of the gradient; None for none.
    """

    name: str
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad: Positive | None = None


class Schedule(_Section):
    """Linear warm-up, then a cosine to zero, by update.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: The first of them.
    """

    epochs: Count
    warmup_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> "Schedule":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, but must be below epochs, {self.epochs}")
        return self


class Run(_Section):
    """How it is run.

    Attributes:
        seeds: One training run a model and seed; comparisons are paired by seed.
        batch_size: Images an update.
        label_smoothing: Share of the target spread over all classes.
    """

    seeds: Annotated[list[int], Field(min_length=1)]
    batch_size: Count
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds are {seeds}, but each may stand there once; runs of one seed are equal")
        return seeds


class EvaluationSection(_Section):
    """What the trained models go through; images are in [0, 1], and so are the units.

    Attributes:
        fgsm: Radii eps of FGSM.
        pgd: Radii eps of PGD.
        pgd_steps: Steps of PGD.
        pgd_restarts: Restarts of PGD.
        gaussian_noise: Standard deviations.
        gaussian_blur: Standard deviations in pixels.
    """

    fgsm: list[Epsilon] = []
    pgd: list[Epsilon] = []
    pgd_steps: Count = 20
    pgd_restarts: Count = 1
    gaussian_noise: list[Positive] = []
    gaussian_blur: list[Positive] = []


class Variant(BaseModel):
    """A model: a registered name, and keyword arguments on top of the recipe's ``model`` section."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class Recipe(_Section):
    """A comparison of models under one training.

    Attributes:
        title: Stands over the report.
        data: Which images.
        model: Keyword arguments all models share.
        variants: The models, by label; the first is the baseline of the paired differences.
        augmentation: Of the training images.
        optimiser: How weights are updated.
        schedule: How long, and at what rate.
        run: Seeds and batches.
        evaluation: Attacks and corruptions.
    """

    title: str
    data: Data
    model: dict[str, Any]
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    augmentation: Augmentation = Augmentation()
    optimiser: Optimiser
    schedule: Schedule
    run: Run
    evaluation: EvaluationSection = EvaluationSection()


def recipe_folders() -> list[Path]:
    """Where recipes are looked for: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parent / "recipes"]


def find_recipe(name: str) -> Path:
    """The file ``name``, or the recipe of that name (with or without ``.yaml``) that comes with the package.

    Raises:
        FileNotFoundError: Neither is there; the recipes that are get listed.
    """
    if Path(name).is_file():
        return Path(name)
    known: dict[str, Path] = {}
    for folder in recipe_folders():
        for file in sorted(folder.rglob("*.yaml")):
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    short = name.removesuffix(".yaml")
    if short in known:
        return known[short]
    raise FileNotFoundError(f"No recipe {name!r}: neither a file nor one of {', '.join(known) or 'none'}.")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: ``section.key=value``, the value in YAML: ``run.seeds=[0,1]``, ``optimiser.lr=1.0e-3``.

    Raises:
        ValueError: What is wrong, by its place in the file; for an unknown key the nearest known one.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, but a recipe is a mapping of sections.")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(e)}" for e in error.errors())
        raise ValueError(f"{path}:\n{problems}") from None


def _override(content: dict[str, Any], override: str) -> None:
    place, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} has no '='; write section.key=value.")
    *sections, key = place.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"Override {override!r}: {section!r} is not a section.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"Override {override!r}: the value is not YAML: {error}") from None
    try:  # YAML reads 1e-3 as a string
        content[key] = float(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        content[key] = parsed


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        return f"{place}: unknown key; {hint}"
    given = "" if error["type"] == "missing" else f" (given: {error['input']!r})"
    return f"{place}: {error['msg']}{given}"
