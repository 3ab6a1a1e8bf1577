"""The loop and what a run leaves: reproducible, exact in what it keeps, clear in what it refuses."""

import json
import math
import resource
import shutil
import subprocess
import sys
from functools import partial, partialmethod
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.utils import unwrap_model
from torch import nn

import imgproc_attn
from imgproc_attn import cli
from imgproc_attn.data import ALONE, Preparation, Processes
from imgproc_attn.evaluation import PGD, NormalizedModel
from imgproc_attn.files import UNFINISHED, write_json
from imgproc_attn.models.checkpoints import load_weights
from imgproc_attn.training import Trainer, find_recipe, load_recipe, train
from imgproc_attn.training.checkpoints import load_state
from imgproc_attn.training.folder import Folder
from imgproc_attn.training.run import Run, create
from imgproc_attn.training.tasks import AdversarialClassification, Classification, build_task

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=3",
    "schedule.warmup_epochs=1",
    "data.validation_images=100",
    "data.train_images=512",
    "data.test_images=100",
]
CPU = torch.device("cpu")


def small(*overrides, label="bilateral + twicing", seed=0):
    return load_recipe(find_recipe("quickstart"), [*SMALL, *overrides]).variant(label, seed)


def quiet(recipe, folder, **kwargs):
    return train(recipe, folder, say=lambda line: None, **kwargs)


def weights(folder, which="last"):
    return load_weights_of(folder / which)


def load_weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lines = []
    result = train(small(), folder, say=lines.append)
    return folder, result, lines


def test_what_a_run_leaves(finished):
    folder, result, lines = finished
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["run"]["seed"] == 0
    (environment,) = json.loads((folder / "environment.json").read_text())["sessions"]
    assert environment["processes"] == 1
    assert {"torch", "timm", "imgproc-attn"} <= set(environment["versions"])
    assert environment["hardware"]["cores"] >= 1
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [0, 1, 2]
    assert {"train_loss", "lr", "seconds", "images_per_second", "validation_top1", "saturated_rows"} <= set(records[0])
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert (folder / "learning.png").stat().st_size > 5000
    assert json.loads((folder / "final.json").read_text()).items() > result.items()
    assert result["test"]["n"] == 100
    assert result["validation"] == max(r["validation_top1"] for r in records)
    assert len(lines) == 6
    assert lines[0].startswith("bilateral_vit_tiny, 0.00 M parameters, on cpu in 1 process(es)")
    assert "512 training, 100 validation, 100 test images of 10 classes; 4 updates an epoch" in lines[1]
    assert "img/s" in lines[2]
    assert "left 0:00:00" in lines[4]
    assert lines[5].startswith(f"Test: top-1 {result['test']['top1']:.2f} % of 100 images.")
    assert result["best_epoch"] == 1 + [r["validation_top1"] for r in records].index(result["validation"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.value for e in board.Scalars("validation_top1")] == pytest.approx([r["validation_top1"] for r in records])


def test_timm_loads_what_a_run_leaves(finished):
    folder, result, _ = finished
    model = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    assert same(model.state_dict(), weights(folder, "best"))
    assert (list(model.pretrained_cfg["mean"]), list(model.pretrained_cfg["input_size"])) == ([0.5], [1, 8, 8])
    assert isinstance(model.blocks[0].attn.residual, imgproc_attn.residuals.Twicing)
    run = Run(small(), folder, CPU, Processes(0, 1))
    run.model.load_state_dict(model.state_dict())
    assert run.evaluate(run.splits.test) == result["test"]


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


def test_a_finished_run_is_not_repeated(finished):
    folder, result, _ = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert quiet(small(), folder, resume=True) == result
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"holds a run already: go on with --resume"):
        quiet(small(), folder)


def test_resuming_under_another_recipe_says_what_changed(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match=r"Changed: model.depth: 1 -> 2; optimiser.lr: 0.006 -> 0.001"):
        quiet(small("optimiser.lr=1e-3", "model.depth=2"), folder, resume=True)
    with pytest.raises(ValueError, match=r"run.ema_decay: None -> 0.9"):
        quiet(small("run.ema_decay=0.9"), folder, resume=True)


def run_of(tmp_path, *overrides, **kwargs):
    return Run(small(*overrides, **kwargs), tmp_path, CPU, Processes(0, 1))


def test_schedule_warms_up_and_decays(tmp_path):
    for name, floor in (("cosine", 0.0), ("poly", 1e-5)):
        trainer = run_of(tmp_path, f"schedule.name={name}", "schedule.epochs=12", f"schedule.min_lr={floor}").trainer
        rates = [trainer.train_epoch(epoch)["lr"] for epoch in range(12)]
        assert rates[0] < rates[1]
        assert rates[1] == max(rates) > 0.85 * 6e-3
        assert rates[1:] == sorted(rates[1:], reverse=True)
        assert floor <= rates[-1] < 0.1 * 6e-3


def test_accumulated_batches_are_one_batch(tmp_path):
    """Without clipping per batch, two halves accumulated are the whole."""
    off = ["augmentation.degrees=0", "augmentation.translate=0", "augmentation.magnify=[1,1]"]
    runs = [run_of(tmp_path, *off, f"run.accumulate={k}") for k in (1, 2)]
    records = [run.trainer.train_epoch(0) for run in runs]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation.mixup=0.8", "augmentation.cutmix=1.0", "run.label_smoothing=0.1"],
        ["run.label_smoothing=0.1"],
        ["run.loss=bce"],
        ["augmentation.erasing=0.5"],
        ["run.amp=bfloat16"],
        ["run.channels_last=true"],
        ["run.checkpoint_blocks=true"],
        ["run.ema_decay=0.9"],
        ["run.accumulate=2"],
        ["model.drop_path_rate=0.2"],
        ["optimiser.layer_decay=0.7"],
        ["optimiser.name=lion", "optimiser.betas=[0.9,0.98]"],
        ["augmentation.repeats=3"],
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


class Stop(Exception):
    pass


def stop_after(recipe, folder, epochs):
    def say(line):
        if line.startswith(f"epoch {epochs}/"):
            raise Stop

    with pytest.raises(Stop):
        train(recipe, folder, say=say)


def test_compiled_model(tmp_path, monkeypatch):
    """Traced by dynamo, run without inductor: what is kept and how it is optimised is that of the bare model."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True))
    monkeypatch.setattr(Classification, "compile", partialmethod(Classification.compile, backend="eager"))
    recipe = small("run.compile=true", "run.ema_decay=0.9", "optimiser.layer_decay=0.7", "data.train_images=256")
    quiet(recipe, tmp_path / "compiled")
    quiet(small("run.ema_decay=0.9", "optimiser.layer_decay=0.7", "data.train_images=256"), tmp_path / "plain")
    compiled, plain = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert compiled.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-4)


def test_more_test_images_are_tested_without_training(finished, tmp_path):
    folder, result, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    more = quiet(small("data.test_images=360"), tmp_path / "run", resume=True)
    assert more["test"]["n"] == 360
    assert same(weights(folder), weights(tmp_path / "run"))
    assert more["validation"] == result["validation"]


def test_files_of_others_are_left_alone(tmp_path):
    """A run may live in a folder with other things in it."""
    for name in (".pre-commit-config.yaml", ".git-x/y", "best/.other-file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / f"{UNFINISHED}state-x.pt").write_text("cut")
    quiet(small("schedule.epochs=2"), tmp_path)
    assert {".pre-commit-config.yaml", ".git-x", "best"} < {file.name for file in tmp_path.iterdir()}
    assert (tmp_path / "best" / ".other-file").exists()
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_optimiser_settings_do_not_depend_on_the_wrapping():
    """DDP and torch.compile hide a model's groups from timm: learning rates by layer, and what does not decay."""
    recipe = small("optimiser.layer_decay=0.75", "model.depth=3", label="plain")
    groups = []
    for wrap in (lambda task: None, lambda task: task.compile()):
        task = build_task(recipe, create(recipe), Preparation((1, 8, 8), (0.5,), (0.5,), "bicubic", 1.0), CPU)
        wrap(task)
        names = {id(p): name for name, p in unwrap_model(task.get_trainable_module()).named_parameters()}
        optimiser = Trainer(task, [None] * 4, recipe).optimiser
        groups.append([(g["lr_scale"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in optimiser.param_groups])
    assert groups[0] == groups[1]
    assert len({scale for scale, _, _ in groups[0]}) == 5
    assert all("pos_embed" not in names for _, decay, names in groups[0] if decay)


def test_ema_is_what_is_kept(tmp_path):
    quiet(small("run.ema_decay=0.99", "schedule.epochs=2"), tmp_path)
    state = load_state(tmp_path)
    assert same(weights(tmp_path), state["state_dict_ema"])
    assert not same(state["state_dict"], state["state_dict_ema"])


def test_bandwidths_do_not_decay(tmp_path):
    run = run_of(tmp_path)
    decay = {id(p): group["weight_decay"] for group in run.trainer.optimiser.param_groups for p in group["params"]}
    bandwidths = [p for name, p in run.model.named_parameters() if "bandwidth" in name]
    assert len(bandwidths) == 2
    assert all(decay[id(p)] == 0 for p in bandwidths)
    assert all((decay[id(p)] > 0) == (p.ndim > 1) for name, p in run.model.named_parameters() if name != "pos_embed")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_images(tmp_path):
    run = run_of(tmp_path, "run.log_every=2")
    broken = {2: None}

    def poison(images, targets):
        broken[2] = broken[2] or 0
        broken[2] += 1
        return (images * float("nan") if broken[2] == 3 else images), targets

    run.trainer.mixup = poison
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1, update 3/4; its images") as error:
        run.trainer.train_epoch(0)
    order = list(run.trainer.loader.sampler)[2 * 128 : 3 * 128]
    assert error.value.images == [run.splits.train.name(i) for i in order]
    assert f"its images: {error.value.images[0]}, " in str(error.value)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    recipe = small("optimiser.clip_grad=null")
    stop_after(recipe, tmp_path, 1)
    state = load_state(tmp_path)
    state["state_dict"]["head.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(FloatingPointError, match=r"epoch 2, update 1/4; .*last good checkpoint: .*last, of epoch 1"):
        quiet(recipe, tmp_path, resume=True)
    assert all(t.isfinite().all() for t in weights(tmp_path).values())
    assert len(json.loads((tmp_path / "not-finite-0.json").read_text())["images"]) == 128


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
    with pytest.raises(FloatingPointError, match=r"weights are not finite after the last update of epoch 2.*last, of epoch 1"):
        quiet(recipe, tmp_path, resume=True)
    assert same(before, weights(tmp_path))
    assert not (tmp_path / "not-finite-0.json").exists()
    monkeypatch.undo()
    assert math.isfinite(quiet(recipe, tmp_path, resume=True)["test"]["loss"])


def test_a_run_without_its_state_is_not_begun_anew(finished, tmp_path):
    """It would be trained over."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"holds a run, but not its state.pt, .*--restart"):
        quiet(small("data.test_images=50"), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()
    assert same(weights(finished[0]), weights(tmp_path / "run"))


def test_a_result_without_a_run_is_none(finished, tmp_path):
    """As a kill while ``--restart`` removes a run may leave it."""
    shutil.copy(finished[0] / "final.json", tmp_path)
    assert Folder(finished[0], small(), True).finished() == finished[1]
    assert Folder(tmp_path, small(), True).finished() is None


def test_all_processes_must_see_the_folder(finished, tmp_path):
    Folder(finished[0], small(), True).check_shared(1)
    with pytest.raises(FileNotFoundError, match="Process 1 does not see .*other.*storage that the machines share"):
        Folder(tmp_path / "other", small(), True).check_shared(1)


def test_saturated_filters_are_warned_of(tmp_path):
    run = run_of(tmp_path, label="bilateral + twicing")
    assert run.watch(run.model)["saturated_rows"] < 0.01
    assert run.watch(nn.Linear(2, 2)) == {}
    for parameter in (p for n, p in run.model.named_parameters() if "range_bandwidth" in n):
        parameter.data.fill_(-20)
    with pytest.warns(UserWarning, match=r"% of the filter's rows copy one token"):
        assert run.watch(run.model)["saturated_rows"] > 0.5


def test_adversarial_training_attacks_within_the_ball(tmp_path):
    recipe = small("adversarial.eps=0.06", "adversarial.warmup_epochs=2", label="plain")
    model = create(recipe)
    task = build_task(recipe, model, run_of(tmp_path).preparation, CPU)
    assert isinstance(task, AdversarialClassification)
    images = torch.rand(16, 1, 8, 8)
    labels = torch.randint(10, (16,))
    for epoch, share in ((0, 1 / 3), (1, 2 / 3), (2, 1.0), (9, 1.0)):
        task.start_epoch(epoch)
        attacked = task.attacked((images - 0.5) / 0.5, labels) * 0.5 + 0.5
        largest = (attacked - images).abs().max().item()
        assert 0.5 * share * 0.06 < largest <= share * 0.06 + 1e-6
        assert attacked.min() >= -1e-6
        assert attacked.max() <= 1 + 1e-6
    assert task.train()(images, labels)["loss"] > 0
    assert model.training
    plain = task.eval()(images, labels)["output"]
    assert torch.equal(plain, model(images))


@pytest.mark.slow
def test_adversarial_training_makes_robust(tmp_path):
    """At the radius trained for, the trained model keeps far more than the one trained on clean images alone."""
    robust = {}
    attack = [
        "adversarial.eps=0.1",
        "adversarial.steps=3",
        "adversarial.warmup_epochs=15",
    ]  # at once, it learns nothing for long
    for name, extra in (("clean", []), ("adversarial", attack)):
        recipe = load_recipe("quickstart", ["schedule.epochs=45", "optimiser.lr=2e-3", *extra]).variant("plain", 0)
        quiet(recipe, tmp_path / name)
        run = Run(recipe, tmp_path / name, CPU, Processes(0, 1))
        load_weights(run.model, tmp_path / name / "last")
        model = NormalizedModel(run.model).eval()
        images, labels = next(iter(torch.utils.data.DataLoader(run.splits.test, 360, collate_fn=_as_tensors)))
        robust[name] = (~PGD(0.1, 10)(model, images, labels).success).double().mean().item()
    assert robust["adversarial"] > robust["clean"] + 0.2, robust


def _as_tensors(batch):
    from torchvision.transforms.functional import to_tensor

    return torch.stack([to_tensor(image) for image, _ in batch]), torch.tensor([label for _, label in batch])


def test_checkpoints_of_other_models_are_refused(finished, tmp_path):
    folder, _, _ = finished
    other = create(small("model.depth=2"))
    with pytest.raises(ValueError, match="is of another model than FilterVisionTransformer") as error:
        load_weights(other, folder / "best")
    assert "missing: blocks.1." in str(error.value)
    with pytest.raises(ValueError, match=r"of another shape: .*embed.* \[1, 16, 16\], not \[1, 16, 32\]"):
        load_weights(create(small("model.embed_dim=32")), folder / "best")
    with pytest.raises(ValueError, match=r"unexpected: blocks\.0"):
        load_weights(nn.Linear(2, 2), folder / "best")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        load_weights(other, tmp_path / "none.safetensors")


def test_cut_off_and_malicious_checkpoints(finished, tmp_path):
    folder, _, _ = finished
    model = create(small())
    for name, source in (("a.safetensors", folder / "best" / "model.safetensors"), ("a.pt", folder / "state.pt")):
        (tmp_path / name).write_bytes(source.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="is cut off or no checkpoint"):
            load_weights(model, tmp_path / name)
    marker = tmp_path / "executed"
    torch.save({"model": Payload(str(marker))}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="could run code when loaded"):
        load_weights(model, tmp_path / "evil.pt")
    assert not marker.exists()
    torch.save({"note": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(model, tmp_path / "empty.pt")
    load_weights(model, folder / "state.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is cut off or no state of a run"):
        load_state(tmp_path / "run")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_starting_from_a_checkpoint(finished, tmp_path):
    folder, _, _ = finished
    recipe = small(f"model.checkpoint={folder / 'best'}")
    run = Run(recipe, tmp_path, CPU, Processes(0, 1))
    assert same(run.model.state_dict(), weights(folder, "best"))
    assert "checkpoint" not in json.loads((folder / "best" / "config.json").read_text())["model_args"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=npz", "data.root=/nowhere/x.npz"], "data.root: there is no /nowhere/x.npz"),
        (["data.train_images=5000"], "ask for 5100 images, but the training split has 1437"),
        (["run.batch_size=1000"], "needs 1000 images at a time, but there are 512"),
        (["run.batch_size=512", "run.accumulate=2", "data.train_images=512"], None),
        (["data.num_classes=7"], "train split has 10 classes, but 7 are expected"),
        (["data.input_size=[2,8,8]", "data.mean=null", "data.std=null"], "2 channels; pictures have 1 .* or 3"),
    ],
)
def test_what_is_asked_for_and_is_not_there(overrides, message, tmp_path):
    if message is None:
        quiet(small(*overrides), tmp_path / "run")
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quiet(small(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_met_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        quiet(small(), tmp_path / "file" / "run")


def test_too_little_room_is_met_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("imgproc_attn.training.folder.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"1 MiB are free, but the checkpoints of this run need up to \d+ MiB"):
        quiet(small(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_what_a_run_holds_already_needs_no_room(tmp_path, monkeypatch):
    recipe = small("schedule.epochs=2")
    stop_after(recipe, tmp_path, 1)
    held = sum((tmp_path / file).stat().st_size for file in ("state.pt", "best/model.safetensors", "last/model.safetensors"))
    needed = 12 * 4 * sum(p.numel() for p in create(recipe).parameters()) + 2**24
    usage = type("Usage", (), {"free": needed - held + 2**10})
    monkeypatch.setattr("imgproc_attn.training.folder.shutil.disk_usage", lambda path: usage)
    quiet(recipe, tmp_path, resume=True)
    with pytest.raises(OSError, match="make room"):
        quiet(recipe, tmp_path / "another")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(tmp_path):
    """The system refuses to let files grow in the middle of the second state's write."""
    recipe = small("schedule.epochs=2")
    quiet(recipe, tmp_path / "whole")
    stop_after(recipe, tmp_path / "full", 1)
    size = (tmp_path / "full" / "state.pt").stat().st_size
    code = (
        "import resource, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import small, quiet\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
        f"quiet(small('schedule.epochs=2'), Path({str(tmp_path / 'full')!r}), resume=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "cannot be written, is the disk full?" in done.stderr, done.stderr
    assert len(load_state(tmp_path / "full")["records"]) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    quiet(recipe, tmp_path / "full", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "full"))
    assert not list((tmp_path / "full").rglob(".*"))


def test_commands(tmp_path, capsys):
    cli.main(["train", "quickstart", *SMALL, "schedule.epochs=2", "--variant", "plain", "--output", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "epoch 2/2" in out
    assert "of 100 images" in out
    cli.main(["recipes"])
    assert "quickstart" in capsys.readouterr().out
    cli.main(["recipes", "--copy", "quickstart", "--to", str(tmp_path / "mine.yaml")])
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(find_recipe("quickstart"))
    for arguments, message in (
        (["train", "quickstart", "--output", str(tmp_path / "x")], "name one of its variants"),
        (["train", "quickstart", "--variant", "y"], "No variant 'y'"),
        (["train", "quickstart", "--variant", "plain", "--device", "cuda:7", "--output", str(tmp_path / "x")], "no GPU"),
        (["recipes", "--copy", "quickstart", "--to", str(tmp_path / "mine.yaml")], "exists; give another name"),
    ):
        if "cuda:7" in arguments and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_variants_lie_where_a_comparison_looks_for_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["model.depth=1", "schedule.epochs=2", "schedule.warmup_epochs=1", "data.test_images=60", "comparison.seeds=[0]"]
    few += ["evaluation={gaussian_noise: [0.2]}"]
    two = "comparison.variants={a: {name: plain_vit_tiny}, b c: {name: nlm_vit_tiny}}"
    for variant in ("a", "b c"):
        cli.main(["train", "quickstart", *few, two, "--variant", variant])
    trained = {
        folder: weights(folder) for folder in (Path("runs/quickstart/runs/a-seed0"), Path("runs/quickstart/runs/b-c-seed0"))
    }
    (mine := Path("runs/quickstart/runs/mine")).mkdir()
    cli.main(["compare", "quickstart", *few, two])
    assert all(same(before, weights(folder)) for folder, before in trained.items())
    cli.main(["compare", "quickstart", *few, two, "schedule.epochs=3", "--restart"])
    assert not any(same(before, weights(folder)) for folder, before in trained.items())
    assert mine.exists(), "--restart removes runs of the comparison alone"


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
    with pytest.raises(FloatingPointError, match="its images: not known"):
        trainer.train_epoch(3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident set of a process from /proc")
def test_a_hundred_thousand_steps_hold_memory_flat(tmp_path):
    code = (
        "import json, sys; from pathlib import Path; import torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import small, train\n"
        "torch.set_num_threads(1)\n"
        "recipe = small('run.batch_size=8', 'data.train_images=1337', 'schedule.epochs=600', 'run.ema_decay=0.99')\n"
        "seen = []\n"
        "def resident(line):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    seen.append(int(status.partition('VmRSS:')[2].split()[0]) / 1024)\n"
        f"train(recipe, Path({str(tmp_path / 'run')!r}), say=resident)\n"
        "print(json.dumps(seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # MiB after each of 600 epochs of 167 updates: 100,200 in all
    early, late = max(seen[50:150]), max(seen[-100:])
    assert late < early + 10, f"{early:.1f} MiB after some 20,000 steps, {late:.1f} MiB at the end"


def test_a_new_classifier_and_another_image_size(tmp_path):
    """A trained ViT goes on with other classes and a finer grid; what is not loaded is said."""
    trained = create(small("data.num_classes=7", "model.patch_size=4", label="plain"))
    torch.save({"model": trained.state_dict()}, tmp_path / "w.pt")
    lines = []
    recipe = small(f"model.checkpoint={tmp_path / 'w.pt'}", "model.patch_size=4", label="twicing")
    run = Run(recipe, tmp_path / "run", CPU, ALONE, lines.append)
    assert "but for head.weight, head.bias" in lines[0]
    assert torch.equal(run.model.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    finer = Run(small(f"model.checkpoint={tmp_path / 'w.pt'}", label="twicing"), tmp_path / "run", CPU, ALONE, lines.append)
    assert finer.model.pos_embed.shape[1] == 16
    assert "but for head.weight, head.bias, pos_embed, patch_embed.proj.weight resampled" in lines[-1]
    assert not torch.equal(finer.model.pos_embed, create(small(label="twicing")).pos_embed)
    with pytest.raises(ValueError, match=r"missing: blocks.1"):
        Run(small(f"model.checkpoint={tmp_path / 'w.pt'}", "model.depth=2", label="plain"), tmp_path / "x", CPU, ALONE)


def test_a_folder_that_holds_no_epoch_is_free(tmp_path):
    """What broke off before its first epoch blocks nothing; what is resumed and is not there is said."""
    recipe = small("schedule.epochs=2", "data.seed=3")
    run = Run(recipe, tmp_path, CPU, ALONE)
    Folder(tmp_path, recipe, False).prepare(run.model, "cpu", 1)
    run.save_state([])
    lines = []
    train(small("schedule.epochs=2"), str(tmp_path), resume=True, say=lines.append)
    assert f"Nothing to resume in {tmp_path}: starting anew." in lines


def test_workers_may_change_and_restart_begins_anew(finished, tmp_path):
    folder, result, _ = finished
    stop_after(small("schedule.epochs=2"), tmp_path, 1)
    with pytest.warns(UserWarning, match="data.workers: 0 -> 1: what follows will differ"):
        quiet(small("schedule.epochs=2", "data.workers=1"), tmp_path, resume=True)
    (tmp_path / "mine.txt").write_text("kept")
    assert train(small(), tmp_path, restart=True, say=lambda line: None)["test"] == result["test"]
    assert same(weights(folder), weights(tmp_path))
    assert (tmp_path / "mine.txt").exists()


def test_a_run_folder_is_enough(finished, tmp_path, capsys):
    """To resume, and to evaluate on what it was tested on."""
    folder, _, _ = finished
    cli.main(["train", str(folder), "--resume"])
    cli.main(["evaluate", str(folder), "--output", str(tmp_path), "--workers", "0"])
    found, final = (json.loads(file.read_text()) for file in (tmp_path / "result.json", folder / "final.json"))
    assert (found["n"], found["top1"]) == (final["test"]["n"], pytest.approx(final["test"]["top1"]))
    cli.main(["evaluate", str(folder), "--data", "digits", "--split", "train", "--limit", "50", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "result.json").read_text())["n"] == 50
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(folder), "--data", "npz"])
    assert "give --root PATH" in capsys.readouterr().err
    # classes with the same number of other names
    config = json.loads((folder / "best" / "config.json").read_text())
    assert config["label_names"] == [str(i) for i in range(10)]
    shutil.copytree(folder / "best", tmp_path / "other")
    write_json(tmp_path / "other" / "config.json", {**config, "label_names": [*map(str, range(9)), "zz"]})
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path / "other"), "--data", "digits", "--split", "test"])
    assert "differ: only in test: 9 (1); only in trained on: zz (1)" in capsys.readouterr().err


def test_changes_may_stand_after_options(tmp_path, capsys):
    cli.main(["train", "quickstart", "--variant", "plain", "--output", str(tmp_path / "run"), *SMALL, "schedule.epochs=2"])
    assert "epoch 2/2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "quickstart", "--varient", "plain"])
    assert "unrecognized arguments: --varient plain" in capsys.readouterr().err
    assert end.value.code == 2


def test_progress_in_a_log(tmp_path):
    lines = []
    train(small("run.log_every=2", "schedule.epochs=2"), tmp_path, say=lines.append)
    assert [line for line in lines if line.startswith("epoch 1, update 2/4: loss ")]


def test_splits_that_are_one_are_refused(tmp_path):
    """Synonyms may name the test split twice."""
    with pytest.raises(ValueError, match="The splits validation and test are the same images"):
        quiet(small("data.validation_images=0", "data.validation_split=test"), tmp_path / "run")
    with pytest.raises(ValueError, match="The splits train and test are the same images"):
        quiet(small("data.test_split=train"), tmp_path / "run")
    with pytest.raises(ValueError, match="The splits train and test are the same images"):
        quiet(small("data.train_split=test", "data.train_images=200"), tmp_path / "run")


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
    off = ["data.validation_images=0", "data.train_images=null", "data.test_images=null", "data.broken_images=skip"]
    recipe = small(*where, *off, "data.workers=2", "run.batch_size=32")
    quiet(recipe, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["validation_n"] for r in records] == [64, 64, 64]
    assert "saturated_rows" not in records[0]
