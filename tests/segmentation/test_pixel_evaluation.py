"""Segmenters in evaluation sessions: numbers of a plain loop, kept by picture, paired in reports."""

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
from segmented import CPU, command, session_of
from shapes import recipe_of, shapes_folder
from torch import nn

from imgproc_attn.data import SINGLE_PROCESS, World
from imgproc_attn.evaluation.conditions import attack_conditions, clean_condition
from imgproc_attn.evaluation.report import _curves_of, find_entries, group, tables
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.experiments.variants import VariantEvaluation
from imgproc_attn.segmentation import IoUMetric
from imgproc_attn.segmentation.attacks import (
    PixelFGSM,
    PixelPGD,
)
from imgproc_attn.segmentation.data import open_labeled_folder
from imgproc_attn.tasks import SegmentationTask

ABOUT = {"label": "ours", "model": "segmenter", "checkpoint": None}


def test_numbers_are_those_of_a_plain_loop(model, run, tmp_path):
    """Attacks picture by picture, areas added up, labels at their own size."""
    attacks = {"PGD 2/255": PixelPGD(2 / 255, 3, seed=1), "FGSM 2/255": PixelFGSM(2 / 255)}
    session, samples = session_of(run, tmp_path)
    task = session.task
    results = session.run([clean_condition(samples, task), *attack_conditions(samples, attacks, task)])
    pictures = open_labeled_folder(str(run.parent / "data"), "val")
    for name, attack in [("clean", None), *attacks.items()]:
        areas = IoUMetric(6)
        for i, (image, label) in enumerate(pictures):
            small = session.preprocessing.transform()(image, label)[0][None] / 255
            if attack is not None:
                small = attack.perturb(model, small, label[None], torch.tensor([i]))
            with torch.no_grad():
                areas.update(F.interpolate(model(small), size=label.shape, mode="bilinear"), label[None])
        found, expected = task.count(results[name]), areas.compute()
        assert found["pixels"] == expected["pixels"]
        for metric in task.metrics:
            assert found[metric.key] == pytest.approx(expected[metric.key], abs=0.02)  # ties of rounded interpolation
    assert results["PGD 2/255"].scores.max() <= 2 / 255 + 1e-7


def test_what_is_done_is_not_done_again_and_processes_share(model, run, tmp_path, monkeypatch):
    ours, samples = session_of(run)
    attacks = {"PGD": PixelPGD(2 / 255, 2)}
    conditions = [clean_condition(samples, ours.task), *attack_conditions(samples, attacks, ours.task)]

    def run_in(folder, world=SINGLE_PROCESS):
        runtime = Runtime(CPU, world, batch_size=1, output=folder)
        return EvaluationSession(model, ours.task, ours.preprocessing, runtime).run(conditions)

    whole = run_in(tmp_path / "whole")
    monkeypatch.setattr(EvaluationSession, "_wait", lambda self: None)
    with pytest.raises(ValueError, match="1 of 2 samples have no result"):
        run_in(tmp_path / "parts", World(1, 2))
    found = run_in(tmp_path / "parts")
    assert all(found[name].columns == whole[name].columns for name in whole)
    assert len(list((tmp_path / "parts" / "log").glob("PGD.process-*"))) == 2
    file = next((tmp_path / "whole" / "log").glob("PGD*"))
    file.write_bytes(file.read_bytes()[:-20])  # killed while writing
    assert run_in(tmp_path / "whole")["PGD"].columns == whole["PGD"].columns


def test_segmenters_are_paired_in_reports(run, tmp_path):
    """Two models on the same pictures: intervals of each metric, and of its difference."""
    other = tmp_path / "other"
    shutil.copytree(run / "last", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in weights.items()}, other / "model.safetensors")
    data = ["--data", "labeled", "--root", run.parent / "data", "--split", "val", "--short-side", 64]
    for model, label in ((run / "last", "one"), (other, "two")):
        words = ["evaluate", model, *data, "--device", "cpu", "--workers", 0, "--label", label]
        command(*words, "--output", tmp_path / "results" / label)
    entries = find_entries([tmp_path / "results"])
    (rows,) = tables(group(entries)).values()
    assert [row["metric"] for row in rows] == ["mIoU", "pixel accuracy", "mean accuracy"]
    for row, metric in zip(rows, ("miou", "pixel_accuracy", "mean_accuracy")):
        one, two = (entry.result["conditions"][0] for entry in entries)
        low, high = one["intervals"][metric]
        assert row["cells"][0] == f"{one[metric]:.1f} ({low:.1f} to {high:.1f})"
        mean, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row["differences"][0]).groups())
        assert mean == pytest.approx(two[metric] - one[metric], abs=0.05)
        assert low <= mean <= high


def test_lost_draws_are_named(run, tmp_path):
    words = ["evaluate", run, "--device", "cpu", "--workers", 0, "--output", tmp_path]
    command(*words)
    file = tmp_path / "bootstrap.csv"
    whole = file.read_text()
    for content in (whole[: len(whole) // 3], whole.replace("1", "x"), ""):
        file.write_text(content)
        with pytest.raises(ValueError, match="bootstrap.csv .*un the evaluation again"):
            find_entries([tmp_path])
    file.unlink()
    with pytest.raises(ValueError, match="bootstrap.csv must hold values of clean, got none"):
        find_entries([tmp_path])
    command(*words)
    assert find_entries([tmp_path])


def test_sizes_of_pictures_do_not_make_models(run, tmp_path):
    """One model at two sizes is one; curves begin where pictures are looked at alike."""
    common = ["--device", "cpu", "--workers", 0]
    for size in (64, 48):
        command("evaluate", run, *common, "--short-side", size, "--output", tmp_path / f"{size}")
    assert len(group(find_entries([tmp_path]))) == 1
    attack = ["attack", run, *common, "--attacks", "fgsm", "--eps", "1/255", "--checks", 1]
    for window in ("whole", 32):
        command(*attack, "--window", window, "--output", tmp_path / f"w{window}")
    entries = find_entries([tmp_path / "wwhole", tmp_path / "w32"])
    starts = [entry.result["conditions"][0]["miou"] for entry in entries]
    assert starts[0] != starts[1]
    panels = _curves_of(group(entries), "miou", "mIoU / %").axes
    assert [panel.lines[0].get_ydata()[0] for panel in panels] == pytest.approx(starts)


def test_models_of_a_comparison_keep_their_own_statistics(run, tmp_path):
    """Those they were trained with, whatever the first one's are."""
    recipe = recipe_of(run.parent / "data")
    evaluation = VariantEvaluation(recipe, "cpu")
    inner = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True)
    inner.pretrained_cfg = {**inner.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert evaluation.wrap(inner).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_clean_numbers_are_of_all_pictures_whatever_is_perturbed(run, model, tmp_path):
    recipe = recipe_of(run.parent / "data", "evaluation.num_perturbed=1", "evaluation.pgd=[1/255]", "evaluation.pgd_steps=2")
    evaluation = VariantEvaluation(recipe, "cpu")
    assert "2 held-out images. A random subset of 1 images is attacked and corrupted" in evaluation.description
    found = evaluation(model, tmp_path, lambda text: None, ABOUT).metrics["miou"]
    assert list(found)[:3] == ["clean", "clean, perturbed images", "PGD-2 1/255"]
    sizes = {condition.name: len(condition.samples) for condition in evaluation.conditions}
    assert sizes.pop("clean") == 2
    assert set(sizes.values()) == {1}
    everything = VariantEvaluation(recipe_of(run.parent / "data"), "cpu")
    whole = everything(model, tmp_path / "whole", lambda text: None, ABOUT)
    assert whole.metrics["miou"]["clean"] == found["clean"] != found["clean, perturbed images"]


def test_scorers_refuse(model):
    images, labels = torch.rand(1, 3, 64, 64) * 3, torch.zeros(1, 64, 64, dtype=torch.long)
    task = SegmentationTask(6)
    for scorer in (task.clean, task.under(PixelFGSM(0.1))):
        with pytest.raises(ValueError, match=r"Images must be in \[0, 1\]"):
            scorer(model, images, labels, torch.arange(1))
        with pytest.raises(ValueError, match="training mode"):
            scorer(nn.Conv2d(3, 6, 1).train(), images / 3, labels, torch.arange(1))
    with pytest.raises(ValueError, match="Labels must be from 0 to 5 with 6 classes, got 0 to 9"):
        task.clean(model, images / 3, labels + torch.tensor([0, 9]).repeat(32), torch.arange(1))


def test_a_picture_without_labels_counts_nowhere(run, tmp_path):
    """It is read, and has nothing to say; here timm's collation would make its 255 a -1."""
    root = shapes_folder(tmp_path / "data")
    Image.fromarray(np.full((300, 451), 255, np.uint8)).save(root / "annotations" / "val" / "a.png")
    command("evaluate", run, "--root", root, "--device", "cpu", "--workers", "0", "--output", tmp_path / "out")
    (clean,) = json.loads((tmp_path / "out" / "result.json").read_text())["conditions"]
    assert (clean["n"], clean["unreadable"]) == (2, [])
    shares = {row["image"]: row["clean"] for row in csv.DictReader((tmp_path / "out" / "per_sample.csv").open())}
    assert shares["a.jpg"] == "nan"
    assert float(shares["b.jpg"]) == pytest.approx(clean["pixel_accuracy"] / 100, abs=1e-4)
