"""Conversion of timm models: with gates at zero, outputs equal those of the source, for every source and option."""

import copy
import logging

import pytest
import seeding
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from timm.models import save_for_hf
from torch import nn

import imgproc_attn
import imgproc_attn.segmentation
from imgproc_attn.core.filters import DenseFilter
from imgproc_attn.core.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.core.positions import RelativeTable, SpatialGaussian
from imgproc_attn.core.residuals import Plain, Twicing
from imgproc_attn.models import component_names
from imgproc_attn.training.checkpoints import save_weights

# One model of each kind, at its own width if this is small, and on few patches.
SOURCES = {
    "AugReg": ("vit_tiny_patch16_224", {}),
    "DeiT": ("deit_tiny_patch16_224", {}),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT-3": ("deit3_small_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP, map pooling": ("vit_base_patch16_siglip_224", {}),
    "qk_norm, average": ("test_vit", {"qk_norm": True, "global_pool": "avg", "class_token": False}),
    "pooled registers": ("test_vit", {"reg_tokens": 2, "qkv_bias": False, "scale_attn_norm": True}),
    "no bias, SwiGLU": ("test_vit", {"proj_bias": False, "mlp_layer": timm.layers.SwiGLUPacked, "init_values": 0.1}),
}
OPTIONS = {
    "plain": {},
    "twicing": {"residual": "twicing"},
    "twicing, last two": {"residual": {"name": "twicing", "steps": 2, "layers": [-2, -1]}},
    "bregman": {"residual": "bregman"},
    "sos": {"residual": "sos"},
    "neutreno": {"residual": "neutreno"},
    "pid": {"residual": "pid"},
    "twicing stream": {"block_residual": "twicing"},
    "sos stream": {"block_residual": {"name": "sos", "rho": 0.3}},
    "bregman stream": {"block_residual": "bregman"},
    "l2 stream": {"block_residual": "l2_boosting"},
    "spatial": {"positions": "spatial_gaussian"},
    "alibi + table": {"positions": ["alibi", "relative_table"]},
    "all at once": {"positions": "spatial_gaussian", "residual": "neutreno", "block_residual": "sos"},
}


def source(kind, dtype=torch.float64):
    """Return a model of this kind whose attention logits exceed 10."""
    name, kwargs = SOURCES[kind]
    seeding.seed()
    size = {"img_size": 56} if "patch14" in name else {"img_size": 64}
    model = timm.create_model(name, num_classes=10, depth=3, **size, **kwargs).eval()
    for block in model.blocks:
        attn = block.attn
        with torch.no_grad():
            if isinstance(attn.q_norm, nn.Identity):
                attn.qkv.weight[: 2 * attn.num_heads * attn.head_dim].normal_(std=2.5 / attn.qkv.in_features**0.5)
            else:
                attn.q_norm.weight.fill_(2.5)
                attn.k_norm.weight.fill_(2.5)
            if hasattr(block.ls1, "gamma"):
                block.ls1.gamma.fill_(0.5)
    return model.to(dtype)


def images(model):
    return torch.randn(2, 3, *model.patch_embed.img_size, dtype=next(model.parameters()).dtype)


def largest_logit(model, x):
    """Return the largest attention logit over all layers of the source."""
    found = []

    def hook(attn, inputs):
        (y,) = inputs[:1]
        q, k, _ = attn.qkv(y).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        found.append((attn.q_norm(q) @ attn.k_norm(k).mT * attn.scale).abs().max().item())

    handles = [block.attn.register_forward_pre_hook(hook) for block in model.blocks]
    model(x)
    for handle in handles:
        handle.remove()
    return max(found)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", SOURCES)
@torch.no_grad()
def test_is_the_source_with_gates_at_zero(kind, option):
    """The error is 1e-10 of the largest output in float64 and 1e-5 in float32, at attention logits above 10."""
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = source(kind, dtype)
        x = images(model)
        if dtype == torch.float64:
            assert largest_logit(model, x) > 10
        filtered = imgproc_attn.from_timm(model, **option)
        for expected, result in (
            (model(x), filtered(x)),
            (model.forward_features(x), filtered.forward_features(x)),
        ):
            assert (result - expected).abs().max() <= bound * expected.abs().max()


def photographs(size):
    """Return four photographs of scikit-image, normalized for ImageNet models: ``[4, 3, size, size]`` in float64."""
    transform = timm.data.create_transform((3, size, size), crop_pct=1.0)
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    return torch.stack([transform(Image.fromarray(picture)) for picture in pictures]).double()


def references(model, x):
    """Return images, and the features of the model in float64 and in float32."""
    with torch.no_grad():
        return x, copy.deepcopy(model).double().forward_features(x), model.forward_features(x.float())


def assert_equal_up_to_rounding(converted, x, exact, plain):
    """Check that features agree to 1e-10 in float64, and in float32 are as close to float64 as those of the source."""
    largest, rounding = exact.abs().max(), (plain - exact).square().mean().sqrt()
    error = converted.forward_features(x.float()) - exact
    assert error.square().mean().sqrt() <= 2 * rounding
    assert error.abs().max() <= 1e-4 * largest
    assert (converted.double().forward_features(x) - exact).abs().max() <= 1e-10 * largest


@pytest.fixture(scope="module")
def in_common():
    """Return a model with a large common offset of its keys, as in trained models: logits of hundreds, almost equal per row."""
    model = source("DINOv2", torch.float32)
    with torch.no_grad():
        for block in model.blocks:
            width = block.attn.qkv.in_features
            block.attn.qkv.weight[: 2 * width].mul_(0.4)
            block.attn.qkv.bias[:width].normal_(std=2)
            block.attn.qkv.bias[width : 2 * width].normal_(std=60)
    return model, references(model, photographs(56))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_is_the_source_where_keys_have_much_in_common(option, fused, in_common):
    model, expected = in_common
    assert largest_logit(model, expected[0].float()) > 250
    assert_equal_up_to_rounding(imgproc_attn.from_timm(model, filter="softmax" if fused else "dense", **option), *expected)


@pytest.fixture(scope="module")
def trained_source(vit_weights):
    overlay = {"file": str(vit_weights)}
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=True, pretrained_cfg_overlay=overlay, img_size=224).eval()
    return model, references(model, photographs(224))


@pytest.mark.data
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_is_the_trained_source_on_photographs(option, trained_source):
    """The source is DINOv2's ViT-S/14, whose logits reach hundreds."""
    model, expected = trained_source
    assert largest_logit(model, expected[0].float()) > 100
    assert_equal_up_to_rounding(imgproc_attn.from_timm(model, **option), *expected)


@pytest.mark.parametrize("kind", SOURCES)
def test_keeps_what_the_source_is(kind):
    model = source(kind, torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    filtered = imgproc_attn.from_timm(model, kernel="gaussian_range", residual="twicing", positions="spatial_gaussian")
    assert filtered.pretrained_cfg == {**model.pretrained_cfg, "architecture": "converted_vit"}
    assert timm.data.resolve_model_data_config(filtered) == timm.data.resolve_model_data_config(model)
    names = set(filtered.state_dict())
    assert names - set(before) == set(component_names(filtered))
    for name, value in before.items():
        assert torch.equal(filtered.state_dict()[name], value)
    assert type(model) in (timm.models.VisionTransformer, timm.models.deit.VisionTransformerDistilled)
    assert filtered(images(model)).shape == (2, 10)
    filtered.train()(images(model)).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())  # a copy, not a view


def test_only_the_layers_named_change():
    last = {"layers": [-1]}
    model = imgproc_attn.from_timm(
        source("DeiT"),
        kernel={"name": "gaussian_range", **last},
        positions={"name": "spatial_gaussian", **last},
        residual={"name": "twicing", "gate": 1.0, **last},
        block_residual={"name": "sos", **last},
    )
    assert [type(b.attn.kernel) for b in model.blocks] == [DotProduct, DotProduct, GaussianRange]
    assert [len(b.attn.positions) for b in model.blocks] == [0, 0, 1]
    assert [type(b.attn.residual) for b in model.blocks] == [Plain, Plain, Twicing]
    assert model.blocks[2].attn.residual.gate.strength is None  # a given gate is not changed
    assert [b.block_residual.steps for b in model.blocks] == [0, 0, 1]


def test_closed_gates_open():
    """Gradients reach every gate at zero. The parameters behind it are trained once it is open."""
    model = imgproc_attn.from_timm(
        source("DINOv2 with registers"),
        positions=["spatial_gaussian", "relative_table"],
        residual="pid",
        block_residual="twicing",
    ).train()
    x = images(model)
    # Two steps, because the bandwidth behind a closed gate learns only after the gate is open.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name in component_names(model):
        gradient = dict(model.named_parameters())[name].grad
        last = name.startswith("blocks.2.") and ".positions." in name
        assert gradient.abs().max() > 0 or last, name


def test_elliptical_and_gaussian_range_from_a_trained_model():
    model = imgproc_attn.from_timm(source("AugReg"), kernel="elliptical")
    assert [type(b.attn.kernel) for b in model.blocks] == [DotProduct, Elliptical, Elliptical]
    assert model(images(model)).isfinite().all()


def test_head_contract_after_conversion():
    model = imgproc_attn.from_timm(source("distilled DeiT", torch.float32), residual="twicing")
    assert len(model.get_classifier()) == 2
    model.reset_classifier(7)
    assert model(images(model)).shape == (2, 7)
    model.set_input_size((96, 64))
    assert model(torch.randn(2, 3, 96, 64)).shape == (2, 7)
    assert model.forward_intermediates(torch.randn(2, 3, 96, 64), intermediates_only=True)[0].shape == (2, 192, 6, 4)


def test_mode_type_and_dropout_are_the_source_s():
    model = timm.create_model("test_vit", patch_drop_rate=0.5, attn_drop_rate=0.1, drop_path_rate=0.2).bfloat16().train()
    filtered = imgproc_attn.from_timm(model, residual="twicing", filter="dense")
    assert filtered.training
    assert filtered.patch_drop.prob == 0.5
    assert filtered.blocks[1].attn.filter.attn_drop.p == 0.1
    assert isinstance(filtered.blocks[1].attn.filter, DenseFilter)
    assert filtered.blocks[5].drop_path1.drop_prob == pytest.approx(0.2)
    assert {p.dtype for p in filtered.parameters()} == {torch.bfloat16}


def test_saved_and_loaded_again(tmp_path):
    filtered = imgproc_attn.from_timm(source("DeiT-3"), positions="relative_table", residual="sos")
    with torch.no_grad():
        filtered.blocks[1].attn.residual.gate.strength.fill_(0.3)
    again = imgproc_attn.from_timm(source("DeiT-3"), positions="relative_table", residual="sos")
    again.load_state_dict(filtered.state_dict())
    x = images(filtered)
    assert torch.equal(again(x), filtered(x))


REFUSED = [
    ("test_efficientnet", {}, {}, TypeError, "got EfficientNet, which has another forward pass"),
    ("beit_base_patch16_224", {"depth": 1}, {}, TypeError, "got Beit"),
    ("eva02_tiny_patch14_224", {"depth": 1}, {}, TypeError, "got Eva"),
    ("test_nlm_vit", {}, {}, TypeError, "got FilterVisionTransformer, a filter model"),
    (
        "vit_small_patch16_224",
        {"depth": 1, "block_fn": "parallel"},
        {},
        TypeError,
        "block 0 must be timm's Block, got ParallelThingsBlock",
    ),
    ("test_vit", {"attn_layer": "diff"}, {}, TypeError, "attention 0 must be timm's Attention, got DiffAttention"),
    ("test_vit", {"features_only": True}, {}, TypeError, "Convert before you ask timm for features_only"),
    ("test_vit", {}, {"positions": "untied"}, ValueError, "got 'untied', which acts on the tokens"),
    ("test_vit", {}, {"positions": ["absolute", "alibi"]}, ValueError, "got 'absolute', which acts on the tokens"),
    ("test_vit", {}, {"kernel": "gausian_range"}, ValueError, "Did you mean 'gaussian_range'"),
    (
        "test_vit",
        {},
        {"residual": {"name": "twicing", "layers": [6]}},
        ValueError,
        "block indices must be from -6 to 5, got 6",
    ),
]


@pytest.mark.parametrize(("name", "kwargs", "options", "error", "message"), REFUSED)
def test_refuses(name, kwargs, options, error, message):
    if kwargs.get("block_fn"):
        kwargs = {**kwargs, "block_fn": timm.models.vision_transformer.ParallelThingsBlock}
    model = timm.create_model(name, **kwargs)
    with pytest.raises(error, match=message):
        imgproc_attn.from_timm(model, **options)


def test_another_scale_is_refused():
    model = timm.create_model("test_vit")
    model.blocks[1].attn.scale *= 2
    with pytest.raises(TypeError, match="attention 1 must scale its scores by"):
        imgproc_attn.from_timm(model)


def checkpoint(tmp_path, name, **kwargs):
    seeding.seed(1)
    model = timm.create_model(name, **kwargs).eval()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model, str(path)


def test_deit_checkpoint_into_our_names(tmp_path, caplog):
    """Families without new parameters compute the same function. For the others, new names are listed."""
    theirs, path = checkpoint(tmp_path, "deit_tiny_patch16_224", depth=2)
    x = torch.randn(1, 3, 224, 224)
    with caplog.at_level(logging.WARNING, "imgproc_attn"):
        ours = timm.create_model("neutreno_vit_tiny", depth=2, residual="plain", checkpoint_path=path).eval()
    assert not caplog.records
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    with caplog.at_level(logging.WARNING, "imgproc_attn"):
        timm.create_model("nlm_vit_tiny", depth=2, positions=["absolute", "spatial_gaussian"], checkpoint_path=path)
    (message,) = caplog.messages
    assert "new, at initial values: blocks.*.attn.kernel.range_bandwidth.log_excess, blocks.*.attn.positions.0." in message


@pytest.mark.parametrize(("name", "tokens"), [("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_deit_checkpoint_into_families_without_a_class_token(tmp_path, caplog, name, tokens):
    theirs, path = checkpoint(tmp_path, name, depth=2)
    with caplog.at_level(logging.WARNING, "imgproc_attn"):
        ours = timm.create_model("bilateral_vit_tiny", depth=2, checkpoint_path=path)
    (message,) = caplog.messages
    for part in ("new, at", "left out: ", "cls_token", "pos_embed[0]", "moved behind the pooling: norm.weight, norm.bias"):
        assert part in message
    assert ("dist_token" in message) == (tokens == 2)
    assert torch.equal(ours.pos_embed, theirs.pos_embed[:, tokens:])
    assert torch.equal(ours.fc_norm.weight, theirs.norm.weight)
    assert torch.equal(ours.blocks[1].attn.qkv.weight, theirs.blocks[1].attn.qkv.weight)


def test_position_tables_are_left_out_where_there_are_none(tmp_path, caplog):
    _, path = checkpoint(tmp_path, "deit_tiny_patch16_224", depth=2)
    with caplog.at_level(logging.WARNING, "imgproc_attn"):
        timm.create_model("nlm_vit_tiny", depth=2, positions="sincos", checkpoint_path=path)
    assert "left out: pos_embed" in caplog.text


def test_a_checkpoint_with_other_seams(caplog):
    """Components that the checkpoint does not hold at all are new. Those that it holds must fit."""
    trained = timm.create_model("test_nlm_vit")
    with torch.no_grad():
        trained.blocks[2].attn.kernel.range_bandwidth.log_excess.fill_(0.7)
    model = timm.create_model(
        "test_nlm_vit", positions=["absolute", "spatial_gaussian"], residual={"name": "sos", "learned": True}
    )
    with caplog.at_level(logging.WARNING, "imgproc_attn"):
        model.load_state_dict(trained.state_dict())
    assert "new, at initial values: blocks.*.attn.positions.0" in caplog.text
    assert "blocks.*.attn.residual.gate.strength" in caplog.text
    assert "range_bandwidth" not in caplog.text
    assert torch.equal(
        model.blocks[2].attn.kernel.range_bandwidth.log_excess, trained.blocks[2].attn.kernel.range_bandwidth.log_excess
    )


def test_relative_tables_are_stretched_on_loading():
    trained = imgproc_attn.from_timm(timm.create_model("test_vit"), positions="relative_table")
    with torch.no_grad():
        for block in trained.blocks:
            block.attn.positions[0].table.normal_()
    larger = imgproc_attn.from_timm(timm.create_model("test_vit", img_size=224), positions="relative_table")
    trained.set_input_size((224, 224))
    larger.load_state_dict(trained.state_dict())
    assert larger.blocks[0].attn.positions[0].table.shape == (2, 27, 27)
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(larger.eval()(x), trained.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_constant_gate_is_left_at_its_published_strength():
    model = imgproc_attn.from_timm(source("DeiT"), residual={"name": "twicing", "learned": False})
    assert (model.blocks[0].attn.residual.gate.initial, model.blocks[0].attn.residual.gate.strength) == (1.0, None)


def test_modes_of_submodules_are_kept():
    model = timm.create_model("test_vit").train()
    model.patch_embed.eval()
    filtered = imgproc_attn.from_timm(model, residual="twicing")
    assert not filtered.patch_embed.training
    assert filtered.blocks[0].attn.residual.training
    assert not imgproc_attn.from_timm(model.eval(), residual="twicing").blocks[0].attn.residual.training


def test_other_misfits_are_refused_as_usual(tmp_path):
    model = timm.create_model("test_bilateral_vit")
    part = {k: v for k, v in model.state_dict().items() if "blocks.3.attn.positions" not in k}
    with pytest.raises(RuntimeError, match="Missing key.*positions"):
        model.load_state_dict(part)  # incomplete weights of this package
    _, path = checkpoint(tmp_path, "deit_tiny_patch16_224", depth=3)
    with pytest.raises(RuntimeError, match=r"blocks\.2\.norm1"):
        timm.create_model("nlm_vit_tiny", depth=2, checkpoint_path=path)  # another depth


def test_inside_a_wrapper(tmp_path):
    theirs, _ = checkpoint(tmp_path, "deit_tiny_patch16_224", depth=2)
    wrapped = nn.Sequential(timm.create_model("nlm_vit_tiny", depth=2))
    wrapped.load_state_dict({f"0.{k}": v for k, v in theirs.state_dict().items()})
    assert torch.equal(wrapped[0].blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)


def test_what_is_new():
    model = timm.create_model("test_bilateral_vit")
    names = component_names(model)
    assert len(names) == 12
    assert all(name.endswith("log_excess") for name in names)
    assert isinstance(model.blocks[0].attn.positions[0], SpatialGaussian)
    assert not component_names(timm.create_model("test_twicing_vit"))
    assert isinstance(
        imgproc_attn.from_timm(source("DeiT"), positions="relative_table").blocks[0].attn.positions[0], RelativeTable
    )


@pytest.mark.slow
def test_every_vision_transformer_of_timm_is_converted_or_refused_with_the_reason():
    names = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
    refused = []
    for name in names:
        try:
            imgproc_attn.from_timm(timm.create_model(name, device="meta"), residual="twicing", positions="spatial_gaussian")
        except TypeError as error:
            refused.append(str(error))
    assert len(names) > 150
    assert len(refused) < 0.1 * len(names)
    assert all("only the pre-norm Block" in reason or "only timm's plain Attention" in reason for reason in refused)


def test_by_name(tmp_path):
    """`converted_vit` converts by name, and loads from a folder of weights."""
    options = {
        "residual": "twicing",
        "positions": "spatial_gaussian",
        "num_classes": 7,
        "img_size": 64,
        "embed_dim": 32,
        "depth": 2,
    }
    seeding.seed()
    model = timm.create_model("converted_vit", source="vit_tiny_patch16_224", num_heads=2, **options).eval()
    seeding.seed()
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64, embed_dim=32, depth=2, num_heads=2).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), source(x))  # every gate is closed
    for name, parameter in model.named_parameters():
        if "gate" in name:
            parameter.data.fill_(0.3)
    save_weights(model.state_dict(), model, {"source": "vit_tiny_patch16_224", "num_heads": 2, **options}, None, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(x), model(x))
    assert not torch.allclose(loaded(x), source(x))
    with pytest.raises(TypeError, match="must be timm's VisionTransformer"):
        timm.create_model("converted_vit", source="resnet18")


@pytest.mark.skipif(not hasattr(timm.models, "get_model_args"), reason="an older timm, which exports what it is told alone")
@pytest.mark.parametrize(
    "components", [{"residual": "twicing"}, {"residual": {"name": "twicing", "gate": 1.0}}, {"positions": "rotary"}]
)
def test_timms_export_brings_the_conversion_back(components, tmp_path):
    """The exported configuration names the conversion. The source would load the same weights without an error."""
    source = timm.create_model("test_vit", img_size=64, num_classes=5, embed_dim=32).eval()
    model = imgproc_attn.from_timm(source, **components)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    assert type(again) is type(model)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, img_size=96, in_chans=1)
    assert other(torch.randn(1, 1, 96, 96)).shape == (1, 3)
    assert torch.equal(other.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match="'kernel' is not serializable"):
        save_for_hf(imgproc_attn.from_timm(source, kernel=lambda layer: DotProduct(layer.head_dim)), tmp_path)


def test_weights_that_the_caller_names(tmp_path):
    """Weights that the caller gives are those of the source model."""
    source = timm.create_model("test_vit", img_size=64, num_classes=5)
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    overlay = {"file": str(tmp_path / "mine.safetensors"), "num_classes": 5, "input_size": (3, 64, 64)}
    options = {"pretrained": True, "img_size": 64, "num_classes": 5, "pretrained_cfg_overlay": overlay}
    model = timm.create_model("converted_vit", source="test_vit", **options)
    assert torch.equal(model.head.weight, source.head.weight)


class Adapter(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_adapters_are_not_left_out_in_silence():
    model = timm.create_model("test_vit")
    nn.utils.spectral_norm(model.blocks[1].attn.qkv)
    with pytest.raises(TypeError, match="attention 1 must be a Linear of one weight and one bias, got \\w*Linear with more"):
        imgproc_attn.from_timm(model)
    model.blocks[0].attn.qkv = Adapter(64, 192)
    with pytest.raises(TypeError, match="attention 0 must be .*, got Adapter with more .* Merge it into a plain Linear first"):
        imgproc_attn.from_timm(model)
