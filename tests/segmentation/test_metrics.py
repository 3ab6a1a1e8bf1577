"""Metrics against brute force, intervals against scipy."""

import numpy as np
import pytest
import scipy.stats
import seeding
import torch
from PIL import Image
from shapes import label_map
from skimage import data as photographs
from torch import nn

from imgproc_attn.segmentation import IoUMetric
from imgproc_attn.segmentation.metrics import bootstrap, constant_areas, count_pixels, metrics_of


def brute_force(predicted, label, classes):
    """Pixel by pixel and class by class, as the definition reads."""
    kept = label != 255
    predicted, label = predicted[kept], label[kept]
    iou, accuracy = [], []
    for c in range(classes):
        both, either, there = (
            ((predicted == c) & (label == c)).sum(),
            ((predicted == c) | (label == c)).sum(),
            (label == c).sum(),
        )
        iou.append(both / either if either else np.nan)
        accuracy.append(both / there if there else np.nan)
    return 100 * (predicted == label).mean(), 100 * np.nanmean(accuracy), 100 * np.nanmean(iou)


def test_metrics_are_brute_force():
    """Absent classes, ignored pixels, several images."""
    rng, areas = np.random.default_rng(0), IoUMetric(13)  # classes 11 and 12 are in no label
    labels = [label_map(picture, 11) for picture in (photographs.astronaut(), photographs.coffee(), photographs.chelsea())]
    pairs = []
    for label in labels:
        wrong = torch.tensor(rng.random(label.shape) < 0.3)
        predicted = torch.where(wrong, torch.tensor(rng.integers(0, 12, label.shape)), label)  # class 12 is never predicted
        label = torch.where(torch.tensor(rng.random(label.shape) < 0.1), 255, label)
        areas.update(predicted[None], label[None])
        pairs.append((predicted.flatten().numpy(), label.flatten().numpy()))
    found = areas.compute()
    expected = brute_force(*(np.concatenate(side) for side in zip(*pairs)), 13)
    assert (found["pixel_accuracy"], found["mean_accuracy"], found["miou"]) == pytest.approx(expected, abs=1e-12)
    assert found["iou"][12] is None
    assert found["iou"][11] == 0
    logits = nn.functional.one_hot(torch.tensor(pairs[0][0]).view(512, 512), 13).movedim(-1, 0)[None].float()
    again = IoUMetric(13)
    again.update(logits, torch.tensor(pairs[0][1]).view(1, 512, 512))
    assert again.compute()["miou"] == pytest.approx(brute_force(*pairs[0], 13)[2], abs=1e-12)


def test_the_best_constant_prediction_is_brute_force():
    """Class 12 has no pixels, and some pixels have no label."""
    label = label_map(photographs.astronaut(), 11)
    label[:40] = 255
    constants = [brute_force(np.full(label.shape, c), label.numpy(), 12)[2] for c in range(12)]
    labeled = count_pixels(label, label, 12)[2]
    assert metrics_of(constant_areas(labeled))["miou"] == pytest.approx(max(constants), abs=1e-12)


@pytest.mark.data
def test_metrics_on_camvid(data_folder):
    rng = np.random.default_rng(0)
    files = sorted((data_folder / "camvid" / "valannot").glob("*.png"))
    labels = [np.asarray(Image.open(file)).astype(int) for file in files]
    assert len(labels) == 101
    for i in range(1000):
        label = np.where((chosen := labels[i % 101]) == 11, 255, chosen)
        predicted = np.where(
            rng.random(label.shape) < rng.random(), rng.permutation(11)[np.minimum(label, 10)], np.minimum(label, 10)
        )
        areas = IoUMetric(11)
        areas.update(torch.tensor(predicted)[None], torch.tensor(label)[None])
        found = areas.compute()
        expected = brute_force(predicted.ravel(), label.ravel(), 11)
        assert (found["pixel_accuracy"], found["mean_accuracy"], found["miou"]) == pytest.approx(expected, abs=1e-12)


def test_metrics_refuse():
    areas = IoUMetric(3)
    with pytest.raises(ValueError, match="number of labeled pixels must be at least 1, got 0"):
        areas.compute()
    with pytest.raises(ValueError, match="Labels must be from 0 to 2 with 3 classes, got 0 to 3"):
        areas.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([[[0, 1], [2, 3]]]))
    with pytest.raises(ValueError, match="Predictions must be from 0 to 2 with 3 classes, got 0 to 4"):
        areas.update(torch.tensor([[[0, 4]]]), torch.zeros(1, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="must have the shape of the labels"):
        areas.update(torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long))


def test_intervals_are_scipys():
    """Crops of a photograph, their gray levels for classes, a share of them mistaken: percentiles of redrawn pictures."""
    seeding.seed()
    labels = label_map(photographs.chelsea(), 6)[:288, :448].unfold(0, 48, 48).unfold(1, 64, 64).flatten(0, 1)
    shares = torch.rand(len(labels), 1, 1)
    predicted = torch.where(torch.rand(labels.shape) < shares, labels, labels.roll(7, 2))
    areas = torch.stack([count_pixels(*pair, 6) for pair in zip(predicted, labels)])
    ours = bootstrap(areas)
    for metric in ("miou", "pixel_accuracy", "mean_accuracy"):
        theirs = scipy.stats.bootstrap(
            [range(len(areas))],
            lambda drawn, metric=metric: metrics_of(areas[drawn].sum(0))[metric],
            method="percentile",
            vectorized=False,
            n_resamples=3000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        found, width = np.percentile(ours[metric], [2.5, 97.5]), theirs.high - theirs.low
        assert np.abs(found - (theirs.low, theirs.high)).max() < 0.1 * width
        assert found[0] < metrics_of(areas.sum(0))[metric] < found[1]
    worse = torch.stack([count_pixels(*pair, 6) for pair in zip(predicted.roll(1, 1), labels)])
    apart = (bootstrap(worse[torch.randperm(len(worse))])["miou"] - ours["miou"]).std()
    assert (bootstrap(worse)["miou"] - ours["miou"]).std() < 0.5 * apart, "pictures are not paired"
