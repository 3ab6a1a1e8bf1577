"""Real images that ship with a dependency."""

from typing import NamedTuple

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor


class Split(NamedTuple):
    """Images ``[n, C, H, W]`` in [0, 1] and labels ``[n]``, for training and held out."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(test_images: int, seed: int) -> Split:
    """The 1,797 scanned digits of scikit-learn, 8 x 8 pixels of 17 grey levels, split class by class.

    Raises:
        ValueError: ``test_images`` leaves one part without all ten classes.
    """
    digits = datasets.load_digits()
    count = len(digits.target)
    if not 10 <= test_images <= count - 10:
        raise ValueError(
            f"data.test_images is {test_images}, but must lie in 10 to {count - 10}: both parts need all 10 classes."
        )
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(count), test_size=test_images, random_state=seed, stratify=digits.target)
    return Split(images[train], labels[train], images[test], labels[test])
