"""Helpers of the evaluation tests: sessions and the commands on small models, class folders of real pictures."""

import copy
import json

import numpy as np
import seeding
import timm
import torch
from digits import SMALL
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn import cli
from imgproc_attn.data import Preprocessing
from imgproc_attn.evaluation.conditions import attack_conditions, clean_condition
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.tasks import ClassificationTask

TASK = ClassificationTask(10)

PREPROCESSING = Preprocessing((1, 8, 8), (0.5,), (0.5,), "bilinear", 1.0)


def conditions_of(samples, attacks=None):
    """Clean images, and those under attack."""
    return [clean_condition(samples, TASK), *attack_conditions(samples, attacks or {}, TASK)]


def session(model, output, progress=lambda *_: None, **runtime):
    """A session that is told the hashes of its model."""
    protocol = {"weights_sha256": "these", "architecture_sha256": "this"}
    runtime = Runtime(torch.device("cpu"), output=output, **runtime)
    return EvaluationSession(model, TASK, PREPROCESSING, runtime, protocol=protocol, progress=progress)


OPTIONS = [f"{key}={value}" for key, value in {**SMALL, "mean": [0.5], "std": [0.5]}.items() if key not in ("mean", "std")]


def arguments(folder, name="nlm_vit_tiny", weights="weights"):
    return [
        name,
        *OPTIONS,
        "pretrained_cfg_overlay={mean: [0.5], std: [0.5], input_size: [1, 8, 8], crop_pct: 1.0}",
        "--checkpoint",
        str(folder / f"{weights}.safetensors"),
        "--data",
        "digits",
        "--split",
        "test",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]


class InDouble(torch.nn.Module):
    """The model in float64, whose rounding turns no answer: the order of sums differs by batch and by processor."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).double()
        self.eval()

    def forward(self, images):
        return self.model(images.double())


def run(command, *rest):
    """The command; what begins with dashes may hold several words."""
    cli.main([command, *(word for part in map(str, rest) for word in (part.split() if part.startswith("--") else [part]))])


def result(folder):
    return json.loads((folder / "result.json").read_text())


def save(folder, name, **options):
    seeding.seed(2)
    file = folder / f"{name}.safetensors"
    save_file(timm.create_model(name, **options).state_dict(), file)
    return file


def crops(count, size=64, first=0):
    """Different squares of scikit-image's photographs; others from another ``first``."""
    pictures = [photographs.astronaut(), photographs.chelsea(), photographs.coffee(), photographs.rocket()]
    found = []
    for i in range(first, first + count):
        picture = pictures[i % 4]
        y, x = (37 * i) % (picture.shape[0] - size), (53 * i) % (picture.shape[1] - size)
        found.append(picture[y : y + size, x : x + size])
    return found


def class_folders(root, names, per_class=1, size=64, first=0):
    for i, picture in enumerate(crops(len(names) * per_class, size, first)):
        place = root / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"ILSVRC2012_val_{i + 1:08d}.png")
    return root


SYNSETS = timm.data.ImageNetInfo("imagenet-1k").label_names()


def add_right_ones(root, model, folders, indices, count=30):
    """Pictures in the folders of what the model takes them for among ``indices``: right, if these logits alone count."""
    for i, picture in enumerate(crops(count + 7, 32)[7:]):
        place = root / "picture.png"
        Image.fromarray(picture).save(place)
        logits = logits_of(model, place)
        place.rename(root / folders[max(indices, key=lambda j: logits[j])] / f"right{i}.png")


def logits_of(model, file):
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    picture = torch.tensor(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        return model(((picture - mean) / std)[None])[0]
