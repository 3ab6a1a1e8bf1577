"""Attacks against closed forms, against each other, and on a network trained on real digits."""

import itertools
import math

import pytest
import seeding
import torch
from digits import convolutions, tensors, trained
from test_evaluation import Linear, linear_problem, photograph
from torch import nn

from imgproc_attn.evaluation import (
    APGDCE,
    APGDDLR,
    FGSM,
    L2_NORM,
    MIFGSM,
    PGD,
    SPSA,
    Square,
    TargetedAPGD,
    ThreatModel,
    WorstOf,
    evaluate,
    strong_ensemble,
)
from imgproc_attn.evaluation.attacks.apgd import checkpoints
from imgproc_attn.evaluation.gradient_checks import check_gradients
from imgproc_attn.evaluation.losses import difference_of_logits_ratio, margin, targeted_difference_of_logits_ratio
from imgproc_attn.evaluation.threat import L2, Linf

WHITE_BOX = {
    "FGSM": FGSM,
    "PGD": lambda threat: PGD(threat, 10),
    "PGD, restarts": lambda threat: PGD(threat, 5, restarts=3),
    "MI-FGSM": MIFGSM,
    "APGD-CE": lambda threat: APGDCE(threat, 20),
}
BLACK_BOX = {"Square": lambda threat: Square(threat, 200), "SPSA": lambda threat: SPSA(threat, 5, 16)}
LINF_ATTACKS = {**WHITE_BOX, **BLACK_BOX}


def by_name(table):
    return pytest.mark.parametrize("attack", table.values(), ids=table.keys())


@pytest.fixture
def linear():
    return linear_problem()


@pytest.fixture(scope="module")
def digits():
    """A small convolutional network trained on scikit-learn's digits, and its test images.

    In float64: the order of sums, which differs by batch and processor, decides nothing there.
    """
    seeding.seed()
    model, (test, answers) = trained(convolutions()).double(), tensors("test")
    assert (model(test.double()).argmax(1) == answers).double().mean() > 0.95
    return model, test.double(), answers


def robust(attack, digits, count=120):
    model, images, labels = digits
    result = attack(model, images[:count], labels[:count], torch.arange(count))
    return (~result.success).double().mean().item()


@by_name(WHITE_BOX)
def test_linear_model_falls_exactly_where_it_must(linear, attack):
    """|w.x + b| / |w|_1 is the least L-infinity radius that fools two linear classes."""
    model, images, labels, scores, w = linear
    least = scores / w.abs().sum()
    for eps in least.quantile(torch.tensor([0.2, 0.5, 0.9])).tolist():
        result = attack(eps * 1.0001)(model, images, labels)
        assert bool((result.success >= (least < eps * 0.999)).all())
        assert bool((result.success <= (least < eps * 1.001)).all())


# from a random point the Euclidean ball is far to cross: longer steps
@by_name({**WHITE_BOX, "PGD": lambda t: PGD(t, 20, t.eps), "PGD, restarts": lambda t: PGD(t, 20, t.eps, restarts=3)})
def test_linear_model_falls_exactly_where_it_must_in_l2(linear, attack):
    """|w.x + b| / |w|_2 is the least Euclidean radius."""
    model, images, labels, scores, w = linear
    least = scores / w.norm()
    for eps in least.quantile(torch.tensor([0.2, 0.5, 0.9])).tolist():
        result = attack(ThreatModel(eps * 1.0001, L2_NORM))(model, images, labels)
        assert bool((result.success >= (least < eps * 0.999)).all())
        assert bool((result.success <= (least < eps * 1.001)).all())


@pytest.mark.parametrize("eps", [5e-4, 2e-3, 0.02])
def test_points_stay_in_small_euclidean_balls(eps):
    """Where rounding of the sum is not small beside the radius."""
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    step = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) * eps
    found = ThreatModel(eps, L2_NORM).project(images + step, images)
    length = (found.double() - images.double()).flatten(1).norm(dim=1)
    assert length.max() <= eps * (1 + 1e-6)
    assert length.min() >= eps * (1 - 1e-3)


@by_name(BLACK_BOX)
def test_search_never_finds_what_is_not_there(linear, attack):
    model, images, labels, scores, w = linear
    least = scores / w.abs().sum()
    eps = least.median().item()
    result = attack(eps)(model, images, labels)
    assert bool((result.success <= (least < eps * 1.001)).all())
    assert attack(0.25)(model, images, labels).success.any(), "in a ball many times as large as need be, chance finds some"


@by_name(LINF_ATTACKS)
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.5, 1.0])
def test_what_is_found_lies_in_the_ball_and_in_the_range(attack, eps):
    """Without tolerance: between fl(x - eps) and fl(x + eps), and in [0, 1]."""
    images = photograph()[:6]
    model = Linear(torch.randn(3, 32, 32), 0.0).eval()
    found = attack(eps)(model, images, model(images).argmax(1)).adversarial
    assert bool((found >= images - eps).all())
    assert bool((found <= images + eps).all())
    assert found.min() >= 0
    assert found.max() <= 1


@by_name({**WHITE_BOX, "SPSA": BLACK_BOX["SPSA"]})
def test_what_is_found_lies_in_the_l2_ball(attack):
    images = photograph()[:6]
    model = Linear(torch.randn(3, 32, 32), 0.0).eval()
    for eps in (0.1, 1.0, 10.0):
        found = attack(ThreatModel(eps, L2_NORM))(model, images, model(images).argmax(1)).adversarial
        assert ((found - images).flatten(1).norm(dim=1) <= eps * (1 + 1e-6)).all()
        assert found.min() >= 0
        assert found.max() <= 1


@by_name(LINF_ATTACKS)
def test_attacks_leave_no_trace(attack):
    images = photograph()[:4]
    model = Linear(torch.randn(3, 32, 32), 0.0).eval()
    before = images.clone()
    with torch.no_grad():
        attack(0.1)(model, images, model(images).argmax(1))
    assert torch.equal(images, before)
    assert model.w.grad is None


@by_name({**LINF_ATTACKS, "APGD-T": lambda threat: TargetedAPGD(threat, 5, targets=3)})
def test_flags_do_not_depend_on_batching(attack, digits):
    model, images, labels = digits
    attacks = {"a": attack(0.08)}
    whole = evaluate(model, images[:100], labels[:100], attacks, batch_size=100)
    parts = evaluate(model, images[:100], labels[:100], attacks, batch_size=7)
    assert torch.equal(whole.correct["a"], parts.correct["a"])


@by_name({**LINF_ATTACKS, "SPSA": lambda threat: SPSA(threat, 30, 32, lr=0.05)})
def test_targets_are_reached(attack, digits):
    model, images, labels = digits
    targets = (labels[:60] + 1) % 10
    result = attack(ThreatModel(0.4, targeted=True))(model, images[:60], targets)
    assert torch.equal(result.success, model(result.adversarial).argmax(1) == targets)
    clean = (model(images[:60]).argmax(1) == targets).double().mean()
    assert result.success.double().mean() > clean + 0.1


def test_stronger_attacks_are_stronger(digits):
    """On the trained network each step of the field's history breaks at least as much, up to one image in a hundred."""
    eps = 0.1
    found = {
        "clean": robust(PGD(1e-9, 1), digits),
        "Square": robust(Square(eps, 500), digits),
        "FGSM": robust(FGSM(eps), digits),
        "PGD": robust(PGD(eps, 20), digits),
        "APGD-CE": robust(APGDCE(eps, 50), digits),
        "APGD-T": robust(TargetedAPGD(eps, 50), digits),
        "ensemble": robust(strong_ensemble(eps, 10, queries=200), digits),
    }
    assert found["clean"] > 0.95
    order = ["clean", "FGSM", "PGD", "APGD-CE", "APGD-T", "ensemble"]
    for weak, strong in itertools.pairwise(order):
        assert found[strong] <= found[weak] + 0.01, found
    assert found["ensemble"] <= min(found.values())
    assert 0 < found["ensemble"] < found["Square"] < found["clean"], found


def test_more_restarts_and_queries_never_help_the_model(digits):
    model, images, labels = digits
    for few, many in ((PGD(0.08, 3), PGD(0.08, 3, restarts=3)), (Square(0.1, 20), Square(0.1, 200))):
        assert robust(many, digits) <= robust(few, digits)
    counts = [PGD(0.08, 3, restarts=r)(model, images[:50], labels[:50]).success for r in (1, 3)]
    assert bool((counts[1] >= counts[0]).all())


def test_scaled_logits_do_not_hide_from_dlr(digits):
    """Cross-entropy gradients vanish in float32 when logits are scaled by 1000; the ratio does not care."""
    model, images, labels = digits
    scaled = nn.Sequential(model, Scale(1000.0)).eval()
    plain, blind = robust(APGDDLR(0.1, 30), digits), robust(PGD(0.1, 20), (scaled, images, labels))
    assert robust(APGDDLR(0.1, 30), (scaled, images, labels)) == pytest.approx(plain, abs=0.02)
    assert blind > plain + 0.1


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class RootOfZero(nn.Module):
    """Logits of a linear model, with the distance to a picture: the gradient of its root is 0 / 0 at that picture."""

    def __init__(self, picture):
        super().__init__()
        self.register_buffer("picture", picture)
        self.linear = nn.Linear(picture.numel(), 3)

    def forward(self, images):
        distance = (images - self.picture).square().sum((1, 2, 3)).sqrt()
        return self.linear(images.flatten(1)) + 0 * distance[:, None]


@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, 2), APGDCE(0.1, 5)], ids=lambda a: type(a).__name__)
def test_gradients_that_are_not_finite_are_no_robustness(attack):
    images = torch.rand(4, 1, 4, 4)
    model = RootOfZero(images[1]).eval()
    labels = model(images).argmax(1)
    assert FGSM(0.1)(model, images[2:], labels[2:]).success.shape == (2,)
    if isinstance(attack, PGD | APGDCE):  # random starts have a gradient; the picture itself has none
        object.__setattr__(attack, "random_start", lambda images, ids, key: images.clone())
    with pytest.raises(FloatingPointError, match="gradient must be finite, got other values for 1 of 4 images"):
        attack(model, images, labels)
    finding = check_gradients(model, [(images, labels)])
    assert [f.check for f in finding] == ["vanishing gradients"], "one of four is lost"


def test_one_lost_gradient_hides_no_wrong_ones():
    """The largest gradient of a batch is not looked for among those that are not finite."""

    class Detached(RootOfZero):
        def forward(self, images):
            return super().forward(images) + self.linear(images.flatten(1)).detach()

    images = torch.rand(32, 1, 4, 4)
    model = Detached(images[1]).eval()
    findings = check_gradients(model, [(images, model(images).argmax(1))])
    assert "wrong gradients" in [finding.check for finding in findings]


def test_who_is_fooled_is_left_alone(digits):
    model, images, labels = digits
    wrong = (labels[:30] + 1) % 10
    fooled = model(images[:30]).argmax(1) != wrong
    result = PGD(0.05)(model, images[:30], wrong)
    assert torch.equal(result.adversarial[fooled], images[:30][fooled])
    assert result.success[fooled].all()


def test_ensemble_is_the_worst_case(digits):
    model, images, labels = digits[0], digits[1][:80], digits[2][:80].clone()
    labels[0] = (model(images[:1]).argmax() + 1) % 10  # one at least is wrong without an attack
    parts = {"FGSM": FGSM(0.08), "PGD": PGD(0.08, 5), "Square": Square(0.08, 50)}
    together = WorstOf(parts)(model, images, labels)
    alone = [attack(model, images, labels).success for attack in parts.values()]
    assert torch.equal(together.success, torch.stack(alone).any(0))
    first = torch.stack(alone).int().argmax(0)  # in their order, who has been fooled is left alone
    wrong = model(images).argmax(1) != labels
    assert torch.equal(together.by, torch.where(together.success & ~wrong, first, -1)), "who was wrong was fooled by none"
    with pytest.raises(ValueError, match="must share one threat model"):
        WorstOf({"a": FGSM(0.1), "b": FGSM(0.2)})
    with pytest.raises(ValueError, match="must hold at least one attack, got none"):
        WorstOf({})
    assert list(strong_ensemble(0.1, 2).attacks) == ["APGD-CE", "Square"]
    assert list(strong_ensemble(0.1, 3).attacks) == ["APGD-CE", "APGD-DLR", "Square"]
    assert list(strong_ensemble(ThreatModel(1.0, L2_NORM), 10).attacks) == ["APGD-CE", "APGD-T"]


@by_name({"APGD-CE": lambda t: APGDCE(t, 20), "APGD-T": lambda t: TargetedAPGD(t, 20, targets=2)})
def test_apgd_leaves_whom_it_has_fooled(attack, digits):
    """Others come to the same end as if it had not; passes are saved."""
    model, images, labels = digits[0], digits[1][:60], digits[2][:60]
    ids, calls = torch.arange(60), []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return model(x)

    attack, counted = attack(0.08), Counted().eval()
    for restart in range(attack.restarts):
        calls.clear()
        whole = attack.perturb(counted, images, labels, ids, restart)
        spent = sum(calls)
        calls.clear()
        found = attack.search(counted, images, labels, ids, restart)
        assert sum(calls) < 0.9 * spent
        fooled = model(whole).argmax(1) != labels
        assert 5 < fooled.sum() < 55
        assert torch.equal(model(found).argmax(1) != labels, fooled)
        torch.testing.assert_close(found[~fooled], whole[~fooled])


def test_apgd_is_the_published_algorithm(digits):
    """Algorithm 1 of arXiv 2003.01690, sample by sample; some of them are put back to their best point on the way."""
    model, images, labels = digits
    attack, back = APGDCE(0.1, 30, seed=3), 0

    def look(x, y):
        x = x.detach().requires_grad_()
        value = nn.functional.cross_entropy(model(x), y)
        return value.item(), torch.autograd.grad(value, x)[0]

    for i in range(12):
        x, y, number = images[i : i + 1], labels[i : i + 1], torch.tensor([i])
        before = here = attack.random_start(x, number, (3, 0))
        f, g = look(here, y)
        best, f_best, g_best, eta, rises, last = here, f, g, 0.2, 0, (0.2, f, 0)
        for k in range(1, 31):
            z = attack.threat.project(here + eta * g.sign(), x)
            step = 0.75 * (z - here) + 0.25 * (here - before) if k > 1 else z - here
            before, here, old = here, attack.threat.project(here + step, x), f
            f, g = look(here, y)
            rises += f > old
            if f > f_best:
                best, f_best, g_best = here, f, g
            if k in checkpoints(30):
                stuck = eta == last[0] and f_best <= last[1]
                halve, last = rises < 0.75 * (k - last[2]) or stuck, (eta, f_best, k)
                rises = 0
                if halve:
                    back += not torch.equal(here, best)
                    eta, here, f, g = eta / 2, best, f_best, g_best
        found = attack.perturb(model, x, y, number)
        if model(found).argmax(1) == y:
            torch.testing.assert_close(found, best, atol=1e-6, rtol=0)
    assert back > 3


def test_checkpoints_of_apgd():
    """The published ones for 100 steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_objectives():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0, -1.0]]), torch.tensor([0])
    assert margin(logits, labels).item() == -2
    assert difference_of_logits_ratio(logits, labels).item() == pytest.approx(-2 / 3)
    assert targeted_difference_of_logits_ratio(logits, labels, torch.tensor([2])).item() == pytest.approx(-3 / 3.5)


def test_class_counts_are_read_from_the_model(linear):
    model, images, labels, _, _ = linear
    with pytest.raises(ValueError, match="DLR: the model must have at least 3 classes, got 2"):
        APGDDLR(0.1)(model, images, labels)
    with pytest.raises(ValueError, match="Targeted DLR: the model must have at least 4 classes, got 2"):
        TargetedAPGD(0.1)(model, images, labels)
    with pytest.raises(ValueError, match="less than the number of classes of the model, 2, got 7"):
        FGSM(0.1)(model, images, torch.full_like(labels, 7))


@pytest.mark.parametrize("norm", [Linf(), L2()])
def test_norms(norm):
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    g = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    assert torch.allclose(norm.size(norm.steepest(g)), torch.ones(5, dtype=torch.float64))
    assert (norm.steepest(torch.zeros_like(g)) == 0).all()
    assert norm.steepest(g.float() * 1e-30).isfinite().all()
    assert torch.allclose(norm.steepest(g.float() * 1e-30), norm.steepest(g).float(), atol=1e-5)
    projected = norm.project(x + 3 * g, x, 0.5)
    assert (norm.size(projected - x) <= 0.5 * (1 + 1e-12)).all()
    assert torch.equal(norm.project(x + 1e-3 * g, x, 100.0), x + 1e-3 * g)
    points = torch.stack([norm.random((3, 4, 4), torch.Generator().manual_seed(i)) for i in range(400)])
    sizes = norm.size(points)
    assert sizes.max() <= 1 + 1e-6
    # uniform in the ball: the size to the power of the dimension is uniform
    assert (sizes**48).mean().item() == pytest.approx(0.5, abs=0.1 if isinstance(norm, L2) else 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(8), "PGD: eps must be at most 1, .* got 8. 8 gray levels are eps=8/255"),
        (lambda: PGD(ThreatModel(0.5, "L2")), "norm must be LINF or L2_NORM, got 'L2'"),
        (lambda: FGSM(0.0), "FGSM: eps must be positive and finite, got 0.0"),
        (lambda: FGSM(-0.1), "FGSM: eps must be positive and finite, got -0.1"),
        (lambda: FGSM(math.nan), "FGSM: eps must be .*, got nan"),
        (lambda: PGD(0.1, steps=0), "PGD: steps must be at least 1, got 0"),
        (lambda: PGD(0.1, restarts=0), "PGD: restarts must be at least 1, got 0"),
        (lambda: PGD(0.1, step_size=-1.0), "PGD: step_size must be positive and finite, got -1.0"),
        (lambda: APGDCE(0.1, 0), "APGDCE: steps must be .*, got 0"),
        (lambda: Square(0.1, 0), "Square: queries must be .*, got 0"),
        (lambda: Square(ThreatModel(1.0, L2_NORM)), "Square: the norm must be Linf, got L2"),
        (lambda: Square(0.1, share=2.0), "share must be .*, got 2.0"),
        (lambda: SPSA(0.1, delta=0.0), "SPSA: delta must be .*, got 0.0"),
        (lambda: TargetedAPGD(0.1, targets=0), "TargetedAPGD: targets must be .*, got 0"),
        (lambda: MIFGSM(0.1, restarts=3), "MIFGSM: restarts must be 1 without random starts, got 3"),
        (lambda: TargetedAPGD(ThreatModel(0.1, targeted=True)), "TargetedAPGD: the threat model must be untargeted"),
    ],
)
def test_refuses_settings(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_the_papers_space(digits):
    """On normalized tensors, without a range; eps is weaker there by the standard deviation."""
    model, images, labels = digits
    mean, std = 0.3, 0.25
    outer = nn.Sequential(Shift(mean, std), model).eval()
    threat = ThreatModel.normalized(0.1)
    assert threat.pixel_eps([std]) == [pytest.approx(0.025)]
    found = PGD(threat, 5)(outer, (images[:40] - mean) / std, labels[:40])
    assert ((found.adversarial * std + mean) - images[:40]).abs().max() <= 0.025 + 1e-6
    assert found.adversarial.min() * std + mean < 0  # no range


class Shift(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return x * self.std + self.mean
