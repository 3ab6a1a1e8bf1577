"""Classifiers of sequences train, are evaluated, contaminated, resumed, compared and reported by the commands of images."""

import json
import math
import shutil

import pytest
import seeding
import timm
import torch
import yaml
from texts import descriptions

from imgproc_attn import cli
from imgproc_attn.data import SINGLE_PROCESS, Unreadable
from imgproc_attn.evaluation import PGD
from imgproc_attn.evaluation.conditions import CLEAN, clean_condition
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.recipe import load_recipe
from imgproc_attn.recipe.loading import check_recipe
from imgproc_attn.sequences import LabeledSequences, ListOps, ListOpsFile, Reviews, write_listops
from imgproc_attn.tasks import SequenceTask
from imgproc_attn.tasks.sequence_samples import SequenceSamples
from imgproc_attn.training import train as train_recipe
from imgproc_attn.training.run import Run

MODEL = {"name": "lra_plain", "embed_dim": 16, "depth": 1, "drop_rate": 0.0}


def recipe_of(root, name="listops", context=40, **sections):
    return {
        "title": "Sequences",
        "model": MODEL,
        "data": {"name": name, "root": str(root), "num_classes": 10 if name == "listops" else 2, "workers": 0},
        "sequences": {"context": context},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"epochs": 2},
        "run": {"batch_size": 16, "seed": seeding.number},
        **sections,
    }


DIGITS = {"name": "digits", "num_classes": 10, "input_size": [1, 8, 8], "validation_images": 60, "test_split": "test"}
DIGITS |= {"train_images": 320, "workers": 0}


def command(*words):
    cli.main([*map(str, words)])


def train(folder, recipe, *words):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("train", folder / "recipe.yaml", "--output", folder / "run", "--device", "cpu", *words)
    return folder / "run"


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    """Short expressions of one operation, whose most frequent value is 0 or 9."""
    folder = tmp_path_factory.mktemp("listops")
    write_listops(folder, (480, 64, 128), ListOps(max_depth=2, min_length=5, max_length=14))
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Paragraphs of real text; their class is whether they have many words."""
    folder = tmp_path_factory.mktemp("reviews")
    parts = sorted((p for text in descriptions().values() for p in text.split("\n\n") if len(p) > 60), key=len)[:160]
    for kind, half in (("neg", parts[:80]), ("pos", parts[80:])):
        (folder / kind).mkdir()
        for i, part in enumerate(half):
            (folder / kind / f"{i:03}.txt").write_text(part, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(listops, tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), recipe_of(listops, schedule={"epochs": 3}))


def test_training_learns_and_tests_all_sequences(run):
    final = json.loads((run / "final.json").read_text())
    assert final["test"]["n"] == 128
    assert final["losses"][-1] < final["losses"][0] - 0.1
    assert (run / "metrics.jsonl").read_text().count("validation_accuracy") == 3


def test_evaluate_gives_the_accuracy_of_the_model(run, listops, tmp_path):
    """Also one sequence at a time, without padding."""
    command("evaluate", run, "--output", tmp_path / "out", "--device", "cpu")
    row = result(tmp_path / "out")["conditions"][0]
    model = timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()
    sequences = LabeledSequences(ListOpsFile.open(str(listops), "test"), context=40)
    with torch.no_grad():
        right = sum(int(model(tokens[None]).argmax()) == label for tokens, label in sequences)
    assert (row["n"], row["correct"]) == (128, right)
    low, high = row["intervals"]["accuracy"]
    assert low < row["accuracy"] == 100 * right / 128 < high
    assert (tmp_path / "out" / "per_class.csv").exists()
    command("evaluate", run, "--limit", 9, "--split", "val", "--output", tmp_path / "few", "--device", "cpu")
    assert result(tmp_path / "few")["conditions"][0]["n"] == 9


def test_resuming_gives_the_same_weights(run, tmp_path):
    class Stop(Exception):
        pass

    recipe = check_recipe(yaml.safe_load((run.parent / "recipe.yaml").read_text()), "recipe.yaml")

    def stop(line):
        if line.startswith("epoch 1/"):
            raise Stop

    with pytest.raises(Stop):
        train_recipe(recipe, tmp_path / "run", "cpu", log=stop)
    train_recipe(recipe, tmp_path / "run", "cpu", resume=True, log=lambda line: None)
    again = timm.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True).state_dict()
    whole = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True).state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_reviews_with_swapped_words(reviews, tmp_path, capsys):
    run = train(tmp_path, recipe_of(reviews, "reviews", context=200, schedule={"epochs": 1}))
    command(
        *("corrupt", run, "--severities", 0.1, 0.5, "--output", tmp_path / "out", "--device", "cpu"),
    )
    rows = result(tmp_path / "out")["conditions"]
    assert [row["name"] for row in rows] == ["clean", "word_swap 0.1", "word_swap 0.5"]
    assert 0 < rows[1]["images"]["swapped_words"] < rows[2]["images"]["swapped_words"]
    assert f"{rows[1]['images']['swapped_words']} of {rows[1]['images']['words']} words (" in capsys.readouterr().out
    command("report", tmp_path / "out", "--output", tmp_path / "report.html")


def test_each_review_has_its_own_swap(reviews):
    task = SequenceTask(2, reader="reviews", context=4000, input_size=(1, 1, 4000))
    samples = task.samples_of(LabeledSequences(Reviews.open(str(reviews), "test"), 4000))
    (swap,) = task.corruptions(None, [0.3], seed=0)
    swapped = samples.corrupted(swap)
    texts = [bytes(t - 1 for t in swapped[i][0].tolist()) for i in range(len(samples))]
    assert sum(text.count(b"AAA") for text in texts) >= swapped.identity["swapped_words"] > 50
    few = swapped.only(samples.ids[[3, 5]])
    assert [bytes(t - 1 for t in few[i][0].tolist()) for i in range(2)] == [texts[3], texts[5]]
    assert samples.identity != swapped.identity


def test_validation_reviews_are_held_out_of_the_training_split(reviews, tmp_path):
    """With IMDB's layout, which has no validation split."""
    for split in ("train", "test"):
        shutil.copytree(reviews, tmp_path / split)
    data = {"name": "reviews", "root": str(tmp_path), "num_classes": 2, "validation_images": 30, "train_images": 50}
    recipe = check_recipe(recipe_of(tmp_path, data={**data, "test_images": 20}), "recipe.yaml")
    assert (recipe.data.validation_split, recipe.data.test_split) == (None, "test")
    splits = SequenceTask.from_recipe(recipe).open_splits(recipe, Unreadable())
    names = [{split.name(i) for i in range(len(split))} for split in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in names] == [50, 30, 20]
    assert not names[0] & names[1]
    assert all(name.startswith("train/") for name in names[0] | names[1])
    assert all(name.startswith("test/") for name in names[2])


def test_pixels_train_and_are_corrupted(tmp_path):
    recipe = recipe_of("", context=64, data=DIGITS, schedule={"epochs": 1})
    run = train(tmp_path, recipe)
    words = ["corrupt", run, "--corruptions", "contrast", "--severities", 2, "--output", tmp_path / "out", "--device", "cpu"]
    command(*words)
    command(*words)  # resumes
    assert [row["name"] for row in result(tmp_path / "out")["conditions"]] == ["clean", "contrast 2"]
    checked = check_recipe(recipe, "recipe.yaml")
    task = SequenceTask.from_recipe(checked)
    samples = task.samples_of(task.open_splits(checked, Unreadable()).test)
    tokens, *_ = next(samples.batches(None, 4, 0, torch.device("cpu")))
    assert tokens.shape == (4, 64)
    changed, *_ = next(samples.corrupted(task.corruptions(["contrast"], [2], 0)[0]).batches(None, 4, 0, torch.device("cpu")))
    assert 0 < changed.float().std() < tokens.float().std()


def test_comparisons(listops, tmp_path):
    variants = {"plain": {}, "AoT-MSSA": {"name": "lra_aot_mssa", "depth": 2}}
    sections = {"comparison": {"seeds": [0], "variants": variants}, "schedule": {"epochs": 1}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of(listops, **sections)))
    command("compare", tmp_path / "two.yaml", "--output", tmp_path / "out", "--jobs", "1", "--device", "cpu")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "128 held-out sequences" in text
    assert "PGD" not in text
    command("report", tmp_path / "out", "--output", tmp_path / "report.html")


def test_pairs_train(tmp_path):
    parts = [p.replace("\n", " ").replace("\t", " ") for text in descriptions().values() for p in text.split("\n\n")]
    parts = [p for p in parts if len(p) > 60]
    rows = [f"{i % 2}.0\ta\tb\t{parts[i]}\t{parts[i if i % 2 else -i - 1]}" for i in range(32)]
    for split in ("train", "eval", "test"):
        (tmp_path / f"aan.{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run = train(tmp_path / "pairs", recipe_of(tmp_path, "retrieval", context=100, schedule={"epochs": 1}))
    assert json.loads((run / "final.json").read_text())["test"]["n"] == 32


SHORT = ("listops_short", "image_short", "text_short")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_recipes_train(listops, reviews, tmp_path, name):
    """One epoch on other sequences, with all other settings of the recipe."""
    roots = {"listops_short": [f"data.root={listops}"], "text_short": [f"data.root={reviews}"]}
    digits = [f"data.{key}={json.dumps(value)}" for key, value in DIGITS.items()] + [
        "sequences.context=64",
        "data.test_images=32",
    ]
    recipe = load_recipe(f"lra/{name}", [*roots.get(name, digits), "run.batch_size=16"])
    for label in recipe.comparison.variants if recipe.comparison else [None]:
        single = recipe if label is None else recipe.variant(label, seeding.number)
        trained = Run(single, tmp_path, torch.device("cpu"), SINGLE_PROCESS)
        before = {parameter: value.detach().clone() for parameter, value in trained.model.named_parameters()}
        assert math.isfinite(trained.epoch(0)["train_loss"])
        assert not [p for p, value in trained.model.named_parameters() if torch.equal(value, before[p])]
        assert trained.evaluate(trained.splits.test)["n"] > 0


def test_sanity_checks_find_models_that_see_padding(run):
    model = timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()

    class Leaky(torch.nn.Module):
        def forward(self, tokens):
            return model(tokens) + tokens.shape[1] * torch.eye(10)[0]

    task, tokens = SequenceTask(10, reader="listops", context=40, input_size=(1, 1, 40)), torch.randint(1, 16, (2, 9))
    batches = [(tokens, torch.zeros(2), torch.arange(2))]
    assert task.check(task.wrap(model), batches, [], {}).findings == []
    assert task.check(Leaky(), batches, [], {}).findings[0].check == "outputs see padding"


def test_tokens_outside_the_vocabulary(listops):
    """The error names the limit and the token, which an error of torch would not."""
    task = SequenceTask(10, reader="listops", context=40, input_size=(1, 1, 40))
    model = timm.create_model("lra_plain", vocab_size=12, context=40, padding=0).eval()
    session = EvaluationSession(task.wrap(model).eval(), task, None, Runtime(torch.device("cpu")), progress=lambda *_: None)
    samples = SequenceSamples(LabeledSequences(ListOpsFile.open(str(listops), "test"), 40))
    with pytest.raises(ValueError, match="Tokens must be from 0 to 11, the vocabulary of the model, got 15"):
        session.run([clean_condition(samples, task)])[CLEAN]
    with pytest.raises(ValueError, match="PGD attacks images, got tokens. Use `imgproc-attn corrupt`"):
        task.under(PGD(0.1))


BAD = [
    (lambda c: c.pop("sequences"), "a section sequences must come with data.name listops, got none. Add one with context"),
    (lambda c: c.update(task="classification"), "task must be sequences if and only if there is a section of that name"),
    (lambda c: c["sequences"].update(context=0), "sequences.context: .*got 0"),
    (
        lambda c: c["data"].update(input_size=[1, 1, 8]),
        r"must be \[1, 1, 40\] for the sizes in the section sequences, got \[1, 1, 8\]",
    ),
    (lambda c: c.update(data={**DIGITS}), r"as many pixels as sequences.context, 40, got \[1, 8, 8\]"),
    (
        lambda c: c["data"].update(name="wds/x", input_size=[1, 5, 8], on_broken_image="skip"),
        "must be a reader of images known by number for sequences, got 'wds/x'",
    ),
    (lambda c: c.update(augmentation={"hflip": 0.5}), "sequences must not have the settings hflip"),
    (lambda c: c.update(adversarial={"eps": 0.1}), "must not have the settings adversarial"),
    (lambda c: c.update(evaluation={"pgd": [0.1]}), "must not have the settings pgd"),
    (lambda c: c.update(evaluation={"corruptions": ["fog 3"]}), "must not have the settings corruptions"),
    (lambda c: c.update(evaluation={"word_swap": [0.1]}), "must not have the settings word_swap"),
    (lambda c: c["run"].update(loss="bce"), "must not have the settings loss"),
    (lambda c: c["data"].update(on_broken_image="skip"), "must not have the settings on_broken_image"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_recipes(change, message):
    content = recipe_of("listops")
    change(content)
    with pytest.raises(ValueError, match=message):
        check_recipe(content, "recipe.yaml")


REFUSED = [
    (["attack"], "must be of a task with attacks, got one of the task sequences"),
    (["corrupt"], "The sequences to corrupt must be reviews or images, got listops, whose labels would change"),
    (["evaluate", "--flip"], "--flip must be left out for sequences"),
    (["evaluate", "--skip-broken"], "--skip-broken must be left out for sequences"),
    (["evaluate", "--data", "digits"], "must be of the kind of listops, whose tokens it knows, got 'digits'"),
    (["evaluate", "--split", "dev"], "must hold one file *_dev.tsv for the split 'dev'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_refused_options(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        command(words[0], run, *words[1:], "--output", tmp_path / "out", "--device", "cpu")
    assert message in capsys.readouterr().err


def test_models_and_data_that_do_not_fit(listops, tmp_path, capsys):
    good = recipe_of(listops)
    data = good["data"]
    for recipe, message in (
        (recipe_of(listops, model={"name": "test_vit"}), "test_vit: "),
        (recipe_of(listops, model={"name": "test_gpt2_lm"}), "test_gpt2_lm: "),
        (recipe_of(listops, model={"name": "lra_elliptical"}), "which cannot hide padding"),
        (
            recipe_of(listops, run={"batch_size": 10_000}),
            "run.batch_size must be at most the number of sequences, 480, got 10000",
        ),
        (recipe_of(listops, data={**data, "num_classes": 9}), "data.num_classes must be 10 for listops, got 9"),
        (recipe_of(listops, data={**data, "validation_split": "test"}), "The splits must have different names"),
        (recipe_of(tmp_path / "nowhere"), "The root must be an existing folder or file"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path, recipe)
        assert message in capsys.readouterr().err
