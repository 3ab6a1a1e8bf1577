"""What a run leaves, and what it does with what is there."""

import json
import shutil
import warnings

import pytest
import seeding
import timm
import yaml
from runs import CPU, quiet, same, small, stop_after, weights

import imgproc_attn
from imgproc_attn.data import SINGLE_PROCESS, Preprocessing, World
from imgproc_attn.evaluation.specs import ModelSpec
from imgproc_attn.training import train
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import Run
from imgproc_attn.training.run_dir import RunDir
from imgproc_attn.utils.io import UNFINISHED


def test_what_a_run_leaves(finished):
    folder, result, lines = finished
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["run"]["seed"] == seeding.number
    (environment,) = json.loads((folder / "environment.json").read_text())["sessions"]
    assert environment["processes"] == 1
    assert {"torch", "timm", "imgproc-attn"} <= set(environment["versions"])
    assert environment["hardware"]["cores"] >= 1
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [0, 1, 2]
    assert {"train_loss", "lr", "seconds", "images_per_second", "validation_accuracy", "saturated_rows"} <= set(records[0])
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert (folder / "learning.png").stat().st_size > 5000
    assert json.loads((folder / "final.json").read_text()).items() > result.items()
    assert result["test"]["n"] == 100
    assert result["validation"] == max(r["validation_accuracy"] for r in records)
    assert len(lines) == 6
    assert lines[0].startswith("bilateral_vit_tiny, 0.00 M parameters, on cpu in 1 process(es)")
    assert "512 training, 100 validation, 100 test images of 10 classes; 4 updates per epoch" in lines[1]
    assert "samples/s" in lines[2]
    assert "left 0:00:00" in lines[4]
    assert lines[5].startswith(f"Test: accuracy {result['test']['accuracy']:.2f} % of 100 images.")
    assert result["best_epoch"] == 1 + [r["validation_accuracy"] for r in records].index(result["validation"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.value for e in board.Scalars("validation_accuracy")] == pytest.approx([r["validation_accuracy"] for r in records])


def test_timm_loads_what_a_run_leaves(finished):
    folder, result, _ = finished
    model = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    assert same(model.state_dict(), weights(folder, "best"))
    assert (list(model.pretrained_cfg["mean"]), list(model.pretrained_cfg["input_size"])) == ([0.5], [1, 8, 8])
    assert isinstance(model.blocks[0].attn.residual, imgproc_attn.core.residuals.Twicing)
    run = Run(small(), folder, CPU, World(0, 1))
    run.model.load_state_dict(model.state_dict())
    assert run.evaluate(run.splits.test) == result["test"]


def test_gray_images_get_the_mean_of_a_color_models_statistics(finished, tmp_path):
    """In training and in evaluation alike, and where a run starts from another run's weights."""
    folder, _, _ = finished
    none = ["data.mean=null", "data.std=null"]
    colors = timm.get_pretrained_cfg("bilateral_vit_tiny").mean
    assert build_model(small(*none)).pretrained_cfg["mean"] == pytest.approx((sum(colors) / 3,))
    shutil.copytree(folder / "best", tmp_path / "color")
    config = json.loads((folder / "best" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}
    (tmp_path / "color" / "config.json").write_text(json.dumps(config))
    model = build_model(small(*none, f"model.checkpoint={tmp_path / 'color'}"))
    prepared = Preprocessing.of(model.pretrained_cfg)
    assert (prepared.mean, prepared.std) == (pytest.approx((0.3,)), pytest.approx((0.2,)))
    assert ModelSpec(str(tmp_path / "color")).build()[1].mean == pytest.approx(prepared.mean)
    with pytest.raises(ValueError, match=r"data.mean must have 1 value or one per channel, 1, got 3"):
        build_model(small("data.mean=[0.5,0.5,0.5]"))


def test_a_finished_run_is_not_repeated(finished):
    folder, result, _ = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert quiet(small(), folder, resume=True) == result
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"must hold no run, got one already. Resume it with --resume"):
        quiet(small(), folder)


def test_resuming_under_another_recipe_says_what_changed(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match=r"Changed: model.depth: 1 -> 2; optimizer.lr: 0.006 -> 0.001"):
        quiet(small("optimizer.lr=1e-3", "model.depth=2"), folder, resume=True)
    with pytest.raises(ValueError, match=r"run.ema_decay: None -> 0.9"):
        quiet(small("run.ema_decay=0.9"), folder, resume=True)


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


def test_a_run_without_its_state_does_not_start_again(finished, tmp_path):
    """It would be trained over."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"must hold state.pt to resume the run, .*--restart"):
        quiet(small("data.test_images=50"), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()
    assert same(weights(finished[0]), weights(tmp_path / "run"))


def test_a_result_without_a_run_is_none(finished, tmp_path):
    """It was not written by a run in this folder, and is neither believed nor overwritten."""
    shutil.copy(finished[0] / "final.json", tmp_path)
    assert RunDir(finished[0], small(), True).finished() == finished[1]
    for how in ({"resume": True}, {"restart": True}, {}):
        with pytest.raises(FileExistsError, match=r"must not hold final.json, which would be overwritten.*Move"):
            quiet(small(), tmp_path, **how)
    assert [file.name for file in tmp_path.iterdir()] == ["final.json"]


def test_all_processes_must_see_the_folder(finished, tmp_path):
    RunDir(finished[0], small(), True).check_shared(1)
    with pytest.raises(FileNotFoundError, match="must be visible to all processes, .* in process 1.*that the machines share"):
        RunDir(tmp_path / "other", small(), True).check_shared(1)


def test_a_folder_that_holds_no_epoch_is_free(tmp_path):
    """What broke off before its first epoch blocks nothing; what is resumed and is not there is said."""
    recipe = small("schedule.epochs=2", "data.seed=3")
    run = Run(recipe, tmp_path, CPU, SINGLE_PROCESS)
    RunDir(tmp_path, recipe, False).prepare(run.model, run.splits, "cpu", 1)
    run.manifest.write(run.state([]))
    lines = []
    train(small("schedule.epochs=2"), str(tmp_path), resume=True, log=lines.append)
    assert f"Nothing to resume in {tmp_path}. Starting a new run." in lines


def test_workers_may_change_and_restart_starts_again(finished, tmp_path):
    folder, result, _ = finished
    stop_after(small("schedule.epochs=2"), tmp_path, 1)
    with pytest.warns(UserWarning, match="data.workers: 0 -> 1. The next epochs will differ"):
        quiet(small("schedule.epochs=2", "data.workers=1"), tmp_path, resume=True)
    (tmp_path / "mine.txt").write_text("kept")
    before = weights(tmp_path)
    with pytest.raises(FileNotFoundError):
        quiet(small("data.name=npz", "data.root=/nowhere/x.npz"), tmp_path, restart=True)
    assert same(before, weights(tmp_path)), "what cannot start again ends nothing"
    assert train(small(), tmp_path, restart=True, log=lambda line: None)["test"] == result["test"]
    assert same(weights(folder), weights(tmp_path))
    assert (tmp_path / "mine.txt").exists()


def test_who_evaluates_a_run_that_has_not_ended_is_told(finished, tmp_path):
    stop_after(small("schedule.epochs=2"), tmp_path, 1)
    with pytest.warns(UserWarning, match="holds a run that has not finished. Its weights so far are evaluated"):
        ModelSpec(str(tmp_path)).build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelSpec(str(finished[0])).build()
