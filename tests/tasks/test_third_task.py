"""A task defined outside the package trains, is evaluated, attacked, corrupted, compared and reported like any other."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from imgproc_attn import cli
from imgproc_attn.evaluation.scoring import TASKS, find_task

FOLDER = Path(__file__).parent
RECIPE = {
    "title": "Denoise digits",
    "task": "denoising",
    "model": {"name": "tiny_denoiser"},
    "data": {
        "name": "digits",
        "num_classes": 10,
        "input_size": [1, 8, 8],
        "validation_images": 100,
        "test_split": "test",
        "workers": 0,
    },
    "optimizer": {"name": "adamw", "lr": 0.01},
    "schedule": {"epochs": 3},
    "run": {"batch_size": 64},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained denoiser."""
    folder = tmp_path_factory.mktemp("denoising")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        command("train", folder / "recipe.yaml", "--output", folder / "run", "--device", "cpu")
        yield folder / "run"
    TASKS.pop("denoising")
    sys.modules.pop("denoising")


def command(name, *words):
    """Run a command of the console."""
    cli.main([name, *map(str, words), "--import", "denoising"])


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_training_chooses_by_the_tasks_metric(run):
    final = json.loads((run / "final.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    psnr = [record["validation_psnr"] for record in records]
    assert final["best_epoch"] == 1 + psnr.index(max(psnr))
    assert final["validation"] == max(psnr) > 15
    assert final["test"]["n"] == 360


def test_commands_evaluate_attack_corrupt_and_report(run, tmp_path):
    command("evaluate", run, "--output", tmp_path / "clean")
    command(
        "attack", run, "--attacks", "pgd", "--eps", "0.02", "0.1", "--steps", "3", "--limit", "50", "--output", tmp_path / "pgd"
    )
    command("corrupt", run, "--corruptions", "fog", "--severities", "1", "--limit", "20", "--output", tmp_path / "fog")
    clean, pgd = result(tmp_path / "clean"), result(tmp_path / "pgd")
    assert clean["conditions"][0]["psnr"] == pytest.approx(json.loads((run / "final.json").read_text())["test"]["psnr"])
    rows = {row["name"]: row["psnr"] for row in pgd["conditions"]}
    assert rows["PGD-3 25.5/255"] < rows["PGD-3 5.1/255"] < rows["clean"]
    assert all(row["largest_perturbation"] <= row["eps"] + 1e-6 for row in pgd["conditions"][1:])
    assert "PSNR / dB" in (tmp_path / "pgd" / "result.md").read_text()
    command("report", tmp_path / "clean", tmp_path / "pgd", tmp_path / "fog", "--output", tmp_path / "report.html")
    assert "PSNR" in (tmp_path / "report.html").read_text()


def test_comparisons(run, tmp_path):
    comparison = {"comparison": {"seeds": [0], "variants": {"one": {}}}, "evaluation": {"pgd": [0.05], "pgd_steps": 2}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**RECIPE, **comparison, "schedule": {"epochs": 1}}))
    command("compare", tmp_path / "two.yaml", "--output", tmp_path / "out", "--jobs", "1", "--device", "cpu")
    assert "PGD-2 0.05" in (tmp_path / "out" / "report.md").read_text()
    command("report", tmp_path / "out", "--output", tmp_path / "report.html")


def test_the_definition_is_short():
    assert len((FOLDER / "denoising.py").read_text().splitlines()) < 80


def test_unknown_tasks_are_named():
    with pytest.raises(ValueError, match="must be one of classification, segmentation.* got 'denoisin'"):
        find_task("denoisin")
