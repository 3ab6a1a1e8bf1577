"""Invalid recipes are refused, with the key in the message."""

import copy

import pytest
import yaml

from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.recipe.loading import check_recipe, recipe_text
from imgproc_attn.recipe.schema import Recipe

GOOD = yaml.safe_load(recipe_text("quickstart"))
BAD = [
    (lambda c: c["optimizer"].update(learning_rat=1.0), "optimizer.learning_rat: unknown key"),
    (lambda c: c["run"].update(batchsize=1), "run.batchsize: unknown key. Did you mean 'batch_size'"),
    (lambda c: c.update(optimiser={}), "optimiser: unknown key. Did you mean 'optimizer'"),  # codespell:ignore
    (lambda c: c["comparison"].update(seed=[1]), "comparison.seed: unknown key. Did you mean 'seeds'"),
    (lambda c: c["optimizer"].update(lr="fast"), r"optimizer.lr: .*got 'fast'"),
    (lambda c: c["optimizer"].update(lr=-1.0), r"optimizer.lr: .*greater than 0.*got -1.0"),
    (lambda c: c["optimizer"].update(lr=float("nan")), r"optimizer.lr: "),
    (lambda c: c["run"].update(batch_size=0), r"run.batch_size: .*greater than or equal to 1.*got 0"),
    (lambda c: c["schedule"].update(warmup_epochs=30), "warmup_epochs must be below epochs, 30, got 30"),
    (lambda c: c["comparison"].update(seeds=[1, 1]), "seeds must be distinct"),
    (lambda c: c.update(adversarial={"eps": 0.1, "warmup_epochs": 30}), "must be below schedule.epochs, 30, got 30. Lower it"),
    (lambda c: c["data"].update(name="digit"), "data.name: The reader must be folder, npz, digits, "),
    (lambda c: c["data"].update(name="npz"), "root must be the folder or file that 'npz' reads"),
    (
        lambda c: c["data"].update(validation_images=9, validation_split="test"),
        "must be 0 if validation_split is given",
    ),
    (
        lambda c: c["data"].update(name="wds/x", root="x", test_images=9, on_broken_image="skip"),
        "test_images must be left out for the iterable reader",
    ),
    (lambda c: c["data"].update(name="wds/x", root="x"), "on_broken_image must be 'skip' for 'wds/x'"),
    (lambda c: c["model"].update(pretrained=1), "model.pretrained: .*boolean"),
    (lambda c: c["optimizer"].update(betas=[0.9, 1.0]), "optimizer.betas.1: .*less than 1"),
    (lambda c: c["data"].update(mean=[125.0]), r"data.mean: must be in \[0, 1\], as the images are, got \[125.0\]. Divide"),
    (lambda c: c["data"].update(std=[58.4]), r"data.std: must be in \[0, 1\], as the images are, got \[58.4\]. Divide"),
    (lambda c: c["data"].update(mean=[0.5], std=[1.5]), r"data.std: must be in \[0, 1\], as the images are, got \[1.5\]"),
    (lambda c: c["data"].update(input_size=[8, 8]), "data.input_size: .*at least 3"),
    (lambda c: c["run"].update(grad_accum_steps=3), "batch_size must be a multiple of grad_accum_steps, 3, got 128"),
    (lambda c: c["augmentation"].update(crop_padding=2, scale=[0.5, 1.0]), "Use one of them"),
    (lambda c: (c["augmentation"].update(mixup=0.8), c["run"].update(batch_size=5)), "mix pairs, got 5"),
    (lambda c: c.update(adversarial={"eps": 0.1}, augmentation={"random_erasing": 0.5}), "erased pixels leave"),
    (
        lambda c: (c.update(adversarial={"eps": 0.1}), c["run"].update(amp="float16")),
        "gradients of the attack would",
    ),
    (lambda c: c["evaluation"].update(fgsm=[8]), "evaluation.fgsm.0: .*less than or equal to 1"),
    (lambda c: c["comparison"]["variants"]["plain"].pop("name"), "plain: the name of the model must be given"),
    (lambda c: c.pop("data"), "data: Field required"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refuses(change, message):
    content = copy.deepcopy(GOOD)
    change(content)
    with pytest.raises(ValueError, match=message):
        check_recipe(content, "recipe.yaml")


def test_a_variant_is_a_recipe_of_one_model():
    recipe = load_recipe(find_recipe("quickstart"))
    single = recipe.variant("untied + twicing", 7)
    assert (single.comparison, single.run.seed) == (None, 7)
    assert single.model.model_dump()["residual"] == "twicing"
    assert Recipe.model_validate(single.model_dump()) == single
    with pytest.raises(ValueError, match="The variant must be one of plain, .*got 'x'"):
        recipe.variant("x", 0)
