"""Segmentation under attack and corrupted: losses by hand, the evaluator's numbers against plain loops, commands."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photographs
from test_segmentation import label_map, recipe_of, shapes_folder
from torch import nn

from imgproc_attn import cli
from imgproc_attn.data import ALONE, Processes
from imgproc_attn.evaluation import NormalizedModel, ThreatModel
from imgproc_attn.evaluation.assessment import Assessment, Place
from imgproc_attn.evaluation.evaluator import Evaluator
from imgproc_attn.evaluation.presets import build_attacks
from imgproc_attn.evaluation.report import _curves_of, find_entries, group, tables
from imgproc_attn.evaluation.robustness import attack_conditions
from imgproc_attn.evaluation.subject import Subject
from imgproc_attn.examination import PixelExamination
from imgproc_attn.segmentation import Areas, Windowed, segment, sliding_strips
from imgproc_attn.segmentation.attacks import (
    PIXEL_ATTACKS,
    PixelFGSM,
    PixelPGD,
    SegPGD,
    pixel_cross_entropy,
    wrong_pixels_weighted,
)
from imgproc_attn.segmentation.data import open_labelled_folder
from imgproc_attn.segmentation.inference import classes_of
from imgproc_attn.segmentation.measure import PixelMeasure, PixelsAsGiven, PixelsUnderAttack, Windows
from imgproc_attn.segmentation.metrics import bootstrap, count_areas, metrics_of
from imgproc_attn.segmentation.palettes import palette_of
from imgproc_attn.segmentation.source import PictureSource
from imgproc_attn.training import train
from imgproc_attn.training.checkpoints import save_weights

CPU = torch.device("cpu")
CLASSIFIER = {"num_classes": 6, "depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run: two photographs, their grey levels for classes, and a small filter segmenter trained on them."""
    place = tmp_path_factory.mktemp("run")
    recipe = recipe_of(shapes_folder(place / "data"), "optimiser.lr=3e-3").variant("bilateral + twicing", 0)
    train(recipe, place / "run", "cpu", say=lambda line: None)
    return place / "run"


@pytest.fixture(scope="module")
def model(run):
    inner = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True)
    return NormalizedModel(inner).eval()


def assessment(run, output, **options):
    source = PictureSource("labelled", str(run.parent / "data"), "val", short_side=64, **options)
    return Assessment(Subject(str(run)), source, Place(output, CPU, batch_size=1, workers=0))


# --- losses


def test_losses_are_of_labelled_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7, dtype=torch.float64), torch.randint(5, (2, 6, 7))
    labels[0, :2] = 255
    for b in range(2):
        rows = [(i, j) for i in range(6) for j in range(7) if labels[b, i, j] != 255]
        losses = torch.stack([-logits[b, :, i, j].log_softmax(0)[labels[b, i, j]] for i, j in rows])
        right = torch.tensor([logits[b, :, i, j].argmax() == labels[b, i, j] for i, j in rows])
        torch.testing.assert_close(pixel_cross_entropy(logits, labels)[b], losses.mean())
        weighted = torch.where(right, 0.7, 0.3) * losses
        torch.testing.assert_close(wrong_pixels_weighted(0.3, logits, labels)[b], weighted.mean())
    assert (pixel_cross_entropy(logits, torch.full_like(labels, 255)) == 0).all()


def test_losses_enlarge_logits_to_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 5, 6, 7), torch.randint(5, (1, 12, 14))
    large = F.interpolate(logits, size=(12, 14), mode="bilinear")
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), F.cross_entropy(large, labels)[None])


def test_segpgd_turns_from_right_pixels_to_all():
    attack = SegPGD(0.1, 4)
    assert [attack.objective_at(step).args[0] for step in range(4)] == [0, 1 / 8, 2 / 8, 3 / 8]


@pytest.fixture
def pointwise():
    """Two classes, each pixel by itself: the worst change is known."""
    torch.manual_seed(0)
    return NormalizedModel(nn.Conv2d(3, 2, 1), [0.5] * 3, [0.5] * 3).eval()


@pytest.mark.parametrize("attack", [PixelFGSM(0.01), PixelPGD(0.01, 20), SegPGD(0.01, 20), PixelPGD(0.01, 20, restarts=2)])
def test_two_classes_in_closed_form(pointwise, attack):
    """Away from the box each labelled pixel moves by eps against its class; ignored ones get no gradient."""
    images, labels = torch.rand(2, 3, 9, 8) * 0.8 + 0.1, torch.randint(2, (2, 9, 8))
    labels[:, :2] = 255
    direction = (pointwise.model.weight[1] - pointwise.model.weight[0])[:, 0, 0].sign()
    sign = torch.where(labels == 0, 1.0, -1.0)[:, None] * direction[:, None, None]
    expected = torch.where((labels == 255)[:, None], images, images + 0.01 * sign)
    judged = PixelsUnderAttack(attack)(pointwise, images, labels, torch.arange(2))
    kept = (labels != 255)[:, None].expand_as(images)
    torch.testing.assert_close(judged.images[kept], expected[kept], rtol=0, atol=1e-6)
    assert (judged.images >= images - 0.01).all()
    assert (judged.images <= images + 0.01).all()
    if isinstance(attack, PixelFGSM):
        assert torch.equal(judged.images[~kept], images[~kept])


def test_attacks_refuse():
    for name, (_, kind) in PIXEL_ATTACKS.items():
        for threat in (ThreatModel(0.1, targeted=True), ThreatModel.normalized(0.1)):
            with pytest.raises(ValueError, match="are of classifiers"):
                kind(threat)
        assert next(iter(build_attacks([name], [ThreatModel(1 / 255)], 5, 0, PIXEL_ATTACKS))).endswith(" 1/255")
    with pytest.raises(ValueError, match="There is no attack 'square'; there are fgsm, pgd, mifgsm, segpgd"):
        build_attacks(["square"], [ThreatModel(0.1)], 5, 0, PIXEL_ATTACKS)


def test_of_restarts_the_worst_counts(model, run):
    ours = assessment(run, None)
    images, labels, ids = next(ours.samples().batches(ours.preparation, 1, 0, CPU))
    alone = [_right(model, images, labels, ids, PixelPGD(0.01, 2, seed=0), restart) for restart in range(3)]
    assert len(set(alone)) > 1
    attack = PixelPGD(0.01, 2, restarts=3, seed=0)
    assert PixelsUnderAttack(attack)(model, images, labels, ids).areas[0, 0].sum() == min(alone)
    found = attack(model, images, labels, ids)
    assert found.success.all(), "called like any attack, it says what it did"
    assert _right_of(model, found.adversarial, labels) == min(alone)


def _right(model, images, labels, ids, attack, restart):
    return _right_of(model, attack.perturb(model, images, labels, ids, restart), labels)


def _right_of(model, images, labels):
    with torch.no_grad():
        logits = F.interpolate(model(images), size=labels.shape[-2:], mode="bilinear")
    return int((logits.argmax(1) == labels)[labels != 255].sum())


# --- windows and sizes


@pytest.mark.parametrize("size", [(150, 200), (37, 33), (75, 333), (41, 50), (300, 40)])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (13, 7), (64, 64)])
def test_classes_are_those_of_interpolation(size, window, stride):
    """Strip by strip as of the whole."""
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 41, 50)
    large = F.interpolate(logits, size=size, mode="bilinear")
    first, second = large.topk(2, dim=1).values.unbind(1)
    sure = first - second > 1e-5
    assert (classes_of(logits, size) == large.argmax(1))[sure].all()
    found = segment(nn.Identity(), logits[0], window, stride, size=size)
    assert (found == large[0].argmax(0))[sure[0]].all()
    assert found.shape == size


def test_gradients_pass_windows():
    torch.manual_seed(0)
    model, image = nn.Conv2d(3, 4, 3, padding=1), torch.rand(1, 3, 20, 17, requires_grad=True)
    weights = torch.rand(1, 4, 20, 17)
    (found,) = torch.autograd.grad((Windowed(model, 8, 5)(image) * weights).sum(), image)
    total, times = torch.zeros(1, 4, 20, 17), torch.zeros(20, 17)
    for top in (0, 5, 10, 12):
        for left in (0, 5, 9):
            part = F.pad(model(image[..., top : top + 8, left : left + 8]), (left, 9 - left, top, 12 - top))
            total, times = total + part, times + F.pad(torch.ones(8, 8), (left, 9 - left, top, 12 - top))
    torch.testing.assert_close(Windowed(model, 8, 5)(image), total / times)
    (expected,) = torch.autograd.grad((total / times * weights).sum(), image)
    torch.testing.assert_close(found, expected)
    whole = Windowed(model, 64)(image)
    torch.testing.assert_close(whole, model(image))
    assert [top for top, _ in sliding_strips(model, image[0], 64, 64)] == [0]


# --- the evaluator


def test_numbers_are_those_of_a_plain_loop(model, run, tmp_path):
    """Attacks picture by picture, areas added up, labels at their own size."""
    attacks = {"PGD 2/255": PixelPGD(2 / 255, 3, seed=1), "FGSM 2/255": PixelFGSM(2 / 255)}
    ours = assessment(run, tmp_path)
    flags = ours.ask(attack_conditions(ours.samples(), attacks, ours.measure))
    pictures = open_labelled_folder(str(run.parent / "data"), "val")
    for name, attack in [("clean", None), *attacks.items()]:
        areas = Areas(6)
        for i, (image, label) in enumerate(pictures):
            small = ours.preparation.transform()(image, label)[0][None] / 255
            if attack is not None:
                small = attack.perturb(model, small, label[None], torch.tensor([i]))
            with torch.no_grad():
                areas.update(F.interpolate(model(small), size=label.shape, mode="bilinear"), label[None])
        found, expected = ours.measure.count(flags[name]), areas.compute()
        assert found["pixels"] == expected["pixels"]
        for metric in ours.measure.metrics:
            assert found[metric] == pytest.approx(expected[metric], abs=0.02)  # ties of rounded interpolation
    assert flags["PGD 2/255"].scores.max() <= 2 / 255 + 1e-7


def test_what_is_done_is_not_done_again_and_processes_share(model, run, tmp_path, monkeypatch):
    ours = assessment(run, tmp_path)
    conditions = attack_conditions(ours.samples(), {"PGD": PixelPGD(2 / 255, 2)}, ours.measure)

    def evaluator(folder, processes=ALONE):
        return Evaluator(model, ours.preparation, folder, {}, CPU, processes, batch_size=1)

    whole = evaluator(tmp_path / "whole")(conditions)
    monkeypatch.setattr(Evaluator, "_wait", lambda self: None)
    with pytest.raises(ValueError, match="1 of 2 samples have no flag"):
        evaluator(tmp_path / "parts", Processes(1, 2))(conditions)
    found = evaluator(tmp_path / "parts")(conditions)
    assert all(found[name].columns == whole[name].columns for name in whole)
    assert len(list((tmp_path / "parts").glob("PGD.process-*"))) == 2
    file = next((tmp_path / "whole").glob("PGD*"))
    file.write_bytes(file.read_bytes()[:-20])  # killed while writing
    assert evaluator(tmp_path / "whole")(conditions)["PGD"].columns == whole["PGD"].columns


def test_intervals_are_scipys():
    """Crops of a photograph, their grey levels for classes, a share of them mistaken: percentiles of redrawn pictures."""
    torch.manual_seed(0)
    labels = label_map(photographs.chelsea(), 6)[:288, :448].unfold(0, 48, 48).unfold(1, 64, 64).flatten(0, 1)
    shares = torch.rand(len(labels), 1, 1)
    predicted = torch.where(torch.rand(labels.shape) < shares, labels, labels.roll(7, 2))
    areas = torch.stack([count_areas(*pair, 6) for pair in zip(predicted, labels)])
    ours = bootstrap(areas)
    for metric in ("miou", "pixel_accuracy", "mean_accuracy"):
        theirs = scipy.stats.bootstrap(
            [range(len(areas))],
            lambda drawn, metric=metric: metrics_of(areas[drawn].sum(0))[metric],
            method="percentile",
            vectorized=False,
            n_resamples=3000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        found, width = np.percentile(ours[metric], [2.5, 97.5]), theirs.high - theirs.low
        assert np.abs(found - (theirs.low, theirs.high)).max() < 0.1 * width
        assert found[0] < metrics_of(areas.sum(0))[metric] < found[1]
    worse = torch.stack([count_areas(*pair, 6) for pair in zip(predicted.roll(1, 1), labels)])
    apart = (bootstrap(worse[torch.randperm(len(worse))])["miou"] - ours["miou"]).std()
    assert (bootstrap(worse)["miou"] - ours["miou"]).std() < 0.5 * apart, "pictures are not paired"


def test_segmenters_are_paired_in_reports(run, tmp_path):
    """Two models on the same pictures: intervals of each metric, and of its difference."""
    other = tmp_path / "other"
    shutil.copytree(run / "last", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in weights.items()}, other / "model.safetensors")
    data = ["--data", "labelled", "--root", run.parent / "data", "--split", "val", "--short-side", 64]
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


def test_weights_know_their_data_and_windows_wherever_they_are_copied(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "last", other)
    for model, output in ((run, "one"), (other, "two")):
        command("evaluate", model, "--device", "cpu", "--workers", 0, "--output", tmp_path / output)
    one, two = (json.loads((tmp_path / output / "result.json").read_text()) for output in ("one", "two"))
    assert one["conditions"] == two["conditions"]
    assert one["short_side"] == two["short_side"] == 64


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
    with pytest.raises(ValueError, match="bootstrap.csv has nothing of clean"):
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
    panels = _curves_of(group(entries), "miou").axes
    assert [panel.lines[0].get_ydata()[0] for panel in panels] == pytest.approx(starts)


def test_models_of_a_comparison_keep_their_own_statistics(run, tmp_path):
    """Those they were trained with, whatever the first one's are."""
    recipe = recipe_of(run.parent / "data")
    examination = PixelExamination(recipe, "cpu")
    inner = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True)
    inner.pretrained_cfg = {**inner.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert examination.wrap(inner).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_doubts():
    measure = PixelMeasure(("a", "b"))

    def row(family, eps, miou):
        return {"name": f"{family} {eps}", "family": family, "eps": eps, "norm": "Linf", "miou": miou}

    clean = {"name": "clean", "miou": 50.0}
    rows = [clean, row("FGSM", 1, 30.0), row("FGSM", 2, 20.0), row("PGD", 1, 25.0), row("PGD", 2, 20.3)]
    assert measure.doubt(rows, {}) == []
    found = measure.doubt([*rows[:4], row("PGD", 2, 25.6)], {})
    assert [f.check for f in found] == ["steps are weaker than one", "mIoU rises with eps"]
    assert "PGD 2 leaves 25.6 % mIoU, PGD 1 25.0 %" in found[1].message
    (found,) = measure.doubt([clean, row("FGSM L2", 1, 20.0), row("SegPGD L2", 1, 21.0)], {})
    assert found.check == "steps are weaker than one"
    (found,) = measure.doubt([clean, row("FGSM", 1, 50.6)], {})
    assert found.check == "an attack that helps"


class Rounded(nn.Module):
    """Has no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 8).round() / 8)


@pytest.mark.parametrize("window", [None, 64])
def test_checks_of_pixels(model, run, window):
    """Sums of windows are of the model's own precision; a picture without labels has no gradient, and is no sign."""
    ours = assessment(run, None, windows=Windows(window))
    batch = next(ours.samples().batches(ours.preparation, 1, 0, CPU))
    blank = (batch[0], torch.full_like(batch[1], 255), batch[2])
    threat = ThreatModel(1 / 255)
    assert ours.measure.check(model, [batch, blank], threat, 0).findings == []
    (nothing,) = ours.measure.check(model, [blank], threat, 0).findings
    assert nothing.check == "nothing to check"
    rounded = ours.measure.check(Rounded(model).eval(), [batch], threat, 0)
    assert {found.check for found in rounded.findings} == {"vanishing gradients"}
    probabilities = nn.Sequential(model, nn.Softmax(1)).eval()
    assert [found.check for found in ours.measure.check(probabilities, [batch], None, 0).findings] == ["probabilities"]


def test_judges_refuse(model):
    images, labels = torch.rand(1, 3, 64, 64) * 3, torch.zeros(1, 64, 64, dtype=torch.long)
    for judge in (PixelsAsGiven(6), PixelsUnderAttack(PixelFGSM(0.1))):
        with pytest.raises(ValueError, match="Images range from"):
            judge(model, images, labels, torch.arange(1))
        with pytest.raises(ValueError, match="training mode"):
            judge(nn.Conv2d(3, 6, 1).train(), images / 3, labels, torch.arange(1))
    with pytest.raises(ValueError, match="Labels range from 0 to 9, but with 6 classes"):
        PixelsAsGiven(6)(model, images / 3, labels + torch.tensor([0, 9]).repeat(32), torch.arange(1))


# --- commands


def command(*words):
    cli.main([str(word) for word in words])


def test_commands(run, tmp_path, capsys):
    """A run is found its own pictures, size and windows; what it says of clean pictures is what its training said."""
    command("evaluate", run, "--device", "cpu", "--workers", 0, "--output", tmp_path / "evaluate")
    said = json.loads((tmp_path / "evaluate" / "result.json").read_text())
    trained = json.loads((run / "final.json").read_text())["test"]
    (clean,) = said["conditions"]
    assert (clean["miou"], clean["pixels"]) == (pytest.approx(trained["miou"], abs=1e-3), trained["pixels"])
    rows = list(csv.reader((tmp_path / "evaluate" / "per_class.csv").open()))
    assert [row[0] for row in rows[1:]] == [f"class {i}" for i in range(6)]
    assert float(rows[1][1]) == pytest.approx(trained["iou"][0])
    common = ["--device", "cpu", "--workers", "0", "--checks", "1"]
    attack = ["attack", run, *common, "--attacks", "fgsm", "segpgd", "--eps", "1/255", "4/255", "--steps", "2"]
    command(*attack, "--output", tmp_path / "attack")
    attacked = {row["name"]: row for row in json.loads((tmp_path / "attack" / "result.json").read_text())["conditions"]}
    assert attacked["clean"]["miou"] == clean["miou"]
    assert attacked["SegPGD 4/255"]["pixel_accuracy"] < attacked["SegPGD 1/255"]["pixel_accuracy"] < clean["pixel_accuracy"]
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
    assert "SegPGD 4/255" in capsys.readouterr().out


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
        with torch.no_grad():
            expected = F.interpolate(model(small), size=labels.shape, mode="bilinear").argmax(1)[0].numpy()
        assert (labels == expected).mean() > 0.999
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
        (["segment", "nowhere", "--checkpoint", "RUN"], "nowhere is no picture, and no folder with any"),
        (["attack", "RUN", "--attacks", "square", "--eps", "1/255"], "There is no attack 'square'; there are fgsm"),
        (["attack", "RUN", "--preset", "robustbench-linf"], "--preset robustbench-linf is not for this model; there are grid"),
        (["attack", "RUN", "--attacks", "fgsm", "--eps", "1/255", "--space", "normalized"], "are of classifiers"),
        (["attack", "RUN", "--attacks", "fgsm", "--eps", "1/255", "--batch-size", "2"], "different sizes make no batch"),
        (["evaluate", "RUN", "--window", "32", "--stride", "40"], "The stride is 40, but must be from 1 to the window, 32"),
        (["segment", "DATA", "--checkpoint", "RUN", "--stride", "40"], "The stride is 40, but there are no windows"),
        (["evaluate", "RUN", "--scales", "-1", "0"], "The scales are .* must be positive"),
        (["evaluate", "RUN", "--classes", "imagenet", "--crop-pct", "0.9"], "--classes and --crop-pct are for classifiers"),
        (["evaluate", "RUN", "--data", "folder", "--root", "SIX"], "not a label an image"),
        (["attack", "RUN", "--data", "folder", "--root", "SIX", "--attacks", "fgsm", "--eps", "1/255"], "not a label an image"),
        (["attack", "RUN", "--root", "OTHER"], "The val split has 5 classes, but 6 are expected"),
        (["evaluate", "RUN", "--root", "DATA", "--split", ""], "holds no pictures, but train, val; name one of them"),
        (["evaluate", "CLASSIFIER", "--data", "camvid"], "--data camvid reads from a place: give --root"),
        (["evaluate", "RUN", "--data", "camvid", "--root", "DATA"], "CamVid has no pictures but in its splits; name train"),
        (
            ["evaluate", "CLASSIFIER", "--data", "labelled", "--root", "DATA", "--split", "val"],
            "gives no label a pixel, which label maps are for",
        ),
        (["corrupt", "RUN", "--files"], "which have no label maps"),
        (
            ["evaluate", "CLASSIFIER", "--root", "SIX", "--window", "32", "--scales", "0.5", "1"],
            "--window and --scales are for segmenters; the labels of 'folder' are not of pixels",
        ),
        (["segment", "DATA", "--checkpoint", "CLASSIFIER"], "gives no label a pixel; name a segmenter's run"),
        (["segment", "DATA", "--checkpoint", "vit_tiny_patch16_224"], "is no folder; name that of a run"),
        (["segment", "TWICE", "--checkpoint", "RUN"], "Several pictures have one name"),
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
    names["CLASSIFIER"] = str(tmp_path / "classifier")
    with pytest.raises(SystemExit):
        command(*(names.get(word, word) for word in words), "--device", "cpu", "--output", tmp_path / "out")
    assert re.search(message, capsys.readouterr().err)


def test_logits_must_be_finite():
    class Broken(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * float("nan")

    image = torch.rand(1, 3, 8, 8)
    for look in (
        lambda m: segment(m, image[0]),
        lambda m: segment(m, image[0], scales=(1.0, 2.0)),
        lambda m: Windowed(m, 4)(image),
    ):
        with pytest.raises(FloatingPointError, match="not finite"):
            look(Broken(3, 2, 1))


def test_results_are_not_segmented_again(run, tmp_path, monkeypatch):
    """Where they lie below the pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    monkeypatch.chdir(tmp_path)
    for place in ("pictures/out", folder / "out"):  # one and the same
        command("segment", folder, "--checkpoint", run, "--device", "cpu", "--output", place)
    assert [file.name for file in (folder / "out").rglob("*.png")] == ["a.png", "a.png"]


def test_a_picture_without_labels_counts_nowhere(run, tmp_path):
    """It is read, and has nothing to say; here timm's collation would make its 255 a -1."""
    root = shapes_folder(tmp_path / "data")
    Image.fromarray(np.full((300, 451), 255, np.uint8)).save(root / "annotations" / "val" / "a.png")
    command("evaluate", run, "--root", root, "--device", "cpu", "--workers", "0", "--output", tmp_path / "out")
    (clean,) = json.loads((tmp_path / "out" / "result.json").read_text())["conditions"]
    assert (clean["n"], clean["unreadable"]) == (2, [])
    shares = {row["image"]: row["clean"] for row in csv.DictReader((tmp_path / "out" / "flags.csv").open())}
    assert shares["a.jpg"] == "nan"
    assert float(shares["b.jpg"]) == pytest.approx(clean["pixel_accuracy"] / 100, abs=1e-4)


def test_palettes():
    names = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
    assert palette_of(names)[3].tolist() == [128, 64, 128]
    ade = palette_of(["wall", *(f"{i}" for i in range(149))])
    assert (ade[0].tolist(), ade[-1].tolist()) == ([120, 120, 120], [92, 0, 255])
    many = palette_of([f"class {i}" for i in range(200)])
    assert len(np.unique(many, axis=0)) == 200
