"""The main job, small: the report, what it keeps, and what it does not repeat."""

import json
import re

import pytest
from imgproc_attn.quickstart import Result, findings, quickstart

from imgproc_attn import cli
from imgproc_attn.training import find_recipe, load_recipe

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "run.seeds=[0,1]",
    "evaluation.fgsm=[0.05]",
    "evaluation.pgd=[0.02,0.05]",
    "evaluation.pgd_steps=2",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    quickstart(load_recipe(find_recipe("quickstart"), SMALL), folder)
    return folder


def test_report(output):
    text = (output / "report.md").read_text()
    for label in ("plain", "twicing", "bilateral + twicing", "untied + twicing", "twicing − plain"):
        assert f"| {label} |" in text
    for name in ("learning", "curves", "adversarial", "bandwidths", "kernel-rows-bilateral---twicing"):
        assert (output / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in text
    results = json.loads((output / "results.json").read_text())
    assert len(results["results"]) == 8
    assert {"torch", "timm", "imgproc-attn"} <= set(results["versions"])
    for result in results["results"]:
        assert result["accuracies"]["PGD 0.05"] <= result["accuracies"]["clean"]
        assert result["largest_perturbation"]["PGD 0.05"] <= 0.05 + 1e-6


def test_finished_runs_are_kept_and_others_are_not(output):
    record = output / "runs" / "plain-seed0.json"
    content = json.loads(record.read_text())
    content["accuracies"]["clean"] = 12.5
    record.write_text(json.dumps(content))
    before = (output / "runs" / "twicing-seed1.json").stat().st_mtime_ns
    (output / "runs" / "plain-seed1.json").unlink()
    quickstart(load_recipe(find_recipe("quickstart"), SMALL), output)
    assert (output / "runs" / "twicing-seed1.json").stat().st_mtime_ns == before
    assert (output / "runs" / "plain-seed1.json").exists()
    results = json.loads((output / "results.json").read_text())["results"]
    assert results[0]["accuracies"]["clean"] == 12.5
    # another recipe: the record no longer counts
    quickstart(load_recipe(find_recipe("quickstart"), [*SMALL, "optimiser.lr=1e-3"]), output)
    results = json.loads((output / "results.json").read_text())["results"]
    assert results[0]["accuracies"]["clean"] != 12.5


def result(pgd, saturation=0.0):
    accuracies = {"clean": 90.0, "FGSM 0.02": 70.0, "FGSM 0.05": 50.0, "PGD 0.02": pgd[0], "PGD 0.05": pgd[1]}
    return Result("m", 0, 1, 1.0, [1.0], accuracies, {}, {}, saturation)


def test_findings():
    recipe = load_recipe(find_recipe("quickstart"), ["evaluation.fgsm=[0.02,0.05]", "evaluation.pgd=[0.02,0.05]"])
    assert findings([result((65.0, 40.0), None)], recipe) == []
    assert "masked" in findings([result((65.0, 60.0))], recipe)[0]
    assert "rises with eps" in findings([result((30.0, 40.0))], recipe)[0]
    assert "copy one token" in findings([result((65.0, 40.0), 0.2)], recipe)[0]


def test_command_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "run.sedes=[0]", "--output", str(tmp_path)])
    assert end.value.code == 2
    assert "run.sedes: unknown key; did you mean 'seeds'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    help = capsys.readouterr().out
    assert "quickstart" in help
    assert "benchmark" in help


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seeds=[0", "the value is not YAML"),
        ("variants.plain.name=vit_tinny", "variants.plain: .*vit_tinny"),
        ("variants.twicing.residual=twiceing", "variants.twicing: .*Did you mean 'twicing'"),
        ("optimiser.name=adamm", "adamm"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(override, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", override, "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
