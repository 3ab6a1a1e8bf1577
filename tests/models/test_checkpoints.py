"""Training from weights of other models: the backbone is loaded, and new or left out names are reported."""

import re
from argparse import Namespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import imgproc_attn.segmentation  # noqa: F401 - registers the segmenter
from imgproc_attn.models.checkpoints import start_from
from imgproc_attn.training.checkpoints import save_weights

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def tiny(name="vit_tiny_patch16_224", **kwargs):
    """Return a random model whose weights all differ from the initial values of a new model."""
    model = timm.create_model(name, **{"img_size": 32, **TINY, **kwargs}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model


def kept(model, path, **changes):
    """Write the weights of a model to a file. ``changes`` are added, or removed if they are None."""
    weights = {name: value for name, value in {**model.state_dict(), **changes}.items() if value is not None}
    save_file(weights, path / "weights.safetensors")
    return path / "weights.safetensors"


STARTED = {
    "plain timm model": ("vit_tiny_patch16_224", {}),
    "our family": ("twicing_vit_tiny", {"residual": "plain"}),
    "converted": ("converted_vit", {"residual": "twicing", "positions": "spatial_gaussian"}),
    "segmenter": ("segmenter", {"backbone": "vit_tiny_patch16_224", "decoder": "linear"}),
}


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("kind", STARTED)
@torch.no_grad()
def test_the_head_is_new_and_the_backbone_the_source(kind, size, classes, tmp_path):
    """Checkpoints without a head or with another head load, at their own image size and at another."""
    source = tiny(num_classes=classes)
    name, options = STARTED[kind]
    model = timm.create_model(name, num_classes=10, img_size=size, **TINY, **options).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    notes = start_from(model, kept(source, tmp_path))
    source.set_input_size((size, size))
    x = torch.randn(2, 3, size, size)
    backbone = model.encoder if kind == "segmenter" else model
    torch.testing.assert_close(backbone.forward_features(x), source.forward_features(x), rtol=1e-5, atol=1e-5)
    new = "decoder" if kind == "segmenter" else "head.weight, head.bias"
    assert str(notes).startswith(f"new: {new} (10 classes)")
    left = ["head.bias", "head.weight"] if kind == "segmenter" and classes else []
    assert sorted(notes.left_out) == left
    assert notes.resampled == (["pos_embed"] if size != 32 else [])
    heads = [name for name in before if name.startswith(("head.", "decoder."))]
    assert heads
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in heads)


def test_a_head_of_the_same_classes_is_loaded(tmp_path):
    source, model = tiny(num_classes=10), tiny(num_classes=10)
    assert str(start_from(model, kept(source, tmp_path))) == ""
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x))


@torch.no_grad()
def test_families_without_a_class_token(tmp_path):
    """Rows and tokens that the model does not have are left out. The norm moves behind the pooling."""
    source = tiny(num_classes=0)
    path = kept(source, tmp_path)
    for name in ("bilateral_vit_tiny", "bilateral_untied_vit_tiny"):
        model = tiny(name, num_classes=10)
        notes = start_from(model, path)
        assert "left out: pos_embed[0], cls_token; moved to the other side of the pooling: norm.weight, norm.bias" in str(notes)
        assert torch.equal(model.pos_embed, source.pos_embed[:, 1:])
        assert torch.equal(model.fc_norm.weight, source.norm.weight)


@torch.no_grad()
def test_the_row_of_a_token_goes_to_the_token_where_the_table_has_none(tmp_path):
    source = tiny(num_classes=0)
    model = tiny(num_classes=10, no_embed_class=True)
    notes = start_from(model, kept(source, tmp_path))
    assert notes.left_out == []
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.forward_features(x), source.forward_features(x))


def test_a_classifier_starts_from_a_segmenter(tmp_path):
    segmenter = tiny("segmenter", backbone="vit_tiny_patch16_224", num_classes=5)
    model = tiny(num_classes=10)
    notes = start_from(model, kept(segmenter, tmp_path))
    assert torch.equal(model.blocks[1].mlp.fc1.weight, segmenter.encoder.blocks[1].mlp.fc1.weight)
    assert notes.head == ["head.weight", "head.bias"]
    assert notes.left_out
    assert all(name.startswith("decoder.") for name in notes.left_out)
    assert re.search(r"left out: (decoder[^,]*, ){8}… \(\d+ in all\)", str(notes))


@torch.no_grad()
def test_a_segmenter_starts_from_one_with_another_decoder(tmp_path):
    source = tiny("segmenter", backbone="vit_tiny_patch16_224", decoder="linear", num_classes=5)
    model = tiny("segmenter", backbone="vit_tiny_patch16_224", decoder="mask", num_classes=5)
    notes = start_from(model, kept(source, tmp_path))
    assert notes.head == ["decoder"]
    assert sorted(notes.left_out) == ["decoder.head.bias", "decoder.head.weight"]
    assert torch.equal(model.encoder.norm.weight, source.encoder.norm.weight)


def dinov2(weights):
    return {**weights, "mask_token": torch.zeros(1, 32)}


def mae(weights):
    decoder = {"mask_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 17, 16)}
    return {"model": {**weights, **decoder, "decoder_blocks.0.norm1.weight": torch.zeros(16)}}


def deit3(weights):
    return {"model": {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): value for name, value in weights.items()}}


def dino(weights):
    teacher = {f"module.backbone.{name}": value for name, value in weights.items()}
    return {"teacher": {**teacher, "module.head.mlp.0.weight": torch.zeros(3, 32)}, "args": Namespace(epochs=3), "epoch": 2}


def moving_average(weights):
    return {"state_dict": {name: value + 1 for name, value in weights.items()}, "state_dict_ema": weights}


def lightning(weights):
    return {"state_dict": {f"model.backbone.{name}": value for name, value in weights.items()}, "epoch": 3}


def i_jepa(weights):
    return {"encoder": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}


def open_clip(weights):
    trunk = {f"visual.trunk.{name}": value for name, value in weights.items()}
    return {**trunk, "logit_scale": torch.zeros(()), "visual.head.proj.weight": torch.zeros(4, 32)}


LAYOUTS = (dinov2, mae, deit3, dino, moving_average, lightning, i_jepa, open_clip)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layouts_of_published_checkpoints(layout, tmp_path):
    source = tiny(num_classes=0, init_values=0.1)
    torch.save(layout(source.state_dict()), tmp_path / "w.pt")
    model = tiny("converted_vit", source="vit_tiny_patch16_224", num_classes=10, init_values=0.1)
    notes = start_from(model, tmp_path / "w.pt")
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.forward_features(x), source.forward_features(x))
    assert notes.head == ["head.weight", "head.bias"]
    assert not any("." not in name and name in source.state_dict() for name in notes.left_out)


@torch.no_grad()
def test_registers_of_dinov2(tmp_path):
    """DINOv2 has its own names, and timm adds the row of its class token to the token."""
    source = tiny(num_classes=0, reg_tokens=4, no_embed_class=True)
    weights = source.state_dict()
    row = torch.randn(1, 1, 32)
    weights["pos_embed"] = torch.cat([row, weights["pos_embed"]], dim=1)
    weights["cls_token"], weights["register_tokens"] = weights["cls_token"] - row, weights.pop("reg_token")
    torch.save(dinov2(weights), tmp_path / "w.pt")
    x = torch.randn(1, 3, 48, 48)
    source.set_input_size((48, 48))
    model = tiny(num_classes=10, reg_tokens=4, no_embed_class=True, img_size=48)
    assert start_from(model, tmp_path / "w.pt").resampled == ["pos_embed"]
    torch.testing.assert_close(model.forward_features(x), source.forward_features(x), rtol=1e-5, atol=1e-5)
    averaging = tiny("bilateral_vit_tiny", num_classes=10)
    notes = start_from(averaging, tmp_path / "w.pt")
    assert notes.left_out == ["reg_token", "cls_token"]
    assert torch.equal(averaging.pos_embed, weights["pos_embed"][:, 1:])


@torch.no_grad()
def test_names_of_clip(tmp_path):
    swaps = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "blocks.": "transformer.resblocks.",
        "norm_pre": "ln_pre",
        ".norm": ".ln_",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "cls_token": "class_embedding",
    }
    source = tiny(num_classes=0, pre_norm=True)
    weights = {"visual.proj": torch.zeros(32, 12), "logit_scale": torch.zeros(())}
    for name, value in source.state_dict().items():
        for ours, theirs in swaps.items():
            name = name.replace(ours, theirs)
        name = re.sub(r"^norm\b", "ln_post", name)
        weights[f"visual.{name}"] = value.squeeze() if name in ("positional_embedding", "class_embedding") else value
    save_file(weights, tmp_path / "clip.safetensors")
    model = tiny("converted_vit", source="vit_tiny_patch16_224", pre_norm=True, num_classes=10, img_size=48)
    notes = start_from(model, tmp_path / "clip.safetensors")
    assert (notes.head, notes.resampled) == (["head.weight", "head.bias"], ["pos_embed"])
    source.set_input_size((48, 48))
    x = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(model.forward_features(x), source.forward_features(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", STARTED)
@torch.no_grad()
def test_input_channels_are_adapted(kind, tmp_path):
    """As in timm, a gray image gives the features of the same image in color."""
    source = tiny(num_classes=0)
    name, options = STARTED[kind]
    path = kept(source, tmp_path)
    gray = timm.create_model(name, num_classes=10, img_size=32, in_chans=1, **TINY, **options).eval()
    notes = start_from(gray, path)
    assert "adapted to other input channels: patch_embed.proj.weight" in str(notes)
    backbone, x = (gray.encoder if kind == "segmenter" else gray), torch.randn(2, 1, 32, 32)
    expected = source.forward_features(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(backbone.forward_features(x), expected, rtol=1e-5, atol=1e-5)
    four = timm.create_model(name, num_classes=10, img_size=32, in_chans=4, **TINY, **options)
    start_from(four, path)
    embedding = (four.encoder if kind == "segmenter" else four).patch_embed.proj.weight
    torch.testing.assert_close(embedding[:, 3], source.patch_embed.proj.weight[:, 0] * 3 / 4)


NOT_OF_THE_BACKBONE = {
    "fewer blocks": ({"depth": 1}, r"missing: blocks\.1\."),
    "more blocks": ({"depth": 3}, r"unexpected: blocks\.2\."),
    "another width": ({"embed_dim": 64}, "of another shape: cls_token"),
    "layer scale": ({"init_values": 0.1}, r"unexpected: blocks\.0\.ls1"),
    "norms of queries": ({"qk_norm": True}, r"unexpected: blocks\.0\.attn\.q_norm"),
    "no class token": ({"class_token": False, "global_pool": "avg"}, "missing: cls_token"),
    "no biases": ({"qkv_bias": False}, r"missing: blocks\.0\.attn\.qkv\.bias"),
}


@pytest.mark.parametrize("kind", STARTED)
@pytest.mark.parametrize("source", NOT_OF_THE_BACKBONE)
def test_what_does_not_cover_the_backbone_is_refused(source, kind, tmp_path):
    options, message = NOT_OF_THE_BACKBONE[source]
    path = kept(tiny(num_classes=0, **options), tmp_path)
    name, options = STARTED[kind]
    model = timm.create_model(name, num_classes=10, img_size=32, **TINY, **options)
    with pytest.raises(ValueError, match="must hold the weights of the") as error:
        start_from(model, path)
    assert re.search(message.replace(": ", r": (encoder\.)?"), str(error.value))


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "swin_tiny_patch4_window7_224", "test_mambaout"])
def test_other_architectures_are_refused(name, tmp_path):
    path = kept(timm.create_model(name), tmp_path)
    with pytest.raises(
        ValueError, match=r"must hold the weights of the VisionTransformer built here, got \d+ missing: cls_token"
    ):
        start_from(tiny(), path)


def test_single_weights_that_are_missing_or_twice(tmp_path):
    model = tiny(num_classes=0)
    for name in ("cls_token", "pos_embed", "norm.bias", "blocks.1.attn.qkv.weight", "patch_embed.proj.weight"):
        with pytest.raises(ValueError, match=f"1 missing: {name}"):
            start_from(tiny(num_classes=3), kept(model, tmp_path, **{name: None}))
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in model.state_dict().items()}
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(ValueError, match="must hold the weights of the"):
        start_from(tiny(num_classes=3), tmp_path / "both.pt")


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_other_timm_models_start_with_a_new_head_too(name, tmp_path):
    source = timm.create_model(name, num_classes=7)
    headless = {n: None for n in source.state_dict() if n.startswith(("fc.", "head.fc."))}
    for path in (kept(source, tmp_path), kept(source, tmp_path, **headless)):
        model = timm.create_model(name, num_classes=10)
        notes = start_from(model, path)
        assert [n.removeprefix("head.") for n in notes.head] == ["fc.weight", "fc.bias"]
        segmenter = timm.create_model("segmenter", backbone=name, decoder="linear", num_classes=3, img_size=64)
        assert start_from(segmenter, path).head == ["decoder"]


def test_training_starts_from_tables_of_another_size(tmp_path):
    """Tables of a classifier and in the encoder of a segmenter are resized."""
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
    """A grid of 9 x 16 has as many patches as 12 x 12 or 16 x 9. Only the configuration next to the weights differs."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "num_classes": 5}
    trained = timm.create_model("nlm_vit_tiny", img_size=(72, 128), **options)
    ramps = torch.meshgrid(torch.linspace(0, 1, 9), torch.linspace(0, 1, 16), indexing="ij")
    with torch.no_grad():
        trained.pos_embed[0, 1:, :2] = torch.stack(ramps, dim=-1).flatten(0, 1)
        trained.pos_embed[0, 0] = 9.0  # the row of the class token, which the other model does not have
    save_weights(trained.state_dict(), trained, {"img_size": (72, 128), **options}, None, tmp_path)
    model = timm.create_model("bilateral_vit_tiny", img_size=side, **options)
    start_from(model, tmp_path)
    height, width = model.patch_embed.grid_size
    ramps = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    found = model.pos_embed[0, :, :2].unflatten(0, (height, width))
    assert (found - torch.stack(ramps, dim=-1)).square().mean().sqrt() < 0.03
    (tmp_path / "config.json").unlink()
    other = timm.create_model("bilateral_vit_tiny", img_size=(80, 128), **options)
    start_from(other, tmp_path)  # the grid is then taken to be square
    trained = timm.create_model("nlm_vit_tiny", img_size=(64, 128), **options)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must have a square grid .*, got 128 positions. Give a folder with a config\.json"):
        start_from(other, tmp_path)
