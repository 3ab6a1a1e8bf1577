"""Sanity checks of attacked segmenters."""

import pytest
import torch
from imgproc_attn.segmentation.measure import PixelMeasure, SlidingWindow
from segmented import CPU, assessment
from torch import nn

from imgproc_attn.segmentation.attacks import PixelFGSM, PixelPGD, SegPGD


def test_doubts():
    measure = PixelMeasure(("a", "b"))

    def row(family, eps, miou):
        return {"name": f"{family} {eps}", "family": family, "eps": eps, "norm": "Linf", "miou": miou}

    clean = {"name": "clean", "miou": 50.0}
    rows = [clean, row("FGSM", 1, 30.0), row("FGSM", 2, 20.0), row("PGD", 1, 25.0), row("PGD", 2, 20.3)]
    assert measure.doubt(rows, {}) == []
    found = measure.doubt([*rows[:4], row("PGD", 2, 25.6)], {})
    assert [f.check for f in found] == ["steps are weaker than one", "mIoU rises with eps"]
    assert "PGD 2 leaves 25.6 % mIoU, PGD 1 25.0 %" in found[1].message
    (found,) = measure.doubt([clean, row("FGSM L2", 1, 20.0), row("SegPGD L2", 1, 21.0)], {})
    assert found.check == "steps are weaker than one"
    (found,) = measure.doubt([clean, row("FGSM", 1, 50.6)], {})
    assert found.check == "an attack that helps"


class Rounded(nn.Module):
    """Has no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 8).round() / 8)


@pytest.mark.parametrize("window", [None, 64])
def test_checks_of_pixels(model, run, window):
    """Sums of windows are of the model's own precision; a picture without labels has no gradient, and is no sign."""
    ours = assessment(run, None, windows=SlidingWindow(window))
    batch = next(ours.samples().batches(ours.preprocessing, 1, 0, CPU))
    blank = (batch[0], torch.full_like(batch[1], 255), batch[2])
    attacks = [PixelFGSM(1 / 255)]
    assert ours.measure.check(model, [batch, blank], attacks, 0).findings == []
    (nothing,) = ours.measure.check(model, [blank], attacks, 0).findings
    assert nothing.check == "nothing to check"
    rounded = ours.measure.check(Rounded(model).eval(), [batch], attacks, 0)
    assert {found.check for found in rounded.findings} == {"vanishing gradients"}
    probabilities = nn.Sequential(model, nn.Softmax(1)).eval()
    assert [found.check for found in ours.measure.check(probabilities, [batch], [], 0).findings] == ["probabilities"]


def test_an_attack_far_from_the_worst_case_is_named(model, run):
    """A few steps along the mean of all pixels; what is looked at is the largest radius."""
    ours = assessment(run, None)
    batch = next(ours.samples().batches(ours.preprocessing, 1, 0, CPU))
    weak, strong = PixelPGD(8 / 255, 2), SegPGD(8 / 255, 20)
    (finding,) = ours.measure.check(model, [batch], [weak, SegPGD(1 / 255, 20)], 0).findings
    assert finding.check == "a stronger attack"
    assert "At eps 0.0314 PGD leaves" in finding.message
    checked = ours.measure.check(model, [batch], [weak, strong], 0)
    assert checked.findings == []
    assert checked.done == ["outputs", "gradients", "stronger attacks"]
