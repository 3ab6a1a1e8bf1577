"""Recipes are validated before anything is built, and every file of the package is valid and documented."""

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data
from texts import write_corpus

from imgproc_attn.data import SINGLE_PROCESS, Preprocessing
from imgproc_attn.recipe import find_recipe, list_recipes, load_recipe
from imgproc_attn.recipe.loading import check_recipe, recipe_text
from imgproc_attn.training.model_factory import build_model, dry_run
from imgproc_attn.training.run import Run

RECIPES = sorted(f for f in (Path(__file__).parents[2] / "recipes").rglob("*.yaml") if not f.name.startswith("_"))
NAMES = [
    path.relative_to(path.parents[len(path.parts) - len(Path(__file__).parents[2].parts) - 2]).as_posix() for path in RECIPES
]


def singles(recipe):
    if recipe.comparison is None:
        return {"": recipe}
    return {label: recipe.variant(label, 0) for label in recipe.comparison.variants}


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_header_says_what_the_recipe_is(path):
    header = path.read_text().split("\n\n")[0]
    for word in ("Purpose:", "Source:", "Hardware:", "Expected:", "Command:", "Status:"):
        assert word in header, f"{path.name} does not say {word}"
    name = path.relative_to(Path(__file__).parents[2] / "recipes").with_suffix("").as_posix()
    assert f" {name}" in header, "the command names another recipe"
    assert re.search(r"reproduced here|not run here", header.partition("Status:")[2])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_recipe_is_valid_and_its_models_and_optimizer_can_be_built(path, corpus):
    changes = [f"data.root={corpus}"] if path.parent.name == "text" else []  # the vocabulary of a model is that of its text
    if path.stem.startswith("wikitext103"):
        changes += ["model.cutoffs=[100, 500]"]  # those of the models need 200,000 words
    for single in singles(load_recipe(path, changes)).values():
        dry_run(single)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Crops of scikit-image's photographs in class folders, instead of ImageNet and CIFAR."""
    root = tmp_path_factory.mktemp("photographs")
    for name, picture in {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee()}.items():
        for split, count in (("train", 6), ("val", 2), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture[10 * i : 10 * i + 96, 20 * i : 20 * i + 96]).save(root / split / name / f"{i}.png")
    return root


def steps(single, shots, folder):
    """Train one epoch on a few small real images, with all other settings of the recipe."""
    content = single.model_dump()
    if content["data"]["name"] != "digits":
        content["data"] |= {"name": "folder", "root": str(shots), "num_classes": 3, "train_images": 12, "test_images": 6}
        content["data"] |= {"validation_images": 4 if content["data"]["validation_images"] else 0}
    if content["data"]["input_size"] == [3, 224, 224]:
        content["data"]["input_size"] = [3, 64, 64]
        content["model"] |= {"img_size": 64, "pretrained": False}
    content["data"]["workers"] = 0
    content["run"] |= {"batch_size": 4 if content["data"]["name"] == "folder" else 128, "amp": None}
    run = Run(check_recipe(content, "small"), folder, torch.device("cpu"), SINGLE_PROCESS)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    record = run.epoch(0)
    assert math.isfinite(record["train_loss"])
    # A bandwidth behind a closed gate gets no gradient until the gate opens.
    waits = "spatial_bandwidth" if single.model.name == "converted_vit" else "nothing"
    still = [name for name, p in run.model.named_parameters() if torch.equal(p, before[name]) and waits not in name]
    assert not still, f"not trained: {still}"
    assert run.evaluate(run.splits.test)["n"] > 0


@pytest.mark.parametrize("path", [p for p in RECIPES if "small" not in p.stem], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_trains(path, shots, tmp_path):
    recipe = load_recipe(path)
    if recipe.segmentation is not None:
        pytest.skip("label maps: tests/segmentation trains it")
    if recipe.language is not None:
        pytest.skip("text: tests/tasks/test_language.py trains it")
    if recipe.in_context_regression is not None:
        pytest.skip("functions: tests/tasks/test_in_context.py trains it")
    if recipe.sequences is not None:
        pytest.skip("sequences: tests/tasks/test_sequences.py trains it")
    for single in singles(recipe).values():
        steps(single, shots, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in RECIPES if "small" in p.stem], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_larger_recipe_trains(path, shots, tmp_path):
    test_every_recipe_trains(path, shots, tmp_path)


def test_recipes_to_be_compared_differ_in_the_model_alone():
    families, pictures = {}, set()
    for path in RECIPES:
        if path.parent.name == "imagenet" and path.stem.endswith("_300e"):
            pictures.add(Preprocessing.of(build_model(load_recipe(path), device="meta", pretrained=False).pretrained_cfg))
            content = load_recipe(path).model_dump(exclude={"title"})
            families.setdefault("300e", []).append({**content, "model": content["model"]["drop_path_rate"]})
    assert len(families["300e"]) == 24
    assert all(content == families["300e"][0] for content in families["300e"])
    assert len(pictures) == 1, "models of other families see other pictures"


def test_adversarially_trained_models_differ_in_the_kernel_alone():
    found = []
    for name in ("plain", "nlm"):
        recipe = load_recipe(f"imagenet/{name}_vit_small_adversarial_100e")
        model = build_model(recipe, device="meta")
        found.append((recipe.model_dump(exclude={"title", "model"}), model.num_prefix_tokens, model.global_pool))
    assert found[0] == found[1]


def test_refuses_what_is_no_recipe(tmp_path):
    path = tmp_path / "x.yaml"
    for text, message in (
        ("- 1\n", "must be a mapping of sections, got list"),
        ("a: [1", "not a YAML file"),
        ("run: {seed: 1}\ndata: {}\nrun: {seed: 2}", "a key must be given once, got 'run' twice. Remove one"),
        ("a: !!python/object:os.x {}", "not a YAML file"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_recipe(path)


def test_overrides():
    recipe = load_recipe(find_recipe("quickstart"), ["optimizer.lr=1e-3", "comparison.seeds=[4,5]", "evaluation.pgd=[]"])
    assert recipe.optimizer.lr == 1e-3
    assert recipe.comparison.seeds == [4, 5]
    assert recipe.evaluation.pgd == []
    assert load_recipe("quickstart", ["data.test_split="]).data.test_split == ""
    with pytest.raises(ValueError, match="got 'name' twice"):
        load_recipe("quickstart", ["model={name: a, name: b}"])
    assert load_recipe("quickstart", ["data.test_split=null"]).data.test_split is None
    assert load_recipe("quickstart", ["adversarial.eps=4/255"]).adversarial.eps == 4 / 255
    with pytest.raises(ValueError, match="must have the form section.key=value"):
        load_recipe(find_recipe("quickstart"), ["optimizer.lr"])
    with pytest.raises(ValueError, match="title must be a section, got a single value"):
        load_recipe(find_recipe("quickstart"), ["title.lr=1"])


def test_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "mine.yaml"
    text = recipe_text("quickstart").replace("lr: 0.006", "lr: 6e-3")
    file.write_text(text.replace("[0.02, 0.05, 0.1, 0.15]", "[4/255, 0.1]"))
    assert "lr: 6e-3" in file.read_text()
    recipe = load_recipe(str(file))
    assert recipe.optimizer.lr == 6e-3
    assert recipe.evaluation.pgd == [4 / 255, 0.1]


def test_unknown_recipe_names_near_ones():
    with pytest.raises(FileNotFoundError, match="Did you mean 'quickstart'"):
        find_recipe("quikstart")
    assert find_recipe("quickstart.yaml") == find_recipe("quickstart") == list_recipes()["quickstart"]


def test_models_that_do_not_fit_the_data_are_refused_before_anything_is_built():
    recipe = load_recipe(find_recipe("quickstart"), ["data.input_size=[1,16,16]"]).variant("plain", 0)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224: .*16"):
        dry_run(recipe)
    for override, message in (
        ("model.residuals=twicing", "unexpected keyword argument 'residuals'.*Did you mean 'residual'"),
        ("model.drop_path_rat=0.1", "Did you mean 'drop_path_rate'"),
        ("augmentation.auto_augment=AutoAugment", "augmentation.auto_augment must be a policy of timm, got 'AutoAugment'"),
        ("comparison.variants.twicing.name=twicing_vit_tinny", "Did you mean 'twicing_vit_tiny'"),
        ("optimizer.name=adamm", "adamm"),
        ("optimizer={name: sgd, lr: 0.1, betas: [0.9, 0.99]}", "must be left out for sgd"),
        ("optimizer.name=lionn", r"optimizer.name must be an optimizer of timm, got 'lionn'\. Did you mean 'lion'\?"),
        ("optimizer.name=bnblion", r"must be an optimizer that is installed .* got 'bnblion' .* Use one of timm's own"),
    ):
        with pytest.raises(ValueError, match=message):
            dry_run(load_recipe(find_recipe("quickstart"), [override]).variant("twicing", 0))
    with pytest.raises(ValueError, match="data.mean must have 1 value or one per channel, 1, got 3"):
        dry_run(load_recipe(find_recipe("quickstart"), ["data.mean=[0.1,0.2,0.3]"]).variant("plain", 0))
    assert torch.get_default_device().type == "cpu"
