"""Projections and pointwise halves as components of a model."""

import pytest
import timm
import torch
from torch import nn

import imgproc_attn  # noqa: F401
from imgproc_attn.core.projections import Projection, QueryKeyValue

NAME = "test_bilateral_vit"


def images(model, batch=2):
    return torch.rand(batch, *model.pretrained_cfg["input_size"])


def test_the_default_has_timms_names():
    """Names of attention and MLP match, so timm's checkpoints load."""
    ours = {n for n in timm.create_model(NAME).state_dict() if ".attn.kernel" not in n and ".attn.positions" not in n}
    plain = timm.create_model("test_vit", class_token=False, global_pool="avg", img_size=160)
    assert ours == set(plain.state_dict())


@pytest.mark.parametrize("filter", ["softmax", "dense"])
@pytest.mark.parametrize("residual", ["plain", "twicing"])
def test_narrow_queries_and_keys(filter, residual):
    """qk_dim sets the width of queries and keys only. A bilateral filter then lifts to a multiple of 8 without padding."""
    model = timm.create_model(NAME, projection={"name": "qkv", "qk_dim": 11}, filter=filter, residual=residual)
    attn = model.blocks[0].attn
    assert attn.qkv.weight.shape == (2 * (11 + 11 + 32), 64)
    q, k, v = attn.qkv(torch.rand(1, 5, 64))
    assert (q.shape, k.shape, v.shape) == ((1, 2, 5, 11), (1, 2, 5, 11), (1, 2, 5, 32))
    x = images(model)
    model(x).sum().backward()
    assert attn.qkv.weight.grad.abs().sum() > 0


def test_narrow_projection_is_three_linear_maps():
    layer = QueryKeyValue(12, 3, qk_dim=2, dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    for found, rows, width in zip(layer(x), (slice(0, 6), slice(6, 12), slice(12, 24)), (2, 2, 4)):
        expected = (x @ layer.weight[rows].mT + layer.bias[rows]).reshape(2, 5, 3, width).transpose(1, 2)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_widths_that_are_none_are_refused(value):
    with pytest.raises((ValueError, TypeError), match="qk_dim"):
        timm.create_model(NAME, projection={"name": "qkv", "qk_dim": value})


def test_a_projection_of_your_own():
    class Same(nn.Module):
        """One shared projection for queries, keys and values."""

        def __init__(self, dim, num_heads):
            super().__init__()
            self.map, self.num_heads, self.head_dim = nn.Linear(dim, dim), num_heads, dim // num_heads

        def forward(self, x):
            y = self.map(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            return y, y, y

    model = timm.create_model(
        NAME,
        projection=lambda layer: Projection(
            Same(layer.embed_dim, layer.num_heads), nn.Linear(layer.embed_dim, layer.embed_dim)
        ),
    )
    assert model(images(model)).isfinite().all()
    other = timm.create_model(
        NAME,
        projection=lambda layer: Projection(
            Same(layer.embed_dim, layer.num_heads), nn.Linear(layer.embed_dim, layer.embed_dim)
        ),
    )
    weights = {n: v for n, v in model.state_dict().items() if "bandwidth" not in n}
    other.load_state_dict(weights)  # bandwidths keep their initial values, because the checkpoint is of such a model
    assert torch.equal(other.blocks[0].attn.qkv.map.weight, model.blocks[0].attn.qkv.map.weight)


def test_blocks_of_attention_only():
    """With ``mlp="none"`` a block adds only its attention, and has no second norm and no MLP."""
    model = timm.create_model(NAME, mlp="none").double().eval()
    assert not any(".mlp." in name or ".norm2." in name for name in model.state_dict())
    x, geometry = model._embed(images(model).double())
    block = model.blocks[0]
    result, _ = block(x, geometry)
    torch.testing.assert_close(result, x + block.attn(block.norm1(x), geometry)[0])


def test_attention_only_in_some_layers():
    model = timm.create_model(NAME, mlp={"name": "none", "layers": [0, -1]})
    assert [block.mlp is None for block in model.blocks] == [True, False, False, False, False, True]
    model(images(model)).sum().backward()


def test_a_pointwise_layer_that_brings_its_own_skip_connection():
    class Halve(nn.Module):
        has_skip = True

        def forward(self, x):
            return x / 2

    model = timm.create_model(NAME, mlp=lambda layer: Halve()).double().eval()
    x, geometry = model._embed(images(model).double())
    block = model.blocks[0]
    result, _ = block(x, geometry)
    torch.testing.assert_close(result, block.norm2(x + block.attn(block.norm1(x), geometry)[0]) / 2)


def test_parameters_stand_in_timms_order():
    """Optimizers keep their state by index, and the norm of all gradients is a sum in this order."""
    plain = timm.create_model("test_vit", class_token=False, global_pool="avg", img_size=160, init_values=1e-5)
    ours = timm.create_model("test_plain_vit", init_values=1e-5)
    assert list(ours.state_dict()) == list(plain.state_dict())
