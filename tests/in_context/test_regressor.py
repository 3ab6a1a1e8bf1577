"""The model of in-context regression: what predictions may depend on, initial weights, and inputs that do not fit."""

import pytest
import timm
import torch

from imgproc_attn.in_context import InContextRegressor, draw_error_curves, interleave

SIZES = {"dimensions": 5, "points": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
VARIANTS = {
    "GPT-2 shape": {},
    "AoT-MSSA": {"projection": "subspaces", "mlp": "none"},
    "AoT-MHSA": {"mlp": "none"},
    "bilateral": {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian")},
    "twicing, rotary": {"residual": "twicing", "positions": "rotary"},
}


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_prediction_depends_on_its_x_and_on_earlier_examples_only(name):
    torch.manual_seed(0)
    model = InContextRegressor(**SIZES, **VARIANTS[name]).eval()
    x, y = torch.randn(3, 7, 5), torch.randn(3, 7)
    before = model(interleave(x, y))
    for i in range(7):
        later = [*range(i, 7)]
        new_x, new_y = x.clone(), y.clone()
        new_x[:, later[1:]] += 3
        new_y[:, later] -= 7
        after = model(interleave(new_x, new_y))
        assert (after[:, : i + 1] - before[:, : i + 1]).abs().max() < 1e-5
        if i < 6:
            assert (after[:, i + 1] - before[:, i + 1]).abs().min() > 1e-4


def test_linear_maps_begin_as_those_of_torch():
    torch.manual_seed(0)
    model = InContextRegressor(dimensions=4, points=7, embed_dim=512, depth=1, num_heads=2)
    assert model.token_embed.weight.abs().max().item() == pytest.approx(0.5, abs=0.01)  # uniform up to 1 / sqrt(4)
    assert model.read_out.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.05)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.context == 13


def test_inputs_that_do_not_fit():
    model = InContextRegressor(**SIZES)
    assert model(torch.zeros(1, 3, 5)).shape == (1, 2)  # shorter sequences fit
    for shape, message in (
        ((1, 3, 4), r"must have the shape \[batch, tokens, 5\], got \[1, 3, 4\]. Give x of 5 dimensions"),
        ((3, 5), r"must have the shape \[batch, tokens, 5\], got \[3, 5\]"),
        ((1, 15, 5), "must have at most 13 tokens, the context of the model, got 15"),
    ):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"must be floating point, got torch.int64"):
        model(torch.zeros(1, 3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="dimensions must be at least 1, got 0"):
        InContextRegressor(dimensions=0)
    with pytest.raises(ValueError, match="filter must be causal"):
        InContextRegressor(**SIZES, filter="representatives")
    with pytest.raises(ValueError, match="has no published weights"):
        timm.create_model("in_context_regressor", pretrained=True)


def test_figure_shows_means():
    errors = torch.rand(50, 7)
    figure, ax = draw_error_curves({"model": errors}, {"least squares": errors / 2})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert torch.allclose(torch.as_tensor(lines["model"]), errors.mean(dim=0))
    assert torch.allclose(torch.as_tensor(lines["least squares"]), errors.mean(dim=0) / 2)
    assert draw_error_curves({"model": errors}, ax=ax)[0] is figure
