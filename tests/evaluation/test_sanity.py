"""The checks catch what masks gradients, and let honest models pass."""

import copy

import pytest
import seeding
import timm
import torch
from digits import SMALL, convolutions, tensors, trained
from torch import nn

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.core.kernels import GaussianRange
from imgproc_attn.evaluation import NormalizedModel, ThreatModel
from imgproc_attn.evaluation.bpda import widened, with_wider_gradients
from imgproc_attn.evaluation.gradient_checks import check_gradients
from imgproc_attn.evaluation.probes import answers
from imgproc_attn.evaluation.sanity import (
    attack_probes,
    check_attack_order,
    check_outputs,
    check_rows,
    check_saturation,
    check_strength,
    sanity_checks,
    saturated_rows,
)

EPS = ThreatModel(0.08)
SMALL_EPS = ThreatModel(0.03)  # PGD of 20 steps finds what 100 steps find: its difference is far from what is allowed


@pytest.fixture(scope="module")
def test_set():
    images, labels = tensors("test")
    return images[:100], labels[:100]


@pytest.fixture(scope="module")
def models():
    seeding.seed()
    kinds = {"convolutions": convolutions()}
    for name in ("vit_tiny_patch16_224", "nlm_vit_tiny", "elliptical_vit_tiny"):
        kinds[name] = NormalizedModel(timm.create_model(name, **SMALL), [0.5], [0.5])
    return {name: trained(model) for name, model in kinds.items()}


def names(findings):
    return {finding.check for finding in findings}


def withstand(model, test_set, kinds=("PGD",)):
    """Whether each image that the model classifies correctly withstands the probes whose names begin with ``kinds``."""
    batches = [(*test_set, torch.arange(len(test_set[1])))]
    probes = {name: probe for name, probe in attack_probes(model, EPS).items() if name.startswith(kinds)}
    results = {name: answers(probe, model, batches) for name, probe in probes.items()}
    return {name: found.correct[torch.tensor(found.column("right")) > 0] for name, found in results.items()}


def saturation_of(model, test_set):
    return check_saturation(withstand(model, test_set), saturated_rows(model, test_set[0]))


@pytest.mark.parametrize("name", ["convolutions", "vit_tiny_patch16_224", "nlm_vit_tiny"])
def test_honest_models_give_no_finding(models, name, test_set):
    checks = sanity_checks(models[name], *test_set, SMALL_EPS)
    assert checks.findings == []
    assert ("wider kernels" in checks.done) == (name != "convolutions")
    assert ("saturation" in checks.done) == (name != "convolutions")


class Rounded(nn.Module):
    """Gray levels cut to 8 before the model; ``straight_through`` lets the gradient pass as if nothing had been."""

    def __init__(self, model, straight_through=False):
        super().__init__()
        self.model, self.straight_through = model, straight_through

    def forward(self, x):
        rounded = (x * 8).round() / 8
        return self.model(x + (rounded - x).detach() if self.straight_through else rounded)


def test_a_rounding_layer_is_caught(models, test_set):
    rounded = Rounded(models["convolutions"]).eval()
    assert names(check_gradients(rounded, [test_set])) == {"vanishing gradients"}
    assert {"vanishing gradients", "black box beats white box"} <= names(sanity_checks(rounded, *test_set, EPS).findings)
    passed_on = Rounded(models["convolutions"], True).eval()
    assert names(check_gradients(passed_on, [test_set])) == {"wrong gradients"}


def test_a_cast_to_whole_numbers_is_caught(models, test_set):
    """No gradient at all reaches the images: attacks do not break off, and the checks say why they find nothing."""

    class Cast(nn.Sequential):
        def forward(self, x):
            return super().forward((x * 8).to(torch.uint8).float() / 8)

    checks = sanity_checks(Cast(models["convolutions"]).eval(), *test_set, EPS)
    assert "vanishing gradients" in names(checks.findings)


def test_what_is_hidden_from_the_gradient_is_caught(models, test_set):
    """It does not show along the gradient, in a direction that has little to do with the hidden one."""
    seeding.seed(5)

    class Half(nn.ModuleList):
        def forward(self, x):
            return self[0](x) + 20 * self[1](x.detach())

    assert names(check_gradients(Half([models["convolutions"], convolutions()]).eval(), [test_set])) == {"wrong gradients"}


def test_single_precision_inside_is_honest(models, test_set):
    """Finite differences of a model that computes in float32 whatever it is given, or takes nothing else."""
    inner = [models["convolutions"]]  # in a list, .double() does not find it

    class Single(nn.Module):
        def forward(self, x):
            return inner[0](x.float()).to(x.dtype)

    class Strict(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    for model in (Single(), Strict(models["convolutions"])):
        assert check_gradients(model.eval(), [test_set]) == []


def test_all_rows_of_an_evaluation():
    """Attacks beside each other at each radius, radii beside each other, what an ensemble's last attack still found."""

    def row(name, eps, **more):
        return {"name": name, "family": name.rpartition(" ")[0], "eps": eps, "norm": "Linf", "space": "images", **more}

    rows = [row(f"{attack} {eps}/255", eps) for eps in (1, 4) for attack in ("FGSM", "PGD", "Square")]
    left = {"FGSM 1/255": 70, "PGD 1/255": 65, "Square 1/255": 80, "FGSM 4/255": 75, "PGD 4/255": 20, "Square 4/255": 50}

    def correct_of(images, **changes):
        return {name: torch.arange(images) < images * percent // 100 for name, percent in {**left, **changes}.items()}

    assert check_rows(rows, correct_of(1000)) == [], "one large step may well lose by its length"
    weak = check_rows(rows, correct_of(1000, **{"PGD 4/255": 78}))
    assert [f.check for f in weak] == ["PGD weaker than FGSM", "black box beats white box", "accuracy rises with eps"]
    assert weak[0].message.startswith("At 4/255: PGD leaves 78.0 %, FGSM 75.0 %")
    few = check_rows(rows, correct_of(100, **{"PGD 4/255": 78}))
    assert "PGD weaker than FGSM" not in names(few), "3 images of 100 may be chance"
    assert check_rows([rows[0], rows[2]], correct_of(1000, **{"FGSM 1/255": 99})) == [], "FGSM is no strong attack"
    fooled = {"APGD-CE": 60, "APGD-T": 5, "Square": 8}
    (found,) = check_rows([row("ensemble 4/255", 4, n=500, fooled_by=fooled)], {"ensemble 4/255": torch.arange(500) < 9})
    assert "Square fools 8 of 500 images that withstand APGD" in found.message
    assert check_rows([row("ensemble 4/255", 4, n=5000, fooled_by=fooled)], {"ensemble 4/255": torch.arange(5000) < 9}) == []


def test_a_detached_metric_is_caught(models, test_set):
    model = models["elliptical_vit_tiny"]
    assert check_gradients(model, [test_set]) == []
    inner = timm.create_model("elliptical_vit_tiny", kernel={"name": "elliptical", "detach": True}, **SMALL)
    inner.load_state_dict(model.model.state_dict())
    detached = NormalizedModel(inner, [0.5], [0.5]).eval()
    for block in inner.blocks:
        block.attn.kernel.train()  # the published code detaches at all times, ours in training alone
    images, labels = test_set
    found = _gradients_as_it_stands(detached, images, labels)
    assert names(found) == {"wrong gradients"}


def _gradients_as_it_stands(model, images, labels):
    """`check_gradients` sets evaluation mode; the kernel of this model ignores that."""
    for block in model.model.blocks:
        block.attn.kernel.eval = lambda kernel=block.attn.kernel: kernel
        block.attn.kernel.train = lambda mode=True, kernel=block.attn.kernel: kernel
    return check_gradients(model, [(images, labels)])


def test_a_very_small_bandwidth_is_caught(models, test_set):
    """The trained weights, with kernels so narrow that most tokens see themselves alone."""
    model = models["nlm_vit_tiny"]
    assert "saturated filters" in names(saturation_of(widened(model, 0.06), test_set))
    assert saturation_of(model, test_set) == []


@pytest.mark.parametrize(("adaptive", "doubted"), [(57, False), (30, True)])
def test_gradients_of_wider_kernels_that_find_more(models, adaptive, doubted):
    """Of 100 images 60 withstand PGD."""
    left = {name: adaptive if "wide" in name else 60 for name in attack_probes(models["nlm_vit_tiny"], EPS)}
    robust = {name: torch.arange(100) < count for name, count in left.items()}
    assert names(check_saturation(robust, 0.0)) == ({"adaptive attack"} if doubted else set())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "nlm_vit_tiny", "elliptical_vit_tiny"])
def test_the_adaptive_attack_sees_the_models_logits_and_the_gradient_of_wider_kernels(models, name, test_set):
    model, images = models[name], test_set[0][:8].clone().requires_grad_()
    seen, wide = with_wider_gradients(model, 4)(images), widened(model, 4)(images)
    torch.testing.assert_close(seen, model(images))
    found, expected = (torch.autograd.grad(logits[:, 3].sum(), images)[0] for logits in (seen, wide))
    torch.testing.assert_close(found, expected)


def test_saturated_rows_of_timm_models_are_seen(models, test_set):
    """timm's own attention, its scores so large that it copies single tokens."""
    sharp = copy.deepcopy(models["vit_tiny_patch16_224"])
    for block in sharp.model.blocks:
        block.attn.qkv.weight.data[: block.attn.qkv.in_features] *= 100  # queries
    assert "saturated filters" in names(saturation_of(sharp, test_set))


def test_random_outputs_and_probabilities(models, test_set):
    class Noisy(nn.Module):
        def forward(self, x):
            return models["convolutions"](x + 0.1 * torch.randn_like(x))

    assert names(check_outputs(Noisy(), test_set[0])) == {"random outputs"}
    assert names(check_outputs(nn.Sequential(models["convolutions"], nn.Softmax(1)), test_set[0])) == {"probabilities"}
    assert check_outputs(models["convolutions"], test_set[0]) == []
    some = nn.Sequential(models["convolutions"], nn.Softmax(1), nn.Unflatten(1, (2, 5)), nn.MaxPool2d((2, 1)), nn.Flatten())
    assert names(check_outputs(some, test_set[0])) == {"probabilities"}, "of some classes"
    silent = nn.Linear(64, 4)
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    assert check_outputs(nn.Sequential(nn.Flatten(), silent), test_set[0]) == [], "a new head gives zeros"


def test_large_logits_are_caught(models, test_set):
    class Sure(nn.Module):
        def forward(self, x):
            return 1e3 * models["convolutions"](x)

    assert "scale of the logits" in names(check_strength(withstand(Sure().eval(), test_set), EPS, 10))


class Late(nn.Module):
    """The model's logits, with a gradient that points elsewhere until an attack has looked 25 times."""

    def __init__(self, model):
        super().__init__()
        self.model, self.generator, self.looks = model, torch.Generator().manual_seed(0), 0
        self.eval()

    def forward(self, x):
        self.looks = self.looks + 1 if x.requires_grad else 0
        if not 0 < self.looks <= 25:
            return self.model(x)
        aside = 100 * x.flatten(1) @ torch.randn(x[0].numel(), 10, generator=self.generator)
        return self.model(x) + aside - aside.detach()


def test_an_attack_that_has_not_converged_is_caught(models, test_set):
    """PGD of 20 steps finds what chance finds, of 100 steps what there is."""
    (finding,) = check_strength(withstand(Late(models["convolutions"]), test_set), EPS, 10)
    assert finding.check == "more steps still help"
    assert "Give it more steps, or use APGD" in finding.message


def test_an_attack_that_stands_still_is_caught(models, test_set):
    (finding,) = check_strength(withstand(Rounded(models["convolutions"]).eval(), test_set), EPS, 10)
    assert finding.check == "accuracy does not fall to 0"
    assert "report Square beside PGD" in finding.message


def test_flags_against_each_other():
    yes, no = torch.ones(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    assert names(check_attack_order({"FGSM": no, "PGD": yes}, ["PGD"], [])) == {"PGD weaker than FGSM"}
    fgsm, pgd = torch.arange(17) < 7, torch.arange(17) < 8
    assert check_attack_order({"FGSM": fgsm, "PGD": pgd}, ["PGD"], []) == [], "one image of few may be chance"
    assert names(check_attack_order({"FGSM": fgsm, "PGD": torch.arange(17) < 14}, ["PGD"], [])) == {"PGD weaker than FGSM"}
    assert names(check_attack_order({"PGD": yes, "Square": no}, ["PGD"], ["Square"])) == {"black box beats white box"}
    assert check_attack_order({"FGSM": yes, "PGD": no, "Square": yes}, ["PGD"], ["Square"]) == []


@pytest.mark.parametrize(("n", "few", "many", "doubted"), [(28, 13, 12, False), (84, 39, 36, False), (840, 390, 360, True)])
def test_few_images_raise_no_alarm(n, few, many, doubted):
    """46.4 % after 20 steps and 42.9 % after 100: of a few dozen images that is chance, of many hundreds it is not."""
    left = dict.fromkeys(attack_probes(nn.Flatten(), EPS), few) | {"PGD of 100 steps": many}
    left |= {name: 0 for name in left if name.startswith("PGD at eps")}
    robust = {name: torch.arange(n) < count for name, count in left.items()}
    assert names(check_strength(robust, EPS, 10)) == ({"more steps still help"} if doubted else set())


def test_a_black_box_is_compared_with_the_longest_white_box(models, test_set):
    """Where PGD of 20 steps has not converged, Square may find a few images more; 100 steps find them too."""
    checks = sanity_checks(models["vit_tiny_patch16_224"], *test_set, EPS)
    assert "black box beats white box" not in names(checks.findings)


def test_a_model_that_is_always_wrong_has_nothing_to_doubt(models, test_set):
    (finding,) = sanity_checks(Wrong(models["convolutions"]), *test_set, EPS).findings
    assert "classifies none of 100 images correctly" in finding.message


class Wrong(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x):
        return -self.model(x)


def test_widening(models):
    kernel = GaussianRange(2, 8, range_bandwidth=1.5)
    wide = widened(nn.ModuleDict({"kernel": kernel}), 4)
    assert torch.allclose(wide["kernel"].range_bandwidth(), torch.full((2,), 6.0))
    assert widened(models["convolutions"], 2) is None


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "nlm_vit_tiny", "elliptical_vit_tiny"])
def test_wider_kernels_give_other_logits(models, name, test_set):
    """In timm's attention too, whose fused path takes no scale; a factor of 1 changes nothing."""
    model, images = models[name], test_set[0]
    with torch.no_grad():
        torch.testing.assert_close(widened(model, 1)(images), model(images), atol=1e-4, rtol=1e-4)
        assert (widened(model, 4)(images) - model(images)).abs().mean() > 0.05
