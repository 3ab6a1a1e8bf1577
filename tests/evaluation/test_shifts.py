"""`imgproc-attn shift`: sets of some or other classes of ImageNet, on folders of their layout."""

import csv
import json
from pathlib import Path

import pytest
import torch
from evaluated import SYNSETS, add_right_ones, arguments, class_folders, crops, logits_of, result, run
from PIL import Image
from sklearn.metrics import precision_recall_curve

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation.imagenet_subsets import class_map, classes_of
from imgproc_attn.evaluation.statistics import area_under_precision_recall


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_shift_of_200_classes(name, imagenet_model, tmp_path, capsys):
    """Right is the best of the 200 logits, whatever the other 800 say."""
    common, model = imagenet_model
    classes = class_map(name)
    assert classes.num_classes == 200
    root = class_folders(tmp_path / "data", [SYNSETS[i] for i in classes.indices], 1, 32)
    add_right_ones(root, model, SYNSETS, classes.indices)
    run("shift", *common, f"--{name}", root, "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / name / "per_sample.csv").open()))
    assert len(rows) == 230
    title = {"imagenet-a": "ImageNet-A", "imagenet-r": "ImageNet-R"}[name]
    for row in rows[:40]:
        logits = logits_of(model, root / row["image"])
        best = max(classes.indices, key=lambda i: logits[i])
        assert int(row[title]) == int(SYNSETS[best] == Path(row["image"]).parent.name)
    assert sum(int(row[title]) for row in rows if "right" in row["image"]) == 30
    assert sum(int(row[title]) for row in rows) < 60
    # one folder is missing, one is a stranger
    (root / SYNSETS[classes.indices[3]]).rename(root / "n99999999")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("shift", *common, f"--{name}", root, "--output", tmp_path / "out2")
    message = capsys.readouterr().err
    assert "got unknown folders n99999999 (1) and no folder for" in message
    assert f"no folder for {SYNSETS[classes.indices[3]]} (1)" in message


def test_numeric_folders_are_numbers(imagenet_model, tmp_path):
    """ImageNet-V2's: 10 comes after 9, and 0 is no missing name."""
    common, model = imagenet_model
    root = class_folders(tmp_path / "v2", [str(i) for i in range(1000)], 1, 32)
    add_right_ones(root, model, [str(i) for i in range(1000)], range(1000))
    run("shift", *common, "--imagenet-v2", root, "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "imagenet-v2" / "per_sample.csv").open()))
    assert len(rows) == 1030
    assert all(row["label"] == Path(row["image"]).parent.name for row in rows)
    assert sum(int(row["ImageNet-V2"]) for row in rows if "right" in row["image"]) == 30
    assert sum(int(row["ImageNet-V2"]) for row in rows) < 60
    run("shift", *common, "--imagenet-v2", root, "--limit", 50, "--output", tmp_path / "few")
    assert result(tmp_path / "few" / "imagenet-v2")["conditions"][0]["n"] == 50


def test_unknown_classes_and_real_labels(imagenet_model, tmp_path, capsys):
    common, model = imagenet_model
    chosen = [SYNSETS[i] for i in range(0, 1000, 40)]
    val = class_folders(tmp_path / "val", SYNSETS, 1, 32)
    strange = class_folders(tmp_path / "o", chosen, 2, 32, first=1000)  # equal pictures would tie, but for rounding
    run("shift", *common, "--imagenet-val", val, "--imagenet-o", strange, "--real-labels", "--output", tmp_path / "out")
    indices = list(classes_of("O", chosen).indices)
    known = [logits_of(model, next((val / name).iterdir()))[indices].softmax(0).max().item() for name in chosen]
    unknown = [
        logits_of(model, file)[indices].softmax(0).max().item()
        for name in chosen
        for file in sorted((strange / name).iterdir())
    ]
    found = result(tmp_path / "out" / "imagenet-o")
    assert found["summary"]["aupr"] == pytest.approx(
        area_under_precision_recall(torch.tensor(known), torch.tensor(unknown)), rel=1e-5
    )
    precision, recall, _ = precision_recall_curve([0] * len(known) + [1] * len(unknown), [-c for c in known + unknown])
    steps = sum((recall[i] - recall[i + 1]) * precision[i] for i in range(len(precision) - 1))
    assert found["summary"]["aupr"] == pytest.approx(100 * steps, rel=1e-5)
    assert [(row["name"], row["n"]) for row in found["conditions"]] == [("ImageNet-O's classes, validation", 25)]
    assert found["summary"]["unknown"]["n"] == 50, "of unknown classes no answer is right: they have no accuracy"
    # answers that are right for one image in three, and none for one in ten
    said = {int(f.stem[-8:]): int(logits_of(model, f).argmax()) for f in val.rglob("*.png")}
    answers = [
        [] if i % 10 == 0 else [999 - said[i], said[i]] if i % 3 == 0 else [(said[i] + 1) % 1000] for i in range(1, 1001)
    ]
    (tmp_path / "real.json").write_text(json.dumps(answers))
    run("shift", *common, "--imagenet-val", val, "--real-labels", tmp_path / "real.json", "--output", tmp_path / "out")
    real = result(tmp_path / "out" / "imagenet-val")["summary"]["real"]
    right = sum(i % 3 == 0 and i % 10 != 0 for i in range(1, 1001))
    assert (real["n"], real["top1"]) == (900, pytest.approx(100 * right / 900))
    assert "AUPR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ([], "At least one data set must be given"),
        (["--imagenet-o", "x"], "must come with ImageNet's validation images"),
        (["--imagenet-a", "/nowhere"], "The root must be an existing folder or file, got /nowhere"),
    ],
)
def test_shift_mistakes(rest, message, imagenet_model, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run("shift", *imagenet_model[0], *rest, "--output", tmp_path)
    assert message in capsys.readouterr().err


def test_a_map_of_classes_wants_a_model_of_them(folder, tmp_path, capsys):
    root = class_folders(tmp_path / "d", SYNSETS[:3], 1, 32)
    given = [a for a in arguments(folder) if a not in ("--data", "digits", "--split", "test")]
    with pytest.raises(SystemExit):
        run("attack", *given, "--root", root, "--classes", "imagenet", "--output", tmp_path / "out")
    assert "imagenet: the model must have the 1000 classes of ImageNet-1k, got 10" in capsys.readouterr().err
    with pytest.raises(ValueError, match="The class map must be one of .*, got 'imagenet-x'"):
        class_map("imagenet-x")


def test_evaluate_knows_maps_of_classes(imagenet_model, tmp_path):
    """Folders of some of ImageNet's classes keep their places among all of them."""
    common, model = imagenet_model
    root = class_folders(tmp_path / "d", SYNSETS[::40], 1, 32)
    add_right_ones(root, model, SYNSETS, range(0, 1000, 40))
    run("evaluate", *common, "--root", root, "--classes", "imagenet", "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    for row in rows:
        assert SYNSETS[int(row["label"])] == Path(row["image"]).parent.name
        assert int(row["top1"]) == logits_of(model, root / row["image"]).argmax()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    (row,) = found["conditions"]
    assert (row["n"], found["data"]["classes"]) == (55, "imagenet")
    assert row["accuracy"] == pytest.approx(100 * sum(row["label"] == row["top1"] for row in rows) / 55)


def test_unreadable_images_are_named_and_count_nowhere(imagenet_model, tmp_path, capsys):
    common, _ = imagenet_model
    root = class_folders(tmp_path / "d", SYNSETS[:20], 1, 32)
    broken = [next((root / SYNSETS[i]).iterdir()) for i in (0, 1)]  # the first: pictures and checks do without it
    for file in broken:
        file.write_bytes(file.read_bytes()[:60])
    names = [f"{SYNSETS[i]}/{broken[i].name}" for i in (0, 1)]
    attack = ["attack", *common, "--root", root, "--classes", "imagenet", "--attacks", "fgsm", "--eps", "0.1", "--checks", 4]
    with pytest.raises(SystemExit):
        run(*attack, "--output", tmp_path / "out")
    assert f"Cannot read image {names[0]}" in capsys.readouterr().err
    run(*attack, "--skip-broken", "--output", tmp_path / "out2")
    assert [row["unreadable"] for row in result(tmp_path / "out2")["conditions"]] == [names, names]
    assert {row["n"] for row in result(tmp_path / "out2")["conditions"]} == {18}
    assert "2 unreadable images are left out" in capsys.readouterr().out
    corrupt = ["corrupt", *common, "--root", root, "--classes", "imagenet", "--corruptions", "fog", "--severities", 1]
    run(*corrupt, "--skip-broken", "--output", tmp_path / "out3")
    assert {row["n"] for row in result(tmp_path / "out3")["conditions"]} == {18}
    # repaired, one is looked at; nothing else is
    Image.fromarray(crops(1, 32)[0]).save(broken[1])
    run(*attack, "--skip-broken", "--output", tmp_path / "out2")
    assert {row["n"] for row in result(tmp_path / "out2")["conditions"]} == {19}
