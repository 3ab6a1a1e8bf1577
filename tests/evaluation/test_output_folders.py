"""Folders of results: whose files they hold, who writes to them, and that models do not meet in one by default."""

import shutil
from pathlib import Path

import pytest
from digits import SMALL
from evaluated import arguments, result, run
from PIL import Image

from imgproc_attn.evaluation.report import write_report
from imgproc_attn.evaluation.results import OUTPUTS
from imgproc_attn.evaluation.specs import ModelSpec
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training import train
from imgproc_attn.utils.locks import locked

QUICK = ["--attacks fgsm --eps 0.1 --limit 8 --checks 2"]


def refused(capsys, *command):
    with pytest.raises(SystemExit) as end:
        run(*command)
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("imgproc-attn: ")
    return error


@pytest.mark.parametrize("name", ["result.json", "per_sample.csv", "curves.png", "per_class.csv", "predictions.csv"])
@pytest.mark.parametrize("restart", [[], ["--restart"]])
def test_files_of_others_are_not_overwritten(name, restart, folder, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    command = ["evaluate"] if name == "predictions.csv" else ["attack", *QUICK]
    error = refused(capsys, command[0], *arguments(folder), *command[1:], *restart, "--output", tmp_path)
    assert f"must not hold {name}, which would be overwritten" in error
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_restart_removes_results_alone(folder, tmp_path, capsys):
    (tmp_path / "log").mkdir()
    theirs = {"log/germany.png": "mine", "notes.txt": "mine", "log/clean.jsonl": '{"protocol": "mine"}'}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    command = ["attack", *arguments(folder), *QUICK, "--output", tmp_path]
    run(*command)
    first = (tmp_path / "result.json").stat().st_mtime_ns
    run(*command, "--restart")
    assert (tmp_path / "result.json").stat().st_mtime_ns > first
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs


def test_one_evaluation_at_a_time_writes_to_a_folder(folder, tmp_path, capsys):
    pytest.importorskip("fcntl")
    with locked(tmp_path):
        for command in (
            ["attack", *QUICK],
            ["attack", *QUICK, "--restart"],
            ["corrupt", "--corruptions contrast"],
            ["evaluate"],
        ):
            error = refused(capsys, command[0], *arguments(folder), *command[1:], "--output", tmp_path)
            assert "must be free, but it is in use by process" in error
    assert list(tmp_path.iterdir()) == []


def test_models_of_one_name_have_folders_of_their_own_by_default(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("x", "y"):
        Path(place).mkdir()
        shutil.copy(folder / "weights.safetensors", f"{place}/weights.safetensors")
    several = [("x", []), ("y", []), ("y", ["--limit", 9]), ("y", ["--crop-pct", 0.9]), ("y", ["--split", "train"])]
    for place, more in several:
        run("evaluate", *arguments(Path(place)), *more)
    assert len(list(Path("runs/evaluate").iterdir())) == len(several)
    run("evaluate", *arguments(tmp_path / "y"))  # the same by another path
    assert len(list(Path("runs/evaluate").iterdir())) == len(several)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "runs" / "m"
    few = [f"model.{key}={value}" for key, value in SMALL.items() if key in ("embed_dim", "depth", "num_heads")]
    few += ["schedule.epochs=2", "schedule.warmup_epochs=1", "data.train_images=128", "data.test_images=50"]
    train(load_recipe(find_recipe("quickstart"), few).variant("plain", 0), place, log=lambda line: None)
    return place


def test_runs_of_one_name_have_folders_of_their_own(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("x", "y"):
        shutil.copytree(trained, f"{place}/runs/m")
        run("evaluate", f"{place}/runs/m", "--workers 0 --device cpu")
    found = sorted(Path("runs/evaluate").iterdir())
    assert [path.name[: len("runs-m-")] for path in found] == ["runs-m-", "runs-m-"]
    assert {result(path)["model"] for path in found} == {"x/runs/m", "y/runs/m"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("how", ["{}", "{}/last", "local-dir:{}/last"])
def test_weights_that_changed_are_not_evaluated(name, how, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "m")
    file = tmp_path / "m" / "last" / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"last/{name} must be as imgproc-attn wrote it, but its content has changed.*Copy"):
        ModelSpec(how.format(tmp_path / "m")).build()
    if name == "model.safetensors":
        with pytest.raises(ValueError, match="its content has changed"):
            ModelSpec("plain_vit_tiny", file).build()


def test_a_page_replaces_pages_alone(folder, tmp_path):
    run("attack", *arguments(folder), *QUICK, "--output", tmp_path / "a")
    page = tmp_path / "report.html"
    write_report([tmp_path / "a"], page)
    write_report([tmp_path / "a"], page)
    page.write_text("<html>mine</html>")
    with pytest.raises(FileExistsError, match=r"report.html must not exist, or be a file that this command wrote"):
        write_report([tmp_path / "a"], page)
    assert page.read_text() == "<html>mine</html>"


def test_what_is_listed_is_what_is_written(folder, tmp_path):
    run("corrupt", *arguments(folder), "--corruptions contrast --severities 1 --limit 8", "--output", tmp_path)
    run("attack", *arguments(folder), *QUICK, "--output", tmp_path)
    written = {p.name for p in tmp_path.iterdir() if p.is_file()} - {"manifest.json"}
    assert written <= set(OUTPUTS)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 200
