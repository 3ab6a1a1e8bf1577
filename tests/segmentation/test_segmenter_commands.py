"""Commands that know segmenters."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from segmented import CLASSIFIER, command
from shapes import shapes_folder

from imgproc_attn.evaluation.report import find_entries, group, tables
from imgproc_attn.segmentation.overlays import with_legend
from imgproc_attn.segmentation.palettes import palette_of
from imgproc_attn.training.checkpoints import save_weights


def test_weights_know_their_data_and_windows_wherever_they_are_copied(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "last", other)
    for model, output in ((run, "one"), (other, "two")):
        command("evaluate", model, "--device", "cpu", "--workers", 0, "--output", tmp_path / output)
    one, two = (json.loads((tmp_path / output / "result.json").read_text()) for output in ("one", "two"))
    assert one["conditions"] == two["conditions"]
    assert one["short_side"] == two["short_side"] == 64


def test_commands(run, tmp_path, capsys):
    """A run is found its own pictures, size and windows; what it says of clean pictures is what its training said."""
    command("evaluate", run, "--device", "cpu", "--workers", 0, "--output", tmp_path / "evaluate")
    said = json.loads((tmp_path / "evaluate" / "result.json").read_text())
    trained = json.loads((run / "final.json").read_text())["test"]
    (clean,) = said["conditions"]
    assert (clean["miou"], clean["pixels"]) == (pytest.approx(trained["miou"], abs=1e-3), trained["pixels"])
    rows = list(csv.reader((tmp_path / "evaluate" / "per_class.csv").open()))
    assert [row[0] for row in rows[1:]] == [f"class {i}" for i in range(6)]
    assert float(rows[1][1]) == pytest.approx(trained["iou"][0], abs=0.02)  # ties of rounded interpolation
    common = ["--device", "cpu", "--workers", "0", "--checks", "1"]
    attack = ["attack", run, *common, "--attacks", "fgsm", "segpgd", "--eps", "1/255", "4/255", "--steps", "2"]
    command(*attack, "--output", tmp_path / "attack")
    attacked = {row["name"]: row for row in json.loads((tmp_path / "attack" / "result.json").read_text())["conditions"]}
    assert attacked["clean"]["miou"] == clean["miou"]
    assert attacked["SegPGD-2 4/255"]["pixel_accuracy"] < attacked["SegPGD-2 1/255"]["pixel_accuracy"] < clean["pixel_accuracy"]
    assert attacked["FGSM 4/255"]["largest_perturbation"] == pytest.approx(4 / 255, abs=1e-6)
    corrupt = ["corrupt", run, *common[:-2], "--corruptions", "gaussian_noise", "--severities", "1", "5"]
    command(*corrupt, "--output", tmp_path / "corrupt")
    corrupted = json.loads((tmp_path / "corrupt" / "result.json").read_text())["conditions"]
    assert corrupted[2]["miou"] < corrupted[0]["miou"]
    assert {row["pixels"] for row in corrupted} == {clean["pixels"]}, "labels are not corrupted"
    assert {file.name for file in (tmp_path / "attack").glob("*.png")} == {"curves.png", "gallery.png"}
    found = tables(group(find_entries([tmp_path])))
    assert {row["metric"] for rows in found.values() for row in rows} == {"mIoU", "pixel accuracy", "mean accuracy"}
    command("report", tmp_path, "--output", tmp_path / "report.html")
    assert "mIoU" in (tmp_path / "report.html").read_text()
    command(*attack, "--window", 48, "--stride", 32, "--dry-run", "--output", tmp_path / "plan")
    assert "SegPGD-2 4/255" in capsys.readouterr().out


def test_a_folder_without_a_recipe_is_a_segmenters_by_its_model(run, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / "last" / name, tmp_path / "model" / name)
    data = ["--data", "labeled", "--root", run.parent / "data", "--split", "val"]
    more = ["--short-side", 64, "--device", "cpu", "--workers", 0]
    command("evaluate", tmp_path / "model", *data, *more, "--output", tmp_path / "without")
    command("evaluate", run, *more, "--window", "whole", "--output", tmp_path / "with")
    found, known = (json.loads((tmp_path / name / "result.json").read_text())["conditions"][0] for name in ("without", "with"))
    assert found["miou"] == known["miou"]


def test_windows_are_part_of_the_protocol(run, tmp_path, capsys):
    words = ["evaluate", run, "--device", "cpu", "--workers", "0", "--output", tmp_path]
    command(*words, "--window", "64")
    command(*words, "--window", "64", "--stride", "64")  # says the same
    for other in (["--window", "64", "--stride", "48"], ["--window", "whole"], ["--window", "64", "--short-side", "own"]):
        with pytest.raises(SystemExit):
            command(*words, *other)
        assert "another protocol" in capsys.readouterr().err
    command(*words, "--restart")


def test_segment_writes_labels_and_overlays(run, model, tmp_path):
    pictures = run.parent / "data" / "images" / "val"
    command("segment", pictures, "--checkpoint", run, "--device", "cpu", "--output", tmp_path)
    for name in "ab":
        picture = np.asarray(Image.open(pictures / f"{name}.jpg"))
        labels = np.asarray(Image.open(tmp_path / "labels" / f"{name}.png"))
        assert labels.shape == picture.shape[:2]
        small = torch.tensor(picture).permute(2, 0, 1)
        size = [int(side * 64 / min(small.shape[-2:])) for side in small.shape[-2:]]
        small = F.interpolate(small[None].float(), size=size, mode="bilinear", antialias=True).round() / 255
        # Pillow's resizing may round a value to the next gray level: labels may differ where that decides
        signs = torch.randint(2, small.shape).float() * 2 - 1
        with torch.no_grad():
            logits, others = (
                F.interpolate(model(x), size=labels.shape, mode="bilinear")[0] for x in (small, small + signs / 255)
            )
        expected, (first, second) = logits.argmax(0).numpy(), logits.topk(2, dim=0).values
        differ = torch.tensor(labels != expected)
        assert differ.float().mean() < 0.1
        assert not ((first - second)[differ] > 2 * (logits - others).abs().max()).any()
        drawn = np.asarray(Image.open(tmp_path / "overlays" / f"{name}.png"))
        height, width = labels.shape
        assert drawn.shape[0] > height
        blend = np.rint(picture * 0.5 + palette_of([f"class {i}" for i in range(6)])[labels] * 0.5)
        assert np.abs(drawn[:height, :width] - blend).max() <= 1
    command("segment", pictures / "a.jpg", "--checkpoint", run, "--scales", "0.75", "1", "--flip", "--output", tmp_path / "one")
    assert [file.name for file in (tmp_path / "one" / "labels").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "nowhere", "--checkpoint", "RUN"], "must be an image or a folder with images .*, got nowhere"),
        (["attack", "RUN", "--attacks", "square", "--eps", "1/255"], "Attacks must be among fgsm, .* got 'square'"),
        (
            ["attack", "RUN", "--preset", "robustbench-linf"],
            r"--preset must be one of this model.s \(grid\), got robustbench-linf",
        ),
        (["attack", "RUN", "--attacks", "fgsm", "--eps", "1/255", "--space", "normalized"], "must be untargeted"),
        (
            ["attack", "RUN", "--attacks", "fgsm", "--eps", "1/255", "--batch-size", "2"],
            "must have one size, got different sizes. Give --batch-size 1",
        ),
        (["evaluate", "RUN", "--window", "32", "--stride", "40"], "The stride must be from 1 to the window, 32, got 40"),
        (["segment", "DATA", "--checkpoint", "RUN", "--stride", "40"], "The stride must be left out without a window, got 40"),
        (["evaluate", "RUN", "--scales", "-1", "0"], "The scales must be one or more positive, finite factors"),
        (["evaluate", "RUN", "--scales", "nan"], "The scales must be .*positive, finite .*nan"),
        (
            ["evaluate", "RUN", "--classes", "imagenet", "--crop-pct", "0.9"],
            "--classes and --crop-pct must be left out for segmentation",
        ),
        (
            ["evaluate", "RUN", "--data", "folder", "--root", "SIX"],
            "The data of a segmenter must have label maps, got .folder.. Choose one of .*labeled",
        ),
        (
            ["attack", "RUN", "--data", "folder", "--root", "SIX", "--attacks", "fgsm", "--eps", "1/255"],
            "The data of a segmenter must have label maps, got .folder.. Choose one of .*labeled",
        ),
        (["evaluate", "RUN", "num_classes=5", "--checkpoint", "WEIGHTS"], r"decoder\..* \[6\b.*, not \[5\b"),
        (["attack", "RUN", "--root", "OTHER"], "The val split must have 6 classes, got 5"),
        (["evaluate", "RUN", "--root", "DATA", "--split", ""], "must hold images, got train, val. Name one of these"),
        (["evaluate", "RUN", "--data", "camvid"], "--data camvid must have a --root, got none. Give --root"),
        (
            ["evaluate", "CLASSIFIER", "--data", "camvid"],
            "must have one label per image, .* got .camvid., which has label maps",
        ),
        (["evaluate", "RUN", "--data", "camvid", "--root", "DATA"], "The split of CamVid must be train, val or test, got ''"),
        (
            ["evaluate", "CLASSIFIER", "--data", "labeled", "--root", "DATA", "--split", "val"],
            "must have one label per image, which classifiers need, got .labeled., which has label maps",
        ),
        (["corrupt", "RUN", "--files"], "--files must be left out for segmentation"),
        (
            ["evaluate", "CLASSIFIER", "--root", "SIX", "--window", "32", "--scales", "0.5", "1"],
            "--window and --scales must be left out for classification",
        ),
        (
            ["segment", "DATA", "--checkpoint", "CLASSIFIER"],
            "must be a segmentation model, got .*classifier",
        ),
        (["segment", "DATA", "--checkpoint", "vit_tiny_patch16_224"], "--checkpoint must be an existing folder"),
        (["segment", "TWICE", "--checkpoint", "RUN"], "Names of images must differ not only in their ending"),
    ],
)
def test_commands_refuse(run, words, message, tmp_path, capsys):
    other = shapes_folder(tmp_path / "other")
    (other / "classes.txt").write_text("".join(f"class {i}\n" for i in range(5)))
    twice = tmp_path / "twice"
    twice.mkdir()
    six = tmp_path / "six"
    for i, ending in enumerate(["jpg", "png"] * 3):
        (six / f"class {i}").mkdir(parents=True)
        for place in (twice / f"a.{ending}", six / f"class {i}" / "a.png"):
            Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(place)
    classifier = timm.create_model("plain_vit_tiny", **CLASSIFIER)
    save_weights(classifier.state_dict(), classifier, CLASSIFIER, {f"class {i}": i for i in range(6)}, tmp_path / "classifier")
    names = {"RUN": str(run), "OTHER": str(other), "DATA": str(run.parent / "data"), "TWICE": str(twice), "SIX": str(six)}
    names["WEIGHTS"] = str(next(run.rglob("*.safetensors")))
    names["CLASSIFIER"] = str(tmp_path / "classifier")
    with pytest.raises(SystemExit):
        command(*(names.get(word, word) for word in words), "--device", "cpu", "--output", tmp_path / "out")
    assert re.search(message, capsys.readouterr().err)


def test_weights_without_the_decoder_are_refused(run, tmp_path, capsys):
    """What a segmenter starts training from is not what can segment."""
    folder = shutil.copytree(run / "last", tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in weights.items() if name.startswith("encoder.")}, folder / "model.safetensors")
    pictures = run.parent / "data" / "images" / "val"
    for words in (["segment", pictures, "--checkpoint", folder], ["evaluate", folder]):
        with pytest.raises(SystemExit):
            command(*words, "--device", "cpu", "--output", tmp_path / "out")
        assert re.search(
            r"must hold the weights of the Segmenter built here, got \d+ missing: decoder", capsys.readouterr().err
        )


def test_results_are_not_segmented_again(run, tmp_path, monkeypatch):
    """Where they lie below the pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    monkeypatch.chdir(tmp_path)
    for place in ("pictures/out", folder / "out"):  # one and the same
        command("segment", folder, "--checkpoint", run, "--device", "cpu", "--output", place)
    assert [file.name for file in (folder / "out").rglob("*.png")] == ["a.png", "a.png"]


def test_label_maps_of_others_are_not_overwritten(run, tmp_path, capsys):
    """A data set has a folder labels, too."""
    for name in ("pictures/a.png", "set/labels/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / name)
    before = (tmp_path / "set/labels/a.png").read_bytes()
    with pytest.raises(SystemExit):
        command("segment", tmp_path / "pictures", "--checkpoint", run, "--device", "cpu", "--output", tmp_path / "set")
    assert "must not hold labels/a.png, which would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "set/labels/a.png").read_bytes() == before
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["labels"]


def test_palettes():
    names = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
    assert palette_of(names)[3].tolist() == [128, 64, 128]
    ade = palette_of(["wall", *(f"{i}" for i in range(149))])
    assert (ade[0].tolist(), ade[-1].tolist()) == ([120, 120, 120], [92, 0, 255])
    many = palette_of([f"class {i}" for i in range(200)])
    assert len(np.unique(many, axis=0)) == 200


@pytest.mark.parametrize(("classes", "lines"), [(3, 3), (20, 20), (25, 21)])
def test_legends_say_how_many_classes_they_leave_out(classes, lines):
    labels = np.arange(classes, dtype=np.uint8)[:, None].repeat(50, 1)
    picture = np.zeros((classes, 50, 3), dtype=np.uint8)
    drawn = with_legend(picture, labels, [f"class {i}" for i in range(classes)])
    assert drawn.height == classes + 18 * lines + 6
    written = np.asarray(drawn.convert("L"))[-24:-6, 24:]
    assert written.min() < 128, "the last line is not empty"
