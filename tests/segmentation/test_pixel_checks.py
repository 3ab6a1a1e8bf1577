"""Sanity checks of attacked segmenters."""

import pytest
import torch
from segmented import first_batch, session_of
from torch import nn

from imgproc_attn.evaluation.probes import answers
from imgproc_attn.segmentation.attacks import PixelFGSM, PixelPGD, SegPGD
from imgproc_attn.tasks import SegmentationTask


def test_cross_checks():
    task = SegmentationTask(2)

    def row(family, eps, miou):
        return {"name": f"{family} {eps}", "family": family, "eps": eps, "norm": "Linf", "miou": miou}

    clean = {"name": "clean", "miou": 50.0}
    rows = [clean, row("FGSM", 1, 30.0), row("FGSM", 2, 20.0), row("PGD", 1, 25.0), row("PGD", 2, 20.3)]
    assert task.cross_checks(rows, {}) == []
    found = task.cross_checks([*rows[:4], row("PGD", 2, 25.6)], {})
    assert [f.check for f in found] == ["steps are weaker than one", "mIoU rises with eps"]
    assert "PGD 2 leaves 25.6 % mIoU, PGD 1 25.0 %" in found[1].message
    (found,) = task.cross_checks([clean, row("FGSM L2", 1, 20.0), row("SegPGD L2", 1, 21.0)], {})
    assert found.check == "steps are weaker than one"
    (found,) = task.cross_checks([clean, row("FGSM", 1, 50.6)], {})
    assert found.check == "an attack that helps"
    # of several clean conditions, the one of the same images is compared
    few, whole = {**clean, "images": "few"}, {**clean, "images": "whole", "miou": 60.0}
    attacked = {**row("FGSM", 1, 55.0), "images": "few"}
    assert [f.check for f in task.cross_checks([whole, few, attacked], {})] == ["an attack that helps"]


class Rounded(nn.Module):
    """Has no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 8).round() / 8)


def checked(task, model, batches, attacks):
    probed = {name: answers(probe, model, batches) for name, probe in task.probes(model, attacks, 0).items()}
    return task.check(model, batches, attacks, probed)


@pytest.mark.parametrize("window", [None, 64])
def test_checks_of_pixels(model, run, window):
    """Sums of windows are of the model's own precision; a picture without labels has no gradient, and is no sign."""
    session, samples = session_of(run, window=window)
    task, batch = session.task, first_batch(session, samples)
    blank = (batch[0], torch.full_like(batch[1], 255), batch[2] + 1)
    attacks = [PixelFGSM(1 / 255)]
    assert checked(task, model, [batch, blank], attacks).findings == []
    (nothing,) = checked(task, model, [blank], attacks).findings
    assert nothing.check == "nothing to check"
    rounded = checked(task, Rounded(model).eval(), [batch], attacks)
    assert {found.check for found in rounded.findings} == {"vanishing gradients"}
    probabilities = nn.Sequential(model, nn.Softmax(1)).eval()
    assert [found.check for found in checked(task, probabilities, [batch], []).findings] == ["probabilities"]


def test_an_attack_far_from_the_worst_case_is_named(model, run):
    """A few steps along the mean of all pixels; what is looked at is the largest radius."""
    session, samples = session_of(run)
    task, batch = session.task, first_batch(session, samples)
    weak, strong = PixelPGD(8 / 255, 2), SegPGD(8 / 255, 20)
    (finding,) = checked(task, model, [batch], [weak, SegPGD(1 / 255, 20)]).findings
    assert finding.check == "a stronger attack"
    assert "At eps 0.0314 PGD leaves" in finding.message
    report = checked(task, model, [batch], [weak, strong])
    assert report.findings == []
    assert report.done == ["outputs", "gradients", "stronger attacks"]
