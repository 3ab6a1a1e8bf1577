"""Attacks and presets by name, what samples are attacked towards, and what that costs."""

import json

import pytest
import torch
from digits import tensors
from evaluated import TASK, InDouble

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation import FGSM, L2_NORM, PGD, ThreatModel
from imgproc_attn.evaluation.conditions import attack_conditions
from imgproc_attn.evaluation.presets import ATTACKS, PRESETS, build_attacks
from imgproc_attn.evaluation.results_log import SampleResults
from imgproc_attn.tasks.classification import LabelAttackScorer, PublishedAttackScorer, check_threat, targets_of


def test_the_papers_convention_is_theirs(model, samples):
    """FGSM and PGD as cleverhans has them, by hand: normalized tensors, own predictions, no range, the last point."""
    model, images = InDouble(model).model, tensors("test")[0].double()  # signs of gradients near 0 are a matter of rounding
    normalized = ((images - 0.5) / 0.5).requires_grad_()
    inner, eps = model.model, 0.3
    own = inner(normalized).argmax(1)
    gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(inner(normalized), own, reduction="sum"), normalized)[0]
    labels = torch.arange(10).repeat(36)  # which are right does not matter to what is attacked
    with torch.no_grad():
        found = PublishedAttackScorer(FGSM(ThreatModel.normalized(eps)))(model, images, labels, samples.ids)
        expected = (normalized + eps * gradient.sign()).detach()
        torch.testing.assert_close(found.images, expected)
        assert found.images.max() > 1.2, "nothing is cut off"
        assert torch.equal(found.columns["correct"].bool(), inner(expected).argmax(1) == labels)
    assert ThreatModel.normalized(1 / 255).pixel_eps([0.229, 0.224, 0.225]) == pytest.approx(
        [0.000898, 0.000878, 0.000882], rel=1e-3
    )
    assert isinstance(TASK.under(PGD(ThreatModel.normalized(0.1), 20, 0.015)), PublishedAttackScorer)
    with pytest.raises(ValueError, match="must be a single attack with one start"):
        TASK.under(PGD(ThreatModel.normalized(0.1), restarts=2))


def test_what_the_model_got_wrong_tells_nothing_of_attacks_on_its_own_answers(model):
    """Turned away from their own answer, images become right under the stronger attack alone; that is no masking."""
    clean = torch.arange(100) < 70

    def doubts(by_pgd, by_spsa):
        found = {"clean": clean, "PGD normalized 1/255": by_pgd, "SPSA normalized 1/255": by_spsa}
        results = {
            name: SampleResults(torch.arange(100), {"correct": right.int().tolist()}, 0, 1, []) for name, right in found.items()
        }
        rows = [{"name": name, "images": {"n": 100}, **({} if name == "clean" else {"eps": 1 / 255})} for name in found]
        return [f.check for f in TASK.cross_checks(rows, results)]

    robust = torch.arange(100) < 40
    assert doubts(robust | (torch.arange(100) >= 80), robust) == []
    assert doubts(robust, robust & (torch.arange(100) < 30)) == ["black box beats white box"]


def test_targets_are_other_classes_and_belong_to_the_sample(model, samples):
    images, labels = tensors("test")
    targets = targets_of(labels, samples.ids, 10)
    assert (targets != labels).all()
    assert len(targets[labels == 3].unique()) == 9
    assert torch.equal(targets_of(labels[5:9], samples.ids[5:9], 10), targets[5:9])
    with torch.no_grad():
        found = LabelAttackScorer(PGD(ThreatModel(0.1, targeted=True), 10))(model, images, labels, samples.ids)
        reached = model(found.images).argmax(1) == targets
        assert torch.equal(found.columns["correct"].bool(), (model(images).argmax(1) == labels) & ~reached)
    easier = LabelAttackScorer(PGD(ThreatModel(0.1), 10))(model, images, labels, samples.ids)
    assert found.columns["correct"].sum() > easier.columns["correct"].sum()


def test_attacks_by_name():
    threats = [ThreatModel(1 / 255), ThreatModel(4 / 255)]
    attacks = build_attacks(["fgsm", "pgd", "square"], threats, 10, seed=7, steps=13, queries=50)
    assert list(attacks) == ["FGSM 1/255", "FGSM 4/255", "PGD-13 1/255", "PGD-13 4/255", "Square 1/255", "Square 4/255"]
    assert (attacks["PGD-13 4/255"].steps, attacks["PGD-13 4/255"].seed, attacks["Square 1/255"].queries) == (13, 7, 50)
    for names, classes, options, message in [
        (["pdg"], 10, {}, "must be among fgsm, .*, got 'pdg'"),
        (["fgsm"], 10, {"steps": 3}, "must belong to one of the attacks fgsm, got steps"),
        (["apgd-dlr"], 2, {}, "must have at least 3 classes, got 2"),
        (["apgd-t"], 3, {}, "must have at least 4 classes, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_attacks(names, threats, classes, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_attack(name, model, samples):
    """Each builds for its classes, and each of its attacks has a scorer and a cost."""
    attacks = PRESETS[name].build(10, 0)
    assert attacks
    assert len({attack.threat.space for attack in attacks.values()}) == 1
    for condition in attack_conditions(samples, attacks, TASK):
        assert condition.scorer.passes.forward >= 1
        json.dumps(condition.settings)


def test_costs_are_those_of_a_sample_that_withstands(model):
    """Passes are counted on a model that nothing fools."""

    class Constant(torch.nn.Module):
        calls = 0

        def forward(self, images):
            Constant.calls += len(images)
            return (
                torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10)
                + 0 * images.mean((1, 2, 3))[:, None]
            )

    constant, image, label = Constant().eval(), torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    settings = {"steps": 7, "queries": 9, "samples": 4, "restarts": 2, "targets": 2, "start_at_random": True}
    for name in ATTACKS.keys() - {"autoattack"}:  # whose passes are those of another package
        own = {k: v for k, v in settings.items() if k in ATTACKS[name][1]().__dataclass_fields__}
        attack = build_attacks([name], [ThreatModel(0.1)], 10, **own).popitem()[1]
        Constant.calls = 0
        attack(constant, image, label)
        assert Constant.calls == attack.passes.forward, name


def test_what_sanity_is_checked_under():
    std = (0.229, 0.224, 0.225)
    assert check_threat([ThreatModel(4 / 255), ThreatModel(1 / 255, targeted=True)], std) == ThreatModel(1 / 255)
    assert check_threat([ThreatModel.normalized(4 / 255)], std).eps == pytest.approx(4 / 255 * 0.229)
    assert check_threat([ThreatModel.normalized(3.0, L2_NORM)], std).norm == L2_NORM
