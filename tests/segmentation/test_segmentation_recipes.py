"""Recipes for ADE20K and CamVid: valid, trained for steps, refused with reasons."""

import math

import pytest
import torch
from shapes import recipe_of, shapes_folder

from imgproc_attn.data import SINGLE_PROCESS
from imgproc_attn.recipe import find_recipe, list_recipes, load_recipe
from imgproc_attn.training import train
from imgproc_attn.training.model_factory import dry_run
from imgproc_attn.training.run import Run


def ade_recipes():
    return [name for name in list_recipes() if name.startswith("ade20k/")]


@pytest.mark.parametrize("name", [*ade_recipes(), "own/segmentation"])
def test_recipes_take_steps(name, tmp_path):
    """Small: other pictures, crops and windows; all else as the recipe says."""
    changes = [f"data.root={shapes_folder(tmp_path / 'data')}", "data.name=labeled", "data.train_split=train"]
    changes += ["data.test_split=val", "data.num_classes=6", "data.workers=0", "data.input_size=[3,64,64]", "run.batch_size=2"]
    changes += ["segmentation.short_side=64", "segmentation.window=64", "segmentation.stride=64", "model.pretrained=false"]
    recipe = load_recipe(find_recipe(name), [*changes, "model.checkpoint=''", "schedule.epochs=1", "schedule.warmup_epochs=0"])
    takes_steps(recipe, tmp_path / "run")


def takes_steps(recipe, folder):
    """An epoch, in which every weight moves, and an evaluation through windows."""
    run = Run(recipe, folder, torch.device("cpu"), SINGLE_PROCESS, lambda line: None)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert math.isfinite(run.epoch(0)["train_loss"])
    still = [name for name, p in run.model.named_parameters() if torch.equal(p, before[name])]
    assert not still, f"not trained: {still}"
    found = run.evaluate(run.splits.test or run.splits.validation)
    assert found["pixels"] > 0
    assert len(found["iou"]) == recipe.data.num_classes


def test_ade20k_recipes_differ_in_the_model_alone():
    contents = [load_recipe(find_recipe(name)).model_dump(exclude={"title", "model"}) for name in ade_recipes()]
    assert len(contents) == 14
    assert all(content == contents[0] for content in contents)


@pytest.mark.data
@pytest.mark.parametrize("name", ade_recipes())
def test_ade20k_recipes_on_real_pictures(name, data_folder, tmp_path):
    """Three pictures of ADE20K, at the recipe's own size: two to train on, one to evaluate through windows."""
    changes = [f"data.root={data_folder / 'ade20k_sample'}", "data.train_split=''", "data.test_split=null", "data.workers=0"]
    changes += ["data.validation_images=1", "run.batch_size=2", "model.pretrained=false", "model.checkpoint=''"]
    takes_steps(load_recipe(find_recipe(name), changes), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.test_split=train", "The splits train and test must not share images"),
        ("data.validation_split=val", "The splits validation and test must not share images"),
        ("evaluation.corruptions=[frost 3]", "corruptions must not include frost"),
        ("data.crop_pct=0.9", "segmentation must not have the settings crop_pct"),
        ("data.num_classes=7", "data.num_classes must be the number of classes of .*, 6, got 7"),
        ("segmentation=null", "got 'labeled' without it"),
        ("data.name=folder", "got 'folder' with it"),
        ("augmentation.mixup=0.2", "segmentation must not have the settings mixup"),
        ("segmentation.stride=20", "stride must be left out without window, got 20"),
        ("segmentation.shrot_side=20", "unknown key. Did you mean 'short_side'"),
        ("evaluation.gaussian_noise=[0.1]", "segmentation must not have the settings gaussian_noise"),
        ("evaluation.corruptions=[fogg 3]", "a corruption must be a name and a severity from 1 to 5, as 'fog 3', got 'fogg 3'"),
    ],
)
def test_recipes_refuse(change, message, tmp_path):
    root = shapes_folder(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        train(recipe_of(root, change).variant("plain", 0), tmp_path / "run", "cpu", log=lambda line: None)


def test_a_misspelt_backbone():
    with pytest.raises(ValueError, match=r"Unknown model \(nlm_vit_tny\)\. Did you mean .*nlm_vit_tiny"):
        dry_run(load_recipe(find_recipe("ade20k/deit_tiny_linear_64e"), ["model.backbone=nlm_vit_tny"]))


@pytest.mark.parametrize(
    ("backbone", "change", "message"),
    [
        (
            "pit_ti_224",
            "run.grad_checkpointing=true",
            "must support gradient checkpointing, got none. Leave out run.grad_checkpointing",
        ),
        (
            "caformer_s18",
            "optimizer.layer_decay=0.8",
            "must have a group_matcher for layer decay, got none. Leave out optimizer.layer_decay",
        ),
    ],
)
def test_what_a_backbone_cannot(backbone, change, message):
    plain = [f"model={{name: segmenter, backbone: {backbone}, decoder: linear}}"]
    dry_run(load_recipe(find_recipe("ade20k/deit_tiny_linear_64e"), plain))
    with pytest.raises(ValueError, match=message):
        dry_run(load_recipe(find_recipe("ade20k/deit_tiny_linear_64e"), [*plain, change]))


@pytest.mark.data
def test_recipes_on_real_pictures(data_folder, tmp_path):
    """CamVid: data, forward, loss, updates and sliding evaluation."""
    changes = [f"data.root={data_folder / 'camvid'}", "data.train_images=16", "data.test_images=4", "schedule.epochs=1"]
    changes += ["schedule.warmup_epochs=0", "segmentation.window=128", "segmentation.stride=96"]
    recipe = load_recipe(find_recipe("camvid/comparison_half"), changes).variant("untied + twicing", 0)
    result = train(recipe, tmp_path / "run", "cpu", log=lambda line: None)
    assert result["test"]["pixels"] > 4 * 360 * 480 * 0.8
    assert len(result["test"]["iou"]) == 11
