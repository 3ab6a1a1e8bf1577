"""Bandwidths and kernel rows of models."""

import pytest
import timm
import torch

import imgproc_attn.segmentation  # noqa: F401 - registers the segmenter
from imgproc_attn.diagnostics import bandwidths, draw_kernel_rows
from imgproc_attn.evaluation import NormalizedModel

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


def test_bandwidths_by_layer_and_head():
    model = timm.create_model("bilateral_vit_tiny", **SMALL)
    with torch.no_grad():
        model.blocks[1].attn.kernel.range_bandwidth.log_excess.copy_(torch.tensor([0.0, 1.0]))
    found = bandwidths(NormalizedModel(model, [0.5] * 3, [0.5] * 3))
    assert list(found) == ["range_bandwidth", "spatial_bandwidth"]
    floor = model.blocks[1].attn.kernel.range_bandwidth.floor
    assert found["range_bandwidth"]["1"] == pytest.approx([1 + floor, torch.e + floor])
    assert found["range_bandwidth"]["0"] == pytest.approx([64**0.25] * 2)  # (4 d)^(1/4)
    assert found["spatial_bandwidth"]["0"][0] == pytest.approx(1.5)


def test_no_bandwidth_hides_another():
    model = timm.create_model("plain_vit_tiny", positions=["absolute", "spatial_gaussian", "alibi"], **SMALL)
    found = bandwidths(model)
    assert found.keys() == {"spatial_bandwidth", "spatial_bandwidth 2"}
    assert found["spatial_bandwidth 2"]["1"] == pytest.approx([2.0**4, 2.0**8])
    decoder = {"name": "mask", "kernel": {"name": "gaussian_range", "range_bandwidth": 9.0}, "num_heads": 2}
    segmenter = timm.create_model("segmenter", backbone="nlm_vit_tiny", decoder=decoder, num_classes=3, **SMALL)
    found = bandwidths(segmenter)
    assert found.keys() == {"range_bandwidth", "decoder range_bandwidth"}
    assert found["decoder range_bandwidth"]["0"] == pytest.approx([9.0, 9.0])
    assert found["range_bandwidth"]["0"] == pytest.approx([64**0.25] * 2)
    assert bandwidths(timm.create_model("plain_vit_tiny", **SMALL)) == {}


def test_rows_of_patches_outside_the_grid_are_refused():
    """Their flat indices would be those of other patches."""
    model, image = timm.create_model("nlm_vit_tiny", **SMALL).eval(), torch.rand(3, 32, 32)
    for patch in ((0, 4), (4, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"must be inside the grid of 4 x 4, got"):
            draw_kernel_rows(model, image, image, 0, [patch])
    assert len(draw_kernel_rows(model, image, image, 0, [(0, 3), (3, 0)])[0].axes) == 6
