"""Attacks and corruptions against closed forms, and the sums that count them."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage import data
from torch import nn

from imgproc_attn.evaluation import (
    FGSM,
    L2_NORM,
    PGD,
    GaussianBlur,
    GaussianNoise,
    NormalizedModel,
    ThreatModel,
    evaluate,
    paired_difference,
)
from imgproc_attn.evaluation.per_sample_rng import draw_per_sample
from imgproc_attn.evaluation.statistics import paired_interval


class Linear(nn.Module):
    """Two classes, logits (0, w.x + b): the least eps that fools it is |w.x + b| / |w|_1 while no pixel leaves [0, 1]."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        score = (x * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def photograph(size=32):
    """Crops of scikit-image's astronaut, in [0, 1]."""
    picture = torch.tensor(data.astronaut() / 255, dtype=torch.float32).permute(2, 0, 1)
    return torch.stack([picture[:, y : y + size, x : x + size] for y in range(0, 480, 96) for x in range(0, 480, 96)])


def linear_problem():
    """A model and images, of which no image lies on its border, and none so far from it that cross-entropy has no gradient."""
    images = photograph() * 0.5 + 0.25  # far from the border of the range for the eps used
    w = torch.randn(3, 32, 32) / 10
    scores = (images * w).flatten(1).sum(1)
    model = Linear(w, -scores.sort().values[12:14].mean().item()).eval()
    return model, images, model(images).argmax(1), (scores + model.b).abs(), w


@pytest.fixture
def linear():
    model, images, labels, scores, w = linear_problem()
    return model, images, labels, scores / w.abs().sum()


def test_flags_under_attack_need_a_correct_clean_prediction(linear):
    model, images, labels, _ = linear
    wrong = 1 - labels
    result = evaluate(model, images, wrong, {"FGSM": FGSM(0.5)}, {"noise": GaussianNoise(0.1)})
    assert result.accuracies["clean"] == 0
    assert result.accuracies["FGSM"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: (m.train(), x, y), "training mode"),
        (lambda m, x, y: (m, x * 2 - 1, y), r"must be in \[0, 1\], got values from -"),
        (lambda m, x, y: (m, (x * 255).to(torch.uint8), y), "torch.uint8"),
        (lambda m, x, y: (m, x, y[:3]), r"must be 25 class indices .* shape \[3\]"),
        (lambda m, x, y: (m, x, y.float()), "torch.float32"),
        (lambda m, x, y: (m, x, y.int()), "int64.*torch.int32"),
        (lambda m, x, y: (m, x * float("nan"), y), "must be finite"),
        (lambda m, x, y: (m, x, y - 2), "Labels must be at least 0, got -"),
    ],
)
def test_refuses(linear, change, message):
    model, images, labels, _ = linear
    model, images, labels = change(model, images, labels)
    for call in (FGSM(0.1), PGD(0.1), evaluate):
        with pytest.raises(ValueError, match=message):
            call(model, images, labels)


def test_training_mode_below_the_surface_is_refused(linear):
    model, images, labels, _ = linear
    wrapped = torch.nn.Sequential(torch.nn.Dropout(0.5), model).eval()
    wrapped[0].train()
    for call in (FGSM(0.1), PGD(0.1), evaluate):
        with pytest.raises(ValueError, match="got its module '0' in training mode"):
            call(wrapped, images, labels)


def test_a_broken_model_is_not_robust(linear):
    model, images, labels, _ = linear
    with torch.no_grad():
        model.w.fill_(float("nan"))
    for call in (FGSM(0.1), PGD(0.1), evaluate):
        with pytest.raises(FloatingPointError, match="Logits must be finite"):
            call(model, images, labels)


def test_inference_mode_is_refused_by_name(linear):
    model, images, labels, _ = linear
    with torch.inference_mode(), pytest.raises(ValueError, match=r"must run outside torch.inference_mode\(\)"):
        FGSM(0.1)(model, images, labels)


def test_targets_and_norms_are_the_threat_models(linear):
    """A target that is not reached does not make a right answer wrong; distances are in the threat model's norm."""
    model, images, labels, _ = linear
    attacks = {"targeted": FGSM(ThreatModel(1e-6, targeted=True)), "L2": FGSM(ThreatModel(0.5, L2_NORM))}
    result = evaluate(model, images, labels, attacks)
    assert result.accuracies["clean"] == 100
    assert result.accuracies["targeted"] == 100
    assert result.largest_perturbation["L2"] == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(ValueError, match="must be a NormalizedModel, got"):
        evaluate(model, images, labels, {"published": FGSM(ThreatModel.normalized(0.1))})


def test_no_images_have_no_accuracy(linear):
    model, images, labels, _ = linear
    with pytest.raises(ValueError, match="images must hold at least 1 image, got 0"):
        evaluate(model, images[:0], labels[:0])
    assert FGSM(0.1)(model, images[:0], labels[:0]).success.shape == (0,)
    assert PGD(0.1)(model, images[:0], labels[:0]).success.shape == (0,)


def test_names_that_collide_are_refused(linear):
    model, images, labels, _ = linear
    for attacks, corruptions in (({"clean": FGSM(0.1)}, {}), ({"n": FGSM(0.1)}, {"n": GaussianNoise(0.1)})):
        with pytest.raises(ValueError, match="for two conditions"):
            evaluate(model, images, labels, attacks, corruptions)


def test_paired_intervals():
    """Newcombe 1998, his example for method 10; and no certainty where nothing differs."""
    assert [round(limit / 100, 4) for limit in paired_interval(36, 12, 2, 0)] == [0.0569, 0.3404]
    low, high = paired_interval(20, 0, 0, 0)
    assert low == -high < -15
    assert paired_interval(3, 1, 4, 2) == tuple(-limit for limit in reversed(paired_interval(3, 4, 1, 2)))


@pytest.mark.parametrize("chances", [(0.6, 0.1, 0.05, 0.25), (0.9, 0.05, 0.01, 0.04)])
def test_paired_intervals_cover_what_they_promise(chances):
    """By adding up all outcomes of 20 samples. (Wald's interval covers 86 and 70 %.)"""
    n, difference, covered = 20, 100 * (chances[1] - chances[2]), 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if (d := n - a - b - c) >= 0:
            low, high = paired_interval(a, b, c, d)
            ways = math.factorial(n) / math.prod(math.factorial(k) for k in (a, b, c, d))
            covered += (low <= difference <= high) * ways * math.prod(p**k for p, k in zip(chances, (a, b, c, d)))
    assert 0.94 < covered <= 1


def test_blur_is_scipys():
    images = photograph(48)
    for sigma in (0.5, 1.0, 2.0):
        blurred = GaussianBlur(sigma)(images)
        radius = math.ceil(4 * sigma)
        expected = scipy.ndimage.gaussian_filter(images.double().numpy(), sigma, axes=(2, 3), mode="mirror", radius=radius)
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


def test_noise_has_its_standard_deviation_and_belongs_to_the_sample():
    images = torch.full((200, 1, 16, 16), 0.5)
    noisy = GaussianNoise(0.05)(images)
    assert (noisy - images).std().item() == pytest.approx(0.05, rel=0.02)
    ids = torch.tensor([7, 3])
    assert torch.equal(GaussianNoise(0.05)(images[:2], ids), noisy[ids])
    assert not torch.equal(GaussianNoise(0.05, seed=1)(images), noisy)


def test_draws_of_neighboring_keys_are_unrelated():
    images = torch.empty(400, 1, 8, 8)

    def normal(shape, generator):
        return torch.randn(shape, generator=generator)

    draws = [draw_per_sample(images, None, key, normal).flatten() for key in ((0, 0), (0, 1), (1, 0))]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlations.abs().max() < 0.03


@pytest.mark.parametrize(("corruption", "message"), [(GaussianNoise, "std must be"), (GaussianBlur, "sigma must be")])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_refuses_strengths(corruption, message, bad):
    with pytest.raises(ValueError, match=message):
        corruption(bad)


def test_normalization_is_timms():
    import timm

    model = timm.create_model("test_vit").eval()
    images = torch.rand(2, 3, 160, 160)
    cfg = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(NormalizedModel(model)(images), model((images - mean) / std))


def test_normalization_refuses():
    with pytest.raises(ValueError, match="must have a pretrained_cfg"):
        NormalizedModel(nn.Identity())
    with pytest.raises(ValueError, match="must be positive"):
        NormalizedModel(nn.Identity(), [0.5], [0.0])
    with pytest.raises(ValueError, match="must have 1 values, one per channel, got 1 and 2"):
        NormalizedModel(nn.Identity(), [0.5], [0.5, 0.5])


def test_paired_difference():
    difference = paired_difference([3.0, 5.0, 4.0], [1.0, 1.0, 1.0])
    assert difference.mean == pytest.approx(3.0)
    assert difference.std == pytest.approx(1.0)
    assert difference.lower == pytest.approx(3.0 - 2.919986 / 3**0.5, rel=1e-5)  # Student's t, 2 degrees of freedom, 95 %
    assert math.isnan(paired_difference([1.0], [0.0]).lower)
    with pytest.raises(ValueError, match="one equal length of at least 1, got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
