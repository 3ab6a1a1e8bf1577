"""The images of a recipe: what it trains, chooses and tests on."""

from dataclasses import dataclass
from typing import Any

import torch

from ..data import Images, StreamedImages, Unreadable, check_classes, open_images, random_subset
from ..recipe.schema import Data, Recipe

ImageSet = Images | StreamedImages


@dataclass
class Splits:
    """The images of a recipe."""

    train: Any
    validation: Any = None
    test: Any = None


def open_splits(recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
    """Open what a recipe trains, chooses and tests on.

    Args:
        recipe: Whose section ``data`` says which.
        unreadable: Where images that cannot be read are noted.
        batch_size: Of this process: a hint for what can only be iterated over.

    Raises:
        FileNotFoundError: Data that is not there.
        ValueError: Splits with differing classes, more images asked for than there are, or as `open_images`.
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
    """Synonyms may name one split twice; what is trained or chosen on would then be the test."""
    seen: dict[Any, str] = {}
    for name, reader in readers.items():
        if reader is None or isinstance(reader, StreamedImages):
            continue
        kind, last = type(reader), len(reader) - 1
        mark = (kind, last, reader.filename(0, absolute=True), reader.filename(last, absolute=True))
        if mark in seen and None not in mark:
            raise ValueError(f"The splits {seen[mark]} and {name} are the same images; name another split.")
        seen[mark] = name


def shares(data: Data, train: Any) -> tuple[list[int] | None, list[int]]:
    """Indices to train on, None for all, and to hold out; drawn at random."""
    if not data.validation_images and data.train_images is None:
        return None, []
    wanted = data.validation_images + (data.train_images or 1)
    if wanted > len(train):
        raise ValueError(
            f"data.validation_images and data.train_images ask for {wanted} images, but the training split has {len(train)}."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(data.seed)).tolist()
    held_out, rest = order[: data.validation_images], order[data.validation_images :]
    return sorted(rest[: data.train_images]), sorted(held_out)
