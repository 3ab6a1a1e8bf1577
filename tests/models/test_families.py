"""Registered models: the shapes and the components of each family."""

import inspect
import pickle
import sys

import pytest
import timm
import timm.layers
import timm.optim

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.core.linear_filters import Representatives, TokenStatistics
from imgproc_attn.core.pointwise import ISTA
from imgproc_attn.core.positions import SpatialGaussian, UntiedPositions
from imgproc_attn.core.projections import QueryKeyValue, SharedSubspaces
from imgproc_attn.core.residuals import PID, SOS, NeuTRENO, Plain, Twicing
from imgproc_attn.models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_registered_at_its_shapes(family, size):
    """Families have DeiT's shapes, heads of 64, except those whose papers give others."""
    name, shape = f"{family}_{size}", FAMILIES[family].shapes[size]
    assert name in timm.list_models()
    model = timm.create_model(name, device="meta")
    if family in ("aot_mhsa_vit", "aot_mssa_vit", "crate"):
        assert (model.embed_dim, len(model.blocks)) == (shape["embed_dim"], shape["depth"])
        assert model.blocks[0].attn.qkv.head_dim * shape["num_heads"] == shape["embed_dim"]
    else:
        assert (model.embed_dim, len(model.blocks)) == ({"tiny": 192, "small": 384, "base": 768}[size], 12)
        assert model.blocks[0].attn.qkv.head_dim == 64
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


def test_every_model_of_the_table_is_an_entry_point():
    """Models are registered under the module's name, importable, picklable, and have their own docstring."""
    expected = {f"test_{name}" if size == "test" else f"{name}_{size}" for name in FAMILIES for size in FAMILIES[name].sizes}
    assert set(timm.list_models(module="families")) == expected
    assert set(timm.list_models(module="families", name_matches_cfg=True)) == expected
    docs = set()
    for name in expected:
        function = timm.models.model_entrypoint(name, module_filter="families")
        module = sys.modules[function.__module__]
        assert module.__name__ == "imgproc_attn.models.families"
        assert getattr(module, name) is function
        assert name in module.__all__
        assert pickle.loads(pickle.dumps(function)) is function
        assert list(inspect.signature(function).parameters) == ["pretrained", "kwargs"]
        docs.add(inspect.getdoc(function))
    assert len(docs) == len(expected)
    for name, family in FAMILIES.items():
        doc = inspect.getdoc(timm.models.model_entrypoint(f"{name}_small"))
        width, depth, heads = (family.shapes["small"][key] for key in ("embed_dim", "depth", "num_heads"))
        size = f"{width} wide, {depth} deep, {heads} heads"
        assert doc.startswith(f"{family.title}, {size}.\n\n{inspect.cleandoc(family.text)}\n\nArgs:\n")


def test_the_smallest_models_are_configured_for_160_pixels():
    for family in FAMILIES:
        cfg = timm.models.get_pretrained_cfg(f"test_{family}")
        assert (cfg.architecture, cfg.input_size, cfg.crop_pct) == (f"test_{family}", (3, 160, 160), 0.95)
        assert timm.models.get_pretrained_cfg(f"{family}_tiny").crop_pct == 0.9


def test_what_the_families_are():
    for family, kernel, positions, residual, block_residual in (
        ("plain", DotProduct, [], Plain, Plain),
        ("nlm", GaussianRange, [], Plain, Plain),
        ("bilateral", GaussianRange, [SpatialGaussian], Plain, Plain),
        ("bilateral_untied", DotProduct, [UntiedPositions], Plain, Plain),
        ("elliptical", Elliptical, [], Plain, Plain),
        ("twicing", DotProduct, [], Twicing, Plain),
        ("sos", DotProduct, [], SOS, Plain),
        ("neutreno", DotProduct, [], NeuTRENO, Plain),
        ("pid", DotProduct, [], PID, Plain),
        ("sos_stream", DotProduct, [], Plain, SOS),
        ("bilateral_sos_stream", GaussianRange, [SpatialGaussian], Plain, SOS),
    ):
        model = timm.create_model(f"test_{family}_vit")
        for i, block in enumerate(model.blocks):
            assert type(block.attn.kernel) is (DotProduct if kernel is Elliptical and i == 0 else kernel)
            assert [type(p) for p in block.attn.positions] == positions
            assert type(block.attn.residual) is (Plain if i == 0 and model.needs_state else residual)
            assert type(block.block_residual) is block_residual
        assert model.needs_state == (family in ("elliptical", "neutreno", "pid"))
    assert timm.create_model("test_bilateral_untied_vit").pos_embed.shape[1] == 100
    assert timm.create_model("test_neutreno_vit").blocks[3].attn.residual.gate.initial == 0.6
    assert not timm.create_model("test_elliptical_vit").blocks[3].attn.kernel.mean_scale


@pytest.mark.parametrize(
    ("family", "projection", "filter", "mlp"),
    [
        ("aot_mhsa_vit", QueryKeyValue, SoftmaxFilter, type(None)),
        ("aot_mssa_vit", SharedSubspaces, SoftmaxFilter, type(None)),
        ("crate", SharedSubspaces, SoftmaxFilter, ISTA),
        ("tost_vit", SharedSubspaces, TokenStatistics, timm.layers.Mlp),
        ("cbsa_vit", SharedSubspaces, Representatives, ISTA),
    ],
)
def test_what_the_white_box_families_are(family, projection, filter, mlp):
    for block in timm.create_model(f"test_{family}").blocks:
        assert type(block.attn.kernel) is DotProduct
        assert type(block.attn.residual) is type(block.block_residual) is Plain
        assert type(block.attn.qkv) is projection
        assert type(block.attn.filter) is filter
        assert type(block.mlp) is mlp


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("aot_mhsa_vit_small", 15),
        ("aot_mssa_vit_small", 22),
        ("crate_tiny", 6.09),
        ("crate_small", 13.12),
        ("crate_base", 22.80),
        ("crate_large", 77.64),
    ],
)
def test_published_numbers_of_parameters(name, millions):
    """CRATE's have two decimals and agree to 0.1 %. AoT's are whole millions and agree to 3 %."""
    count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
    assert count / 1e6 == pytest.approx(millions, rel=1e-3 if "crate" in name else 0.03)


@pytest.mark.parametrize("family", ["nlm_vit", "bilateral_vit", "crate"])
def test_large(family):
    model = timm.create_model(f"{family}_large", device="meta")
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.qkv.num_heads) == (1024, 24, 16)


def test_the_two_by_two_differs_in_kernel_and_stream_alone():
    """The models of {plain, bilateral} x {plain, boosted block} have the same pooling, tokens and widths."""
    corners = ("plain_vit", "bilateral_vit", "sos_stream_vit", "bilateral_sos_stream_vit")
    models = [timm.create_model(f"test_{name}") for name in corners]
    assert {(m.global_pool, m.num_prefix_tokens, m.embed_dim) for m in models} == {("avg", 0, 64)}
    plain = set(models[0].state_dict())
    assert set(models[2].state_dict()) == plain
    assert set(models[1].state_dict()) == set(models[3].state_dict()) >= plain
