"""The chance level: a model that is no better than one constant answer."""

from types import SimpleNamespace

import pytest
import torch
from digits import SMALL
from evaluated import TASK, arguments, conditions_of, result, run, save, session
from torch import nn

from imgproc_attn.evaluation.findings import SanityReport
from imgproc_attn.evaluation.results_log import SampleResults
from imgproc_attn.evaluation.scoring import Metric, check_chance_level

NOTHING = SanityReport([], 0, [])


def answers(labels, correct):
    columns = {"labels": labels.tolist(), "correct": correct.int().tolist()}
    return SampleResults(torch.arange(len(labels)), columns, 0.0, 1.0, [])


@pytest.mark.parametrize(("correct", "doubted"), [(5, True), (20, True), (27, True), (28, False), (100, False)])
def test_the_interval_must_lie_above_the_most_frequent_class(correct, doubted):
    """20 of 100 images are of one class. Wilson's interval of 27 % begins at 19.3 %, that of 28 % at 20.1 %."""
    labels = torch.tensor([7] * 20 + [0, 1, 2, 3, 4, 5, 6, 8] * 10)
    found = answers(labels, torch.arange(100) < correct)
    row = {**TASK.count(found), "intervals": TASK.intervals(found)}
    findings = check_chance_level(TASK, row, found)
    assert [finding.check for finding in findings] == ["chance level"] * doubted
    assert not doubted or f"accuracy of {correct}.0 % (95 % interval" in findings[0].message
    assert not doubted or "not better than 20.0 %" in findings[0].message


@pytest.mark.parametrize(("interval", "doubted"), [([3.0, 4.9], False), ([3.0, 5.0], True), ([6.0, 7.0], True)])
def test_lower_may_be_better(interval, doubted):
    task = SimpleNamespace(
        metrics=(Metric("error", "error", "", False),), best_constant=lambda results: 5.0, sample_noun="images"
    )
    assert bool(check_chance_level(task, {"error": 4.0, "intervals": {"error": interval}}, None)) == doubted


class Constant(nn.Module):
    def forward(self, images):
        return torch.eye(10)[3].expand(len(images), 10)


def test_clean_images_are_compared(model, samples):
    conditions = conditions_of(samples)

    def found(asked, **changes):
        one = session(asked, None)
        results = one.run(conditions)
        rows = [{**row, **changes} for row in one.rows(conditions, results)]
        return [finding.check for finding in one.findings(rows, results, NOTHING)]

    assert found(Constant().eval()) == ["chance level"]
    assert found(model) == []
    assert found(Constant().eval(), family="fog") == [], "of published files, the first condition is not clean"


def test_reports_say_so(folder, tmp_path):
    save(tmp_path, "plain_vit_tiny", **SMALL)
    untrained = ["plain_vit_tiny" if word == "nlm_vit_tiny" else word for word in arguments(tmp_path, weights="plain_vit_tiny")]
    few = ["--attacks fgsm --eps 1/255 --limit 60 --checks 4"]
    for command, rest in (("evaluate", []), ("attack", few), ("corrupt", ["--corruptions fog --severities 1 --limit 60"])):
        run(command, *untrained, *rest, "--output", tmp_path / command)
        assert "chance level" in {finding["check"] for finding in result(tmp_path / command)["findings"]}
        assert "- chance level: The clean accuracy of" in (tmp_path / command / "result.md").read_text()
    run("attack", *arguments(folder), *few, "--output", tmp_path / "trained")
    assert "chance level" not in {finding["check"] for finding in result(tmp_path / "trained")["findings"]}
