"""Two processes over gloo, started by torchrun, against one."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from shapes import shapes_folder

from imgproc_attn import cli
from imgproc_attn.data import World
from imgproc_attn.training.distributed import first_alone, start_processes

PLAIN = [  # what draws random numbers in each process is off
    "augmentation.degrees=0",
    "augmentation.translate=0",
    "augmentation.zoom=[1,1]",
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "data.validation_images=101",
    "data.train_images=999",
    "data.test_images=99",
    "model.depth=2",
    "run.grad_accum_steps=2",
    "run.ema_decay=0.8",
    "optimizer.name=sgd",
    "optimizer.lr=0.05",
]
STOP = """
import sys
from imgproc_attn import cli
from imgproc_attn.training.run import Run
epoch = Run.epoch
def until_the_third(run, number):
    if number == 2:
        sys.exit()
    return epoch(run, number)
Run.epoch = until_the_third
cli.main()
"""


def launch(processes, *arguments, script=None):
    """The console command, or a script in its place, in so many processes; one is this one, which has torch already."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        cli.main(list(arguments))
        torch.set_num_threads(threads)
        return ""
    program = ["-m", "imgproc_attn"] if script is None else [str(script)]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *program, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        launch(processes, "train", "quickstart", *PLAIN, "--variant", "bilateral + twicing", "--output", str(folder / "run"))
        folders.append(folder / "run")
    return folders


def rounding(updates):
    """Relative: float32's in each update, which momentum of 0.9 carries on ten times, and in the loss itself.

    SGD does not enlarge it. Adam would: of a gradient that is nothing but rounding it makes a whole step.
    """
    return (updates + 1) * 10 * 2**-23


def test_the_same_batch_gives_the_same_loss_curve(runs):
    one, two = map(records, runs)
    assert len(one) == len(two) == 4
    for epoch, (a, b) in enumerate(zip(one, two), start=1):
        updates = epoch * (999 // 128)
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=rounding(updates))
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=rounding(updates))
        assert a["validation_n"] == b["validation_n"] == 101
        assert a["lr"] == b["lr"]
    assert one[-1]["train_loss"] < one[0]["train_loss"]
    a, b = (load_file(folder / "last" / "model.safetensors") for folder in runs)
    assert a.keys() == b.keys(), "no wrapper's names are saved"


def test_final_metrics_count_every_image_once(runs):
    one, two = (json.loads((folder / "final.json").read_text())["test"] for folder in runs)
    assert one["n"] == two["n"] == 99
    assert abs(one["accuracy"] - two["accuracy"]) <= 100 / 99 + 1e-9  # one image at the border may turn


def test_two_processes_go_on_to_the_same_weights(runs, tmp_path):
    (tmp_path / "stop.py").write_text(STOP)
    words = ["train", "quickstart", *PLAIN, "--variant", "bilateral + twicing", "--output", str(tmp_path / "run")]
    launch(2, *words, script=tmp_path / "stop.py")
    assert len(records(tmp_path / "run")) == 2
    assert "Resuming after epoch 2 of 4." in launch(2, *words, "--resume")
    whole, broken = (load_file(run / "last" / "model.safetensors") for run in (runs[1], tmp_path / "run"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert records(runs[1])[3]["train_loss"] == records(tmp_path / "run")[3]["train_loss"]


def test_two_processes_test_again(runs):
    out = launch(
        2,
        "train",
        "quickstart",
        *PLAIN,
        "data.test_images=98",
        "--variant",
        "bilateral + twicing",
        "--output",
        str(runs[1]),
        "--resume",
    )
    assert "of 98 images" in out
    assert "Resuming after epoch 4 of 4." in out
    assert out.count("Test:") == 1, "one process speaks"


def test_evaluate_in_two_processes_is_evaluate_in_one(runs, tmp_path):
    tables = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        where = ["--limit", "360", "--batch-size", "64", "--workers", "0", "--output", str(output)]
        launch(processes, "evaluate", str(runs[0] / "last"), *where)
        tables.append(list(csv.reader((output / "predictions.csv").open())))
        assert json.loads((output / "result.json").read_text())["conditions"][0]["n"] == 360
    assert tables[0] == tables[1]
    assert len({row[0] for row in tables[0][1:]}) == 360


def test_results_are_the_same_in_two_processes(runs, tmp_path):
    """Under attack, on corrupted images, and after a start in another number of processes."""
    model = str(runs[0] / "best")
    common = [model, "--limit", "61", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
    for processes in (1, 2):
        attack = ["attack", *common, "--attacks", "pgd", "spsa", "--eps", "0.05", "--steps", "3", "--checks", "4"]
        launch(processes, *attack, "--output", str(tmp_path / f"attack{processes}"))
        corrupt = ["corrupt", *common, "--corruptions", "shot_noise", "--severities", "3"]
        launch(processes, *corrupt, "--output", str(tmp_path / f"corrupt{processes}"))
    for kind in ("attack", "corrupt"):
        one, two = ((tmp_path / f"{kind}{processes}" / "per_sample.csv").read_text() for processes in (1, 2))
        assert one == two
        result = json.loads((tmp_path / f"{kind}2" / "result.json").read_text())
        assert {row["n"] for row in result["conditions"]} == {61}
        assert result["environment"]["processes"] == 2


@pytest.mark.slow
def test_segmentation_in_two_processes(tmp_path):
    """Each picture's areas count once, in training's evaluation and under attack."""
    root = shapes_folder(tmp_path / "data")
    changes = [f"data.root={root}", "data.name=labeled", "data.test_split=val", "data.num_classes=6", "data.workers=0"]
    changes += ["data.input_size=[3,48,72]", "segmentation.short_side=48", "segmentation.scale=[1,1]", "augmentation.hflip=0"]
    changes += ["segmentation.photometric=false", "model.decoder=linear", "model.drop_path_rate=0", "schedule.epochs=3"]
    changes += ["model.img_size=[48,72]", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "run.batch_size=2"]
    changes += ["run.amp=null", "optimizer.name=sgd", "optimizer.lr=0.05"]
    runs = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        launch(processes, "train", "camvid/comparison_half", *changes, "--variant", "plain", "--output", str(run))
        runs.append(run)
    one, two = (json.loads((run / "final.json").read_text()) for run in runs)
    assert one["losses"] == pytest.approx(two["losses"], rel=rounding(3))  # means over the labeled pixels of all processes
    assert one["test"]["pixels"] == two["test"]["pixels"]
    assert one["test"]["miou"] == pytest.approx(two["test"]["miou"], abs=1)
    for processes in (1, 2):
        attack = ["attack", str(runs[0]), "--attacks", "segpgd", "--eps", "2/255", "--steps", "2", "--checks", "1"]
        launch(processes, *attack, "--workers", "0", "--device", "cpu", "--output", str(tmp_path / f"attack{processes}"))
    one, two = (json.loads((tmp_path / f"attack{i}" / "result.json").read_text())["conditions"] for i in (1, 2))
    assert one == two


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"Process 1 .* must have a GPU of its own, got 1 .* --nproc-per-node"):
        start_processes("auto")


@pytest.mark.parametrize(("backend", "failed", "left"), [("gloo", True, True), ("nccl", True, False), ("nccl", False, True)])
def test_a_failed_process_does_not_wait_for_the_others(backend, failed, left, monkeypatch):
    """NCCL's group waits for all when it is left: after an error nobody would come."""
    calls = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    cli._leave_processes(failed)
    assert bool(calls) == left


@pytest.mark.parametrize(("rank", "order"), [(0, ["work", "barrier"]), (1, ["barrier", "work"])])
def test_downloads_are_one_process_s_work(rank, order, monkeypatch):
    calls = []
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("barrier"))
    with first_alone(World(rank, 2)):
        calls.append("work")
    assert calls == order
