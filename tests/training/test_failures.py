"""Losses that are not finite, disks that are full: the run stops early, the last good checkpoint stays."""

import json
import math
import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from runs import quiet, run_of, same, small, stop_after, weights

from imgproc_attn.training import Trainer
from imgproc_attn.training.checkpoints import load_state, state_file
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import Run
from imgproc_attn.utils.manifest import Manifest


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_images(tmp_path):
    run = run_of(tmp_path, "run.log_every=2")
    broken = {2: None}

    def poison(images, targets):
        broken[2] = broken[2] or 0
        broken[2] += 1
        return (images * float("nan") if broken[2] == 3 else images), targets

    run.trainer.mixup = poison
    with pytest.raises(FloatingPointError, match=r"loss must be finite, got nan in epoch 1, update 3/4; samples") as error:
        run.trainer.train_epoch(0)
    order = list(run.trainer.loader.sampler)[2 * 128 : 3 * 128]
    assert error.value.images == [run.splits.train.name(i) for i in order]
    assert f"; samples: {error.value.images[0]}, " in str(error.value)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    recipe = small("optimizer.clip_grad=null")
    stop_after(recipe, tmp_path, 1)
    state = load_state(tmp_path)
    state["state_dict"]["head.weight"].fill_(float("nan"))
    Manifest(tmp_path).write(state_file(state))
    with pytest.raises(FloatingPointError, match=r"epoch 2, update 1/4; .*Last good checkpoint: .*last, of epoch 1"):
        quiet(recipe, tmp_path, resume=True)
    assert all(t.isfinite().all() for t in weights(tmp_path).values())
    assert len(json.loads((tmp_path / "not-finite-0.json").read_text())["images"]) == 128


def test_outputs_that_are_not_finite_in_validation_name_the_last_good_checkpoint(tmp_path, monkeypatch):
    recipe = small("schedule.epochs=2", "data.validation_images=100")
    stop_after(recipe, tmp_path, 1)
    evaluate = Run.evaluate

    def overflow(run, images):
        with torch.no_grad():
            run.evaluated.head.bias.fill_(float("inf"))
        return evaluate(run, images)

    monkeypatch.setattr(Run, "evaluate", overflow)
    with pytest.raises(
        FloatingPointError, match=r"Validation after epoch 2: Logits must be finite.*Lower optimizer.lr.*last, of epoch 1"
    ):
        quiet(recipe, tmp_path, resume=True)
    assert all(t.isfinite().all() for t in weights(tmp_path).values())


def test_weights_that_are_not_finite_do_not_replace_the_last_checkpoint(tmp_path, monkeypatch):
    """What the last update of an epoch does, no loss of it shows."""
    recipe = small("schedule.epochs=2")
    stop_after(recipe, tmp_path, 1)
    before, update = weights(tmp_path), Trainer._update

    def overflow(trainer, number):
        if number == 7:
            next(trainer.task.get_trainable_module().parameters()).grad.fill_(float("inf"))
        update(trainer, number)

    monkeypatch.setattr(Trainer, "_update", overflow)
    with pytest.raises(FloatingPointError, match=r"weights must be finite, .* last update of epoch 2.*last, of epoch 1"):
        quiet(recipe, tmp_path, resume=True)
    assert same(before, weights(tmp_path))
    assert not (tmp_path / "not-finite-0.json").exists()
    monkeypatch.undo()
    assert math.isfinite(quiet(recipe, tmp_path, resume=True)["test"]["loss"])


def test_an_unwritable_folder_is_met_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        quiet(small(), tmp_path / "file" / "run")


def test_too_little_room_is_met_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("imgproc_attn.training.run_dir.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"must have \d+ MiB of free space for the checkpoints of this run, got 1 MiB"):
        quiet(small(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_what_a_run_holds_already_needs_no_room(tmp_path, monkeypatch):
    recipe = small("schedule.epochs=2")
    stop_after(recipe, tmp_path, 1)
    held = sum((tmp_path / file).stat().st_size for file in ("state.pt", "best/model.safetensors", "last/model.safetensors"))
    needed = 12 * 4 * sum(p.numel() for p in build_model(recipe).parameters()) + 2**24
    usage = type("Usage", (), {"free": needed - held + 2**10})
    monkeypatch.setattr("imgproc_attn.training.run_dir.shutil.disk_usage", lambda path: usage)
    quiet(recipe, tmp_path, resume=True)
    with pytest.raises(OSError, match="Make room"):
        quiet(recipe, tmp_path / "another")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(tmp_path):
    """The system refuses to let files grow in the middle of the second state's write."""
    recipe = small("schedule.epochs=2")
    quiet(recipe, tmp_path / "whole")
    stop_after(recipe, tmp_path / "full", 1)
    size = (tmp_path / "full" / "state.pt").stat().st_size
    code = (
        "import resource; from pathlib import Path\n"
        "from runs import small, quiet\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
        f"quiet(small('schedule.epochs=2'), Path({str(tmp_path / 'full')!r}), resume=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert re.search(r"state.pt cannot be written: .* MiB are free: make room", done.stderr), done.stderr
    assert len(load_state(tmp_path / "full")["records"]) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    quiet(recipe, tmp_path / "full", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "full"))
    assert not list((tmp_path / "full").rglob(".*"))
