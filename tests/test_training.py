"""Recipes are checked before anything is built; the loop is reproducible."""

from pathlib import Path

import pytest
import timm
import torch
import yaml

from imgproc_attn.quickstart import build
from imgproc_attn.training import find_recipe, fit, load_digits, load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
QUICK = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "run.seeds=[0]",
]


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_its_models_take_a_step(path):
    header = path.read_text().split("\n\n")[0]
    for word in ("Purpose:", "Source:", "Hardware:", "Expected:", "Command:", "Status:"):
        assert word in header, f"{path.name} does not say {word}"
    recipe = load_recipe(path, ["schedule.epochs=1", "schedule.warmup_epochs=0", "run.seeds=[0]"])
    split = load_digits(recipe.data.test_images, recipe.data.seed)
    for label in recipe.variants:
        history = fit(build(recipe, label, 0), split.train_images[:128], split.train_labels[:128], recipe, 0)
        assert len(history) == 1


def write(tmp_path, change):
    content = yaml.safe_load(RECIPES[0].read_text())
    change(content)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


BAD = [
    (lambda c: c["optimiser"].update(learning_rat=1.0), "optimiser.learning_rat: unknown key"),
    (lambda c: c["run"].update(batchsize=1), "run.batchsize: unknown key; did you mean 'batch_size'"),
    (lambda c: c.update(optimizer={}), "optimizer: unknown key; did you mean 'optimiser'"),
    (lambda c: c["optimiser"].update(lr="fast"), r"optimiser.lr: .*given: 'fast'"),
    (lambda c: c["optimiser"].update(lr=-1.0), r"optimiser.lr: .*greater than 0.*given: -1.0"),
    (lambda c: c["optimiser"].update(lr=float("nan")), r"optimiser.lr: "),
    (lambda c: c["schedule"].update(warmup_epochs=50), "warmup_epochs is 50, but must be below epochs, 50"),
    (lambda c: c["run"].update(seeds=[1, 1]), "each may stand there once"),
    (lambda c: c["data"].update(name="digit"), "data.name: .*'digits'"),
    (lambda c: c["evaluation"].update(fgsm=[8]), "evaluation.fgsm.0: .*less than or equal to 1"),
    (lambda c: c.pop("data"), "data: Field required"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, change))


def test_refuses_what_is_no_recipe(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="holds list"):
        load_recipe(path)
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_recipe(path)


def test_overrides():
    recipe = load_recipe(find_recipe("quickstart"), ["optimiser.lr=1e-3", "run.seeds=[4,5]", "evaluation.pgd=[]"])
    assert recipe.optimiser.lr == 1e-3
    assert recipe.run.seeds == [4, 5]
    assert recipe.evaluation.pgd == []
    with pytest.raises(ValueError, match="has no '='"):
        load_recipe(find_recipe("quickstart"), ["optimiser.lr"])
    with pytest.raises(ValueError, match="is not a section"):
        load_recipe(find_recipe("quickstart"), ["title.lr=1"])


def test_unknown_recipe_lists_the_known():
    with pytest.raises(FileNotFoundError, match="one of .*quickstart"):
        find_recipe("quikstart")


def test_digits():
    split = load_digits(360, 0)
    assert split.train_images.shape == (1437, 1, 8, 8)
    assert split.test_labels.bincount().min() >= 35
    assert split.train_images.min() == 0
    assert split.train_images.max() == 1
    seen = {image.numpy().tobytes() for image in split.train_images}
    # scikit-learn's set holds no duplicates, so none may stand on both sides
    assert not [image for image in split.test_images if image.numpy().tobytes() in seen]
    with pytest.raises(ValueError, match=r"data.test_images is 3, but must lie in 10 to 1787"):
        load_digits(3, 0)


def test_fit_is_reproducible_and_learns():
    recipe = load_recipe(find_recipe("quickstart"), [*QUICK, "schedule.epochs=4"])
    split = load_digits(360, 0)
    runs = []
    for seed in (0, 0, 1):
        model = build(recipe, "bilateral + twicing", seed)
        runs.append((fit(model, split.train_images, split.train_labels, recipe, seed), model))
    assert [e.loss for e in runs[0][0]] == [e.loss for e in runs[1][0]]
    for a, b in zip(runs[0][1].parameters(), runs[1][1].parameters()):
        assert torch.equal(a, b)
    assert runs[0][0][-1].loss != runs[2][0][-1].loss
    assert runs[0][0][-1].loss < runs[0][0][0].loss
    assert not runs[0][1].training


def test_schedule_warms_up_and_ends_at_zero():
    recipe = load_recipe(find_recipe("quickstart"), [*QUICK, "schedule.epochs=6"])
    split = load_digits(360, 0)
    rates = [e.lr for e in fit(build(recipe, "plain", 0), split.train_images, split.train_labels, recipe, 0)]
    assert rates[0] == pytest.approx(recipe.optimiser.lr, rel=0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 * recipe.optimiser.lr


def test_a_loss_that_is_not_finite_stops_the_run():
    recipe = load_recipe(find_recipe("quickstart"), QUICK)
    split = load_digits(360, 0)
    model = build(recipe, "plain", 0)
    with torch.no_grad():
        model.model.head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 0, update 0; lower optimiser.lr"):
        fit(model, split.train_images, split.train_labels, recipe, 0)


def test_batch_larger_than_the_data():
    recipe = load_recipe(find_recipe("quickstart"), QUICK)
    split = load_digits(360, 0)
    with pytest.raises(ValueError, match="run.batch_size is 128, but there are 50 training images"):
        fit(build(recipe, "plain", 0), split.train_images[:50], split.train_labels[:50], recipe, 0)


def test_the_models_of_a_comparison_are_of_one_size():
    recipe = load_recipe(find_recipe("quickstart"))
    sizes = {label: sum(p.numel() for p in build(recipe, label, 0).parameters()) for label in recipe.variants}
    assert max(sizes.values()) <= 1.25 * sizes["plain"]
    assert isinstance(build(recipe, "plain", 0).model, timm.models.VisionTransformer)
