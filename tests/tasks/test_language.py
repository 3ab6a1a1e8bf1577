"""A language model trains, is evaluated, contaminated, compared and reported by the commands of images."""

import json
import math
import re

import pytest
import seeding
import timm
import torch
import yaml
from texts import write_corpus

from imgproc_attn import cli
from imgproc_attn.data import SINGLE_PROCESS
from imgproc_attn.evaluation.conditions import CLEAN, clean_condition, corruption_conditions
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.evaluation.specs import DatasetSpec, ModelSpec
from imgproc_attn.language import AdaptiveSoftmax, ByteTokenizer, TextSplit, WordSwap, read_text, tokenizer_of
from imgproc_attn.recipe import load_recipe
from imgproc_attn.recipe.loading import check_recipe
from imgproc_attn.tasks import LanguageTask
from imgproc_attn.tasks.text_samples import WindowSamples
from imgproc_attn.training import train as train_recipe
from imgproc_attn.training.run import Run

MODEL = {"name": "test_gpt2_lm", "embed_dim": 16, "depth": 1, "num_heads": 2}


def recipe_of(corpus, tokens="words", **sections):
    return {
        "title": "Descriptions",
        "model": MODEL,
        "data": {"name": "text", "root": str(corpus), "workers": 0},
        "language": {"tokens": tokens, "context": 16, **({"min_count": 2} if tokens == "words" else {})},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"epochs": 2},
        "run": {"batch_size": 16, "seed": seeding.number},
        **sections,
    }


def command(*words):
    cli.main([*map(str, words)])


def train(folder, recipe, *words):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("train", folder / "recipe.yaml", "--output", folder / "run", "--device", "cpu", *words)
    return folder / "run"


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    return train(folder, recipe_of(write_corpus(folder / "corpus")))


@pytest.fixture(scope="module")
def model(run):
    return timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()


def test_training_chooses_by_perplexity_and_tests_all_tokens(run, model):
    final = json.loads((run / "final.json").read_text())
    perplexities = [json.loads(line)["validation_perplexity"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert final["best_epoch"] == 1 + perplexities.index(min(perplexities))
    tokens = tokenizer_of(model.tokenizer).encode(read_text(str(run.parent / "corpus"), "test"))
    assert final["test"]["tokens"] == len(tokens) - 1
    assert final["test"]["perplexity"] == pytest.approx(math.exp(final["test"]["loss"]))
    assert final["losses"][1] < final["losses"][0] - 0.3  # it has learned


def naive(model, tokens, context, stride):
    """The perplexity, one token at a time: each from the tokens that its window shows before it."""
    losses = []
    for i in range(1, len(tokens)):
        window = max(0, -(-(i - context) // stride))
        logits = model(tokens[None, window * stride : i])[0, -1]
        losses.append(-logits.log_softmax(dim=0)[tokens[i]])
        assert i - window * stride >= min(i, context - stride + 1)
    return torch.stack(losses).mean().exp().item()


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (16, 1), (400, 400)])
@torch.no_grad()
def test_sliding_windows_equal_one_token_at_a_time(model, run, context, stride):
    """Also for a window that is longer than the text."""
    text = read_text(str(run.parent / "corpus"), "test")[:900]
    split = TextSplit("test", text, tokenizer_of(model.tokenizer))
    if context > len(split):
        model = timm.create_model("test_gpt2_lm", vocab_size=model.num_classes, context=context, depth=1).eval()
    task = LanguageTask(context, stride)
    session = EvaluationSession(task.wrap(model).eval(), task, None, Runtime(torch.device("cpu")), progress=lambda *_: None)
    samples = task.samples_of(split)
    numbers = task.count(session.run([clean_condition(samples, task)])[CLEAN])
    assert numbers["tokens"] == len(split) - 1
    assert numbers["perplexity"] == pytest.approx(naive(model, split.tokens.long(), context, stride), rel=1e-5)


def test_adaptive_softmax_trains_and_is_evaluated(run, tmp_path, monkeypatch):
    """Neither the training nor the evaluation computes scores of all words. Perplexity is that of the scores."""
    recipe = recipe_of(run.parent / "corpus", model={**MODEL, "cutoffs": [20, 100]}, schedule={"epochs": 1})
    scores, forward = [], AdaptiveSoftmax.forward
    monkeypatch.setattr(AdaptiveSoftmax, "forward", lambda self, x: scores.append(x.device.type) or forward(self, x))
    folder = train(tmp_path, recipe)
    command("evaluate", folder, "--stride", 4, "--limit", 3, "--output", tmp_path / "out", "--device", "cpu")
    assert set(scores) <= {"meta"}, "only the check of the recipe asks for their shape"
    model = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    split = TextSplit("test", read_text(str(run.parent / "corpus"), "test")[:900], tokenizer_of(model.tokenizer))
    task = LanguageTask(16, 5)
    session = EvaluationSession(task.wrap(model).eval(), task, None, Runtime(torch.device("cpu")), progress=lambda *_: None)
    perplexity = task.count(session.run([clean_condition(task.samples_of(split), task)])[CLEAN])["perplexity"]
    assert perplexity == pytest.approx(naive(model, split.tokens.long(), 16, 5), rel=1e-5)
    assert perplexity < 0.5 * len(tokenizer_of(model.tokenizer)), "it has learned"
    batches = [(*batch[:2], torch.arange(2)) for batch in task.samples_of(split).batches(None, 2, 0, torch.device("cpu"))][:1]
    assert task.check(task.wrap(model).eval(), batches, [], {}).findings == []


def test_adaptive_softmax_has_no_label_smoothing(run, tmp_path, capsys):
    model = {**MODEL, "cutoffs": [20, 100]}
    smoothed = {"batch_size": 16, "seed": seeding.number, "label_smoothing": 0.1}
    with pytest.raises(SystemExit):
        train(tmp_path, recipe_of(run.parent / "corpus", model=model, run=smoothed))
    assert "label_smoothing must be 0 with an adaptive softmax, got 0.1. Leave it out" in capsys.readouterr().err


def test_each_token_is_predicted_in_one_window():
    split = TextSplit("test", "abcdefghijklmnopqrstuvwxyz", ByteTokenizer())
    for context, stride in ((4, 4), (4, 3), (4, 1), (5, 2), (25, 25), (30, 7), (24, 1)):
        samples = WindowSamples(split, context, stride)
        places = []
        for tokens, targets, ids in samples.batches(None, 3, 0, torch.device("cpu")):
            for row, target, window in zip(tokens, targets, ids.tolist()):
                counted = target >= 0
                place = torch.arange(len(row))[counted] + window * stride + 1
                assert torch.equal(target[counted], split.tokens[place].long())
                assert torch.equal(row[counted], split.tokens[place - 1].long())
                places += place.tolist()
        assert places == list(range(1, 26)), (context, stride)


def test_evaluate_uses_the_vocabulary_of_the_run(run, tmp_path):
    """The training text may change or vanish: the words are those of the weights."""
    moved = write_corpus(tmp_path / "moved")
    (moved / "train.txt").unlink()
    command("evaluate", run, "--root", moved, "--output", tmp_path / "clean", "--device", "cpu")
    clean, final = result(tmp_path / "clean"), json.loads((run / "final.json").read_text())
    assert clean["conditions"][0]["perplexity"] == pytest.approx(final["test"]["perplexity"], rel=1e-6)
    low, high = clean["conditions"][0]["intervals"]["perplexity"]
    assert low < final["test"]["perplexity"] < high
    command("evaluate", run / "best", "--root", moved, "--output", tmp_path / "sliding", "--stride", 4, "--device", "cpu")
    assert result(tmp_path / "sliding")["conditions"][0]["tokens"] == final["test"]["tokens"]
    assert "| clean | " in (tmp_path / "sliding" / "result.md").read_text()


def test_losses_per_token_are_logged(run, tmp_path):
    command("evaluate", run, "--output", tmp_path / "out", "--device", "cpu")
    lines = [json.loads(line) for line in next((tmp_path / "out" / "log").iterdir()).read_text().splitlines()[1:]]
    losses = [loss for line in lines for window in line["losses"] for loss in window]
    row = result(tmp_path / "out")["conditions"][0]
    assert len(losses) == row["tokens"]
    assert math.exp(sum(losses) / len(losses)) == pytest.approx(row["perplexity"], rel=1e-5)


def visible(page):
    """The text and tags of a report, without its figures, style and the raw numbers."""
    return re.sub(r'<(pre|style)>.*?</\1>|(src|title)="[^"]*"', "", page.read_text(), flags=re.DOTALL)


def test_word_swap_resumes_and_reports_its_share(run, tmp_path, capsys):
    swap = ["corrupt", run, "--corruptions", "word_swap", "--severities", "0.05", "--device", "cpu", "--output"]
    command(*swap, tmp_path / "once")
    command(*swap, tmp_path / "twice")
    log = next((tmp_path / "twice" / "log").glob("word*"))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # killed while the second batch was written
    command(*swap, tmp_path / "twice")
    once, twice = result(tmp_path / "once"), result(tmp_path / "twice")
    assert [row["name"] for row in once["conditions"]] == ["clean", "word_swap 0.05"]
    assert once["conditions"] == twice["conditions"]
    images = once["conditions"][1]["images"]
    assert images["swapped_words"] == round(0.05 * images["words"]) > 10
    assert f"{images['swapped_words']} of {images['words']} words (" in capsys.readouterr().out
    command("corrupt", run, "--severities", "0.05", "--seed", 1, "--limit", 9, "--device", "cpu", "--output", tmp_path / "few")
    assert [row["n"] for row in result(tmp_path / "few")["conditions"]] == [9, 9]
    command("report", tmp_path / "once", tmp_path / "few", "--output", tmp_path / "report.html")
    page = visible(tmp_path / "report.html")
    assert "perplexity" in page
    assert "<th>windows</th>" in page
    assert "image" not in page
    assert "images" not in (tmp_path / "few" / "result.md").read_text()


def test_a_swap_of_characters_changes_the_number_of_tokens():
    split = TextSplit("test", "the cat sat on the mat of a house near a river\n" * 8, ByteTokenizer())
    samples = WindowSamples(split, 16, 16)
    swapped = samples.corrupted(WordSwap(0.5))
    assert swapped.swapped.swapped == round(0.5 * swapped.swapped.words)
    assert len(swapped.split) != len(split)
    last = torch.cat([targets for _, targets, _ in swapped.batches(None, 8, 0, torch.device("cpu"))])
    assert (last >= 0).sum() == len(swapped.split) - 1


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


def test_comparisons(run, tmp_path):
    variants = {"plain": {}, "twicing": {"residual": "twicing"}}
    sections = {
        "comparison": {"seeds": [0, 1], "variants": variants, "tolerance": 0.5},
        "evaluation": {"word_swap": [0.0157, 0.1]},
        "schedule": {"epochs": 1},
        "language": {"tokens": "characters", "context": 64},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of(run.parent / "corpus", **sections)))
    command("compare", tmp_path / "two.yaml", "--output", tmp_path / "out", "--jobs", "1", "--device", "cpu")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Values in perplexity, bits per character" in text
    assert "upper 95 % bound (one-sided) | not above 0.5" in text
    assert "word_swap 0.1 |" in text
    assert "PGD" not in text
    assert "image" not in text
    command("report", tmp_path / "out", "--output", tmp_path / "report.html")
    page = visible(tmp_path / "report.html")
    assert "<th>windows</th>" in page
    assert "image" not in page
    assert "largest perturbation" not in page


@pytest.mark.parametrize("name", ["shakespeare_characters", pytest.param("brown_words", marks=pytest.mark.slow)])
def test_recipes_train(run, tmp_path, name):
    """One epoch on another text, with all other settings of the recipe."""
    recipe = load_recipe(f"text/{name}", [f"data.root={run.parent / 'corpus'}", "run.batch_size=16"])
    for label in recipe.comparison.variants if recipe.comparison else [None]:
        single = recipe if label is None else recipe.variant(label, seeding.number)
        trained = Run(single, tmp_path, torch.device("cpu"), SINGLE_PROCESS)
        before = {parameter: value.detach().clone() for parameter, value in trained.model.named_parameters()}
        assert math.isfinite(trained.epoch(0)["train_loss"])
        assert not [p for p, value in trained.model.named_parameters() if torch.equal(value, before[p])]
        assert trained.evaluate(trained.splits.test)["tokens"] > 0


def test_sanity_checks_find_models_that_see_later_tokens(model):
    class Leaky(torch.nn.Module):
        def forward(self, tokens):
            return model(tokens) + tokens[:, -1:, None]

    task, tokens = LanguageTask(16, 16), torch.arange(32).view(2, 16)
    batches = [(tokens, tokens, torch.arange(2))]
    assert task.check(task.wrap(model), batches, [], {}).findings == []
    assert task.check(Leaky(), batches, [], {}).findings[0].check == "outputs see later tokens"


BAD = [
    (
        lambda c: c["data"].update(name="digits", num_classes=10, input_size=[1, 8, 8]),
        "a section language, data.name text and task language must come together",
    ),
    (lambda c: c.pop("language"), "a section language must come with data.name text, got none. Add one"),
    (
        lambda c: c["data"].update(num_classes=10),
        "language must not have the settings num_classes, got a value. Leave them out",
    ),
    (
        lambda c: c["data"].update(input_size=[1, 1, 8]),
        r"input_size must be \[1, 1, 16\] for the sizes in the section language, got \[1, 1, 8",
    ),
    (lambda c: c.update(augmentation={"mixup": 0.1}), "must not have the settings mixup"),
    (lambda c: c.update(adversarial={"eps": 0.1}), "must not have the settings adversarial"),
    (lambda c: c.update(evaluation={"pgd": [0.1]}), "must not have the settings pgd"),
    (lambda c: c.update(evaluation={"word_swap": [2]}), "evaluation.word_swap.0: .*less than or equal to 1.*got 2"),
    (lambda c: c["run"].update(loss="bce"), "must not have the settings loss"),
    (lambda c: c["language"].update(stride=17), "stride must be at most context, 16, got 17. Lower it"),
    (lambda c: c["language"].update(tokens="letters"), "language.tokens: .*got 'letters'"),
    (lambda c: c["language"].update(tokens="bytes", min_count=2), "must be left out for bytes, got a limit"),
    (lambda c: c["language"].update(tokenizer="x.json"), "tokenizer must come with tokens bpe"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_recipes(change, message):
    content = recipe_of("corpus")
    change(content)
    with pytest.raises(ValueError, match=message):
        check_recipe(content, "recipe.yaml")


def test_images_have_no_word_swap():
    digits = {"name": "digits", "num_classes": 10, "input_size": [1, 8, 8], "test_split": "test"}
    content = recipe_of("", data=digits, evaluation={"word_swap": [0.1]})
    content.pop("language")
    with pytest.raises(ValueError, match=r"evaluation.word_swap must be empty for classification, got \[0.1\]"):
        check_recipe(content, "recipe.yaml")
    content["data"].pop("num_classes")
    with pytest.raises(ValueError, match="data: num_classes must be at least 2, got 0. Give the number of classes"):
        check_recipe(content, "recipe.yaml")


REFUSED = [
    (["attack"], "must be of a task with attacks, got one of the task language"),
    (["corrupt", "--corruptions", "fog"], "--corruptions must be word_swap for language models, got fog"),
    (["corrupt", "--severities", "3"], "rate must be above 0 and at most 1, got 3"),
    (["evaluate", "--window", "17"], "--window must be at most 16 tokens, the context of the model, got 17. Lower it"),
    (["evaluate", "--window", "8", "--stride", "9"], "stride must be from 1 to the context, 8, got 9"),
    (["evaluate", "--window", "whole"], "--window must be a number of tokens for language models, got 'whole'"),
    (["evaluate", "--flip"], "--flip must be left out for language"),
    (["evaluate", "--data", "digits"], "The data of a language model must be text, got 'digits'. Give --data text"),
    (["evaluate", "--split", "dev"], "must hold the split 'dev'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_refused_options(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        command(words[0], run, *words[1:], "--output", tmp_path / "out", "--device", "cpu")
    assert message in capsys.readouterr().err


def test_models_and_data_that_do_not_fit(run, tmp_path, capsys):
    corpus = run.parent / "corpus"
    vit = recipe_of(corpus, model={"name": "test_vit"})
    for recipe, message in (
        (vit, "test_vit: "),
        (recipe_of(corpus, run={"batch_size": 10_000}), "run.batch_size must be at most the number of windows"),
        (recipe_of(tmp_path / "nowhere"), "The root must be an existing folder or file"),
        (recipe_of(corpus, model={**MODEL, "pretrained": True}), "has no published weights"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path, recipe)
        assert message in capsys.readouterr().err


def test_characters_of_the_test_split_must_be_known(run, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "test.txt").write_text("Prix: 3 €\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        train(tmp_path, recipe_of(corpus, "characters"))
    assert "of the training text, got '€' in line 1" in capsys.readouterr().err


def test_models_without_a_tokenizer_are_refused():
    with pytest.raises(ValueError, match="must be a language model with its tokenizer, got FilterLanguageModel without"):
        LanguageTask.for_model(timm.create_model("test_gpt2_lm"))


def test_a_session_from_python(run):
    spec = ModelSpec(str(run))
    runtime = Runtime(torch.device("cpu"))
    session = EvaluationSession.open(spec, lambda model: LanguageTask.for_model(model), runtime)
    samples = session.samples(DatasetSpec("text", str(run.parent / "corpus"), "valid"))
    conditions = [clean_condition(samples, session.task), *corruption_conditions(samples, [WordSwap(0.1)], session.task)]
    clean, swapped = (session.task.count(result) for result in session.run(conditions).values())
    assert clean["tokens"] == swapped["tokens"]
    assert clean["perplexity"] != swapped["perplexity"]
