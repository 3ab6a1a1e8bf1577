"""The page of `imgproc-attn report`."""

import csv
import json
import re
from dataclasses import replace

import pytest
from evaluated import arguments, result, run
from PIL import Image
from skimage import data as pictures

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation.imagenet_c.weather import FROST
from imgproc_attn.evaluation.report import _curves as draw_report_curves
from imgproc_attn.evaluation.report import find_entries, group, summary_table, tables
from imgproc_attn.evaluation.statistics import paired_interval

photographs = [getattr(pictures, name)() for name in ("coffee", "astronaut", "chelsea", "rocket", "camera")]


def test_report(folder, tmp_path, capsys):
    for label, name, weights in (("plain <b>", "plain_vit_tiny", "plain"), ("filter", "nlm_vit_tiny", "weights")):
        run(
            "attack",
            *arguments(folder, name, weights),
            "--attacks fgsm --eps 10/255 --limit 80 --checks 8 --label",
            label,
            "--output",
            tmp_path / "runs" / weights / "attack",
        )
        run(
            "corrupt",
            *arguments(folder, name, weights),
            "--corruptions fog --severities 2 --limit 80 --label",
            label,
            "--output",
            tmp_path / "runs" / weights / "corrupt",
        )
    run("report", tmp_path / "runs" / "plain", tmp_path / "runs" / "weights", "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "plain &lt;b&gt;" in page, "labels are text"
    assert not re.search(r'(src|href)="(?!data:)', page), "the page stands alone"
    assert page.count("data:image/png;base64,") == 1 + 2 * (1 + 2)  # all curves; per model a gallery, and heat map and gallery
    models = group(find_entries([tmp_path / "runs" / "plain", tmp_path / "runs" / "weights"]))
    assert list(models) == ["plain <b>", "filter"]
    run("report", tmp_path / "runs" / "plain" / "attack", "--output", tmp_path / "one.html")
    assert (tmp_path / "one.html").read_text().count("data:image/png;base64,") == 1 + 1, "one model has its curves once"
    for shown in (models, group(find_entries([tmp_path / "runs" / "plain" / "attack"]))):
        (figure,) = draw_report_curves(shown)
        assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy / %"]
    rows = {row["name"]: row for row in tables(models)["attack"]}
    correct = [
        {
            row["image"]: int(row["FGSM 10/255"])
            for row in csv.DictReader((tmp_path / "runs" / w / "attack" / "per_sample.csv").open())
        }
        for w in ("plain", "weights")
    ]
    pairs = [(correct[1][name], correct[0][name]) for name in correct[0]]
    low, high = paired_interval(*(pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))))
    mean = 100 * (sum(a for a, _ in pairs) - sum(b for _, b in pairs)) / 80
    assert rows["FGSM 10/255"]["differences"] == [f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"]
    assert [row["name"] for row in tables(models)["corrupt"]] == ["clean", "fog 2"]


def test_seeds_of_one_label_are_one_model(folder, tmp_path):
    for label, files in {"a": ["plain", "weights"], "b": ["plain", "weights"]}.items():
        for seed, weights in enumerate(files):
            name = {"plain": "plain_vit_tiny", "weights": "nlm_vit_tiny"}[weights]
            out = tmp_path / f"{label}{seed}"
            run(
                "attack",
                *arguments(folder, name, weights),
                "--attacks fgsm --eps 10/255 --limit 60 --checks 4 --label",
                label,
                "--output",
                out,
            )
            content = result(out)
            (out / "result.json").write_text(json.dumps({**content, "training_seed": seed}))
    rows = {row["name"]: row for row in tables(group(find_entries([tmp_path])))["attack"]}
    assert rows["clean"]["differences"] == ["+0.0 ± 0.0, n = 2"]
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d, n = 2", rows["FGSM 10/255"]["cells"][0])


def test_what_differs_stands_apart(folder, tmp_path):
    """One name, two protocols: two rows, that say in what they differ."""
    for restarts in (1, 2):
        run(
            "attack",
            *arguments(folder),
            "--attacks pgd --eps 20/255 --steps 2 --restarts",
            restarts,
            "--limit 60 --checks 4 --label m --output",
            tmp_path / str(restarts),
        )
    run(
        "attack",
        *arguments(folder),
        "--attacks pgd --eps 20/255 --targeted --limit 60 --checks 4 --label m --output",
        tmp_path / "targeted",
    )
    models = group(find_entries([tmp_path]))
    rows = [row["name"] for row in tables(models)["attack"]]
    assert rows == ["clean", "PGD-2 20/255 (restarts=1)", "PGD-2 20/255 (restarts=2)", "PGD-20 targeted 20/255"]
    (figure,) = draw_report_curves(models)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["PGD-2, protocol 1", "PGD-2, protocol 2", "PGD-20 targeted"], "in a panel, all is of one protocol"


def test_radii_of_normalized_tensors_are_not_the_same_for_all_models(folder, tmp_path):
    """Models of other statistics take other steps on images: they do not stand in one row, and axes tell no gray levels."""
    attack = "--attacks pgd --eps 4/255 8/255 --steps 2 --space normalized --limit 40 --checks 4 --label"
    for label, std in (("a", 0.5), ("b", 0.25)):
        words = [word.replace("std: [0.5]", f"std: [{std}]") for word in arguments(folder)]
        run("attack", *words, attack, label, "--output", tmp_path / label)
    models = group(find_entries([tmp_path / "a", tmp_path / "b"]))
    rows = tables(models)["attack"]
    assert [bool(cell) for row in rows[1:] for cell in row["cells"]] == [True, False, True, False, False, True, False, True]
    assert [row["differences"] for row in rows[1:]] == [[""]] * 4
    assert rows[1]["perturbation"].endswith("by channel 2.000 gray levels")
    assert rows[3]["perturbation"].endswith("by channel 1.000 gray levels")
    (figure,) = draw_report_curves(models)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert {axes.get_xlabel() for axes in figure.axes} == {"eps (L-infinity) x 255 of normalized tensors"}


def test_means_stand_side_by_side(folder, tmp_path):
    every = "--corruptions common --severities 1 2 3 4 5 --limit 20 --frost-folder"
    for i, picture in enumerate(photographs):
        Image.fromarray(picture).save(tmp_path / FROST[i])
    for label, name, weights in (("plain", "plain_vit_tiny", "plain"), ("filter", "nlm_vit_tiny", "weights")):
        run(
            "corrupt",
            *arguments(folder, name, weights),
            every,
            tmp_path,
            "--label",
            label,
            "--output",
            tmp_path / "runs" / label,
        )
    models = group(find_entries([tmp_path / "runs" / label for label in ("plain", "filter")]))
    means = [result(tmp_path / "runs" / label)["summary"]["mean_accuracy"] for label in ("plain", "filter")]
    accuracy, error = summary_table(models)
    assert accuracy["cells"] == [f"{mean:.1f}" for mean in means]
    assert accuracy["differences"] == [f"{means[1] - means[0]:+.1f}"]
    assert error["name"] == "mean error, unnormalized"
    models = {"both": [replace(models[label][0], seed=i) for i, label in enumerate(("plain", "filter"))]}
    assert summary_table(models)[0]["cells"] == [f"{sum(means) / 2:.1f} ± {abs(means[1] - means[0]) / 2**0.5:.1f}, n = 2"]


def test_models_of_one_label_without_seeds_are_several_models(folder, tmp_path):
    for name, weights in (("plain_vit_tiny", "plain"), ("nlm_vit_tiny", "weights")):
        run(
            "attack",
            *arguments(folder, name, weights),
            "--attacks fgsm --eps 10/255 --limit 20 --checks 4 --label m --output",
            tmp_path / weights,
        )
    assert list(group(find_entries([tmp_path]))) == [f"m ({tmp_path / name})" for name in ("plain", "weights")]


def test_a_result_and_samples_of_two_evaluations_are_refused(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--attacks fgsm --eps 10/255 --limit 30 --checks 4 --output", tmp_path)
    lines = (tmp_path / "per_sample.csv").read_text().splitlines()
    (tmp_path / "per_sample.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(SystemExit):
        run("report", tmp_path, "--output", tmp_path / "r.html")
    assert "result.json and per_sample.csv must be of one evaluation" in capsys.readouterr().err


def test_interrupted_results_are_named(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--attacks fgsm --eps 10/255 --limit 30 --checks 4 --output", tmp_path)
    table, whole = tmp_path / "per_sample.csv", (tmp_path / "per_sample.csv").read_text()
    table.write_text(whole[: len(whole) // 2 + 3])
    for file, message in (
        (table, "per_sample.csv must be a whole table of per-sample results"),
        (tmp_path / "result.json", "result.json must be a JSON file"),
    ):
        content = file.read_text()
        file.write_text(content[: len(content) // 2 + 3])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run("report", tmp_path, "--output", tmp_path / "r.html")
        assert message in capsys.readouterr().err
        file.write_text(whole)
    with pytest.raises(SystemExit):
        run("report", tmp_path / "log", "--output", tmp_path / "r.html")
    assert "must hold the results of evaluate, attack, corrupt, shift or compare, got no result.json" in capsys.readouterr().err
