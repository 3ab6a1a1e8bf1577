"""Loops of training and evaluation do equal work, and each corruption is timed."""

import json

import torch

from imgproc_attn import cli
from imgproc_attn.benchmark.evaluation import EVALUATORS, EvaluationWork
from imgproc_attn.benchmark.timing import build_cases
from imgproc_attn.benchmark.training import LOOPS, TrainingWork
from imgproc_attn.training import Trainer


def test_both_loops_train(tmp_path):
    """Both loops make the same number of updates, and each changes the weights."""
    work = TrainingWork(["data.train_images=256", "run.batch_size=64"], tmp_path, "cpu")
    steps = build_cases(LOOPS, work)
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


def test_evaluations_count_the_same(tmp_path):
    steps = build_cases(EVALUATORS, EvaluationWork(tmp_path, "cpu"))
    assert steps["timm's loop"]() == steps["evaluator"]()["clean"].correct.sum()


def test_corruptions(tmp_path):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "corruptions", "--runs", "2", "--output", str(file)])
    assert len(json.loads(file.read_text())["corruptions"]) == 18
