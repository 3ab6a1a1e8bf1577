"""`imgproc-attn attack`."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from evaluated import arguments, result, run, save
from PIL import Image

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.data import Digits
from imgproc_attn.evaluation import NormalizedModel


def test_attack_command(folder, tmp_path, capsys):
    out = tmp_path / "out"
    run(
        "attack",
        *arguments(folder),
        "--attacks fgsm pgd --eps 10/255 20/255 --steps 5 --limit 100 --checks 20 --output",
        out,
    )
    printed = capsys.readouterr().out
    found = result(out)
    assert [row["name"] for row in found["conditions"]] == [
        "clean",
        "FGSM 10/255",
        "FGSM 20/255",
        "PGD-5 10/255",
        "PGD-5 20/255",
    ]
    assert found["conditions"][1]["images"]["n"] == 100
    assert len(found["conditions"][1]["images"]["names_sha256"]) == 64
    assert "clean (condition 1 of 5): 0 of 500 evaluations" in printed
    assert "PGD-5 20/255 (condition 5 of 5): 500 of 500 evaluations" in printed
    assert "| clean | " in printed
    assert "| 100 |" in printed
    assert ("saturation on 20 images: no finding" in printed) == (not found["findings"])
    rows = list(csv.DictReader((out / "per_sample.csv").open()))
    assert len(rows) == 100
    for row in found["conditions"]:
        assert row["correct"] == sum(int(r[row["name"]]) for r in rows), "every number is a count of results"
        assert row["range"][0] >= 0
        assert row["range"][1] <= 1
    assert found["conditions"][4]["scorer"]["attack"]["steps"] == 5
    assert found["conditions"][4]["largest_perturbation"] == pytest.approx(20 / 255, rel=1e-5)
    for picture in ("curves.png", "gallery.png"):
        assert Image.open(out / picture).size[0] > 200
    assert found["environment"]["versions"]["torch"] == torch.__version__
    run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "10/255", "--limit", 100, "--output", out)
    with pytest.raises(SystemExit):
        run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "10/255", "--limit", 90, "--output", out)
    assert "results under another protocol" in capsys.readouterr().err
    run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "10/255", "--limit", 90, "--output", out, "--restart")
    assert result(out)["conditions"][0]["n"] == 90


def test_a_run_is_asked_about_what_it_held_out(tmp_path, capsys):
    """The split of the digits, and the number of test images, are the recipe's, not the command's defaults."""
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    small += ["data.seed=4", "data.test_images=70", "run.seed=3"]
    run("train", "quickstart", *small, "--variant", "plain", "--output", tmp_path / "run", "--device", "cpu")
    where = [
        "--attacks",
        "fgsm",
        "--eps",
        "0.05",
        "--checks",
        4,
        "--workers",
        0,
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
    ]
    run("attack", tmp_path / "run", *where)
    seen = {int(row["image"].split("-")[1]) for row in csv.DictReader((tmp_path / "out" / "per_sample.csv").open())}
    assert len(seen) == 70
    assert not seen & set(map(int, Digits("train", 4)._ids))
    assert result(tmp_path / "out")["training_seed"] == 3
    named = ["--data", "digits", "--split", "test", "--output", tmp_path / "named"]  # the same, said aloud
    run("attack", tmp_path / "run", *where[:-2], *named)
    assert result(tmp_path / "named")["conditions"][0]["images"] == result(tmp_path / "out")["conditions"][0]["images"]
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert result(tmp_path / "out")["conditions"][0]["accuracy"] == pytest.approx(final["test"]["accuracy"], abs=1.5)


def test_restart_forgets_nothing_before_all_is_well(folder, tmp_path, capsys):
    attack = ["attack", *arguments(folder), "--limit", 20, "--checks", 4, "--attacks", "fgsm", "--output", tmp_path]
    run(*attack, "--eps", "0.1")
    with pytest.raises(SystemExit):
        run(*attack, "--eps", "0", "--restart")
    assert list((tmp_path / "log").iterdir())
    assert (tmp_path / "result.json").exists()


def test_autocast_is_recorded_and_raises_no_alarm(folder, tmp_path, capsys):
    run(
        "attack",
        *arguments(folder),
        "--attacks pgd --eps 10/255 --limit 60 --checks 40 --amp bfloat16 --output",
        tmp_path,
    )
    found = result(tmp_path)
    assert found["dtype"] == "bfloat16"
    assert "wrong gradients" not in {finding["check"] for finding in found["findings"]}
    with pytest.raises(SystemExit):
        run("attack", *arguments(folder), "--amp", "float16", "--output", tmp_path)
    assert "invalid choice: 'float16'" in capsys.readouterr().err


def test_size_and_channels_are_the_models(tmp_path):
    """Built for other images than its configuration tells of."""
    from imgproc_attn.evaluation.specs import ModelSpec

    options = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10}
    weights = save(tmp_path, "vit_tiny_patch16_224", **options)
    model, preprocessing = ModelSpec("vit_tiny_patch16_224", weights, options=options).build()
    assert preprocessing.input_size == (1, 32, 32)
    assert NormalizedModel(model, preprocessing.mean, preprocessing.std).eval()(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"--input-size of .* must be 32 x 32, got 48 x 40. .* img_size=\[48,40\]"):
        ModelSpec("vit_tiny_patch16_224", weights, options=options, input_size=(1, 48, 40)).build()
    assert ModelSpec(".").label == "/".join(Path.cwd().parts[-2:]), "results of the model here do not lie in runs/ itself"


def test_dry_run_does_nothing(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--preset", "robustbench-cifar-linf", "--dry-run", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "not AutoAttack" in printed
    assert re.search(r"ensemble 8/255: APGD-CE.threat.eps=8/255; .*; APGD-T.threat.eps=8/255; .*; queries=5000; ", printed)
    passes = re.search(r"ensemble 8/255 +360 +(\d+) +(\d+)", printed)
    assert (int(passes[1]), int(passes[2])) == (103 + 1 + 9 * 103 + 5002, 101 + 9 * 101)
    assert "estimated: at most" in printed
    assert re.search(r"sanity check: PGD of 100 steps +64 +204 +200\n", printed)
    assert re.search(r"estimated: at most .*, of which .* for the sanity checks", printed)
    assert not (tmp_path / "out").exists()
    rest = "--attacks pgd --eps 0.5 --norm L2 --steps 7 --restarts 3 --seed 4 --dry-run"
    run("attack", *arguments(folder), rest, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    ball, search = "eps=0.5; norm=L2; targeted=no; bounds=0 1", "steps=7; restarts=3; start_at_random=yes; seed=4"
    assert f"  PGD-7 L2 0.5: {ball}; {search}\n" in printed
    assert re.search(r"images: n=360; .*names_sha256=\w{64}", printed)
    assert "  preprocessing: input_size=1 8 8; mean=0.5; std=0.5; interpolation=bicubic; crop_pct=1; crop_mode=" in printed
    assert "  clean:" not in printed, "it has no settings"
    run("corrupt", *arguments(folder), "--corruptions", "all", "--dry-run", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Without --frost-folder, frost and the means" in printed
    assert len(re.findall(r"_?\w+ 1 2 3 4 5 +360 ", printed)) == 18
    assert re.search(r"fog 1 2 3 4 5: name=fog; severity=1, 2, 3, 4, 5; seed=0\n", printed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--attacks", "fgsm", "--eps", "0"], "eps must be positive and finite, got 0.0"),
        (["--attacks", "fgsm", "--eps", "8"], "8 gray levels are eps=8/255"),
        (["--attacks", "fgsm", "--eps", "a/255"], "must be a number or a fraction such as 4/255"),
        (["--attacks", "fgsm"], "must have radii, got none. Give --eps"),
        (["--steps", "3"], "must be left out with a preset"),
        (["--preset", "grid", "--attacks", "fgsm", "--eps", "0.1"], "--preset must be left out with --attacks, got grid"),
        (["--attacks", "square", "--eps", "0.5", "--norm", "L2"], "Square: the norm must be Linf, got L2"),
        (["--attacks", "pdg", "--eps", "0.1"], "invalid choice: 'pdg'"),
        (
            ["--attacks", "pgd", "--eps", "0.1", "--restarts", "0"],
            "argument --restarts: must be a whole number, at least 1, got '0'",
        ),
        (["--classes", "imagenet"], "imagenet: the model must have|one folder per class"),
    ],
)
def test_mistakes(rest, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run("attack", *arguments(folder), *rest, "--output", tmp_path / "out")
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_classes_of_another_number_are_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(
            "attack",
            "test_vit",
            "--checkpoint",
            save(tmp_path, "test_vit"),
            "--data digits --split test --output",
            tmp_path / "out",
        )
    assert "must have 1000 classes, got 10" in capsys.readouterr().err


def test_models_do_not_meet_in_one_folder(folder, tmp_path, monkeypatch):
    """Without --output each model has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    quick = ["--attacks fgsm --eps 0.1 --limit 8 --checks 2"]
    for label in ("one", "the other"):
        run("attack", *arguments(folder), *quick, "--label", label)
    (one,), (other,) = (list(Path("runs/attack", name).glob("nlm-vit-tiny-weights-*")) for name in ("one", "the-other"))
    assert [result(one)["label"], result(other)["label"]] == ["one", "the other"]
    run("attack", *arguments(folder, weights="plain", name="plain_vit_tiny"), *quick, "--label", "one")  # another seed of it
    assert len(list(Path("runs/attack/one").iterdir())) == 2


def test_an_ensemble_tells_who_fooled(folder, tmp_path):
    run("attack", *arguments(folder), "--attacks ensemble --eps 40/255 --limit 30 --checks 2", "--output", tmp_path)
    clean, attacked = result(tmp_path)["conditions"]
    assert list(attacked["fooled_by"]) == ["APGD-CE", "APGD-T", "Square"]
    assert "It is not AutoAttack, because it has no FAB." in (tmp_path / "result.md").read_text()
    assert sum(attacked["fooled_by"].values()) == clean["correct"] - attacked["correct"] > 0, "the others were wrong before"
