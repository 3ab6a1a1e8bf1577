"""Commands around training, and mistakes in them."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import seeding
import torch
from runs import SMALL, quiet, same, small, weights

from imgproc_attn import cli
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training import train
from imgproc_attn.utils.io import write_json


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=npz", "data.root=/nowhere/x.npz"], "The root must be an existing folder or file, got /nowhere/x.npz"),
        (["data.train_images=5000"], "must be at most 1437, the number of .*, got 100 \\+ 5000 = 5100. Lower one"),
        (
            ["data.train_images=null", "data.validation_images=1437"],
            "must be below 1437, .*, got 1437, which leaves none",
        ),
        (["run.batch_size=1000"], "at most the number of training images, 512, got 1000"),
        (["run.batch_size=512", "run.grad_accum_steps=2", "data.train_images=512"], None),
        (["data.num_classes=7"], "train split must have 7 classes, got 10"),
        (["data.input_size=[2,8,8]", "data.mean=null", "data.std=null"], "must have 1 .* or 3 .* channels, got 2"),
    ],
)
def test_what_is_asked_for_and_is_not_there(overrides, message, tmp_path):
    if message is None:
        quiet(small(*overrides), tmp_path / "run")
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quiet(small(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands(tmp_path, capsys):
    cli.main(["train", "quickstart", *SMALL, "schedule.epochs=2", "--variant", "plain", "--output", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "epoch 2/2" in out
    assert "of 100 images" in out
    cli.main(["recipes"])
    assert "quickstart" in capsys.readouterr().out
    cli.main(["recipes", "--copy", "quickstart", "--to", str(tmp_path / "mine.yaml")])
    assert "imgproc-attn compare" in capsys.readouterr().out, "it is of several models"
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(find_recipe("quickstart"))
    for arguments, message in (
        (["train", "quickstart", "--output", str(tmp_path / "x")], "Name one of its variants"),
        (["train", "quickstart", "run.batch_size=0", "data.root=[]"], "must be of one model, got a comparison of several"),
        (["train", "quickstart", "--variant", "y"], "The variant must be one of"),
        (["train", "quickstart", "--variant", "plain", "--device", "cuda:7", "--output", str(tmp_path / "x")], "no GPU"),
        (["recipes", "--copy", "quickstart", "--to", str(tmp_path / "mine.yaml")], "which exists. Give another name"),
    ):
        if "cuda:7" in arguments and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_run_is_resumed_or_restarted_not_both(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "quickstart", "--output", str(tmp_path), "--resume", "--restart"])
    assert "argument --restart: not allowed with argument --resume" in capsys.readouterr().err
    with pytest.raises(ValueError, match="resume and restart must not both be set"):
        train(small(), tmp_path, resume=True, restart=True)


def test_variants_lie_where_a_comparison_looks_for_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["model.depth=1", "schedule.epochs=2", "schedule.warmup_epochs=1", "data.test_images=60", "comparison.seeds=[0]"]
    few += ["evaluation={gaussian_noise: [0.2]}"]
    two = "comparison.variants={a: {name: plain_vit_tiny}, b c: {name: nlm_vit_tiny}}"
    for variant in ("a", "b c"):
        cli.main(["train", "quickstart", *few, two, "--variant", variant])
    trained = {
        folder: weights(folder) for folder in (Path("runs/quickstart/runs/a-seed0"), Path("runs/quickstart/runs/b-c-seed0"))
    }
    (mine := Path("runs/quickstart/runs/mine")).mkdir()
    cli.main(["compare", "quickstart", *few, two, "--jobs", "1"])
    assert all(same(before, weights(folder)) for folder, before in trained.items())
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "runs/quickstart"])
    assert "got runs/quickstart, the folder of a comparison. Name one of its runs: runs/quickstart/runs/a-seed0, " in (
        capsys.readouterr().err
    )
    cli.main(["compare", "quickstart", *few, two, "schedule.epochs=3", "--restart", "--jobs", "1"])
    assert not any(same(before, weights(folder)) for folder, before in trained.items())
    assert mine.exists(), "--restart removes runs of the comparison alone"


def test_a_run_folder_is_enough(finished, tmp_path, capsys):
    """To resume, and to evaluate on what it was tested on."""
    folder, _, _ = finished
    cli.main(["train", str(folder), "--resume"])
    cli.main(["evaluate", str(folder), "--output", str(tmp_path), "--workers", "0"])
    result, final = (json.loads(file.read_text()) for file in (tmp_path / "result.json", folder / "final.json"))
    (row,) = result["conditions"]
    assert {key: row[key] for key in ("n", "correct", "accuracy", "top5", "top5_interval")} == {
        key: final["test"][key] for key in ("n", "correct", "accuracy", "top5", "top5_interval")
    }
    assert row["loss"] == pytest.approx(final["test"]["loss"])
    others = ["evaluate", str(folder), "--data", "digits", "--split", "train", "--limit", "50", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(others)
    assert "images.n: 100 -> 50" in (error := capsys.readouterr().err)
    assert "Give another --output, or start again with --restart" in error
    assert json.loads((tmp_path / "result.json").read_text()) == result
    cli.main([*others, "--restart"])
    (row,) = json.loads((tmp_path / "result.json").read_text())["conditions"]
    assert row["n"] == 50
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(folder), "--data", "npz"])
    assert "Give --root PATH" in capsys.readouterr().err
    # classes with the same number of other names
    config = json.loads((folder / "best" / "config.json").read_text())
    assert config["label_names"] == [str(i) for i in range(10)]
    shutil.copytree(folder / "best", tmp_path / "other")
    write_json(tmp_path / "other" / "config.json", {**config, "label_names": [*map(str, range(9)), "zz"]})
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path / "other"), "--data", "digits", "--split", "test"])
    assert "must have equal classes, got classes only in test: 9 (1); only in trained on: zz (1)" in capsys.readouterr().err


def test_changes_may_stand_after_options(tmp_path, capsys):
    cli.main(["train", "quickstart", "--variant", "plain", "--output", str(tmp_path / "run"), *SMALL, "schedule.epochs=2"])
    assert "epoch 2/2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "quickstart", "--varient", "plain"])
    assert "unrecognized arguments: --varient plain" in capsys.readouterr().err
    assert end.value.code == 2


def test_progress_in_a_log(tmp_path):
    lines = []
    train(small("run.log_every=2", "schedule.epochs=2"), tmp_path, log=lines.append)
    assert [line for line in lines if line.startswith("epoch 1, update 2/4: loss ")]


def test_splits_that_are_one_are_refused(tmp_path):
    """Synonyms may name the test split twice."""
    with pytest.raises(ValueError, match="The test split must have other images than validation"):
        quiet(small("data.validation_images=0", "data.validation_split=test"), tmp_path / "run")
    with pytest.raises(ValueError, match="The test split must have other images than train"):
        quiet(small("data.test_split=train"), tmp_path / "run")
    with pytest.raises(ValueError, match="The test split must have other images than train"):
        quiet(small("data.train_split=test", "data.train_images=200"), tmp_path / "run")


@pytest.mark.skipif(os.name != "posix", reason="pipes of Unix")
def test_who_closes_the_pipe_loses_no_epoch(tmp_path, monkeypatch):
    reader, writer = os.pipe()

    class Watched(io.TextIOWrapper):
        def write(self, text):
            if "epoch 1/" in text:
                os.close(reader)
            return super().write(text)

    words = ["train", "quickstart", *SMALL, f"run.seed={seeding.number}", "--variant", "plain", "--device", "cpu"]
    words += ["--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Watched(os.fdopen(writer, "wb")))
        with pytest.raises(SystemExit) as end:
            cli.main(words)
    assert end.value.code == 141
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    cli.main([*words, "--resume"])
    quiet(small(label="plain"), tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_weights_cannot_be_written_to_are_refused(tmp_path, capsys):
    output = tmp_path / os.fsdecode(b"run\xff")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "quickstart", *SMALL, "--variant", "plain", "--output", str(output)])
    assert end.value.code == 2
    assert r"must be valid UTF-8, got" in (error := capsys.readouterr().err)
    assert r"run\udcff. Choose another name" in error
    assert not output.exists()
