"""A trained small segmenter."""

import pytest
import seeding
import timm
import torch
from shapes import recipe_of, shapes_folder
from skimage import data as photographs

from imgproc_attn.evaluation import NormalizedModel
from imgproc_attn.training import train


@pytest.fixture
def picture():
    return torch.tensor(photographs.chelsea()[:150, :201] / 255, dtype=torch.float32).permute(2, 0, 1)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run: two photographs, their gray levels for classes, and a small filter segmenter trained on them."""
    place = tmp_path_factory.mktemp("run")
    recipe = recipe_of(shapes_folder(place / "data"), "optimizer.lr=3e-3").variant("bilateral + twicing", seeding.number)
    train(recipe, place / "run", "cpu", log=lambda line: None)
    return place / "run"


@pytest.fixture(scope="session")
def model(run):
    inner = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True)
    return NormalizedModel(inner).eval()
