"""The scripts in `robustness/` run the protocols that are written at their top."""

import ast
import runpy
import sys
from pathlib import Path

import pytest
from evaluated import SYNSETS, arguments, class_folders, result

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation.corruption_names import CORRUPTIONS
from imgproc_attn.evaluation.imagenet_subsets import class_map

SCRIPTS = sorted(Path(__file__).parents[2].joinpath("robustness").glob("*.py"))


def run_script(name, monkeypatch, *words):
    (file,) = (file for file in SCRIPTS if file.stem == name)
    monkeypatch.setattr(sys, "argv", [str(file), *map(str, words)])
    runpy.run_path(str(file), run_name="__main__")


def conditions(folder):
    return {row["name"]: row for row in result(folder)["conditions"]}


def test_these_are_the_scripts():
    assert [file.stem for file in SCRIPTS] == ["compare_libraries", "corruptions", "fgsm", "pgd", "shifts"]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_protocols_stand_at_the_top_and_in_the_help(file, monkeypatch, capsys):
    text = ast.get_docstring(ast.parse(file.read_text()))
    for part in ("Protocol\n", "Source", "Threat model", "Normalization", "Images", "Report"):
        assert part in text
    with pytest.raises(SystemExit) as end:
        run_script(file.stem, monkeypatch, "--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert text in printed
    assert "--output" in printed


def test_fgsm(folder, tmp_path, monkeypatch):
    run_script("fgsm", monkeypatch, *arguments(folder), "--limit", 30, "--checks", 2, "--output", tmp_path)
    rows = conditions(tmp_path)
    assert list(rows) == ["clean", "FGSM 1/255", "FGSM 2/255", "FGSM 4/255"]
    for levels in (1, 2, 4):
        row = rows[f"FGSM {levels}/255"]
        assert row["n"] == 30
        assert row["eps"] == pytest.approx(levels / 255)
        assert row["largest_perturbation"] == pytest.approx(levels / 255, rel=1e-5)


def test_pgd(folder, tmp_path, monkeypatch):
    run_script("pgd", monkeypatch, *arguments(folder), "--limit", 20, "--checks", 2, "--output", tmp_path / "usual")
    rows = conditions(tmp_path / "usual")
    assert list(rows) == ["clean", "PGD-20 1/255", "PGD-20 2/255", "PGD-20 4/255"]
    attack = rows["PGD-20 4/255"]["scorer"]["attack"]
    assert (attack["steps"], attack["restarts"], attack["start_at_random"]) == (20, 1, True)
    assert attack["step_size"] is None, "2.5 eps / steps"
    own = ["--eps", "8/255", "--steps", 5, "--restarts", 2, "--limit", 20, "--checks", 2, "--output", tmp_path / "own"]
    run_script("pgd", monkeypatch, *arguments(folder), *own)
    attack = conditions(tmp_path / "own")["PGD-5 8/255"]["scorer"]["attack"]
    assert (attack["steps"], attack["restarts"]) == (5, 2)


def test_generated_corruptions(folder, tmp_path, monkeypatch):
    run_script("corruptions", monkeypatch, *arguments(folder), "--generate", "--limit", 3, "--output", tmp_path)
    names = [f"{name} {severity}" for name in CORRUPTIONS if name != "frost" for severity in range(1, 6)]
    assert sorted(conditions(tmp_path)) == sorted(["clean", *names])


def test_published_corruptions(imagenet_model, tmp_path, monkeypatch):
    for severity in range(1, 6):
        class_folders(tmp_path / "c" / "weather" / "fog" / str(severity), SYNSETS, 1, 32)
    words = ["--root", tmp_path / "c", "--limit", 20, "--output", tmp_path / "out"]
    run_script("corruptions", monkeypatch, *imagenet_model[0], *words)
    rows = conditions(tmp_path / "out")
    assert list(rows) == [f"fog {severity} (file)" for severity in range(1, 6)]
    assert {row["n"] for row in rows.values()} == {20}


def test_shifts_that_are_there(imagenet_model, tmp_path, monkeypatch, capsys):
    names = [SYNSETS[i] for i in class_map("imagenet-a").indices]
    class_folders(tmp_path / "sets" / "imagenet-a", names, 1, 32)
    class_folders(tmp_path / "sets" / "imagenetv2-matched-frequency-format-val", [str(i) for i in range(1000)], 1, 32)
    class_folders(tmp_path / "sets" / "imagenet-o", names[:5], 1, 32)
    words = ["--shifts", tmp_path / "sets", "--limit", 10]
    run_script("shifts", monkeypatch, *imagenet_model[0], *words, "--output", tmp_path / "out")
    assert "ImageNet-O is left out: it needs --imagenet-val." in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["imagenet-a", "imagenet-v2"]
    assert list(conditions(tmp_path / "out" / "imagenet-a")) == ["ImageNet-A"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        run_script("shifts", monkeypatch, *imagenet_model[0], "--shifts", tmp_path / "empty")
    assert "--shifts must hold one of imagenet-a, imagenet-r, sketch" in capsys.readouterr().err


def test_shifts_beside_the_validation_set(imagenet_model, tmp_path, monkeypatch):
    validation = class_folders(tmp_path / "val", SYNSETS, 1, 32)
    class_folders(tmp_path / "sets" / "imagenet-o", SYNSETS[:5], 2, 32, first=1000)
    words = ["--shifts", tmp_path / "sets", "--imagenet-val", validation, "--output", tmp_path / "out"]
    run_script("shifts", monkeypatch, *imagenet_model[0], *words)
    assert result(tmp_path / "out" / "imagenet-val")["summary"]["real"]["n"] > 900
    assert "aupr" in result(tmp_path / "out" / "imagenet-o")["summary"]
