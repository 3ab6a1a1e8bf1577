"""In-context regression is trained, evaluated, compared and reported by the commands of images."""

import csv
import json
import math

import pytest
import seeding
import timm
import torch
import yaml

from imgproc_attn import cli
from imgproc_attn.data import SINGLE_PROCESS
from imgproc_attn.in_context import InContextRegressor
from imgproc_attn.recipe import load_recipe
from imgproc_attn.recipe.loading import check_recipe
from imgproc_attn.tasks import InContextTask
from imgproc_attn.training import train as train_recipe
from imgproc_attn.training.run import Run

SECTION = {"dimensions": 3, "points": 7, "epoch_sequences": 640, "evaluation_sequences": 64}
RECIPE = {
    "title": "Functions",
    "model": {"name": "in_context_regressor", "embed_dim": 32, "depth": 2, "num_heads": 2},
    "data": {"workers": 0},
    "in_context_regression": SECTION,
    "optimizer": {"name": "adam", "lr": 0.003},
    "schedule": {"epochs": 3},
    "run": {"batch_size": 32, "seed": seeding.number},
}


def recipe_of(**sections):
    return {**RECIPE, **sections}


def command(*words):
    cli.main([*map(str, words)])


def train(folder, recipe):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("train", folder / "recipe.yaml", "--output", folder / "run", "--device", "cpu")
    return folder / "run"


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("functions"), RECIPE)


def test_training_chooses_by_the_error(run):
    final = json.loads((run / "final.json").read_text())
    errors = [json.loads(line)["validation_error"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert final["best_epoch"] == 1 + errors.index(min(errors))
    assert final["test"]["n"] == 64
    assert 0.1 < final["test"]["error"] < 2  # in units of the error of the prediction 0


def test_evaluation_counts_the_logged_errors(run, tmp_path):
    command("evaluate", run, "--output", tmp_path / "out", "--device", "cpu")
    row, final = result(tmp_path / "out")["conditions"][0], json.loads((run / "final.json").read_text())
    assert row["error"] == pytest.approx(final["test"]["error"], rel=1e-6)
    lines = [json.loads(line) for line in next((tmp_path / "out" / "log").iterdir()).read_text().splitlines()[1:]]
    errors = torch.tensor([sequence for line in lines for sequence in line["errors"]], dtype=torch.float64)
    assert errors.shape == (64, 7)
    assert row["error"] == pytest.approx(errors.mean().item() / 3, rel=1e-5)
    assert row["last_error"] == pytest.approx(errors[:, -1].mean().item() / 3, rel=1e-5)
    low, high = row["intervals"]["last_error"]
    assert high - low == pytest.approx(2 * 1.96 * errors[:, -1].std().item() / 3 / 8, rel=1e-3)
    with (tmp_path / "out" / "errors.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["examples"] for line in table] == [*"0123456"]
    assert float(table[6]["error"]) == pytest.approx(row["last_error"], rel=1e-6)
    command("evaluate", run, "--split", "validation", "--limit", 9, "--output", tmp_path / "few", "--device", "cpu")
    assert result(tmp_path / "few")["conditions"][0]["n"] == 9
    command("report", tmp_path / "out", "--output", tmp_path / "report.html")
    assert "squared error after 6 examples" in (tmp_path / "report.html").read_text()


def test_the_prediction_0_has_the_error_1():
    class Zero(torch.nn.Module):
        def forward(self, sequence):
            return torch.zeros(len(sequence), 1 + sequence.shape[1] // 2)

    for sparsity in (None, 2):
        task = InContextTask(6, 9, sparsity)
        samples = task.samples_of(task._evaluated("test"))
        assert len(samples) == 1280
        (sequences, targets, _) = next(samples.batches(None, 1280, 0, torch.device("cpu")))
        errors = task.score(Zero(), sequences, targets)["errors"] / task.problem.scale
        assert errors.mean().item() == pytest.approx(task.best_constant(None), abs=0.1)


def test_resuming_gives_the_same_weights_also_within_the_curriculum(tmp_path):
    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith("epoch 1/"):
            raise Stop

    grows = {**SECTION, "epoch_sequences": 64, "start_dimensions": 1, "start_points": 3}
    recipe = check_recipe(recipe_of(in_context_regression=grows, schedule={"epochs": 2}), "recipe.yaml")
    with pytest.raises(Stop):
        train_recipe(recipe, tmp_path / "resumed", "cpu", log=stop)
    train_recipe(recipe, tmp_path / "resumed", "cpu", resume=True, log=lambda line: None)
    train_recipe(recipe, tmp_path / "whole", "cpu", log=lambda line: None)
    resumed, whole = (
        timm.create_model(f"local-dir:{tmp_path / name / 'last'}", pretrained=True).state_dict()
        for name in ("resumed", "whole")
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_comparisons_draw_the_errors(tmp_path):
    variants = {"plain": {}, "AoT-MSSA": {"projection": "subspaces", "mlp": "none"}}
    sections = {
        "comparison": {"seeds": [0], "variants": variants},
        "schedule": {"epochs": 1},
        "in_context_regression": {**SECTION, "sparsity": 2, "epoch_sequences": 64, "evaluation_sequences": 16},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of(**sections)))
    command("compare", tmp_path / "two.yaml", "--output", tmp_path / "out", "--jobs", "1", "--device", "cpu")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "In squared error after 6 examples" in text
    assert "![errors](errors.png)" in text
    assert "PGD" not in text
    assert (tmp_path / "out" / "errors.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["linear_small", "sparse_small"])
def test_recipes_train_models_of_one_size(tmp_path, name):
    few = ["in_context_regression.epoch_sequences=64", "in_context_regression.evaluation_sequences=8"]
    recipe, parameters = load_recipe(f"in_context/{name}", few), []
    for label in recipe.comparison.variants:
        trained = Run(recipe.variant(label, seeding.number), tmp_path, torch.device("cpu"), SINGLE_PROCESS)
        before = {parameter: value.detach().clone() for parameter, value in trained.model.named_parameters()}
        assert math.isfinite(trained.epoch(0)["train_loss"])
        moved = [p for p, value in trained.model.named_parameters() if not torch.equal(value, before[p])]
        assert len(moved) == len(before)
        assert trained.evaluate(trained.splits.test)["n"] == 8
        parameters.append(sum(value.numel() for value in before.values()))
    assert max(parameters) < 1.03 * min(parameters)


def test_sanity_checks_find_models_that_see_the_answer():
    task = InContextTask(3, 7, evaluation_sequences=16)
    model = InContextRegressor(3, 7, 32, 2, 2).eval()
    batches = list(task.samples_of(task._evaluated("test")).batches(None, 8, 0, torch.device("cpu")))

    class Leaky(torch.nn.Module):
        def forward(self, sequence):
            return model(sequence) + torch.nn.functional.pad(sequence[:, 1::2, 0], (0, 1))

    assert task.check(model, batches, [], {}).findings == []
    assert task.check(Leaky(), batches, [], {}).findings[0].check == "predictions see later values"


def section(**changes):
    return lambda c: c.update(in_context_regression={**SECTION, **changes})


BAD = [
    (section(dimensions=0), "in_context_regression.dimensions: .*greater than or equal to 1.*got 0"),
    (section(points=1), "in_context_regression.points: .*greater than or equal to 2.*got 1"),
    (section(sparsity=4), "sparsity must be at most dimensions, 3, got 4. Lower it"),
    (section(sparsity=3, start_dimensions=2), "sparsity must be at most start_dimensions, 2, got 3"),
    (section(start_dimensions=4), "start_dimensions must be at most dimensions, 3, got 4"),
    (section(start_points=9), "start_points must be at most points, 7, got 9"),
    (
        lambda c: c.update(data={"name": "digits", "num_classes": 10}),
        "a section in_context_regression, data.name regression and task in_context_regression must come together",
    ),
    (lambda c: c.update(task="classification"), "must come together, got a section, 'regression' and 'classification'"),
    (lambda c: c.update(data={"input_size": [1, 13, 4]}), r"input_size must be \[1, 13, 3\] for the sizes in the section"),
    (lambda c: c.update(data={"train_images": 9}), "in_context_regression must not have the settings train_images"),
    (lambda c: c.update(evaluation={"pgd": [0.1]}), "must not have the settings pgd"),
    (lambda c: c["run"].update(label_smoothing=0.1), "must not have the settings label_smoothing"),
    (lambda c: c.update(augmentation={"mixup": 0.1}), "must not have the settings mixup"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_recipes(change, message):
    content = json.loads(json.dumps(RECIPE))
    change(content)
    with pytest.raises(ValueError, match=message):
        check_recipe(content, "recipe.yaml")


REFUSED = [
    (["attack"], "must be of a task with attacks, got one of the task in_context_regression"),
    (["corrupt"], "The data to corrupt must be images or text, got sequences"),
    (["evaluate", "--flip"], "--flip must be left out for in_context_regression"),
    (["evaluate", "--data", "digits"], "The data of in-context regression must be regression, got 'digits'"),
    (["evaluate", "--split", "valid"], "The split must be one of train, validation, test, got 'valid'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_refused_options(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        command(words[0], run, *words[1:], "--output", tmp_path / "out", "--device", "cpu")
    assert message in capsys.readouterr().err


def test_models_that_do_not_fit(run, tmp_path, capsys):
    for model, message in (
        ({"name": "test_vit"}, "test_vit: "),
        ({"name": "test_gpt2_lm"}, "test_gpt2_lm: "),
        ({**RECIPE["model"], "dimensions": 4}, "must have the shape [batch, tokens, 4], got [1, 13, 3]"),
        ({**RECIPE["model"], "points": 6}, "must have at most 11 tokens, the context of the model, got 13"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path, recipe_of(model=model))
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("evaluate", run, "dimensions=4", "--output", tmp_path / "out", "--device", "cpu")
    assert "token_embed.weight [32, 3], not [32, 4]. Give weights of the same" in capsys.readouterr().err


def test_a_task_of_other_dimensions_is_refused(run):
    recipe = load_recipe(run)
    model = timm.create_model("in_context_regressor", dimensions=5, points=7, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="must take 3 dimensions, as the recipe gives, got one for 5. Leave out"):
        InContextTask.for_model(model, recipe)
    with pytest.raises(ValueError, match="The model must be in_context_regressor, got Linear"):
        InContextTask.for_model(torch.nn.Linear(1, 1), recipe)
    with pytest.raises(ValueError, match="must come from a run, got one without a recipe"):
        InContextTask.for_model(model)
