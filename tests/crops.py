"""Real photographs in small pieces."""

import numpy as np
from PIL import Image
from skimage import data as photographs

CLASSES = ["astronaut", "coffee", "cat"]


def crops(count, size=24):
    """Crops of scikit-image's astronaut, coffee and cat, by turns."""
    sources = [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = sources[i % 3]
        y, x = rng.integers(0, picture.shape[0] - size), rng.integers(0, picture.shape[1] - size)
        yield i % 3, Image.fromarray(picture[y : y + size, x : x + size])


def save_crops(root, names, suffix=".png"):
    """One crop per path below ``root``, ``class/name`` without its suffix."""
    for name, (_, crop) in zip(names, crops(len(names))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        crop.save(root / f"{name}{suffix}")
    return root
