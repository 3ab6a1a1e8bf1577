"""Training from weights that were made for other grids: tables go with the places of their patches."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import imgproc_attn.segmentation  # noqa: F401 - registers the segmenter
from imgproc_attn.models.checkpoints import start_from
from imgproc_attn.training.checkpoints import save_weights


def test_training_starts_from_tables_of_another_size(tmp_path):
    """Of a classifier, and in the encoder of a segmenter."""
    options = {"positions": ["absolute", "relative_table"], "depth": 2, "embed_dim": 32, "num_heads": 2}
    trained = timm.create_model("plain_vit_tiny", img_size=64, **options)
    for block in trained.blocks:
        nn.init.normal_(block.attn.positions[0].table)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    larger = timm.create_model("plain_vit_tiny", img_size=96, **options)
    assert "blocks.0.attn.positions.0.table" in start_from(larger, tmp_path).resampled
    segmenter = timm.create_model(
        "segmenter", backbone="plain_vit_tiny", decoder="linear", num_classes=3, img_size=96, **options
    )
    start_from(segmenter, tmp_path)
    ours, theirs = (model.state_dict() for model in (larger, segmenter.encoder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith((".table", "pos_embed")))
    trained.set_input_size((96, 96))
    x = torch.randn(1, 3, 96, 96)
    expected = trained.eval().forward_features(x)
    torch.testing.assert_close(larger.eval().forward_features(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [(72, 128), (128, 72), (144, 256)])
def test_training_starts_from_tables_of_grids_that_are_no_squares(side, tmp_path):
    """9 x 16 places, as many as 12 x 12, or as 16 x 9: only the configuration beside the weights tells."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "num_classes": 5}
    trained = timm.create_model("nlm_vit_tiny", img_size=(72, 128), **options)
    ramps = torch.meshgrid(torch.linspace(0, 1, 9), torch.linspace(0, 1, 16), indexing="ij")
    with torch.no_grad():
        trained.pos_embed[0, 1:, :2] = torch.stack(ramps, dim=-1).flatten(0, 1)
        trained.pos_embed[0, 0] = 9.0  # the class token's, which the other model has no place for
    save_weights(trained.state_dict(), trained, {"img_size": (72, 128), **options}, None, tmp_path)
    model = timm.create_model("bilateral_vit_tiny", img_size=side, **options)
    start_from(model, tmp_path)
    height, width = model.patch_embed.grid_size
    ramps = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    found = model.pos_embed[0, :, :2].unflatten(0, (height, width))
    assert (found - torch.stack(ramps, dim=-1)).square().mean().sqrt() < 0.03
    (tmp_path / "config.json").unlink()
    other = timm.create_model("bilateral_vit_tiny", img_size=(80, 128), **options)
    start_from(other, tmp_path)  # for a square then
    trained = timm.create_model("nlm_vit_tiny", img_size=(64, 128), **options)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"128 places, no square grid, .* give a folder whose config\.json"):
        start_from(other, tmp_path)
