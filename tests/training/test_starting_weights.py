"""Weights that training starts from, and those it refuses."""

import json

import pytest
import timm
import torch
from runs import CPU, same, small, weights
from safetensors.torch import save_file
from torch import nn

from imgproc_attn.data import SINGLE_PROCESS, World
from imgproc_attn.models.checkpoints import load_weights
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training import train
from imgproc_attn.training.checkpoints import load_state
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import Run


def test_checkpoints_of_other_models_are_refused(finished, tmp_path):
    folder, _, _ = finished
    other = build_model(small("model.depth=2"))
    with pytest.raises(ValueError, match="must hold the weights of the FilterVisionTransformer built here") as error:
        load_weights(other, folder / "best")
    assert "missing: blocks.1." in str(error.value)
    with pytest.raises(ValueError, match=r"of another shape: .*embed.* \[1, 16, 16\], not \[1, 16, 32\]"):
        load_weights(build_model(small("model.embed_dim=32")), folder / "best")
    with pytest.raises(ValueError, match=r"unexpected: blocks\.0"):
        load_weights(nn.Linear(2, 2), folder / "best")
    with pytest.raises(FileNotFoundError, match="Checkpoint must be an existing file"):
        load_weights(other, tmp_path / "none.safetensors")


def test_cut_off_and_malicious_checkpoints(finished, tmp_path):
    folder, _, _ = finished
    model = build_model(small())
    for name, source in (("a.safetensors", folder / "best" / "model.safetensors"), ("a.pt", folder / "state.pt")):
        (tmp_path / name).write_bytes(source.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="must be a complete checkpoint"):
            load_weights(model, tmp_path / name)
    marker = tmp_path / "executed"
    torch.save({"model": Payload(str(marker))}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="could run code. Save only its weights"):
        load_weights(model, tmp_path / "evil.pt")
    assert not marker.exists()
    torch.save({"note": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="must hold weights"):
        load_weights(model, tmp_path / "empty.pt")
    load_weights(model, folder / "state.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="must be the complete state of a run, got an error"):
        load_state(tmp_path / "run")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_starting_from_a_checkpoint(finished, tmp_path):
    folder, _, _ = finished
    recipe = small(f"model.checkpoint={folder / 'best'}")
    run = Run(recipe, tmp_path, CPU, World(0, 1))
    assert same(run.model.state_dict(), weights(folder, "best"))
    assert "checkpoint" not in json.loads((folder / "best" / "config.json").read_text())["model_args"]


def test_a_new_classifier_and_another_image_size(tmp_path):
    """A trained ViT goes on with other classes and a finer grid; what is not loaded is said."""
    trained = build_model(small("data.num_classes=7", "model.patch_size=4", label="plain"))
    torch.save({"model": trained.state_dict()}, tmp_path / "w.pt")
    lines = []
    recipe = small(f"model.checkpoint={tmp_path / 'w.pt'}", "model.patch_size=4", label="twicing")
    run = Run(recipe, tmp_path / "run", CPU, SINGLE_PROCESS, lines.append)
    assert lines[0] == f"From {tmp_path / 'w.pt'}; new: head.weight, head.bias (10 classes)."
    assert torch.equal(run.model.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    finer = Run(
        small(f"model.checkpoint={tmp_path / 'w.pt'}", label="twicing"), tmp_path / "run", CPU, SINGLE_PROCESS, lines.append
    )
    assert finer.model.pos_embed.shape[1] == 16
    assert "new: head.weight, head.bias (10 classes)" in lines[-1]
    assert "resampled: pos_embed, patch_embed.proj.weight" in lines[-1]
    assert not torch.equal(finer.model.pos_embed, build_model(small(label="twicing")).pos_embed)
    with pytest.raises(ValueError, match=r"missing: blocks.1"):
        Run(small(f"model.checkpoint={tmp_path / 'w.pt'}", "model.depth=2", label="plain"), tmp_path / "x", CPU, SINGLE_PROCESS)


def test_a_headless_backbone_in_a_recipe(tmp_path):
    """A new user's way: color weights of a larger size for gray digits; the images' size is what the model is built for."""
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0}
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    words = ["model.source=vit_tiny_patch16_224", "model.patch_size=4", f"model.checkpoint={tmp_path / 'w.safetensors'}"]
    words += ["comparison.variants={own: {name: converted_vit, residual: twicing}}", "schedule.epochs=1", "data.mean=null"]
    words += ["schedule.warmup_epochs=0", "data.std=null", "model.class_token=true", "model.global_pool=token"]
    lines = []
    result = train(small(*words, label="own"), tmp_path / "run", "cpu", log=lines.append)
    assert lines[0] == (
        f"From {tmp_path / 'w.safetensors'}; new: head.weight, head.bias (10 classes), blocks.*.attn.residual.gate.strength; "
        "resampled: pos_embed; adapted to other input channels: patch_embed.proj.weight."
    )
    assert result["test"]["n"] == 100
    again = timm.create_model(f"local-dir:{tmp_path / 'run' / 'best'}", pretrained=True)
    assert again.pretrained_cfg["mean"] == pytest.approx((0.5,))
    with pytest.raises(
        ValueError,
        match=r"must be 32 x 32, .* was built for, got 8 x 8.*Set model\.img_size=\[8,8\]: positions are resampled to it",
    ):
        train(small(*words, "model.img_size=32", label="own"), tmp_path / "other", "cpu")
    plain = ["comparison.variants={own: {name: vit_tiny_patch16_224}}", "model.patch_size=4", "model.img_size=32"]
    with pytest.raises(ValueError, match=r"\(32\)\. Set model\.img_size=\[8,8\]"):
        train(small(*plain, label="own"), tmp_path / "other", "cpu")


@pytest.mark.data
@pytest.mark.timeout(1800)
def test_the_fine_tuning_recipe_on_trained_weights(data_folder, vit_weights, tmp_path):
    """Some steps on Imagenette: the loss falls, and photographs it has not seen are told apart."""
    recipe = load_recipe(
        find_recipe("imagenet/converted_vit_small_finetune_30e"),
        [
            "model.source=vit_small_patch14_dinov2",
            "model.pretrained=false",
            f"model.checkpoint={vit_weights}",
            "model.img_size=84",
            "data.input_size=[3,84,84]",
            "data.num_classes=10",
            "data.name=npz",
            "data.test_split=test",
            f"data.root={data_folder / 'imagenette128' / 'imagenette128_jpeg.npz'}",
            "data.on_broken_image=stop",
            "data.train_images=512",
            "data.validation_images=100",
            "data.test_images=200",
            "data.workers=0",
            "schedule.epochs=3",
            "schedule.warmup_epochs=1",
            "run.batch_size=32",
            "run.amp=null",
            "run.ema_decay=null",
        ],
    )
    lines = []
    result = train(recipe, tmp_path / "run", "cpu", log=lines.append)
    assert lines[0].startswith(f"From {vit_weights}; new: head.weight, head.bias (10 classes), blocks.*.attn.positions.0.gate")
    assert "resampled: pos_embed" in lines[0]
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[2] < losses[0]
    assert result["test"]["accuracy"] > 20  # chance is 10 %, its standard error 2 points
