"""Attacks on images of 16 bits: what the model gets is in the ball, without tolerance, and the attack is not weaker for it."""

import numpy as np
import pytest
import seeding
import torch
from digits import convolutions, tensors, trained
from test_evaluation import Linear, photograph
from torch import nn

from imgproc_attn.evaluation import (
    APGDCE,
    FGSM,
    L2_NORM,
    LINF,
    MIFGSM,
    PGD,
    SPSA,
    NormalizedModel,
    Square,
    TargetedAPGD,
    ThreatModel,
    WorstOf,
    evaluate,
)
from imgproc_attn.segmentation.attacks import MaskedPGD, PixelFGSM, PixelMIFGSM, SegPGD

HALVES = [torch.bfloat16, torch.float16]
ATTACKS = {
    "FGSM": FGSM,
    "PGD": lambda threat: PGD(threat, 5),
    "PGD, restarts": lambda threat: PGD(threat, 3, restarts=2),
    "PGD from the image": lambda threat: PGD(threat, 5, start_at_random=False),
    "MI-FGSM": lambda threat: MIFGSM(threat, 3),
    "APGD-CE": lambda threat: APGDCE(threat, 10),
    "APGD-T": lambda threat: TargetedAPGD(threat, 5, targets=2),
    "SPSA": lambda threat: SPSA(threat, 3, 8),
    "ensemble": lambda threat: WorstOf({"PGD": PGD(threat, 3), "APGD-CE": APGDCE(threat, 3)}),
}
LINF_ONLY = {"Square": lambda threat: Square(threat, 10)}


@pytest.fixture(scope="module")
def digits():
    seeding.seed()
    return trained(convolutions()), *(part[:120] for part in tensors("test"))


def farthest(found, images, norm):
    """In float64, where the difference of two half-precision numbers is exact."""
    return norm.size(found.double() - images.double()).max().item()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", [*ATTACKS, *LINF_ONLY])
def test_what_is_found_lies_in_the_ball(digits, name, dtype):
    model, images, labels = trained_in(digits[0], dtype), digits[1][:24].to(dtype), digits[2][:24]
    threats = [ThreatModel(levels / 255) for levels in (1, 2, 4, 8)]
    threats += [] if name in LINF_ONLY else [ThreatModel(eps, L2_NORM) for eps in (0.05, 0.5)]
    for threat in threats:
        found, success, *_ = {**ATTACKS, **LINF_ONLY}[name](threat)(model, images, labels)
        assert found.dtype == dtype
        assert farthest(found, images, threat.norm) <= threat.eps
        assert found.min() >= 0
        assert found.max() <= 1
        first, second = model(found).float().topk(2).values.unbind(1)
        sure = first - second > 8 * torch.finfo(dtype).eps * first.abs()  # others may tie in 16 bits, by the size of the batch
        assert torch.equal(success[sure], (model(found).argmax(1) != labels)[sure])


def trained_in(model, dtype):
    """A copy in another type."""
    copy = convolutions()
    copy.load_state_dict(model.state_dict())
    return copy.to(dtype).eval()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("attack", [PixelFGSM, PixelMIFGSM, SegPGD, MaskedPGD])
def test_what_is_found_of_pixels_lies_in_the_ball(attack, dtype):
    seeding.seed()
    model = NormalizedModel(nn.Conv2d(3, 4, 3, padding=1), [0.5] * 3, [0.25] * 3).to(dtype).eval()
    images = photograph(16)[:2].to(dtype)
    labels = torch.randint(4, (2, 16, 16))
    for norm, eps in [(LINF, levels / 255) for levels in (1, 2, 4, 8)] + [(L2_NORM, 0.5)]:
        found = attack(ThreatModel(eps, norm))(model, images, labels).adversarial
        assert found.dtype == dtype
        assert farthest(found, images, norm) <= eps
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("eps", [0.5 / 255, 1 / 255, 8 / 255, 0.3])
def test_corners_of_the_ball_are_the_outermost_numbers_in_it(dtype, eps):
    """For every number of the type in [0, 1]: the largest one up to eps above, the smallest one down to eps below."""
    ones = torch.ones((), dtype=dtype).view(torch.int16).item()
    grid = torch.arange(ones + 1, dtype=torch.int16).view(dtype)
    images, threat, values = grid[:, None, None, None], ThreatModel(eps), grid.double().numpy()
    above, below = (threat.rounded(threat.project(images.float() + sign * eps, images), images) for sign in (1, -1))
    highest = values[np.searchsorted(values, values + eps, side="right") - 1]
    np.testing.assert_array_equal(above.double().flatten().numpy(), highest)
    lowest = values[np.searchsorted(values, values - eps)]
    found = below.double().flatten().numpy()
    assert (values - found <= eps).all()
    far = lowest > eps / 100  # numbers near 0 are denser than float32's differences are exact
    np.testing.assert_array_equal(found[far], lowest[far])
    assert (found[~far] <= eps / 50).mean() > 0.99


@pytest.mark.parametrize(("dtype", "reached"), [(torch.float16, 0.98), (torch.bfloat16, 0.95)])
def test_euclidean_balls_are_used(dtype, reached):
    """A change on the sphere, rounded, is as long as its rounding allows."""
    images = (photograph(16) * 0.5 + 0.25).to(dtype)  # far from the range's ends
    directions = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for eps in (0.7, 1.5):
        threat = ThreatModel(eps, L2_NORM)
        found = threat.rounded(threat.project(images + eps * threat.steepest(directions), images), images)
        size = L2_NORM.size(found.double() - images.double())
        assert size.max() <= eps
        assert size.mean() >= reached * eps


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_steps_smaller_than_the_types_add_up(dtype):
    """A hundred steps reach the corner that one long step reaches, on a linear model."""
    seeding.seed()
    model, images = Linear(0.02 * torch.randn(3, 32, 32), 0.0).to(dtype).eval(), photograph()[:6].to(dtype)
    labels, ids = model(images).argmax(1), torch.arange(6)
    corner = FGSM(2 / 255).perturb(model, images, labels, ids)
    assert (corner != images).double().mean() > 0.9
    for attack in (PGD(2 / 255, 100, start_at_random=False), PGD(2 / 255, 100), MIFGSM(2 / 255, 100)):
        assert torch.equal(attack.perturb(model, images, labels, ids), corner)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_no_defense(digits, dtype):
    """Of a trained network, images of 16 bits fall about as often as those of 32."""
    model, images, labels = digits
    attacks = {"FGSM": FGSM(0.1), "PGD": PGD(0.1, 20), "Square": Square(0.1, 100)}
    whole = evaluate(model, images, labels, attacks)
    half = evaluate(trained_in(model, dtype), images.to(dtype), labels, attacks)
    for name in attacks:
        assert half.accuracy(name) <= whole.accuracy(name) + 10
        assert half.largest_perturbation[name] <= 0.1


def test_spsa_is_finite_in_half_precision():
    """Where the margin is flat, its slopes and their squares vanish; Adam divides by their root."""
    for offset in range(10):
        seeding.seed(offset)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).half().eval()
        images = torch.rand(4, 3, 8, 8).half()
        found = SPSA(8 / 255, 5, 8)(model, images, model(images).argmax(1)).adversarial
        assert found.isfinite().all()
        assert farthest(found, images, LINF) <= 8 / 255
