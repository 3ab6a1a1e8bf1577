"""The loop: reproducible, exact in what it adds up and goes on with."""

import json
import math
import os
import subprocess
import sys
import warnings
from functools import partial, partialmethod

import pytest
import torch
from runs import CPU, quiet, run_of, same, small, stop_after, weights
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from imgproc_attn.data import Preprocessing
from imgproc_attn.tasks import task_of
from imgproc_attn.training import Trainer
from imgproc_attn.training.checkpoints import load_state
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import _warn_of_slow_average


def test_a_run_is_reproducible_and_depends_on_its_seed(finished, tmp_path):
    folder, _, _ = finished
    quiet(small(), tmp_path / "again")
    assert same(weights(folder), weights(tmp_path / "again"))
    quiet(small(seed=1), tmp_path / "other")
    assert not same(weights(folder), weights(tmp_path / "other"))


def test_the_test_split_does_not_touch_training(finished, tmp_path):
    folder, result, _ = finished
    without = quiet(small("data.test_split=null"), tmp_path / "run")
    assert without["test"] is None
    assert same(weights(folder), weights(tmp_path / "run"))
    assert without["validation"] == result["validation"]


@pytest.mark.parametrize(("kept", "grad_accum_steps"), [(0, 1), (3, 1), (3, 2), (1, 4)])
def test_an_epoch_of_too_few_batches_is_an_error(tmp_path, kept, grad_accum_steps):
    """A reader that loses images must not end in a loss of 0, or of a part of the data."""
    trainer = run_of(tmp_path, "data.workers=0", f"run.grad_accum_steps={grad_accum_steps}").trainer
    batches = list(trainer.loader)

    class Short:
        dataset, sampler = None, None

        def __iter__(self):
            return iter(batches[:kept])

    trainer.loader = Short()
    with pytest.raises(ValueError, match=rf"Epoch 2 must have {4 * grad_accum_steps} batches.* got {kept}\."):
        trainer.train_epoch(1)


def test_schedule_warms_up_and_decays(tmp_path):
    for name, floor in (("cosine", 0.0), ("poly", 1e-5)):
        trainer = run_of(tmp_path, f"schedule.name={name}", "schedule.epochs=12", f"schedule.min_lr={floor}").trainer
        rates = [trainer.train_epoch(epoch)["lr"] for epoch in range(12)]
        assert rates[0] < rates[1]
        assert rates[1] == max(rates) > 0.85 * 6e-3
        assert rates[1:] == sorted(rates[1:], reverse=True)
        assert floor <= rates[-1] < 0.1 * 6e-3


# Rounding in a gradient stays as small in what SGD makes of it. Adam makes a whole step of a gradient that is nothing else.
SGD = ["optimizer.name=sgd", "optimizer.lr=0.05"]


def test_accumulated_batches_are_one_batch(tmp_path):
    """Without clipping per batch, two halves accumulated are the whole: four updates, each rounded, carried on by momentum."""
    off = ["augmentation.degrees=0", "augmentation.translate=0", "augmentation.zoom=[1,1]", *SGD]
    runs = [run_of(tmp_path, *off, f"run.grad_accum_steps={k}") for k in (1, 2)]
    records = [run.trainer.train_epoch(0) for run in runs]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation.mixup=0.8", "augmentation.cutmix=1.0", "run.label_smoothing=0.1"],
        ["run.label_smoothing=0.1"],
        ["run.loss=bce"],
        ["augmentation.random_erasing=0.5"],
        ["run.amp=bfloat16"],
        ["run.channels_last=true"],
        ["run.grad_checkpointing=true"],
        ["run.ema_decay=0.9"],
        ["run.grad_accum_steps=2"],
        ["model.drop_path_rate=0.2"],
        ["optimizer.layer_decay=0.7"],
        ["optimizer.name=lion", "optimizer.betas=[0.9,0.98]"],
        ["augmentation.aug_repeats=3"],
        ["adversarial.eps=0.05", "adversarial.warmup_epochs=1"],
    ],
    ids=lambda o: o[0],
)
def test_options_train_and_resume_exactly(overrides, tmp_path):
    """Each option learns, and its state is kept: after a break the weights are those of the unbroken run."""
    recipe = small(*overrides, "schedule.epochs=2", "data.train_images=256")
    quiet(recipe, tmp_path / "whole")
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(r["train_loss"]) for r in records)
    assert records[1]["train_loss"] < 1.02 * records[0]["train_loss"]
    stop_after(recipe, tmp_path / "broken", 1)
    quiet(recipe, tmp_path / "broken", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_compiled_model(tmp_path, monkeypatch):
    """Traced by dynamo, run without inductor: what is kept and how it is optimized is that of the bare model."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True))
    monkeypatch.setattr(ClassificationTask, "compile", partialmethod(ClassificationTask.compile, backend="eager"))
    common = ["run.ema_decay=0.9", "optimizer.layer_decay=0.7", "data.train_images=256", *SGD]
    quiet(small("run.compile=true", *common), tmp_path / "compiled")
    quiet(small(*common), tmp_path / "plain")
    compiled, plain = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert compiled.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-5, atol=1e-6)


def test_optimizer_settings_do_not_depend_on_the_wrapping():
    """DDP and torch.compile hide a model's groups from timm: learning rates by layer, and what does not decay."""
    recipe = small("optimizer.layer_decay=0.75", "model.depth=3", label="plain")
    groups = []
    for wrap in (lambda task: None, lambda task: task.compile()):
        preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.5,), "bicubic", 1.0)
        task = task_of(recipe).training_task(recipe, build_model(recipe), preprocessing, CPU)
        wrap(task)
        names = {id(p): name for name, p in unwrap_model(task.get_trainable_module()).named_parameters()}
        optimizer = Trainer(task, [None] * 4, recipe).optimizer
        groups.append([(g["lr_scale"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in optimizer.param_groups])
    assert groups[0] == groups[1]
    assert len({scale for scale, _, _ in groups[0]}) == 5
    assert all("pos_embed" not in names for _, decay, names in groups[0] if decay)


def test_ema_is_what_is_kept(tmp_path):
    with pytest.warns(UserWarning, match=r"at most 0\.\d+ for \d+ updates, got 0.99: .* \d+ % of the initial"):
        quiet(small("run.ema_decay=0.99", "schedule.epochs=2"), tmp_path)
    state = load_state(tmp_path)
    assert same(weights(tmp_path), state["state_dict_ema"])
    assert not same(state["state_dict"], state["state_dict_ema"])


@pytest.mark.parametrize(("decay", "updates"), [(None, 1), (0.9, 10), (0.99, 100), (0.999, 1000), (0.9999, 10_000)])
def test_an_average_needs_enough_updates(decay, updates):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn_of_slow_average(decay, updates)
    if decay is not None:
        with pytest.warns(UserWarning, match=f"for {updates - 1} updates, got {decay}: .* keeps 3[0-9] % .*ema_decay=null"):
            _warn_of_slow_average(decay, updates - 1)


def test_bandwidths_do_not_decay(tmp_path):
    run = run_of(tmp_path)
    decay = {id(p): group["weight_decay"] for group in run.trainer.optimizer.param_groups for p in group["params"]}
    bandwidths = [p for name, p in run.model.named_parameters() if "bandwidth" in name]
    assert len(bandwidths) == 2
    assert all(decay[id(p)] == 0 for p in bandwidths)
    assert all((decay[id(p)] > 0) == (p.ndim > 1) for name, p in run.model.named_parameters() if name != "pos_embed")


def test_saturated_filters_are_warned_of(tmp_path):
    run = run_of(tmp_path, label="bilateral + twicing")
    assert run.watch(run.model)["saturated_rows"] < 0.01
    assert run.watch(nn.Linear(2, 2)) == {}
    for parameter in (p for n, p in run.model.named_parameters() if "range_bandwidth" in n):
        parameter.data.fill_(-20)
    with pytest.warns(UserWarning, match=r"% of the filter's rows copy one token"):
        assert run.watch(run.model)["saturated_rows"] > 0.5


def test_trainer_takes_any_task(tmp_path):
    """The loop knows no classification: a task is what gives a loss for a batch, of any loader."""
    from timm.task import TrainingTask

    class Regression(TrainingTask):
        def __init__(self, model):
            super().__init__(verbose=False)
            self.trainable_module = model

        def forward(self, input, target):
            output = self.trainable_module(input)
            return {"loss": (output[:, 0] - target).square().mean(), "output": output}

    run = run_of(tmp_path)
    batches = [batch for batch, _ in zip(run.trainer.loader, range(4))]
    images, labels = (torch.cat([batch[i] for batch in batches]) for i in range(2))
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 64, shuffle=True)
    for loader in (run.trainer.loader, plain):
        trainer = Trainer(Regression(run.model), loader, run.recipe)
        losses = [trainer.train_epoch(epoch)["loss"] for epoch in range(3)]
        assert losses[-1] < losses[0]
    images.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="; samples: not known"):
        trainer.train_epoch(3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident set of a process from /proc")
def test_a_hundred_thousand_steps_hold_memory_flat(tmp_path):
    code = (
        "import json; from pathlib import Path; import torch\n"
        "from runs import small, train\n"
        "from imgproc_attn.training import run_logger\n"
        "torch.set_num_threads(1)\n"
        "run_logger.DRAW_EVERY = 5  # pictures too leave nothing\n"
        "recipe = small('run.batch_size=8', 'data.train_images=1337', 'schedule.epochs=600', 'run.ema_decay=0.99')\n"
        "seen = []\n"
        "def resident(line):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    seen.append(int(status.partition('VmRSS:')[2].split()[0]) / 1024)\n"
        f"train(recipe, Path({str(tmp_path / 'run')!r}), log=resident)\n"
        "print(json.dumps(seen))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1700, env=environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # MiB after each of 600 epochs of 167 updates: 100,200 in all
    early, late = max(seen[50:150]), max(seen[-100:])
    assert late < early + 10, f"{early:.1f} MiB after some 20,000 steps, {late:.1f} MiB at the end"


def test_webdataset_trains_and_counts_every_epoch(tmp_path):
    """Looking at filters between epochs disturbs neither the shards of the workers nor the augmentation."""
    wds = pytest.importorskip("webdataset")
    from imgproc_attn.data import Digits

    info = {"splits": {}}
    for split, count in (("train", 128), ("test", 64)):
        with wds.ShardWriter(str(tmp_path / f"{split}-%03d.tar"), maxcount=32, verbose=0) as sink:
            for i in range(count):
                image, label = Digits("train")[i]
                sink.write({"__key__": f"{split}{i:03}", "png": image, "cls": label})
        names = [f"{split}-{i:03}.tar" for i in range(count // 32)]
        info["splits"][split] = {"name": split, "num_samples": count, "filenames": names, "shard_lengths": [32] * len(names)}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    where = ["data.name=wds/digits", f"data.root={tmp_path}", "data.validation_split=test", "data.test_split=null"]
    off = ["data.validation_images=0", "data.train_images=null", "data.test_images=null", "data.on_broken_image=skip"]
    recipe = small(*where, *off, "data.workers=2", "run.batch_size=32")
    quiet(recipe, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["validation_n"] for r in records] == [64, 64, 64]
    assert "saturated_rows" not in records[0]
