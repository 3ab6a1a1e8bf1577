"""Images of a recipe: those for training, for validation and for the test."""

from dataclasses import dataclass
from typing import Any

import torch

from ..data import Images, StreamedImages, Unreadable, check_classes, open_images, random_subset
from ..recipe import Recipe
from ..recipe.sections import Data

__all__ = ["Splits", "open_splits", "shares"]

ImageSet = Images | StreamedImages


@dataclass
class Splits:
    """Images of a recipe.

    Attributes:
        train: Training images.
        validation: Images by which the best checkpoint is chosen; None if there are none.
        test: Test images; None if there are none.
    """

    train: Any
    validation: Any = None
    test: Any = None


def open_splits(recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
    """Open the images of a recipe.

    Args:
        recipe: Recipe. Its section ``data`` selects the images.
        unreadable: List to which unreadable images are added.
        batch_size: Batch size of this process, a hint for data that can only be iterated over.

    Raises:
        FileNotFoundError: Data is missing.
        ValueError: The classes of the splits differ, two splits are the same images, or a split has fewer images than asked
            for; or as `open_images`.
    """
    data = recipe.data

    def opened(split: str | None, training: bool = False) -> Any:
        mode = "L" if data.input_size[0] == 1 else "RGB"
        return (
            None
            if split is None
            else open_images(data.name, data.root, split, data.seed, training, batch_size, mode, data.download, **data.columns)
        )

    def images(reader: Any, split: str | None, indices: Any, broken: Any = "ignore") -> ImageSet | None:
        if reader is None:
            return None
        if isinstance(reader, StreamedImages):
            reader.num_classes = data.num_classes
            return reader
        policy: Any = "stop" if data.on_broken_image == "stop" else broken
        return Images(reader, data.num_classes, indices, data.input_size[0], policy, unreadable.of(split or ""))

    train, validation, test = opened(data.train_split, True), opened(data.validation_split), opened(data.test_split)
    classes = getattr(train, "class_to_idx", None)
    for name, reader in (("validation", validation), ("test", test)):
        check_classes(classes, data.num_classes, getattr(reader, "class_to_idx", None), (data.train_split or "train", name))
    _refuse_overlap({"train": train, "validation": validation, "test": test})
    kept, held_out = shares(data, train)
    chosen_on = (train, data.train_split, held_out) if held_out else (validation, data.validation_split, None)
    return Splits(
        images(train, data.train_split, kept, "replace"),
        images(*chosen_on),
        None if test is None else images(test, data.test_split, random_subset(len(test), data.test_images, data.seed)),
    )


def _refuse_overlap(readers: dict[str, Any]) -> None:
    """Check that no two splits are the same images.

    Two names may mean the same split, so that the model would be tested on training or validation images.
    """
    seen: dict[Any, str] = {}
    for name, reader in readers.items():
        if reader is None or isinstance(reader, StreamedImages):
            continue
        kind, last = type(reader), len(reader) - 1
        mark = (kind, last, reader.filename(0, absolute=True), reader.filename(last, absolute=True))
        if mark in seen and None not in mark:
            raise ValueError(f"The {name} split must have other images than {seen[mark]}, got the same. Name another split.")
        seen[mark] = name


def shares(data: Data, train: Any) -> tuple[list[int] | None, list[int]]:
    """Draw the indices of training images and of validation images at random.

    Args:
        data: Section ``data`` of the recipe, with the numbers of images and the seed.
        train: Data set of the training split.

    Returns:
        Indices for training, or None for all images; indices for validation.

    Raises:
        ValueError: The split has fewer images than asked for.
    """
    if not data.validation_images and data.train_images is None:
        return None, []
    if data.train_images is None and data.validation_images >= len(train):
        raise ValueError(
            f"data.validation_images must be below {len(train)}, the number of images of the training split, got "
            f"{data.validation_images}, which leaves none to train on. Lower it."
        )
    wanted = data.validation_images + (data.train_images or 0)
    if wanted > len(train):
        raise ValueError(
            f"data.validation_images plus data.train_images must be at most {len(train)}, the number of images of the training "
            f"split, got {data.validation_images} + {data.train_images} = {wanted}. Lower one of them."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(data.seed)).tolist()
    held_out, rest = order[: data.validation_images], order[data.validation_images :]
    return sorted(rest[: data.train_images]), sorted(held_out)
