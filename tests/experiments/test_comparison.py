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
from safetensors.torch import load_file

from imgproc_attn import cli
from imgproc_attn.evaluation import APGDCE, FGSM, PGD, TargetedAPGD
from imgproc_attn.evaluation.results_log import SampleResults
from imgproc_attn.experiments import comparison
from imgproc_attn.experiments.comparison import VariantRun, clean_accuracy_test, compare, devices_of
from imgproc_attn.experiments.variants import VariantEvaluation
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.tasks import ClassificationTask
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.utils.serialization import strength_text

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "comparison.seeds=[0,1]",
    "comparison.variants.twicing=null",
    "comparison.variants.untied + twicing=null",
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
    for label in ("plain", "bilateral + twicing", "bilateral + twicing − plain"):
        assert f"| {label} |" in text
    for name in ("learning", "curves", "adversarial", "bandwidths", "kernel-rows-bilateral-twicing"):
        assert (output / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in text
    assert "Sanity checks on 32 images per model" in text
    results = json.loads((output / "results.json").read_text())
    doubts = [f"{r['label']}, seed {r['seed']}: {doubt}" for r in results["results"] for doubt in r["findings"]]
    assert results["findings"] == doubts
    assert all(doubt in text for doubt in doubts)
    assert len(results["results"]) == 4
    assert {"torch", "timm", "imgproc-attn"} <= set(results["versions"])
    for result in results["results"]:
        assert result["metrics"]["accuracy"]["PGD-2 0.05"] <= result["metrics"]["accuracy"]["clean"]
        assert result["largest_perturbation"]["PGD-2 0.05"] <= 0.05 + 1e-6
        final = json.loads(
            (output / "runs" / f"{result['label'].replace(' + ', '-')}-seed{result['seed']}" / "final.json").read_text()
        )
        assert result["metrics"]["accuracy"]["clean"] == pytest.approx(final["test"]["accuracy"], abs=0.3)


FGSM_LOG = "FGSM-0.05.process-0.jsonl"


def times(output, name):
    """Return when each run wrote its file of that name."""
    runs = output / "runs"
    return {file.relative_to(runs).parts[0]: file.stat().st_mtime_ns for file in runs.rglob(name)}


def test_finished_runs_are_kept_and_only_what_changed_is_repeated(output, tmp_path):
    small = [*SMALL, "comparison.seeds=[0]"]
    output = shutil.copytree(output, tmp_path / "report")
    for run in (output / "runs").glob("*-seed1"):
        shutil.rmtree(run)
    trained, evaluated = times(output, "state.pt"), times(output, FGSM_LOG)
    shutil.rmtree(output / "runs" / "plain-seed0" / "evaluation" / "log")
    compare(load_recipe(find_recipe("quickstart"), small), output, jobs=1)
    assert times(output, "state.pt") == trained
    again = times(output, FGSM_LOG)
    assert {k for k, v in again.items() if evaluated[k] != v} == {"plain-seed0"}
    worst = times(output, "worst-case-0.1.process-0.jsonl")
    # other attacks, in the worst case too: these alone are evaluated again, and nothing is trained again
    compare(load_recipe(find_recipe("quickstart"), [*small, "evaluation.pgd_steps=3"]), output, jobs=1)
    assert times(output, "state.pt") == trained
    assert times(output, FGSM_LOG) == again
    assert all(v != worst[k] for k, v in times(output, "worst-case-0.1.process-0.jsonl").items())
    assert times(output, "PGD-3-0.05.process-0.jsonl").keys() == trained.keys()
    assert "PGD-3 0.05" in (output / "report.md").read_text()
    # other images under the same names: evaluated again
    compare(load_recipe(find_recipe("quickstart"), [*small, "evaluation.num_perturbed=90"]), output, jobs=1)
    assert times(output, "state.pt") == trained
    assert all(v != again[k] for k, v in times(output, FGSM_LOG).items())
    # another recipe: nothing is lost by mistake
    other = load_recipe(find_recipe("quickstart"), [*small, "optimizer.lr=1e-3"])
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
def test_jobs_in_parallel_are_stopped_go_on_and_give_the_same_numbers(output, tmp_path, pytestconfig):
    """Ctrl-C on a terminal, then kill -9 of the process that waits; then the rest, against one after the other."""
    if pytestconfig.getoption("without_onednn"):
        pytest.skip("--without-onednn is of this process; the processes that the test starts compute with oneDNN")
    recipe = [*SMALL, "comparison.seeds=[0]"]
    words = ["quickstart", *recipe, "--output", str(tmp_path), "--device", "cpu", "--jobs", "2"]
    code, err = stop_by(signal.SIGINT, True, words)
    assert code == 130
    assert err == "imgproc-attn: stopped. Repeat the command to resume; train also needs --resume.\n"
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


ABOUT = {"label": "ours", "model": "plain_vit_tiny", "checkpoint": None}


def test_images_are_the_test_split_in_0_to_1():
    test = VariantEvaluation(load_recipe(find_recipe("quickstart"), ["data.test_images=50"]), "cpu").samples
    assert test.images.shape == (50, 1, 8, 8)
    assert (test.images.min(), test.images.max()) == (0, 1)
    assert torch.allclose((test.images * 255).round() / 255, test.images)


def test_clean_accuracy_is_of_all_images_whatever_is_perturbed(output, tmp_path):
    few = [*SMALL, "comparison.seeds=[0]", "evaluation.num_perturbed=90", "comparison.tolerance=100"]
    test = VariantEvaluation(load_recipe(find_recipe("quickstart"), few), "cpu")
    model = test.wrap(timm.create_model(f"local-dir:{output}/runs/plain-seed0/last", pretrained=True)).eval()
    found = test(model, tmp_path, lambda text: None, ABOUT).metrics["accuracy"]
    whole, few = test.samples, test.perturbed
    with torch.no_grad():
        right = dict(zip(whole.ids.tolist(), (model(whole.images).argmax(1) == whole.labels).tolist()))
    assert list(found)[:3] == ["clean", "clean, perturbed images", "FGSM 0.05"]
    assert found["clean"] == pytest.approx(100 * sum(right.values()) / 360)
    assert len(right) == 360
    assert len(set(few.ids.tolist())) == 90
    assert found["clean, perturbed images"] == pytest.approx(100 * sum(right[i] for i in few.ids.tolist()) / 90)
    attacked = FGSM(0.05)(model, few.images, few.labels)
    assert found["FGSM 0.05"] == pytest.approx(100 - 100 * attacked.success.double().mean().item())
    assert "360 held-out images" in test.description
    assert "A random subset of 90 images is attacked and corrupted (standard error" in test.description


def test_worst_case_is_of_all_attacks_together(output, tmp_path):
    settings = [*SMALL, "evaluation.num_perturbed=90", "evaluation.worst_case=[0.05]", "evaluation.pgd=[0.05]"]
    recipe = load_recipe(find_recipe("quickstart"), settings)
    test = VariantEvaluation(recipe, "cpu")
    model = test.wrap(timm.create_model(f"local-dir:{output}/runs/plain-seed0/last", pretrained=True)).eval()
    found = test(model, tmp_path, lambda text: None, ABOUT)
    chosen, few = test.worst_case, test.perturbed
    assert len(set(chosen.ids.tolist())) == 40
    assert set(chosen.ids.tolist()) <= set(few.ids.tolist())
    attacks = [FGSM(0.05), PGD(0.05, 2), APGDCE(0.05, 3), TargetedAPGD(0.05, 3)]
    # random starts depend on the ids of the samples
    robust = torch.stack([~attack(model, chosen.images, chosen.labels, chosen.ids).success for attack in attacks]).all(0)
    fooled = PGD(0.05, 2)(model, few.images, few.labels, few.ids).success
    by_pgd = ~fooled[torch.isin(few.ids, chosen.ids)]
    accuracy = found.metrics["accuracy"]
    assert accuracy["worst case 0.05"] == pytest.approx(100 * (robust & by_pgd).double().mean().item())
    assert accuracy["PGD-2 0.05, same images"] == pytest.approx(100 * by_pgd.double().mean().item())
    assert accuracy["worst case 0.05"] <= accuracy["PGD-2 0.05, same images"]
    assert 0 < found.largest_perturbation["worst case 0.05"] <= 0.05 + 1e-6
    assert "on 40 random ones of these" in test.description


def test_attacks_are_compared_on_all_their_images_whatever_the_worst_case_is_of():
    """Accuracy that rises with eps shows on 400 images, of which the worst case is measured on 4."""

    def results_of(n, right):
        return SampleResults(torch.arange(n), {"correct": [i < right for i in range(n)]}, 0, 1, [])

    def row(name, eps, n):
        record = {"norm": "Linf", "space": "images", "images": {"n": n}, "n": n}
        return {"name": name, "family": name.partition(" ")[0], "eps": eps, **record}

    rows = [{"name": "clean", "images": {"n": 400}}, row("PGD-2 0.1", 0.1, 400), row("PGD-2 0.2", 0.2, 400)]
    rows += [row("worst case 0.2", 0.2, 4)]
    right = {"clean": 400, "PGD-2 0.1": 100, "PGD-2 0.2": 200, "worst case 0.2": 1}
    results = {r["name"]: results_of(r["images"]["n"], right[r["name"]]) for r in rows}
    assert [finding.check for finding in ClassificationTask(10).cross_checks(rows, results)] == ["accuracy rises with eps"]


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
        ("comparison.variants={a b: {name: x}, a-b: {name: x}}", "labels must differ in letters and digits"),
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
    models = {label: build_model(recipe.variant(label, 0)) for label in recipe.comparison.variants}
    sizes = {label: sum(p.numel() for p in model.parameters()) for label, model in models.items()}
    assert max(sizes.values()) <= 1.25 * sizes["plain"]
    assert isinstance(models["plain"], timm.models.VisionTransformer)
