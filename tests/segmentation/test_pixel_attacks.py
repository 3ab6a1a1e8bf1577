"""Attacks on the loss of pixels: by hand and in closed form."""

import pytest
import seeding
import torch
import torch.nn.functional as F
from segmented import first_batch, session_of
from torch import nn

from imgproc_attn.evaluation import NormalizedModel, ThreatModel
from imgproc_attn.evaluation.presets import build_attacks
from imgproc_attn.segmentation.attacks import (
    MaskedPGD,
    PixelFGSM,
    PixelPGD,
    SegPGD,
    masked_cross_entropy,
    pixel_cross_entropy,
    wrong_pixels_weighted,
)
from imgproc_attn.segmentation.presets import PIXEL_ATTACKS
from imgproc_attn.tasks import SegmentationTask


def test_losses_are_of_labeled_pixels():
    seeding.seed()
    logits, labels = torch.randn(2, 5, 6, 7, dtype=torch.float64), torch.randint(5, (2, 6, 7))
    labels[0, :2] = 255
    for b in range(2):
        rows = [(i, j) for i in range(6) for j in range(7) if labels[b, i, j] != 255]
        losses = torch.stack([-logits[b, :, i, j].log_softmax(0)[labels[b, i, j]] for i, j in rows])
        right = torch.tensor([logits[b, :, i, j].argmax() == labels[b, i, j] for i, j in rows])
        torch.testing.assert_close(pixel_cross_entropy(logits, labels)[b], losses.mean())
        weighted = torch.where(right, 0.7, 0.3) * losses
        torch.testing.assert_close(wrong_pixels_weighted(0.3, logits, labels)[b], weighted.mean())
    assert (pixel_cross_entropy(logits, torch.full_like(labels, 255)) == 0).all()


def test_losses_enlarge_logits_to_labels():
    seeding.seed()
    logits, labels = torch.randn(1, 5, 6, 7), torch.randint(5, (1, 12, 14))
    large = F.interpolate(logits, size=(12, 14), mode="bilinear")
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), F.cross_entropy(large, labels)[None])


def test_segpgd_turns_from_right_pixels_to_all():
    attack = SegPGD(0.1, 4)
    assert [attack.objective_at(step).args[0] for step in range(4)] == [0, 1 / 8, 2 / 8, 3 / 8]


@pytest.fixture
def pointwise():
    """Two classes, each pixel by itself: the worst change is known."""
    seeding.seed()
    return NormalizedModel(nn.Conv2d(3, 2, 1), [0.5] * 3, [0.5] * 3).eval()


@pytest.mark.parametrize("attack", [PixelFGSM(0.01), PixelPGD(0.01, 20), SegPGD(0.01, 20), PixelPGD(0.01, 20, restarts=2)])
def test_two_classes_in_closed_form(pointwise, attack):
    """Away from the box each labeled pixel moves by eps against its class; ignored ones get no gradient."""
    images, labels = torch.rand(2, 3, 9, 8) * 0.8 + 0.1, torch.randint(2, (2, 9, 8))
    labels[:, :2] = 255
    direction = (pointwise.model.weight[1] - pointwise.model.weight[0])[:, 0, 0].sign()
    sign = torch.where(labels == 0, 1.0, -1.0)[:, None] * direction[:, None, None]
    expected = torch.where((labels == 255)[:, None], images, images + 0.01 * sign)
    found = SegmentationTask(2).under(attack)(pointwise, images, labels, torch.arange(2)).images
    kept = (labels != 255)[:, None].expand_as(images)
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-6)
    assert (found >= images - 0.01).all()
    assert (found <= images + 0.01).all()
    if isinstance(attack, PixelFGSM):
        assert torch.equal(found[~kept], images[~kept])


def test_masked_pgd_turns_all_that_can_be_turned(pointwise):
    """As many pixels as the worst change of each; what is wrong already costs nothing."""
    nn.init.zeros_(pointwise.model.bias)  # each class is seen as often as the other
    images, labels = torch.rand(2, 3, 9, 8) * 0.8 + 0.1, torch.randint(2, (2, 9, 8))
    labels[:, :2] = 255
    task = SegmentationTask(2)
    worst, masked, clean = (
        scorer(pointwise, images, labels, torch.arange(2)).columns["areas"]
        for scorer in (task.under(PixelPGD(0.1, 20)), task.under(MaskedPGD(0.1, 20)), task.clean)
    )
    assert masked == worst
    assert right_of(masked) < right_of(clean)
    wrong = pointwise(images).argmax(1) != labels
    gradient = torch.autograd.grad(masked_cross_entropy(pointwise(images.requires_grad_()), labels).sum(), images)[0]
    assert (gradient.abs().sum(1)[wrong] == 0).all()
    assert (gradient.abs().sum(1)[~wrong] > 0).all()


def right_of(areas):
    """Return the number of right pixels of all images; each row of an image is ``[class, right, predicted, labeled]``."""
    return sum(row[1] for image in areas for row in image)


def test_attacks_refuse():
    for name, (_, kind) in PIXEL_ATTACKS.items():
        for threat in (ThreatModel(0.1, targeted=True), ThreatModel.normalized(0.1)):
            with pytest.raises(ValueError, match="the threat model must be untargeted, on images in"):
                kind()(threat)
        assert next(iter(build_attacks([name], [ThreatModel(1 / 255)], 5, 0, PIXEL_ATTACKS))).endswith(" 1/255")
    with pytest.raises(ValueError, match="Attacks must be among fgsm, pgd, mifgsm, segpgd, maskedpgd, got 'square'"):
        build_attacks(["square"], [ThreatModel(0.1)], 5, 0, PIXEL_ATTACKS)


def test_of_restarts_the_worst_counts(model, run):
    session, samples = session_of(run)
    images, labels, ids = first_batch(session, samples)
    alone = [_right(model, images, labels, ids, PixelPGD(0.01, 2, seed=0), restart) for restart in range(3)]
    assert len(set(alone)) > 1
    attack = PixelPGD(0.01, 2, restarts=3, seed=0)
    assert right_of(session.task.under(attack)(model, images, labels, ids).columns["areas"]) == min(alone)
    found = attack(model, images, labels, ids)
    assert found.success.all(), "called like any attack, it says what it did"
    assert _right_of(model, found.adversarial, labels) == min(alone)


def _right(model, images, labels, ids, attack, restart):
    return _right_of(model, attack.perturb(model, images, labels, ids, restart), labels)


def _right_of(model, images, labels):
    with torch.no_grad():
        logits = F.interpolate(model(images), size=labels.shape[-2:], mode="bilinear")
    return int((logits.argmax(1) == labels)[labels != 255].sum())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 9, 8), r"Label maps must be whole numbers \[2, height, width\], got torch.float32"),
        (torch.zeros(1, 9, 8).long(), r"\[2, height, width\], got torch.int64 of shape \[1, 9, 8\]"),
        (torch.zeros(2).long(), "Label maps must be"),
        (torch.full((2, 9, 8), 2), "Labels must be from 0 to 1 with 2 classes, got 2 to 2"),
        (torch.full((2, 9, 8), -1), "Labels must be from 0 to 1 .* got -1 to -1"),
    ],
)
def test_label_maps_are_looked_at_before_the_attack(pointwise, labels, message):
    with pytest.raises(ValueError, match=message):
        PixelPGD(0.01, 2)(pointwise, torch.rand(2, 3, 9, 8), labels)
