"""The benchmark compares equal work and reports what it measured."""

import json

import pytest
import timm
import torch

from imgproc_attn import benchmark, cli
from imgproc_attn.models import FAMILIES
from imgproc_attn.training import Trainer


def test_cases_are_a_table():
    """Names are unique in a section, and each section has one baseline."""
    sections = {case.section for case in benchmark.CASES}
    assert sections == {"operators", "models", "filtering", "training", "evaluation", "corruptions"}
    for section in sections:
        cases = [case for case in benchmark.CASES if case.section == section]
        assert len({case.name for case in cases}) == len(cases)
        assert sum(case.baseline for case in cases) == 1
        assert benchmark.baseline_of(section) in {case.name for case in cases}
    assert ("vit_small_patch16_224", *(f"{family}_small" for family in FAMILIES)) == benchmark.MODELS


def test_a_new_case_is_one_line(monkeypatch):
    """A new case is timed like the others. A case whose package is missing is left out."""
    own = benchmark.Case("filtering", "identity", lambda work: lambda: work.image)
    missing = benchmark.Case("filtering", "of a missing package", lambda work: None, package="no_such_package")
    kept = [case for case in benchmark.CASES if case.name == "bilateral_filter" or case.baseline]
    monkeypatch.setattr(benchmark, "CASES", (*kept, own, missing))
    rows = benchmark.benchmark_filtering(2)
    assert [row["name"] for row in rows] == ["kornia bilateral_blur", "bilateral_filter", "identity"]
    assert rows[0]["ratio"] == 1


def test_operators_do_the_same_work():
    """Lifted and explicit non-local means agree, and all results have one shape."""
    q, k, v = torch.randn(3, 1, benchmark.HEADS, 196, benchmark.HEAD_DIM)
    results = {
        name: f(q, k, v) for name, f in benchmark.build_cases("operators", benchmark.OperatorWork((14, 14), "cpu")).items()
    }
    torch.testing.assert_close(results["non-local means"], results["explicit distances + softmax"], rtol=1e-4, atol=1e-5)
    assert {tuple(r.shape) for r in results.values()} == {(1, 196, 384)}


def test_interleaved():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = benchmark.measure(steps, 3, lambda: None)
    assert order == ["a", "b"] * 5
    assert [len(t) for t in times.values()] == [3, 3]
    rows = benchmark.summarize({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}, "a")
    assert [row["ratio"] for row in rows] == [1.0, 2.0]


def test_command_writes_json(tmp_path, capsys):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "operators", "--tokens", "196", "--runs", "2", "--output", str(file)])
    content = json.loads(file.read_text())
    assert len(content["operators"]) == 2 * len(benchmark.build_cases("operators", benchmark.OperatorWork((14, 14), "cpu")))
    assert content["environment"]["versions"]["torch"] == torch.__version__
    assert "bilateral" in capsys.readouterr().out


def test_one_run_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--what", "filtering", "--runs", "1"])
    assert "must be a whole number, at least 2, got '1'" in capsys.readouterr().err


@pytest.mark.slow
def test_filters_beside_their_peers(tmp_path):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "filtering", "--runs", "2", "--output", str(file)])
    names = {row["name"]: row["ratio"] for row in json.loads(file.read_text())["filtering"]}
    assert names["kornia bilateral_blur"] == 1
    assert {"bilateral_filter", "non_local_means", "scikit-image denoise_nl_means, slow"} < set(names)


def test_both_loops_train(tmp_path):
    """Both loops make the same number of updates, and each changes the weights."""
    steps = benchmark.build_cases(
        "training", benchmark.TrainingWork(["data.train_images=256", "run.batch_size=64"], tmp_path, "cpu")
    )
    trainers = [
        next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, Trainer)) for step in steps.values()
    ]
    before = [trainer.task.trainable_module.head.weight.clone() for trainer in trainers]
    assert torch.equal(*before)
    for step in steps.values():
        step()
    for trainer, weight in zip(trainers, before):
        assert not torch.equal(trainer.task.trainable_module.head.weight, weight)
    assert len({trainer.updates for trainer in trainers}) == 1


@pytest.mark.slow
def test_memory_of_a_model():
    """Check only facts with a wide margin: the resident set is too coarse and depends on the machine."""
    names = ["vit_tiny_patch16_224", "bilateral_vit_tiny"]
    few, many = benchmark.benchmark_memory(names, 196), benchmark.benchmark_memory(names, 784)
    trained = 4 * 4 * sum(p.numel() for p in timm.create_model(names[0]).parameters())  # weight, gradient, Adam's two moments
    for small, large in zip(few, many):
        assert small["peak_bytes"] > 0.9 * trained
        assert large["peak_bytes"] > 1.2 * small["peak_bytes"]
    assert few[0]["ratio"] == 1
    assert few[1]["ratio"] == few[1]["peak_bytes"] / few[0]["peak_bytes"]


def test_evaluations_count_the_same(tmp_path):
    steps = benchmark.build_cases("evaluation", benchmark.EvaluationWork(tmp_path, "cpu"))
    assert steps["timm's loop"]() == steps["evaluator"]()["clean"].correct.sum()


def test_corruptions(tmp_path):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "corruptions", "--runs", "2", "--output", str(file)])
    assert len(json.loads(file.read_text())["corruptions"]) == 18
