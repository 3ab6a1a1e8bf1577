"""Photographs that scikit-learn ships."""

import numpy as np

__all__ = ["photograph"]


def photograph(name: str) -> np.ndarray:
    """Return the photograph ``china`` or ``flower``, ``[427, 640, 3]`` in 8 bits."""
    from sklearn.datasets import load_sample_image  # the import takes a second

    return load_sample_image(f"{name}.jpg")
