"""Small runs of the quickstart's recipe, whole and cut short."""

import pytest
import seeding
import torch

from imgproc_attn.data import World
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training import train
from imgproc_attn.training.run import Run

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=3",
    "schedule.warmup_epochs=1",
    "data.validation_images=100",
    "data.train_images=512",
    "data.test_images=100",
]

CPU = torch.device("cpu")


def small(*overrides, label="bilateral + twicing", seed=0):
    return load_recipe(find_recipe("quickstart"), [*SMALL, *overrides]).variant(label, seeding.number + seed)


def quiet(recipe, folder, **kwargs):
    return train(recipe, folder, log=lambda line: None, **kwargs)


def weights(folder, which="last"):
    return load_weights_of(folder / which)


def load_weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run_of(tmp_path, *overrides, **kwargs):
    return Run(small(*overrides, **kwargs), tmp_path, CPU, World(0, 1))


class Stop(Exception):
    pass


def stop_after(recipe, folder, epochs):
    def log(line):
        if line.startswith(f"epoch {epochs}/"):
            raise Stop

    with pytest.raises(Stop):
        train(recipe, folder, log=log)
