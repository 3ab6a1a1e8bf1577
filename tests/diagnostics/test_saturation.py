"""Saturation is measured for filters whose rows sum to 1 only."""

import pytest
import timm
import torch

from imgproc_attn.diagnostics import saturation
from imgproc_attn.diagnostics.saturation import saturable_layers
from imgproc_attn.evaluation import sanity_checks
from imgproc_attn.training.saturation_callback import SaturationCallback

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


def test_saturation_is_that_of_filters_whose_rows_sum_to_one():
    """Other layers are left out, and a model without a layer to check has no share."""
    images, shape = torch.rand(2, 3, 32, 32), {**SMALL, "projection": "subspaces"}
    mixed = timm.create_model("plain_vit_tiny", filter={"name": "relu", "layers": [0]}, **SMALL).eval()
    assert saturable_layers(mixed) == [1]
    with torch.no_grad():
        mixed.blocks[0].attn.qkv.weight.mul_(1e4)
        mixed.blocks[1].attn.qkv.weight.zero_()
    assert saturation(mixed, images) == 0
    for name in ("token_statistics", "representatives", "relu", "threshold"):
        model = timm.create_model("plain_vit_tiny", filter=name, **shape).eval()
        with pytest.raises(ValueError, match=r"model must have a filter whose rows sum to 1, .* got none\. Skip this check"):
            saturation(model, images)
        assert SaturationCallback(images)(model) == {}
    with pytest.raises(ValueError, match="filter='token_statistics' must not be asked for dense weights"):
        timm.create_model("test_tost_vit").attention_weights(torch.rand(1, 3, 160, 160))


@pytest.mark.parametrize("family", ["tost_vit", "cbsa_vit"])
def test_sanity_checks_skip_saturation_where_it_is_not_defined(family):
    model = timm.create_model(f"{family}_tiny", num_classes=2, **SMALL).eval()
    images = torch.rand(8, 3, 32, 32)
    report = sanity_checks(model, images, model(images).argmax(1), 0.01)
    assert "saturation" not in report.done
    assert "saturated filters" not in {finding.check for finding in report.findings}
