"""Adversarial training stays in its ball, and makes robust."""

import pytest
import seeding
import torch
from runs import CPU, quiet, run_of, small

from imgproc_attn.data import World
from imgproc_attn.evaluation import PGD, NormalizedModel
from imgproc_attn.models.checkpoints import load_weights
from imgproc_attn.recipe import load_recipe
from imgproc_attn.tasks import task_of
from imgproc_attn.tasks.classification import AdversarialTraining
from imgproc_attn.training.model_factory import build_model
from imgproc_attn.training.run import Run


def test_adversarial_training_attacks_within_the_ball(tmp_path):
    recipe = small("adversarial.eps=0.06", "adversarial.warmup_epochs=2", label="plain")
    model = build_model(recipe)
    task = task_of(recipe).training_task(recipe, model, run_of(tmp_path).preprocessing, CPU)
    assert isinstance(task, AdversarialTraining)
    images = torch.rand(16, 1, 8, 8)
    labels = torch.randint(10, (16,))
    for epoch, share in ((0, 1 / 3), (1, 2 / 3), (2, 1.0), (9, 1.0)):
        task.start_epoch(epoch)
        attacked = task.attacked((images - 0.5) / 0.5, labels) * 0.5 + 0.5
        largest = (attacked - images).abs().max().item()
        assert 0.5 * share * 0.06 < largest <= share * 0.06 + 1e-6
        assert attacked.min() >= -1e-6
        assert attacked.max() <= 1 + 1e-6
    assert task.train()(images, labels)["loss"] > 0
    assert model.training
    plain = task.eval()(images, labels)["output"]
    assert torch.equal(plain, model(images))


@pytest.mark.slow
def test_adversarial_training_makes_robust(tmp_path):
    """At the radius trained for, the trained model keeps far more than the one trained on clean images alone."""
    robust = {}
    attack = [
        "adversarial.eps=0.1",
        "adversarial.steps=3",
        "adversarial.warmup_epochs=15",
    ]  # at once, it learns nothing for long
    for name, extra in (("clean", []), ("adversarial", attack)):
        recipe = load_recipe("quickstart", ["schedule.epochs=45", "optimizer.lr=2e-3", *extra]).variant("plain", seeding.number)
        quiet(recipe, tmp_path / name)
        run = Run(recipe, tmp_path / name, CPU, World(0, 1))
        load_weights(run.model, tmp_path / name / "last")
        model = NormalizedModel(run.model).eval()
        images, labels = next(iter(torch.utils.data.DataLoader(run.splits.test, 360, collate_fn=_as_tensors)))
        robust[name] = (~PGD(0.1, 10)(model, images, labels).success).double().mean().item()
    assert robust["adversarial"] > robust["clean"] + 0.2, robust


def _as_tensors(batch):
    from torchvision.transforms.functional import to_tensor

    return torch.stack([to_tensor(image) for image, _ in batch]), torch.tensor([label for _, label in batch])
