"""The main job, small: the report, what it keeps, and what it does not repeat."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from imgproc_attn.experiments.examination import LabelExamination
from safetensors.torch import load_file

from imgproc_attn import cli
from imgproc_attn.evaluation import APGDCE, FGSM, PGD, TargetedAPGD
from imgproc_attn.experiments import comparison
from imgproc_attn.experiments.comparison import VariantRun, clean_accuracy_test, compare, devices_of
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training.model_factory import create
from imgproc_attn.utils.serialization import strength_text

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "comparison.seeds=[0,1]",
    "evaluation.fgsm=[0.05]",
    "evaluation.pgd=[0.02,0.05]",
    "evaluation.pgd_steps=2",
    "evaluation.worst_case_images=40",
    "evaluation.apgd_steps=3",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    compare(load_recipe(find_recipe("quickstart"), SMALL), folder, jobs=1)
    return folder


def test_strengths_are_written_as_people_do():
    written = {0.05: "0.05", 0.1: "0.1", 1 / 255: "1/255", 0.5 / 255: "0.5/255", 8 / 255: "8/255", 2 / 3: "0.666667", 1.0: "1"}
    assert {value: strength_text(value) for value in written} == written


def test_report(output):
    text = (output / "report.md").read_text()
    for label in ("plain", "twicing", "bilateral + twicing", "untied + twicing", "twicing − plain"):
        assert f"| {label} |" in text
    for name in ("learning", "curves", "adversarial", "bandwidths", "kernel-rows-bilateral---twicing"):
        assert (output / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in text
    assert "Sanity checks on 32 images a model" in text
    results = json.loads((output / "results.json").read_text())
    doubts = [f"{r['label']}, seed {r['seed']}: {doubt}" for r in results["results"] for doubt in r["findings"]]
    assert results["findings"] == doubts
    assert all(doubt in text for doubt in doubts)
    assert len(results["results"]) == 8
    assert {"torch", "timm", "imgproc-attn"} <= set(results["versions"])
    for result in results["results"]:
        assert result["metrics"]["accuracy"]["PGD-2 0.05"] <= result["metrics"]["accuracy"]["clean"]
        assert result["largest_perturbation"]["PGD-2 0.05"] <= 0.05 + 1e-6
        final = json.loads(
            (output / "runs" / f"{result['label'].replace(' + ', '---')}-seed{result['seed']}" / "final.json").read_text()
        )
        assert result["metrics"]["accuracy"]["clean"] == pytest.approx(final["test"]["top1"], abs=0.3)


def times(output, name):
    return {file.parent.name: file.stat().st_mtime_ns for file in (output / "runs").rglob(name)}


def test_finished_runs_are_kept_and_only_what_changed_is_repeated(output, tmp_path):
    output = shutil.copytree(output, tmp_path / "report")
    trained, evaluated = times(output, "state.pt"), times(output, "evaluation.json")
    (output / "runs" / "plain-seed1" / "evaluation.json").unlink()
    compare(load_recipe(find_recipe("quickstart"), SMALL), output, jobs=1)
    assert times(output, "state.pt") == trained
    changed = {k for k, v in times(output, "evaluation.json").items() if evaluated[k] != v}
    assert changed == {"plain-seed1"}
    # other attacks: evaluated anew, not trained anew
    compare(load_recipe(find_recipe("quickstart"), [*SMALL, "evaluation.pgd_steps=3"]), output, jobs=1)
    assert times(output, "state.pt") == trained
    assert all(v != evaluated[k] for k, v in times(output, "evaluation.json").items())
    # another recipe: nothing is lost by mistake
    other = load_recipe(find_recipe("quickstart"), [*SMALL, "optimizer.lr=1e-3"])
    with pytest.raises(ValueError, match="Changed: optimizer.lr: 0.006 -> 0.001"):
        compare(other, output, jobs=2)
    compare(other, output, restart=True, jobs=1)
    assert all(v != trained[k] for k, v in times(output, "state.pt").items())


# A shell that starts the tests in the background has its children ignore Ctrl-C.
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from imgproc_attn.cli import main; main()"


def stop_by(number, to_group, words):
    """Start a comparison, send a signal when the first epoch is done, and wait until no process of it is left."""
    command = [sys.executable, "-c", COMMAND, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            for line in run.stdout:
                if ": epoch 1/" in line:
                    break
            (os.killpg if to_group else os.kill)(run.pid, number)
            err = run.communicate(timeout=240)[1]
            for _ in range(240):
                try:
                    os.killpg(run.pid, 0)
                except ProcessLookupError:
                    return run.returncode, err
                time.sleep(1)
            raise AssertionError("processes are left")
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.timeout(900)
def test_jobs_in_parallel_are_stopped_go_on_and_give_the_same_numbers(output, tmp_path):
    """Ctrl-C on a terminal, then kill -9 of the process that waits; then the rest, against one after the other."""
    recipe = [*SMALL, "comparison.seeds=[0]"]
    words = ["quickstart", *recipe, "--output", str(tmp_path), "--device", "cpu", "--jobs", "2"]
    code, err = stop_by(signal.SIGINT, True, words)
    assert code == 130
    assert err == "imgproc-attn: stopped. To go on, repeat the command; train also needs --resume.\n"
    code, err = stop_by(signal.SIGKILL, False, [*words, "schedule.epochs=2"])
    assert code == -signal.SIGKILL
    compare(load_recipe(find_recipe("quickstart"), recipe), tmp_path, jobs=2)
    together, alone = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path, output))
    seed0 = [result for result in alone["results"] if result["seed"] == 0]
    for results in (together["results"], seed0):
        for result in results:
            assert result.pop("train_seconds") > 0
    assert together["results"] == seed0
    assert together["hardware"] == alone["hardware"]
    assert together["hardware"]["threads"] == 1
    for folder in (tmp_path / "runs").iterdir():
        one, two = (load_file(run / "last" / "model.safetensors") for run in (folder, output / "runs" / folder.name))
        assert all(torch.equal(one[name], two[name]) for name in one), folder.name


def test_processes_are_no_more_than_jobs_or_cores_or_gpus(monkeypatch):
    monkeypatch.setattr(comparison, "usable_cores", lambda: 8)
    assert devices_of("cpu", None, 12) == ["cpu"] * 8
    assert devices_of("cpu", None, 3) == ["cpu"] * 3
    assert devices_of("cpu", 2, 12) == ["cpu"] * 2
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        devices_of("cpu", 0, 12)
    monkeypatch.setattr(comparison, "start_processes", lambda device: (torch.device("cuda:0"), None))
    monkeypatch.setattr(comparison.torch.cuda, "device_count", lambda: 4)
    assert devices_of("auto", None, 12) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices_of("cuda", None, 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of("cuda:0", None, 12) == ["cuda:0"]
    assert devices_of("cuda:0", 2, 12) == ["cuda:0", "cuda:0"], "as many processes as asked for share one GPU"


def test_tolerance_is_the_recipes():
    """The bound of differences -2, 0, 0.5 is -0.5 - 2.92 * 1.32 / sqrt(3), by Student's t."""
    for tolerance, verdict in ((2.7, "NO"), (2.8, "yes")):
        recipe = load_recipe(find_recipe("quickstart"), [f"comparison.tolerance={tolerance}"])
        results = [
            VariantRun(label, seed, 1, 1.0, [1.0], {"accuracy": {"clean": 90.0 + lost * (label != "plain")}}, {}, {}, [])
            for label in recipe.comparison.variants
            for seed, lost in enumerate((-2, 0, 0.5))
        ]
        told = clean_accuracy_test(recipe, results)
        assert f"not below -{tolerance}" in told
        assert told.endswith(f"| -2.73 | {verdict} |")


def test_images_are_the_test_split_in_0_to_1():
    test = LabelExamination(load_recipe(find_recipe("quickstart"), ["data.test_images=50"]), "cpu")
    assert test.images.shape == (50, 1, 8, 8)
    assert (test.images.min(), test.images.max()) == (0, 1)
    assert torch.allclose((test.images * 255).round() / 255, test.images)


def test_clean_accuracy_is_of_all_images_whatever_is_disturbed(output, tmp_path):
    few = [*SMALL, "comparison.seeds=[0]", "evaluation.num_perturbed=90", "comparison.tolerance=100"]
    test = LabelExamination(load_recipe(find_recipe("quickstart"), few), "cpu")
    model = test.wrap(timm.create_model(f"local-dir:{output}/runs/plain-seed0/last", pretrained=True)).eval()
    found = test(model, tmp_path, lambda text: None).metrics["accuracy"]
    with torch.no_grad():
        right = (model(test.images).argmax(1) == test.labels).double()
    assert list(found)[:3] == ["clean", "clean, disturbed images", "FGSM 0.05"]
    assert found["clean"] == pytest.approx(100 * right.mean().item())
    assert len(right) == 360
    assert len(set(test.disturbed)) == 90
    assert found["clean, disturbed images"] == pytest.approx(100 * right[test.disturbed].mean().item())
    attacked = FGSM(0.05)(model, test.images[test.disturbed], test.labels[test.disturbed])
    assert found["FGSM 0.05"] == pytest.approx(100 - 100 * attacked.success.double().mean().item())
    assert "360 held-out images" in test.samples
    assert "90 of them, by chance, are attacked" in test.samples


def test_worst_case_is_of_all_attacks_together(output, tmp_path):
    settings = [*SMALL, "evaluation.num_perturbed=90", "evaluation.worst_case=[0.05]", "evaluation.pgd=[0.05]"]
    recipe = load_recipe(find_recipe("quickstart"), settings)
    test = LabelExamination(recipe, "cpu")
    model = test.wrap(timm.create_model(f"local-dir:{output}/runs/plain-seed0/last", pretrained=True)).eval()
    found = test(model, tmp_path, lambda text: None)
    chosen = test.strongly_attacked
    assert len(set(chosen.tolist())) == 40
    assert set(chosen.tolist()) <= set(test.disturbed)
    images, labels = test.images[chosen], test.labels[chosen]
    attacks = [FGSM(0.05), PGD(0.05, 2), APGDCE(0.05, 3), TargetedAPGD(0.05, 3)]
    # the ids of the samples, which random starts depend on, are their places among those attacked
    robust = torch.stack([~attack(model, images, labels).success for attack in attacks]).all(0)
    places = [list(test.disturbed).index(i) for i in chosen.tolist()]
    other_starts = ~PGD(0.05, 2)(model, test.images[test.disturbed], test.labels[test.disturbed]).success[places]
    accuracy = found.metrics["accuracy"]
    assert accuracy["worst case 0.05"] == pytest.approx(100 * (robust & other_starts).double().mean().item())
    assert accuracy["PGD-2 0.05, same images"] == pytest.approx(100 * other_starts.double().mean().item())
    assert accuracy["worst case 0.05"] <= accuracy["PGD-2 0.05, same images"]
    assert 0 < found.largest_perturbation["worst case 0.05"] <= 0.05 + 1e-6
    assert "on 40 random ones of these" in test.samples


def test_segmentation_has_no_worst_case():
    with pytest.raises(ValueError, match="segmentation must not have the settings worst_case"):
        load_recipe(find_recipe("camvid/comparison_half"), ["data.root=.", "evaluation.worst_case=[0.1]"])


def test_command_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "comparison.sedes=[0]", "--output", str(tmp_path)])
    assert end.value.code == 2
    assert "comparison.sedes: unknown key. Did you mean 'seeds'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for command in (
        "train",
        "quickstart",
        "compare",
        "evaluate",
        "attack",
        "corrupt",
        "shift",
        "report",
        "recipes",
        "benchmark",
    ):
        assert re.search(rf"^    {command}\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("comparison.seeds=[0", "the value is not YAML"),
        ("comparison.variants.plain.name=vit_tinny", "comparison.variants.plain: .*vit_tinny"),
        ("comparison.variants.twicing.residual=twiceing", "comparison.variants.twicing: .*Did you mean 'twicing'"),
        ("optimizer.name=adamm", "adamm"),
        ("comparison.variants={a b: {name: x}, a-b: {name: x}}", "differ too little in letters and digits"),
        ("comparison=null", "the name of the model must be given"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(override, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", override, "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_models_of_a_comparison_are_of_one_size():
    recipe = load_recipe(find_recipe("quickstart"))
    models = {label: create(recipe.variant(label, 0)) for label in recipe.comparison.variants}
    sizes = {label: sum(p.numel() for p in model.parameters()) for label, model in models.items()}
    assert max(sizes.values()) <= 1.25 * sizes["plain"]
    assert isinstance(models["plain"], timm.models.VisionTransformer)
