"""The robustness commands on real images: flags that survive kills, protocols that do not mix, files others wrote."""

import contextlib
import csv
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from digits import SMALL, tensors, trained
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from sklearn.metrics import precision_recall_curve

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn import cli
from imgproc_attn.data import Digits, Images, Preparation, Processes
from imgproc_attn.evaluation import FGSM, L2_NORM, PGD, NormalizedModel, ThreatModel
from imgproc_attn.evaluation.classes import class_map, classes_of
from imgproc_attn.evaluation.conditions import AsPublished, Condition, UnderAttack, judge_of, targets_of
from imgproc_attn.evaluation.evaluator import Evaluator
from imgproc_attn.evaluation.imagenet_c import COMMON, EXTRA, ImageNetC
from imgproc_attn.evaluation.imagenet_c.errors import ALEXNET_ERRORS, corruption_summary
from imgproc_attn.evaluation.measures import LabelMeasure
from imgproc_attn.evaluation.presets import ATTACKS, PRESETS, build_attacks
from imgproc_attn.evaluation.report import _curves as draw_report_curves
from imgproc_attn.evaluation.report import find_entries, group, tables
from imgproc_attn.evaluation.results import cautions
from imgproc_attn.evaluation.robustness import attack_conditions, check_threat
from imgproc_attn.evaluation.samples import Samples
from imgproc_attn.evaluation.shifts import area_under_precision_recall
from imgproc_attn.evaluation.statistics import mean_and_std
from imgproc_attn.records import describe

LABELS = LabelMeasure(10)
PREPARATION = Preparation((1, 8, 8), (0.5,), (0.5,), "bilinear", 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of a small filter model trained on digits, as the commands take them."""
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = trained(NormalizedModel(timm.create_model("nlm_vit_tiny", **SMALL), [0.5], [0.5])).model
    save_file(model.state_dict(), place / "weights.safetensors")
    torch.manual_seed(1)
    other = trained(NormalizedModel(timm.create_model("plain_vit_tiny", **SMALL), [0.5], [0.5])).model
    save_file(other.state_dict(), place / "plain.safetensors")
    return place


@pytest.fixture(scope="module")
def model(folder):
    model = timm.create_model("nlm_vit_tiny", **SMALL, checkpoint_path=str(folder / "weights.safetensors"))
    return NormalizedModel(model, [0.5], [0.5]).eval()


@pytest.fixture
def samples():
    return Samples(Images(Digits("test"), 10, channels=1))


def evaluator(model, folder, **options):
    return Evaluator(model, PREPARATION, folder, {"weights": "these"}, torch.device("cpu"), **options)


OPTIONS = [f"{key}={value}" for key, value in {**SMALL, "mean": [0.5], "std": [0.5]}.items() if key not in ("mean", "std")]


def arguments(folder, name="nlm_vit_tiny", weights="weights"):
    return [
        name,
        *OPTIONS,
        "pretrained_cfg_overlay={mean: [0.5], std: [0.5], input_size: [1, 8, 8], crop_pct: 1.0}",
        "--checkpoint",
        str(folder / f"{weights}.safetensors"),
        "--data",
        "digits",
        "--split",
        "test",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]


def run(command, *rest):
    """The command; what begins with dashes may hold several words."""
    cli.main([command, *(word for part in map(str, rest) for word in (part.split() if part.startswith("--") else [part]))])


def result(folder):
    return json.loads((folder / "result.json").read_text())


# --- flags


def test_flags_are_the_attacks_own_whatever_the_batch(model, samples, tmp_path):
    conditions = attack_conditions(samples, {"PGD 20/255": PGD(20 / 255, 5, restarts=2, seed=3)}, LABELS)
    found = [evaluator(model, tmp_path / str(size), batch_size=size)(conditions) for size in (360, 50)]
    images, labels = tensors("test")
    ids = samples.ids
    assert torch.equal(found[0]["clean"].correct, model(images).argmax(1) == labels)
    expected = PGD(20 / 255, 5, restarts=2, seed=3)(model, images, labels, ids)
    assert 0.1 < expected.success.double().mean() < 0.9
    for flags in found:
        assert (flags["PGD 20/255"].correct == ~expected.success).double().mean() > 0.997
        assert torch.equal(flags["PGD 20/255"].labels, labels)
        assert flags["PGD 20/255"].scores.max() <= 20 / 255 + 2**-24  # a rounding of x + eps


def test_a_subset_has_the_flags_it_has_in_the_whole(model, samples, tmp_path):
    attack = {"PGD": PGD(20 / 255, 5)}
    whole = evaluator(model, tmp_path / "whole")(attack_conditions(samples, attack, LABELS))["PGD"]
    few = Samples(Images(Digits("test"), 10, [3, 50, 200], channels=1))
    part = evaluator(model, tmp_path / "part")(attack_conditions(few, attack, LABELS))["PGD"]
    assert part.ids.tolist() == [3, 50, 200]
    assert torch.equal(part.correct, whole.correct[[3, 50, 200]])


def test_what_is_done_is_not_done_again(model, samples, tmp_path):
    class Counting(torch.nn.Module):
        seen = 0

        def forward(self, images):
            Counting.seen += len(images)
            return model(images)

    conditions = [Condition("clean", samples)]
    first = evaluator(Counting().eval(), tmp_path, batch_size=100)(conditions)["clean"]
    file = next(tmp_path.glob("clean*"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:70])  # two batches, and half a line
    Counting.seen = 0
    again = evaluator(Counting().eval(), tmp_path, batch_size=100)(conditions)["clean"]
    assert Counting.seen == 160
    assert torch.equal(first.ids, again.ids)
    assert first.columns == again.columns
    assert [len(json.loads(line).get("ids", [])) for line in file.read_text().splitlines()] == [0, 100, 100, 100, 60]


def test_other_images_of_equal_names_are_refused(model, tmp_path):
    class Renamed(Digits):
        def _filename(self, index, basename=False, absolute=False):
            return f"test-{index}"

    first, second = (Samples(Images(Renamed("test", seed), 10, channels=1)) for seed in (0, 1))
    evaluator(model, tmp_path)([Condition("clean", first)])
    with pytest.raises(ValueError, match="another protocol.*images.content_sha256"):
        evaluator(model, tmp_path)([Condition("clean", second)])
    assert first.names == second.names


def test_names_are_told_apart(model, tmp_path):
    class Repeated(Digits):
        def _filename(self, index, basename=False, absolute=False):
            return f"{index % 300}.png"

    names = Samples(Images(Repeated("test"), 10, channels=1)).names
    assert len(set(names)) == 360
    assert (names[5], names[200]) == ("5.png#5", "200.png")


def test_another_protocol_is_refused(model, samples, tmp_path):
    evaluator(model, tmp_path)([Condition("A", samples, UnderAttack(FGSM(0.1)))])
    with pytest.raises(ValueError, match=r"another protocol.*condition.judge.attack.threat.eps: 0.1 -> 0.2"):
        evaluator(model, tmp_path)([Condition("A", samples, UnderAttack(FGSM(0.2)))])
    fewer = Samples(Images(Digits("test"), 10, range(100), channels=1))
    with pytest.raises(ValueError, match="images.n: 360 -> 100"):
        evaluator(model, tmp_path)([Condition("A", fewer, UnderAttack(FGSM(0.1)))])
    with pytest.raises(ValueError, match="names of their own"):
        evaluator(model, tmp_path)([Condition("A", samples), Condition("A", samples)])


def test_a_damaged_file_is_named(model, samples, tmp_path):
    evaluator(model, tmp_path, batch_size=100)([Condition("clean", samples)])
    file = next(tmp_path.glob("clean*"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    with pytest.raises(ValueError, match=r"clean.process-0.jsonl is no file of flags, or damaged.*Remove it"):
        evaluator(model, tmp_path)([Condition("clean", samples)])


def test_processes_share_a_folder(model, samples, tmp_path, monkeypatch):
    """What two processes leave is one set of flags, for any number of processes that go on with it."""
    conditions = attack_conditions(samples, {"PGD": PGD(20 / 255, 3)}, LABELS)
    alone = evaluator(model, tmp_path / "alone")(conditions)
    monkeypatch.setattr(Evaluator, "_wait", lambda self: None)
    together = tmp_path / "together"
    with pytest.raises(ValueError, match="180 of 360 samples have no flag.*All processes must see one folder"):
        evaluator(model, together, processes=Processes(1, 2))(conditions)
    found = evaluator(model, together)(conditions)
    assert len(list(together.glob("PGD*"))) == 2
    assert all(torch.equal(alone[name].correct, found[name].correct) for name in alone)


SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
from imgproc_attn import cli
import imgproc_attn.evaluation.robustness, imgproc_attn.evaluation.presets, imgproc_attn.training.run
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        sys.stderr = open(os.devnull, "w")
        cli.main(json.loads(line))
        os._exit(0)
    print(json.dumps(child), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps(status), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_nothing_is_lost_or_done_twice(folder, tmp_path):
    job = ["attack", *arguments(folder), "--attacks", "fgsm", "pgd", "--eps", "20/255", "--checks", "8", "--batch-size", "16"]
    rng = random.Random(0)
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def attempt(output, patience):
            print(json.dumps([*job, "--output", str(output)]), file=server.stdin, flush=True)
            child = json.loads(server.stdout.readline())
            if patience is not None:
                time.sleep(patience)
                with contextlib.suppress(ProcessLookupError):  # it was done
                    os.kill(child, signal.SIGKILL)
            start = time.perf_counter()
            return json.loads(server.stdout.readline()), time.perf_counter() - start

        status, length = attempt(tmp_path / "whole", None)
        assert status == 0
        killed = [tmp_path / "killed-0"]
        kills = 0
        while kills < 12:
            status, _ = attempt(killed[-1], rng.uniform(0.05, 0.5) * length)
            assert status in (0, signal.SIGKILL)
            if status == signal.SIGKILL:
                kills += 1
            else:  # it was done before: the next attempts begin anew, and sooner
                killed.append(tmp_path / f"killed-{len(killed)}")
                length *= 0.8
        assert attempt(killed[-1], None)[0] == 0
        server.stdin.close()
    for folder in killed:
        assert (tmp_path / "whole" / "flags.csv").read_bytes() == (folder / "flags.csv").read_bytes()
        assert result(tmp_path / "whole")["conditions"] == result(folder)["conditions"]
        for file in (folder / "flags").iterdir():
            ids = [i for line in file.read_text().splitlines()[1:] for i in json.loads(line)["ids"]]
            assert sorted(ids) == sorted(set(ids))


# --- judges


def test_the_papers_convention_is_theirs(model, samples):
    """FGSM and PGD as cleverhans has them, by hand: normalised tensors, own predictions, no range, the last point."""
    images, _ = tensors("test")
    normalized = ((images - 0.5) / 0.5).requires_grad_()
    inner, eps = model.model, 0.3
    own = inner(normalized).argmax(1)
    gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(inner(normalized), own, reduction="sum"), normalized)[0]
    labels = torch.arange(10).repeat(36)  # which are right does not matter to what is attacked
    with torch.no_grad():
        judged = AsPublished(FGSM(ThreatModel.normalized(eps)))(model, images, labels, samples.ids)
        expected = (normalized + eps * gradient.sign()).detach()
        torch.testing.assert_close(judged.images, expected)
        assert judged.images.max() > 1.2, "nothing is cut off"
        assert torch.equal(judged.correct, inner(expected).argmax(1) == labels)
    assert ThreatModel.normalized(1 / 255).pixel_eps([0.229, 0.224, 0.225]) == pytest.approx(
        [0.000898, 0.000878, 0.000882], rel=1e-3
    )
    assert isinstance(judge_of(PGD(ThreatModel.normalized(0.1), 20, 0.015)), AsPublished)
    with pytest.raises(ValueError, match="single attacks of one start"):
        judge_of(PGD(ThreatModel.normalized(0.1), restarts=2))


def test_targets_are_other_classes_and_belong_to_the_sample(model, samples):
    images, labels = tensors("test")
    targets = targets_of(labels, samples.ids, 10)
    assert (targets != labels).all()
    assert len(targets[labels == 3].unique()) == 9
    assert torch.equal(targets_of(labels[5:9], samples.ids[5:9], 10), targets[5:9])
    with torch.no_grad():
        judged = UnderAttack(PGD(ThreatModel(0.1, targeted=True), 10))(model, images, labels, samples.ids)
        reached = model(judged.images).argmax(1) == targets
        assert torch.equal(judged.correct, (model(images).argmax(1) == labels) & ~reached)
    easier = UnderAttack(PGD(ThreatModel(0.1), 10))(model, images, labels, samples.ids)
    assert judged.correct.sum() > easier.correct.sum()


def test_attacks_by_name():
    threats = [ThreatModel(1 / 255), ThreatModel(4 / 255)]
    attacks = build_attacks(["fgsm", "pgd", "square"], threats, 10, seed=7, steps=13, queries=50)
    assert list(attacks) == ["FGSM 1/255", "FGSM 4/255", "PGD 1/255", "PGD 4/255", "Square 1/255", "Square 4/255"]
    assert (attacks["PGD 4/255"].steps, attacks["PGD 4/255"].seed, attacks["Square 1/255"].queries) == (13, 7, 50)
    for names, classes, options, message in [
        (["pdg"], 10, {}, "no attack 'pdg'; there are fgsm"),
        (["fgsm"], 10, {"steps": 3}, "None of fgsm has a setting steps"),
        (["apgd-dlr"], 2, {}, "needs 3 classes, but the model has 2"),
        (["apgd-t"], 3, {}, "needs 4 classes, but the model has 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_attacks(names, threats, classes, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_attack(name, model, samples):
    """Each builds for its classes, and each of its attacks has a judge and a cost."""
    attacks = PRESETS[name].build(10, 0)
    assert attacks
    assert len({attack.threat.space for attack in attacks.values()}) == 1
    for condition in attack_conditions(samples, attacks, LABELS):
        assert condition.judge.passes.forward >= 1
        json.dumps(condition.settings)


def test_costs_are_those_of_a_sample_that_withstands(model):
    """Passes are counted on a model that nothing fools."""

    class Constant(torch.nn.Module):
        calls = 0

        def forward(self, images):
            Constant.calls += len(images)
            return (
                torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10)
                + 0 * images.mean((1, 2, 3))[:, None]
            )

    constant, image, label = Constant().eval(), torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    settings = {"steps": 7, "queries": 9, "samples": 4, "restarts": 2, "targets": 2, "start_at_random": True}
    for name in ATTACKS:
        own = {k: v for k, v in settings.items() if k in ATTACKS[name][1].__dataclass_fields__}
        attack = build_attacks([name], [ThreatModel(0.1)], 10, **own).popitem()[1]
        Constant.calls = 0
        attack(constant, image, label)
        assert Constant.calls == attack.passes.forward, name


# --- the attack command


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
    assert [row["name"] for row in found["conditions"]] == ["clean", "FGSM 10/255", "FGSM 20/255", "PGD 10/255", "PGD 20/255"]
    assert found["conditions"][1]["images"]["n"] == 100
    assert len(found["conditions"][1]["images"]["names_sha256"]) == 64
    assert "| clean | " in printed
    assert "| 100 |" in printed
    assert ("saturation on 20 images: no finding" in printed) == (not found["findings"])
    rows = list(csv.DictReader((out / "flags.csv").open()))
    assert len(rows) == 100
    for row in found["conditions"]:
        assert row["correct"] == sum(int(r[row["name"]]) for r in rows), "every number is a count of flags"
        assert row["range"][0] >= 0
        assert row["range"][1] <= 1
    assert found["conditions"][4]["judge"]["attack"]["steps"] == 5
    assert found["conditions"][4]["largest_perturbation"] == pytest.approx(20 / 255, rel=1e-5)
    for picture in ("curves.png", "gallery.png"):
        assert Image.open(out / picture).size[0] > 200
    assert found["environment"]["versions"]["torch"] == torch.__version__
    run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "10/255", "--limit", 100, "--output", out)
    with pytest.raises(SystemExit):
        run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "10/255", "--limit", 90, "--output", out)
    assert "flags of another protocol" in capsys.readouterr().err
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
    seen = {int(row["image"].split("-")[1]) for row in csv.DictReader((tmp_path / "out" / "flags.csv").open())}
    assert len(seen) == 70
    assert not seen & set(map(int, Digits("train", 4)._ids))
    assert result(tmp_path / "out")["training_seed"] == 3
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert result(tmp_path / "out")["conditions"][0]["accuracy"] == pytest.approx(final["test"]["top1"], abs=1.5)


def test_restart_forgets_nothing_before_all_is_well(folder, tmp_path, capsys):
    attack = ["attack", *arguments(folder), "--limit", 20, "--checks", 4, "--attacks", "fgsm", "--output", tmp_path]
    run(*attack, "--eps", "0.1")
    with pytest.raises(SystemExit):
        run(*attack, "--eps", "0", "--restart")
    assert list((tmp_path / "flags").iterdir())
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
    from imgproc_attn.evaluation.subject import Subject

    options = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10}
    weights = save(tmp_path, "vit_tiny_patch16_224", **options)
    model, preparation = Subject("vit_tiny_patch16_224", weights, options=options).build()
    assert preparation.input_size == (1, 32, 32)
    assert NormalizedModel(model, preparation.mean, preparation.std).eval()(torch.rand(1, 1, 32, 32)).shape == (1, 10)


def test_dry_run_does_nothing(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--preset", "robustbench-cifar-linf", "--dry-run", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "not AutoAttack" in printed
    passes = re.search(r"ensemble 8/255 +360 +(\d+) +(\d+)", printed)
    assert (int(passes[1]), int(passes[2])) == (103 + 1 + 9 * 103 + 5002, 101 + 9 * 101)
    assert "estimated: at most" in printed
    assert not (tmp_path / "out").exists()
    run("corrupt", *arguments(folder), "--corruptions", "all", "--dry-run", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Without --frost-folder, frost is left out" in printed
    assert len(re.findall(r"_?\w+ [1-5] +360 ", printed)) == 18 * 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--attacks", "fgsm", "--eps", "0"], "eps is 0.0, but must be positive"),
        (["--attacks", "fgsm", "--eps", "8"], "8 grey levels are eps=8/255"),
        (["--attacks", "fgsm", "--eps", "a/255"], "no number and no fraction"),
        (["--attacks", "fgsm"], "need radii: give --eps"),
        (["--steps", "3"], "A preset fixes its attacks"),
        (["--preset", "grid", "--attacks", "fgsm", "--eps", "0.1"], "exclude each other"),
        (["--attacks", "square", "--eps", "0.5", "--norm", "L2"], "Square is written for the L-infinity ball"),
        (["--attacks", "pdg", "--eps", "0.1"], "invalid choice: 'pdg'"),
        (["--attacks", "pgd", "--eps", "0.1", "--restarts", "0"], "restarts is 0, but must be at least 1"),
        (["--classes", "imagenet"], "imagenet is for models of|folders of its 1000 classes"),
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
    assert "has 10 classes, but 1000 are expected" in capsys.readouterr().err


def save(folder, name, **options):
    torch.manual_seed(2)
    file = folder / f"{name}.safetensors"
    save_file(timm.create_model(name, **options).state_dict(), file)
    return file


# --- corruptions


def test_corrupted_samples_are_the_corruptions(samples, tmp_path):
    corruption = ImageNetC("gaussian_noise", 3, seed=5)
    batches = list(Samples(samples.images, corruption).batches(PREPARATION, 100, 0, torch.device("cpu")))
    found, ids = torch.cat([b[0] for b in batches]), torch.cat([b[2] for b in batches])
    images, _ = tensors("test")
    assert torch.equal(found, corruption(images, ids))
    assert torch.equal(ids, samples.ids)


def test_corrupt_command(folder, tmp_path, capsys):
    run("corrupt", *arguments(folder), "--corruptions", "common", "brightness", "--limit", 40, "--output", tmp_path)
    printed = capsys.readouterr().out
    found = result(tmp_path)
    names = [row["name"] for row in found["conditions"]]
    assert names == ["clean", *(f"{name} {s}" for name in COMMON if name != "frost" for s in range(1, 6))]
    assert "mean accuracy" not in printed, "a mean of 14 is not the mean of 15"
    assert found["generated"]
    assert set(found["summary"]["per_corruption"]) == set(COMMON) - {"frost"}
    for picture in ("corruptions.png", "gallery.png"):
        assert Image.open(tmp_path / picture).size[0] > 200


def test_means_of_corruptions():
    whole = {name: dict.fromkeys(range(1, 6), 50.0) for name in COMMON}
    whole["fog"] = {1: 90.0, 2: 80.0, 3: 70.0, 4: 60.0, 5: 50.0}
    found = corruption_summary(whole, imagenet=True)
    assert found["mean_accuracy"] == pytest.approx((14 * 50 + 70) / 15)
    assert found["mean_error"] == pytest.approx(100 - (14 * 50 + 70) / 15)
    by_hand = (sum(50 / ALEXNET_ERRORS[name] for name in COMMON if name != "fog") + 30 / ALEXNET_ERRORS["fog"]) / 15
    assert found["mce_alexnet"] == pytest.approx(by_hand)
    alexnet = {name: dict.fromkeys(range(1, 6), 100 - 100 * ALEXNET_ERRORS[name]) for name in COMMON}
    assert corruption_summary(alexnet, imagenet=True)["mce_alexnet"] == pytest.approx(100)
    assert "mce_alexnet" not in corruption_summary(whole, imagenet=False)
    assert "mean_accuracy" not in corruption_summary({**whole, "fog": {1: 90.0}}, imagenet=True)
    assert corruption_summary({name: dict.fromkeys(range(1, 6), 10.0) for name in EXTRA}, True)["mean_accuracy_extra"] == 10


def crops(count, size=64):
    """Different squares of scikit-image's photographs."""
    pictures = [photographs.astronaut(), photographs.chelsea(), photographs.coffee(), photographs.rocket()]
    found = []
    for i in range(count):
        picture = pictures[i % 4]
        y, x = (37 * i) % (picture.shape[0] - size), (53 * i) % (picture.shape[1] - size)
        found.append(picture[y : y + size, x : x + size])
    return found


def class_folders(root, names, per_class=1, size=64):
    for i, picture in enumerate(crops(len(names) * per_class, size)):
        place = root / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"ILSVRC2012_val_{i + 1:08d}.png")
    return root


def test_published_imagenet_c_is_not_resized_again(tmp_path, capsys):
    """Pictures of the files' 224 pixels reach the model as they are, though it would cut the middle out of others."""
    for severity in (1, 2):
        class_folders(tmp_path / "c" / "weather" / "fog" / str(severity), ["a", "b"], 2, 224)
    weights = save(tmp_path, "vit_tiny_patch16_224", num_classes=2, depth=1)
    common = ["vit_tiny_patch16_224", "num_classes=2", "depth=1", "--checkpoint", weights, "--workers", 0, "--device", "cpu"]
    run("corrupt", *common, "--root", tmp_path / "c", "--files", "--severities", 1, 2, "--output", tmp_path / "out")
    found = result(tmp_path / "out")
    assert [row["name"] for row in found["conditions"]] == ["fog 1 (file)", "fog 2 (file)"]
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1, checkpoint_path=str(weights)).eval()
    rows = list(csv.DictReader((tmp_path / "out" / "flags.csv").open()))
    assert len(rows) == 4
    for row in rows:
        picture = np.asarray(Image.open(tmp_path / "c" / "weather" / "fog" / "1" / row["image"]))
        image = (torch.tensor(picture).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        assert int(row["fog 1 (file)"]) == int(model(image).argmax() == int(row["label"]))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path / "c", "--files", "--corruptions", "snow", "--output", tmp_path / "out2")
    assert "holds fog, but not snow" in capsys.readouterr().err


def test_published_cifar_10_c(tmp_path, capsys):
    pictures = np.stack(crops(20, 32))
    np.save(
        tmp_path / "snow.npy",
        np.concatenate([np.clip(pictures.astype(int) + 10 * s, 0, 255) for s in range(5)]).astype(np.uint8),
    )
    np.save(tmp_path / "labels.npy", np.tile(np.arange(20) % 10, 5))
    options = {"img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 32, "depth": 1, "num_heads": 2}
    weights = save(tmp_path, "nlm_vit_tiny", **options)
    common = [
        "nlm_vit_tiny",
        *(f"{k}={v}" for k, v in options.items()),
        "--checkpoint",
        weights,
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    common += ["--input-size", 3, 32, 32]
    run("corrupt", *common, "--root", tmp_path, "--files", "--severities", 3, "--output", tmp_path / "out")
    (row,) = result(tmp_path / "out")["conditions"]
    model = timm.create_model("nlm_vit_tiny", **options, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    images = (torch.tensor(np.clip(pictures.astype(int) + 20, 0, 255)).permute(0, 3, 1, 2) / 255 - mean) / std
    assert row["correct"] == int((model(images.float()).argmax(1) == torch.arange(20) % 10).sum())
    np.save(tmp_path / "snow.npy", np.zeros((7, 32, 32, 3), np.uint8))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path, "--files", "--output", tmp_path / "out2")
    assert "five severities of pictures" in capsys.readouterr().err
    (tmp_path / "snow.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path, "--files", "--output", tmp_path / "out2")
    assert "missing or cut off" in capsys.readouterr().err


# --- natural shifts

SYNSETS = timm.data.ImageNetInfo("imagenet-1k").label_names()


@pytest.fixture(scope="module")
def imagenet_model(tmp_path_factory):
    """An untrained model of 1,000 classes: labels and logits are what is tested."""
    folder = tmp_path_factory.mktemp("imagenet")
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    weights = save(folder, "plain_vit_tiny", **options)
    given = [f"{k}={v}" for k, v in options.items()]
    common = [*given, "--checkpoint", weights, "--workers", 0, "--device", "cpu", "--input-size", 3, 32, 32, "--crop-pct", 1]
    return ["plain_vit_tiny", *common], timm.create_model("plain_vit_tiny", **options, checkpoint_path=str(weights)).eval()


def add_right_ones(root, model, folders, indices, count=30):
    """Pictures in the folders of what the model takes them for among ``indices``: right, if these logits alone count."""
    for i, picture in enumerate(crops(count + 7, 32)[7:]):
        place = root / "picture.png"
        Image.fromarray(picture).save(place)
        logits = logits_of(model, place)
        place.rename(root / folders[max(indices, key=lambda j: logits[j])] / f"right{i}.png")


def logits_of(model, file):
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    picture = torch.tensor(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        return model(((picture - mean) / std)[None])[0]


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_shift_of_200_classes(name, imagenet_model, tmp_path, capsys):
    """Right is the best of the 200 logits, whatever the other 800 say."""
    common, model = imagenet_model
    classes = class_map(name)
    assert classes.num_classes == 200
    root = class_folders(tmp_path / "data", [SYNSETS[i] for i in classes.indices], 1, 32)
    add_right_ones(root, model, SYNSETS, classes.indices)
    run("shift", *common, f"--{name}", root, "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / name / "flags.csv").open()))
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
    assert "Not of these: n99999999 (1)" in message
    assert f"Not there: {SYNSETS[classes.indices[3]]} (1)" in message


def test_numeric_folders_are_numbers(imagenet_model, tmp_path):
    """ImageNet-V2's: 10 comes after 9, and 0 is no missing name."""
    common, model = imagenet_model
    root = class_folders(tmp_path / "v2", [str(i) for i in range(1000)], 1, 32)
    add_right_ones(root, model, [str(i) for i in range(1000)], range(1000))
    run("shift", *common, "--imagenet-v2", root, "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "imagenet-v2" / "flags.csv").open()))
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
    strange = class_folders(tmp_path / "o", chosen, 2, 32)
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
    assert [row["n"] for row in found["conditions"]] == [50, 25]
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
        ([], "No data set given"),
        (["--imagenet-o", "x"], "need ImageNet's validation images"),
        (["--imagenet-a", "/nowhere"], "there is no /nowhere"),
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
    assert "imagenet is for models of ImageNet's 1000 classes, but this one has 10" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no map of classes 'imagenet-x'"):
        class_map("imagenet-x")


def test_models_do_not_meet_in_one_folder(folder, tmp_path, monkeypatch):
    """Without --output each model has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    quick = ["--attacks fgsm --eps 0.1 --limit 8 --checks 2"]
    for label in ("one", "the other"):
        run("attack", *arguments(folder), *quick, "--label", label)
    own = "nlm-vit-tiny-weights"
    found = [result(Path("runs/attack") / name / own)["label"] for name in ("one", "the-other")]
    assert found == ["one", "the other"]
    run("attack", *arguments(folder, weights="plain", name="plain_vit_tiny"), *quick, "--label", "one")  # another seed of it
    assert len(list(Path("runs/attack/one").iterdir())) == 2


def test_other_code_or_photographs_are_another_protocol(folder, tmp_path, capsys, monkeypatch):
    """Half an evaluation is not finished by code that has changed since; nor with other pictures of frost."""
    words = ["attack", *arguments(folder), "--attacks fgsm --eps 0.1 --limit 8 --checks 2", "--output", tmp_path / "out"]
    run(*words)
    monkeypatch.setattr("imgproc_attn.evaluation.assessment.sources_hash", lambda: "changed")
    with pytest.raises(SystemExit):
        run(*words)
    assert "another protocol" in (said := capsys.readouterr().err)
    assert "sources_sha256" in said
    for place, shift in (("a", 0), ("b", 1)):
        for i, ending in enumerate(("png", "png", "png", "jpg", "jpg"), start=1):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(photographs.rocket()[shift:]).save(tmp_path / place / f"frost{i}.{ending}")
    one, two, again = (ImageNetC("frost", 1, frost_folder=tmp_path / place) for place in "aba")
    assert describe(one) == describe(again) != describe(two)


def test_an_ensemble_tells_who_fooled(folder, tmp_path):
    run("attack", *arguments(folder), "--attacks ensemble --eps 40/255 --limit 30 --checks 2", "--output", tmp_path)
    clean, attacked = result(tmp_path)["conditions"]
    assert list(attacked["fooled_by"]) == ["APGD-CE", "APGD-T", "Square"]
    # who is wrong without an attack counts for the first
    assert sum(attacked["fooled_by"].values()) == 30 - attacked["correct"] >= 30 - clean["correct"]


def test_generated_corruptions_have_no_published_mce():
    row = {"unreadable": []}
    found = {"conditions": [row], "generated": True, "summary": {"mce_alexnet": 70.0}}
    assert "do not compare this mCE" in cautions(found)[0]
    assert cautions({**found, "generated": False}) == []


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
    assert (found["n"], found["data"]["classes"]) == (55, "imagenet")
    assert found["top1"] == pytest.approx(100 * sum(row["label"] == row["top1"] for row in rows) / 55)


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
    assert "2 unreadable images count nowhere" in capsys.readouterr().out
    corrupt = ["corrupt", *common, "--root", root, "--classes", "imagenet", "--corruptions", "fog", "--severities", 1]
    run(*corrupt, "--skip-broken", "--output", tmp_path / "out3")
    assert {row["n"] for row in result(tmp_path / "out3")["conditions"]} == {18}
    # repaired, one is looked at; nothing else is
    Image.fromarray(crops(1, 32)[0]).save(broken[1])
    run(*attack, "--skip-broken", "--output", tmp_path / "out2")
    assert {row["n"] for row in result(tmp_path / "out2")["conditions"]} == {19}


# --- reports


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
    assert page.count("data:image/png;base64,") == 1 + 2 * (2 + 2)  # curves of all; of each model two and two
    models = group(find_entries([tmp_path / "runs" / "plain", tmp_path / "runs" / "weights"]))
    assert list(models) == ["plain <b>", "filter"]
    rows = {row["name"]: row for row in tables(models)["attack"]}
    flags = [
        {
            row["image"]: int(row["FGSM 10/255"])
            for row in csv.DictReader((tmp_path / "runs" / w / "attack" / "flags.csv").open())
        }
        for w in ("plain", "weights")
    ]
    mean, std = mean_and_std([100.0 * (flags[1][name] - flags[0][name]) for name in flags[0]])
    half = 1.96 * std / 80**0.5
    assert rows["FGSM 10/255"]["differences"] == [f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"]
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
    for steps in (1, 5):
        run(
            "attack",
            *arguments(folder),
            "--attacks pgd --eps 20/255 --steps",
            steps,
            "--limit 60 --checks 4 --label m --output",
            tmp_path / str(steps),
        )
    run(
        "attack",
        *arguments(folder),
        "--attacks pgd --eps 20/255 --targeted --limit 60 --checks 4 --label m --output",
        tmp_path / "targeted",
    )
    models = group(find_entries([tmp_path]))
    rows = [row["name"] for row in tables(models)["attack"]]
    assert rows == ["clean", "PGD 20/255 (steps=1)", "PGD 20/255 (steps=5)", "PGD targeted 20/255"]
    (figure,) = draw_report_curves(models)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["PGD, protocol 1", "PGD, protocol 2", "PGD targeted"], "in a panel, all is of one protocol"


def test_models_of_one_label_without_seeds_are_several_models(folder, tmp_path):
    for name, weights in (("plain_vit_tiny", "plain"), ("nlm_vit_tiny", "weights")):
        run(
            "attack",
            *arguments(folder, name, weights),
            "--attacks fgsm --eps 10/255 --limit 20 --checks 4 --label m --output",
            tmp_path / weights,
        )
    assert list(group(find_entries([tmp_path]))) == [f"m ({tmp_path / name})" for name in ("plain", "weights")]


def test_a_result_and_flags_of_two_evaluations_are_refused(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--attacks fgsm --eps 10/255 --limit 30 --checks 4 --output", tmp_path)
    lines = (tmp_path / "flags.csv").read_text().splitlines()
    (tmp_path / "flags.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(SystemExit):
        run("report", tmp_path, "--output", tmp_path / "r.html")
    assert "result.json and flags.csv are not of one evaluation" in capsys.readouterr().err


def test_interrupted_results_are_named(folder, tmp_path, capsys):
    run("attack", *arguments(folder), "--attacks fgsm --eps 10/255 --limit 30 --checks 4 --output", tmp_path)
    flags, whole = tmp_path / "flags.csv", (tmp_path / "flags.csv").read_text()
    flags.write_text(whole[: len(whole) // 2 + 3])
    for file, message in ((flags, "flags.csv is cut off"), (tmp_path / "result.json", "result.json is cut off")):
        content = file.read_text()
        file.write_text(content[: len(content) // 2 + 3])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run("report", tmp_path, "--output", tmp_path / "r.html")
        assert message in capsys.readouterr().err
        file.write_text(whole)
    with pytest.raises(SystemExit):
        run("report", tmp_path / "flags", "--output", tmp_path / "r.html")
    assert "holds no result.json" in capsys.readouterr().err


# --- scripts


@pytest.mark.parametrize("script", ["evaluate_attacks", "evaluate_corruptions", "evaluate_shifts", "compare"])
def test_scripts_explain_themselves(script, monkeypatch, capsys):
    file = Path(__file__).parents[1] / "robustness" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(file), run_name="__main__")
    assert end.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_what_sanity_is_checked_under():
    std = (0.229, 0.224, 0.225)
    assert check_threat([ThreatModel(4 / 255), ThreatModel(1 / 255, targeted=True)], std) == ThreatModel(1 / 255)
    assert check_threat([ThreatModel.normalized(4 / 255)], std).eps == pytest.approx(4 / 255 * 0.229)
    assert check_threat([ThreatModel.normalized(3.0, L2_NORM)], std).norm == L2_NORM
