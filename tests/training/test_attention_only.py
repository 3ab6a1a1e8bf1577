"""Attention-only transformers of 24 layers train: without MLP, the loss still falls steadily."""

import json
from itertools import pairwise

import pytest

from imgproc_attn.recipe import load_recipe
from imgproc_attn.training import train


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aot_mhsa_vit_tiny", "aot_mssa_vit_tiny"])
def test_24_layers_train(name, tmp_path):
    """On digits, the settings of the quickstart, 12 epochs, at half its learning rate."""
    variant = f"comparison.variants.deep={{name: {name}, depth: 24}}"
    short = ["schedule.epochs=12", "schedule.warmup_epochs=3", "optimizer.lr=3e-3"]
    train(load_recipe("quickstart", [*short, variant]).variant("deep", seed=0), tmp_path / "run", log=lambda line: None)
    losses = [json.loads(line)["train_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(b - a for a, b in pairwise(losses)) < 0.1, "it never jumps up"
    assert losses[-1] < 0.75 * losses[0]
