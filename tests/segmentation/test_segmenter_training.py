"""Training of segmenters: they learn, resume, and start from classifiers."""

import io
import json
import re

import numpy as np
import pytest
import seeding
import timm
import torch
from PIL import Image
from shapes import recipe_of, shapes_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from imgproc_attn.data import SINGLE_PROCESS
from imgproc_attn.experiments.comparison import compare
from imgproc_attn.segmentation import IoUMetric
from imgproc_attn.segmentation.data import open_labeled_folder
from imgproc_attn.training import train
from imgproc_attn.training.checkpoints import save_weights
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import Run


def test_crops_need_not_be_whole_patches(tmp_path):
    """The look at saturated filters pads as the model does."""
    more = ["data.input_size=[3,50,66]", "model.img_size=[56,72]", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    recipe = recipe_of(shapes_folder(tmp_path / "data"), *more).variant("bilateral + twicing", 0)
    assert train(recipe, tmp_path / "run", "cpu", log=lambda line: None)["test"]["pixels"] > 0


@pytest.mark.parametrize("variant", [pytest.param("plain", marks=pytest.mark.slow), "bilateral + twicing"])
def test_it_learns(variant, tmp_path):
    """Two photographs, their gray levels for classes: better than the commonest class, by the checkpoint that timm loads."""
    root = shapes_folder(tmp_path / "data")
    recipe = recipe_of(root, "optimizer.lr=3e-3").variant(variant, seeding.number)
    result = train(recipe, tmp_path / "run", "cpu", log=lambda line: None)
    assert result["losses"][-1] < 0.7 * result["losses"][0]
    test = result["test"]
    labels = np.concatenate([np.asarray(Image.open(file)).ravel() for file in (root / "annotations" / "val").glob("*.png")])
    counts = np.bincount(labels[labels != 255], minlength=6)
    assert test["pixel_accuracy"] > 100 * counts.max() / counts.sum() + 8
    assert test["miou"] > 100 / 6
    assert test["pixels"] == counts.sum(), "each labeled pixel of each picture, at its own size, once"
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True).eval()
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["label_names"] == [f"class {i}" for i in range(6)]
    # by hand: resized in 8 bits, normalized, segmented, enlarged
    areas = IoUMetric(6)
    pictures = open_labeled_folder(str(root), "val")
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    for image, mask in (pictures[0], pictures[1]):
        factor = 64 / min(image.shape[-2:])
        size = [int(side * factor) for side in image.shape[-2:]]
        x = nn.functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True).round()
        x = (x / 255 - mean) / std
        with torch.no_grad():
            logits = nn.functional.interpolate(model(x), size=mask.shape, mode="bilinear")
        areas.update(logits, mask[None])
    assert areas.compute()["miou"] == pytest.approx(test["miou"], abs=0.02)


def test_it_shows_what_it_makes_of_examples(tmp_path):
    """Overlays in TensorBoard, an epoch each."""
    recipe = recipe_of(shapes_folder(tmp_path / "data"), "schedule.epochs=3").variant("plain", 0)
    train(recipe, tmp_path / "run", "cpu", log=lambda line: None)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0}).Reload()
    shown = board.Images("examples")
    assert [event.step for event in shown] == [0, 1, 2]
    assert min(shown[0].width, shown[0].height) > 300
    assert Image.open(io.BytesIO(shown[0].encoded_image_string)).size == (shown[0].width, shown[0].height)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_it_starts_from_a_classifier(pooling, tmp_path):
    """Weights of a classifier's run go to the encoder, position tables resampled; the decoder is new."""
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    options |= {"global_pool": pooling, "class_token": pooling == "token"}
    classifier = timm.create_model("bilateral_vit_tiny", img_size=32, num_classes=10, **options)
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_weights(classifier.state_dict(), classifier, options, None, tmp_path / "classifier" / "last")
    recipe = recipe_of(shapes_folder(tmp_path / "data"), f"model.checkpoint={tmp_path / 'classifier'}", "schedule.epochs=3")
    said = []
    run = Run(recipe.variant("bilateral + twicing", 0), tmp_path / "run", torch.device("cpu"), SINGLE_PROCESS, said.append)
    encoder, trained = run.model.encoder, classifier.state_dict()
    for name in ("blocks.1.attn.qkv.weight", "patch_embed.proj.weight", "blocks.0.attn.kernel.range_bandwidth.log_excess"):
        assert torch.equal(encoder.state_dict()[name], trained[name])
    norm = "norm.weight" if pooling == "token" else "fc_norm.weight"
    assert torch.equal(encoder.norm.weight, trained[norm])
    assert encoder.pos_embed.shape[1] == 6 * 8
    assert re.search(r"new: decoder \(6 classes\).*; left out: .*head\.bias, head\.weight; resampled: pos_embed", said[0])
    # and it sees pictures as the classifier did, unless the recipe has its own way
    assert (run.preprocessing.mean, run.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = recipe_of(tmp_path / "data", f"model.checkpoint={tmp_path / 'classifier'}", "data.mean=[0.5, 0.5, 0.5]")
    assert build_model(own.variant("plain", 0)).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_a_comparison_of_segmenters(tmp_path):
    """The report has both metrics, attacks and corruptions; again, nothing is repeated."""
    more = ["schedule.epochs=2", "schedule.warmup_epochs=0", "comparison.seeds=[0]", "evaluation.pgd=[2/255]"]
    more += ["comparison.variants.untied + twicing=null"]
    more += [
        "evaluation.segpgd=[1/255]",
        "evaluation.maskedpgd=[2/255]",
        "evaluation.pgd_steps=2",
        "evaluation.corruptions=[fog 3]",
    ]
    recipe = recipe_of(shapes_folder(tmp_path / "data"), *more)
    report = compare(recipe, tmp_path / "report", "cpu", jobs=2)
    text = report.read_text()
    assert "In mIoU:" in text
    assert "In pixel accuracy:" in text
    assert "on 2 held-out images" in text
    results = json.loads((report.parent / "results.json").read_text())["results"]
    conditions = ["clean", "PGD-2 2/255", "SegPGD-2 1/255", "MaskedPGD-2 2/255", "fog 3"]
    assert all(list(r["metrics"][metric]) == conditions for r in results for metric in ("miou", "pixel_accuracy"))
    final = json.loads((report.parent / "runs" / "plain-seed0" / "final.json").read_text())["test"]
    assert results[0]["metrics"]["miou"]["clean"] == pytest.approx(final["miou"], abs=1e-2)
    assert {file.stem for file in report.parent.glob("*.png")} == {"learning", "curves", "bandwidths", "segmented"}
    evaluated = report.parent / "runs" / "plain-seed0" / "evaluation" / "log" / "clean.process-0.jsonl"
    before = evaluated.stat().st_mtime_ns
    compare(recipe, tmp_path / "report", "cpu", jobs=1)
    assert evaluated.stat().st_mtime_ns == before
    fewer = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test_images": 1})})
    assert "on 1 held-out images" in compare(fewer, tmp_path / "report", "cpu", jobs=1).read_text()
    assert evaluated.stat().st_mtime_ns != before, "other pictures, other numbers"


def test_it_goes_on_where_it_was(tmp_path):
    root = shapes_folder(tmp_path / "data")
    more = ["schedule.epochs=4", "data.test_split=null", "data.validation_images=1", "run.batch_size=1"]
    recipe = recipe_of(root, *more).variant("plain", 0)
    whole = train(recipe, tmp_path / "whole", "cpu", log=lambda line: None)
    assert whole["validation"] > 0
    run_epochs(recipe, tmp_path / "parts", 2)
    again = train(recipe, tmp_path / "parts", "cpu", resume=True, log=lambda line: None)
    assert again["losses"] == whole["losses"]


def run_epochs(recipe, folder, epochs):
    """A run that is broken off."""

    class Enough(Exception):
        pass

    def stop(line):
        if line.startswith(f"epoch {epochs}/"):
            raise Enough

    with pytest.raises(Enough):
        train(recipe, folder, "cpu", log=stop)
