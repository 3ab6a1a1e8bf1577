"""What a run is: its files, recipe and data. What is damaged, missing, changed or somebody else's is refused by name."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import seeding
import torch
from digits import tensors
from PIL import Image
from runs import Stop, quiet, same, small, stop_after, weights

from imgproc_attn import cli
from imgproc_attn.recipe import load_recipe
from imgproc_attn.training import train
from imgproc_attn.training.run_dir import RunDir
from imgproc_attn.utils.locks import LOCK, locked

TWO = small("schedule.epochs=2")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """After the first of two epochs."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_after(TWO, folder, 1)
    return folder


@pytest.fixture
def copy(tmp_path):
    def of(folder):
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return of


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def write(text):
    return lambda file: file.write_text(text)


def save_nothing(file):
    torch.save({}, file)


DAMAGED_RESULTS = [
    ("final.json", flip, "final.json must be as imgproc-attn wrote it, .* Remove it, and --resume tests the weights again"),
    ("final.json", write(""), "final.json must be as"),
    ("final.json", write("[]"), "final.json must be as"),
    ("best/model.safetensors", flip, "best/model.safetensors must be as .*--restart"),
    ("best/model.safetensors", Path.unlink, "best/model.safetensors must be there as .* it is missing"),
    ("best/config.json", write("{}"), "best/config.json must be as"),
    ("recipe.yaml", write("a: [1\n"), "recipe.yaml must be as .*last/ has a copy"),
    ("recipe.yaml", Path.unlink, "recipe.yaml must be there as"),
    ("data.json", write("{}"), "data.json must be as"),
    ("manifest.json", write("{}"), r"manifest.json must be a JSON file .*files: Field required\. Move it away"),
    ("manifest.json", write(""), "manifest.json must be .*an empty file"),
    ("manifest.json", Path.unlink, "must not hold recipe.yaml, .*which manifest.json does not list as written by imgproc-attn"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED_RESULTS)
def test_a_damaged_result_is_not_believed(name, damage, message, finished, copy):
    folder = copy(finished[0])
    damage(folder / name)
    with pytest.raises((ValueError, FileExistsError), match=message) as found:
        quiet(small(), folder, resume=True)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.pt", flip, "state.pt must be as imgproc-attn wrote it, but its content has changed .* --restart"),
        ("state.pt", save_nothing, "state.pt must be as"),
        ("state.pt", lambda file: file.write_bytes(file.read_bytes()[:-1]), "state.pt must be as"),
        ("best/model.safetensors", flip, "best/model.safetensors must be as"),
        ("environment.json", write("{}"), "environment.json must be .*sessions: Field required. Remove it"),
        (
            "environment.json",
            write('{"sessions": [[]]}'),
            "environment.json must be .*sessions.0: Input should be a valid dict",
        ),
        ("environment.json", write(""), "environment.json must be .*an empty file"),
    ],
)
def test_a_damaged_run_does_not_go_on(name, damage, message, stopped, copy):
    folder = copy(stopped)
    damage(folder / name)
    with pytest.raises(ValueError, match=message) as found:
        quiet(TWO, folder, resume=True)
    assert "\n" not in str(found.value)


def test_what_a_run_can_do_without_is_not_missed(finished, stopped, copy):
    folder = copy(stopped)
    for name in ("metrics.jsonl", "last/model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "tensorboard")
    quiet(TWO, folder, resume=True)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    shutil.rmtree(folder)
    folder = copy(finished[0])
    for name in ("state.pt", "metrics.jsonl", "environment.json", "learning.png"):
        (folder / name).unlink()
    shutil.rmtree(folder / "last")
    assert quiet(small(), folder, resume=True) == finished[1]


@pytest.mark.parametrize(
    "kept", ["state.pt", "metrics.jsonl", "final.json", "best/model.safetensors", "last/model.safetensors"]
)
def test_whatever_is_left_of_a_run_is_not_trained_over(kept, finished, copy):
    folder = copy(finished[0])
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder).as_posix() not in (kept, "manifest.json"):
            file.unlink()
    content = (folder / kept).read_bytes()
    with pytest.raises(FileExistsError, match="must hold no run, got one already. Resume it .*--resume, remove it .*--restart"):
        quiet(small("optimizer.lr=0.5"), folder)
    with pytest.raises(ValueError, match="recipe.yaml must be there as"):
        quiet(small(), folder, resume=True)
    assert (folder / kept).read_bytes() == content


@pytest.mark.parametrize("name", ["recipe.yaml", "state.pt", "data.json", "unreadable.txt", "best/config.json", "learning.png"])
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"restart": True}])
def test_files_of_others_are_not_overwritten(name, how, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("# precious")
    with pytest.raises(FileExistsError, match=rf"must not hold {name}, which would be overwritten.*Move .*--output"):
        quiet(TWO, tmp_path, **how)
    assert (tmp_path / name).read_text() == "# precious"
    assert {p.name for p in tmp_path.iterdir()} == {name.split("/")[0]}


def test_a_recipe_is_not_replaced_by_the_run_that_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = f"# precious\n{json.dumps(TWO.model_dump())}"  # JSON is YAML
    Path("recipe.yaml").write_text(text)
    for output in (".", str(tmp_path), f"../{tmp_path.name}"):
        with pytest.raises(SystemExit):
            cli.main(["train", "recipe.yaml", "--output", output])
        assert "must not hold recipe.yaml" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == text
    cli.main(["train", "recipe.yaml"])
    assert Path("runs/recipe/final.json").exists()


def test_restart_removes_the_run_alone(finished, copy):
    folder = copy(finished[0])
    theirs = [
        "notes.txt",
        "best/notes.txt",
        "tensorboard/events.out.tfevents.1.elsewhere",
        "evaluation/log/notes.txt",
        "not-finite-1.json",
    ]
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    RunDir.clear(folder)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(theirs)


def test_a_restart_that_was_killed_leaves_no_half_run(finished, copy, monkeypatch):
    """Whichever files are gone, the rest is a run that is given up with --restart, and never goes on."""
    unlink, left = Path.unlink, [0]

    def counted(file, missing_ok=False):
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        unlink(file, missing_ok)

    for moment in range(1, 15, 2):
        folder = copy(finished[0])
        left[0] = moment
        monkeypatch.setattr(Path, "unlink", counted)
        with pytest.raises(Stop):
            RunDir.clear(folder)
        monkeypatch.setattr(Path, "unlink", unlink)
        if (folder / "recipe.yaml").exists():
            assert RunDir(folder, small(), True).finished() == finished[1]
        elif RunDir(folder, small(), False, restart=True)._holds_an_epoch():
            with pytest.raises(ValueError, match="recipe.yaml must be there"):
                RunDir(folder, small(), True)
        RunDir.clear(folder)
        assert not (folder / "manifest.json").exists()
        shutil.rmtree(folder)


def test_a_start_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="got 1000 over all processes"):
        quiet(small("run.batch_size=1000"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_training_into_one_folder_is_refused_at_once(tmp_path):
    pytest.importorskip("fcntl")
    refused = []

    def log(line):
        if line.startswith("epoch 1/"):
            for how in ({}, {"resume": True}, {"restart": True}):
                with pytest.raises(ValueError, match=r"run must be free, but it is in use by process \d+ on .*Wait") as found:
                    quiet(small("run.seed=7"), tmp_path / "run", **how)
                refused.append(found.value)

    train(TWO, tmp_path / "run", log=log)
    assert len(refused) == 3
    assert json.loads((tmp_path / "run" / "final.json").read_text())["seed"] == seeding.number
    assert not (tmp_path / "run" / LOCK).exists()


# data


@pytest.fixture
def photographs(tmp_path):
    """Class folders of the digits 0, 1 and 2, and a recipe for them."""
    images, labels = tensors("train")
    for split, start in (("train", 0), ("val", 20), ("other", 40)):
        for c in range(3):
            place = tmp_path / "data" / split / "abc"[c]
            place.mkdir(parents=True)
            for i, image in enumerate(images[labels == c][start : start + 8]):
                Image.fromarray((image[0] * 255).byte().numpy()).resize((16, 16)).save(place / f"{i}.png")
    (tmp_path / "r.yaml").write_text(f"""
title: folders
data: {{name: folder, root: {tmp_path / "data"}, train_split: train, test_split: val, num_classes: 3, input_size: [1, 16, 16],
  mean: [0.5], std: [0.5], workers: 0}}
model: {{name: nlm_vit_tiny, img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}}
optimizer: {{name: adamw, lr: 5.0e-3}}
schedule: {{epochs: 2}}
run: {{batch_size: 8}}
""")
    return tmp_path / "data"


def swap(data):
    for split in ("train", "val"):
        for old, new in (("a", "t"), ("c", "a"), ("t", "c")):
            (data / split / old).rename(data / split / new)


def rename_class(data):
    for split in ("train", "val"):
        (data / split / "b").rename(data / split / "bb")


def replace_all(data):
    for file in (data / "train").rglob("*.png"):
        with Image.open(file) as image:
            Image.eval(image, lambda value: 255 - value // 3).save(file)


CHANGES = [
    (lambda data: (data / "train/a/0.png").unlink(), "training: 24 images -> 23"),
    (lambda data: shutil.copy(data / "train/a/0.png", data / "train/a/9.png"), "training: 24 images -> 25"),
    (lambda data: (data / "train/a/0.png").rename(data / "train/a/9.png"), "training: names, labels or sizes of some"),
    (lambda data: (data / "train/a/0.png").rename(data / "train/b/9.png"), "training: names, labels or sizes of some"),
    (rename_class, "training: classes b -> bb"),
    (swap, "training: names, labels or sizes of some"),
    (replace_all, "training: names, labels or sizes of some"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_is_of_its_training_data(change, message, epochs, photographs, tmp_path):
    """Whether it is finished or not."""
    recipe, run = load_recipe(tmp_path / "r.yaml"), tmp_path / "run"
    if epochs == 1:
        stop_after(recipe, run, 1)
    else:
        quiet(recipe, run)
    before = weights(run)
    change(photographs)
    with pytest.raises(
        ValueError, match=rf"run must hold a run on the same data, got other data\. Changed: {message}.*Restore the data"
    ):
        quiet(recipe, run, resume=True)
    assert same(before, weights(run))
    quiet(recipe, run, restart=True)


def test_data_may_move_and_test_data_may_change(photographs, tmp_path):
    recipe, run = load_recipe(tmp_path / "r.yaml"), tmp_path / "run"
    first = quiet(recipe, run)
    moved = Path(shutil.move(photographs, tmp_path / "elsewhere"))
    there = load_recipe(tmp_path / "r.yaml", [f"data.root={moved}"])
    lines = []
    assert train(there, run, resume=True, log=lines.append) == first
    assert "is finished" in lines[0]
    (moved / "val/a/0.png").unlink()
    assert quiet(there, run, resume=True)["test"]["n"] == first["test"]["n"] - 1
    assert (
        quiet(load_recipe(tmp_path / "r.yaml", [f"data.root={moved}", "data.test_split=other"]), run, resume=True)["test"]["n"]
        == 24
    )


def test_a_comparison_does_not_believe_runs_on_other_data(photographs, tmp_path, capsys):
    command = [
        "compare",
        str(tmp_path / "r.yaml"),
        "model={img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
        "comparison={seeds: [0], variants: {a: {name: nlm_vit_tiny}}}",
    ]
    command += ["evaluation={gaussian_noise: [0.1]}", "--output", str(tmp_path / "out"), "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.main(command)
        replace_all(photographs)
        with pytest.raises(SystemExit):
            cli.main(command)
    assert "a-seed0 must hold a run on the same data" in capsys.readouterr().err


def test_a_comparison_keeps_what_is_not_its_own(tmp_path, capsys):
    command = ["compare", "quickstart", "--output", str(tmp_path), "--device", "cpu"]
    for name in ("report.md", "results.json", "kernel-rows-plain.png"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SystemExit):
            cli.main([*command, "--restart"])
        assert f"must not hold {name}, which would be overwritten" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for folder in (tmp_path, tmp_path / "runs" / "plain-seed0"):
        with locked(folder), pytest.raises(SystemExit):
            cli.main([*command, "--restart"])
        assert f"{folder} must be free, but it is in use by process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_validation_images_are_the_runs_too(stopped, copy):
    folder = copy(stopped)
    told = json.loads((folder / "data.json").read_text())
    assert (told["training"]["images"], told["validation"]["images"]) == (512, 100)
    assert told["training"]["classes"] == [str(i) for i in range(10)]
    assert told["training"]["sha256"] != told["validation"]["sha256"]
    assert os.path.getsize(folder / "data.json") < 2000
