"""Photographs whose gray levels are the classes of their pixels, and a recipe for them."""

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from imgproc_attn.recipe import find_recipe, load_recipe


def label_map(picture, classes):
    """Real shapes: a photograph's gray levels, cut into classes."""
    gray = torch.tensor(picture).float().mean(-1)
    return (gray * classes / 256).long()


def shapes_folder(root):
    """Photographs with label maps made of their gray levels, in the layout of a labeled folder."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"class {i}\n" for i in range(6)))
    for split in ("train", "val"):  # the same photographs, the second time upside down
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for name, picture in zip("ab", (photographs.chelsea(), photographs.coffee())):
            picture = picture if split == "train" else picture[::-1]
            Image.fromarray(picture).save(root / "images" / split / f"{name}.jpg")
            label = label_map(picture.copy(), 6).numpy().astype(np.uint8)
            label[:20] = 255
            Image.fromarray(label).save(root / "annotations" / split / f"{name}.png")
    return root


def recipe_of(root, *more):
    changes = [f"data.root={root}", "data.name=labeled", "data.test_split=val", "data.num_classes=6", "data.workers=0"]
    changes += ["data.input_size=[3,48,64]", "segmentation.short_side=64", "model.img_size=[48,64]", "model.embed_dim=32"]
    changes += ["model.depth=2", "model.num_heads=2", "schedule.epochs=60", "schedule.warmup_epochs=2", "run.batch_size=2"]
    changes += ["run.amp=null", "model.decoder={name: mask, depth: 1}"]
    return load_recipe(find_recipe("camvid/comparison_half"), [*changes, *more])
