"""One call that returns clean and robust accuracy: against `evaluate`, on tensors, readers and modules."""

import json

import pytest
import torch
from digits import tensors

from imgproc_attn.evaluation import (
    PGD,
    DatasetSpec,
    ModelSpec,
    ThreatModel,
    benchmark,
    evaluate,
    strong_ensemble,
)
from imgproc_attn.evaluation.report import write_report
from imgproc_attn.evaluation.statistics import wilson_interval
from imgproc_attn.recipe import load_recipe, run_dataset
from imgproc_attn.training import train

EPS = 0.05


@pytest.fixture(scope="module")
def data():
    images, labels = tensors("test")
    return images[:60], labels[:60]


def test_it_is_evaluate_with_intervals_and_checks(model, data):
    result = benchmark(model, data, eps=EPS, attack="pgd", num_checked=16)
    known = evaluate(model, *data, {"PGD": PGD(EPS)})
    assert result.clean_accuracy == pytest.approx(known.accuracy("clean"))
    assert result.robust_accuracy == pytest.approx(known.accuracy("PGD"))
    assert result.robust_interval == wilson_interval(int(known.correct["PGD"].sum()), 60)
    assert [row["robust"] for row in result.per_sample] == known.correct["PGD"].int().tolist()
    assert [row["label"] for row in result.per_sample] == data[1].tolist()
    assert max(row["perturbation"] for row in result.per_sample) == pytest.approx(known.largest_perturbation["PGD"])
    assert f"PGD-20 12.75/255 | {result.robust_accuracy:.2f}" in str(result)


def test_chance_level_is_a_finding(data):
    torch.manual_seed(0)
    untrained = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    result = benchmark(untrained, data, eps=EPS, attack="fgsm", num_checked=4, verbose=False)
    assert "chance level" in {finding.check for finding in result.findings}
    assert "- chance level: The clean accuracy of" in str(result)


@pytest.mark.slow
def test_the_default_is_the_strong_ensemble(model, data):
    few = data[0][:2], data[1][:2]  # the ensemble is slow
    result = benchmark(model, few, eps=EPS, num_checked=2)
    known = evaluate(model, *few, {"ensemble": strong_ensemble(EPS, 10)})
    assert result.attack == "ensemble 12.75/255"
    assert [row["robust"] for row in result.per_sample] == known.correct["ensemble"].int().tolist()


def test_models_without_statistics_take_images_as_they_are(model, data):
    bare = torch.nn.Sequential(model).eval()
    assert benchmark(bare, data, eps=EPS, attack="fgsm", num_checked=4).per_sample == (
        benchmark(model, data, eps=EPS, attack="fgsm", num_checked=4).per_sample
    )


def test_modules_with_statistics_are_normalized(model, data):
    inner = model.model
    known = inner.pretrained_cfg
    inner.pretrained_cfg = {**known, "mean": (0.5,), "std": (0.5,)}
    try:
        found = benchmark(inner, data, eps=EPS, attack="fgsm", num_checked=4, verbose=False)
    finally:
        inner.pretrained_cfg = known
    assert found.per_sample == benchmark(model, data, eps=EPS, attack="fgsm", num_checked=4, verbose=False).per_sample


def test_models_by_name_read_their_data(folder, tmp_path):
    options = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
    spec = ModelSpec("nlm_vit_tiny", folder / "weights.safetensors", options=options, input_size=(1, 8, 8))
    digits = DatasetSpec("digits", "", "test", limit=40)
    result = benchmark(spec, digits, ThreatModel(EPS), attack="fgsm", num_checked=4, workers=0, output=tmp_path / "out")
    assert len(result.per_sample) == 40
    assert result.clean_accuracy > result.robust_accuracy
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["conditions"][1]["accuracy"] == result.robust_accuracy
    write_report([tmp_path / "out"], tmp_path / "report.html")
    again = benchmark(spec, digits, ThreatModel(EPS), attack="fgsm", num_checked=4, workers=0, output=tmp_path / "out")
    assert again == result
    fewer = benchmark(spec, "digits", eps=EPS, attack="fgsm", split="test", num_samples=20, num_checked=4, workers=0)
    assert len(fewer.per_sample) == 20


def test_a_random_subset_of_tensors(model, data):
    result = benchmark(model, data, eps=EPS, attack="fgsm", num_samples=10, num_checked=4)
    assert len(result.per_sample) == 10
    assert [int(row["image"]) for row in result.per_sample] != list(range(10))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threat_model": "Linfinity"}, ValueError, "threat_model must be one of Linf, L2, got 'Linfinity'"),
        ({"data": 3}, TypeError, r"data must be \(images, labels\)"),
        ({"attack": "pdg"}, ValueError, "pdg"),
    ],
)
def test_refuses(model, data, change, error, message):
    with pytest.raises(error, match=message):
        benchmark(**{"model": model, "data": data, "num_checked": 4, **change})


def test_modules_without_statistics_read_no_files():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    with pytest.raises(ValueError, match="must have a pretrained_cfg"):
        benchmark(module, "digits", split="test", attack="fgsm")


class TestAutoAttack:
    """The adapter of the official package, which is optional."""

    def test_runs_the_official_package(self, model, data):
        pytest.importorskip("autoattack", reason="the official package is not installed (it is not on PyPI)")
        from imgproc_attn.evaluation import AutoAttack

        few = data[0][:8], data[1][:8]
        attack = AutoAttack(EPS)
        result = attack(model, *few)
        assert attack.threat.distance(result.adversarial, few[0]).max() <= EPS * (1 + 1e-6)
        ours = strong_ensemble(EPS, 10)(model, *few).success
        assert (result.success | ~ours).float().mean() > 0.7  # it has FAB beside what the ensemble has

    def test_says_how_to_install_it(self, monkeypatch):
        from imgproc_attn.evaluation import AutoAttack

        monkeypatch.setattr("imgproc_attn.evaluation.attacks.auto_attack.find_spec", lambda name: None)
        with pytest.raises(ValueError, match="must be installed, got none. Run pip install"):
            AutoAttack(EPS)

    @pytest.mark.parametrize("change", [{"version": "best"}, {"threat": ThreatModel(EPS, targeted=True)}])
    def test_refuses(self, change):
        from imgproc_attn.evaluation import AutoAttack

        with pytest.raises(ValueError, match="must be"):
            AutoAttack(**{"threat": EPS, **change})


def test_a_run_is_tested_on_the_images_that_it_held_out(tmp_path):
    """A reader by name is refused for a run: its split has another seed, so it would hold training images."""
    recipe = load_recipe("quickstart", ["schedule.epochs=1", "schedule.warmup_epochs=0", "model.depth=1"])
    run = tmp_path / "run"
    result = train(recipe.variant("plain", seed=0), run, "cpu", log=lambda line: None)
    spec = run_dataset(run)
    assert (spec.data, spec.split, spec.seed) == ("digits", "test", recipe.data.seed)
    found = benchmark(str(run), spec, eps=0.05, attack="fgsm", num_checked=2, workers=0, verbose=False)
    assert found.clean_accuracy == result["test"]["accuracy"]
    for model in (str(run), f"local-dir:{run}/last"):
        with pytest.raises(ValueError, match=r"data must be a DatasetSpec or tensors .* got 'digits'\. Give .*run_dataset"):
            benchmark(model, "digits", split="test", eps=0.05, attack="fgsm")
    without = load_recipe("quickstart", ["data.test_split=null", "data.validation_images=100"])
    with pytest.raises(ValueError, match=r"must have a test split, got a recipe without one\. Give split="):
        run_dataset(without)
