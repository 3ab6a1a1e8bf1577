"""Any backbone behind any decoder."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from segmented import TINY
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from imgproc_attn.models import checkpoints
from imgproc_attn.segmentation import depict_decoder, mask_decoder, segment
from imgproc_attn.training.checkpoints import timm_config
from imgproc_attn.utils.io import write_json


@pytest.mark.parametrize(
    "decoder",
    [
        "linear",
        {"name": "mask", "num_heads": 2},
        {"name": "mask", "num_heads": 2, "depth": 3, "residual": "twicing", "positions": "spatial_gaussian"},
        {"name": "depict", "num_heads": 2, "subspace_dim": 24},
    ],
)
@pytest.mark.parametrize(
    "backbone",
    [
        "plain_vit_tiny",
        "bilateral_vit_tiny",
        "bilateral_untied_vit_tiny",
        "neutreno_vit_tiny",
        "elliptical_vit_tiny",
        "vit_tiny_patch16_224",
    ],
)
def test_any_size_trains(backbone, decoder):
    model = timm.create_model("segmenter", backbone=backbone, decoder=decoder, num_classes=6, **TINY)
    logits = model(torch.randn(2, 3, 50, 84))
    assert logits.shape == (2, 6, 50, 84)
    nn.functional.cross_entropy(logits, torch.randint(6, (2, 50, 84))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == [], (
        "processes would wait for what gets no gradient"
    )


def test_depict_is_its_formula():
    """Z + s U MSSA(norm(Z)) with U of the input, then products of normalized patches and class tokens (arXiv 2411.03033)."""
    decoder = depict_decoder(12, 4, grid_size=(2, 3), depth=2, num_heads=3, subspace_dim=5).double().eval()
    for p in decoder.parameters():
        nn.init.normal_(p)
    features = torch.randn(1, 12, 2, 3, dtype=torch.float64)
    z = torch.cat([decoder.class_tokens[0], features[0].flatten(1).T])
    for block in decoder.blocks:
        y = nn.functional.layer_norm(z, (12,), block.norm1.weight, block.norm1.bias, 1e-6)
        out = torch.zeros_like(z)
        for u in block.attn.qkv.weight.split(5):
            w = y @ u.T
            out = out + torch.softmax(w @ w.T / 5**0.5, dim=1) @ w @ u
        z = z + block.attn.proj.step.strength * out
    z = nn.functional.layer_norm(z, (12,), decoder.norm.weight, decoder.norm.bias)
    classes, patches = (part / part.norm(dim=1, keepdim=True) for part in (z[:4], z[4:]))
    masks = nn.functional.layer_norm(patches @ classes.T, (4,), decoder.mask_norm.weight, decoder.mask_norm.bias)
    assert (decoder(features)[0].flatten(1).T - masks).abs().max() < 1e-10
    size = sum(p.numel() for p in depict_decoder(192, 150, (32, 32), depth=2).parameters())
    whole = sum(p.numel() for p in mask_decoder(192, 150, (32, 32), depth=2).parameters())
    without = 150 * 192  # class tokens, which both have
    assert (size - without) < 0.18 * (whole - without)


def test_features_are_what_the_encoder_gives():
    """Of hiera without a norm, which it cannot apply; of samvit behind its neck, which its feature_info does not know."""
    for backbone, channels in (("hiera_tiny_224", 768), ("samvit_base_patch16", 256)):
        options = {"depth": 2} if backbone.startswith("samvit") else {"stages": (1, 1, 1, 1)}
        model = timm.create_model("segmenter", backbone=backbone, num_classes=5, img_size=(96, 128), **options).eval()
        assert model(torch.rand(1, 3, 90, 120)).shape == (1, 5, 90, 120)
        assert any(p.ndim == 2 and p.shape[1] == channels for p in model.decoder.parameters())


def test_positions_are_made_for_whole_patches():
    """Padded crops would resample them at every step otherwise."""
    model = timm.create_model("segmenter", backbone="vit_small_patch14_dinov2", num_classes=5, img_size=(100, 140), depth=1)
    assert model.encoder.patch_embed.grid_size == (8, 10)
    assert model.pretrained_cfg["input_size"] == (3, 100, 140), "crops keep their size"
    assert model(torch.rand(1, 3, 100, 140)).shape == (1, 5, 100, 140)
    ours = timm.create_model("segmenter", backbone="bilateral_vit_tiny", num_classes=5, img_size=(90, 120), depth=1)
    assert ours.encoder.patch_embed.grid_size == (6, 8)
    assert ours(torch.rand(1, 3, 90, 120)).shape == (1, 5, 90, 120)


def test_modules_in_two_places_keep_their_numbers():
    model = timm.create_model("segmenter", backbone="coat_lite_tiny", decoder="linear", num_classes=3, img_size=64)
    assert not any(p.is_meta for p in model.parameters())
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_small_patch14_dinov2", "deit_tiny_distilled_patch16_224"])
def test_other_backbones(backbone):
    options = {"depth": 1} if "vit" in backbone or "deit" in backbone else {}
    size = 56 if "patch14" in backbone else 64
    model = timm.create_model("segmenter", backbone=backbone, decoder="linear", num_classes=4, img_size=size, **options).eval()
    assert model(torch.randn(1, 3, 61, 90)).shape == (1, 4, 61, 90)


@pytest.mark.parametrize("backbone", ["plain_vit_tiny", "bilateral_vit_tiny", "nlm_vit_tiny", "convnext_atto"])
def test_the_decoder_gets_normalized_features(backbone):
    """Of models that normalize behind the pooling, too."""
    options = TINY if "vit" in backbone else {"img_size": 64}
    encoder = timm.create_model("segmenter", backbone=backbone, **options).eval().encoder
    x = torch.rand(1, 3, 64, 64) * 9
    features = encoder.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(features.shape[:2]), rtol=0, atol=1e-2)


def test_bandwidths_keep_their_unit_when_the_grid_grows():
    """A patch weighs its neighbors alike, however large the image."""
    model = timm.create_model("segmenter", backbone="bilateral_vit_tiny", decoder="linear", num_classes=3, **TINY).eval()
    attn = model.encoder.blocks[0].attn
    nn.init.zeros_(attn.qkv.weight)  # places alone make the kernel
    shares = []
    for side in (64, 128):
        weights = model.encoder.attention_weights(torch.zeros(1, 3, side, side), [0])[0][0]
        width = side // 16
        middle = width // 2 * (width + 1)
        shares.append(weights[:, middle, [middle + 1, middle + width, middle - 2]] / weights[:, middle, middle, None])
    torch.testing.assert_close(*shares)
    assert (shares[0][:, 0] > 1.2 * shares[0][:, 2]).any()


def test_weight_decay_and_layer_decay_are_the_parts():
    model = timm.create_model(
        "segmenter", backbone="bilateral_vit_tiny", decoder={"name": "mask", "num_heads": 2}, num_classes=4, **TINY
    )
    skipped = model.no_weight_decay()
    assert {"encoder.pos_embed", "encoder.cls_token", "decoder.class_tokens"} <= skipped
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scale["decoder.embed.weight"] == max(scale.values())
    assert scale["encoder.patch_embed.proj.weight"] == min(scale.values())
    assert scale["encoder.blocks.0.mlp.fc1.weight"] == pytest.approx(0.5 * scale["encoder.blocks.1.mlp.fc1.weight"])
    assert decay["decoder.class_tokens"] == 0
    assert decay["decoder.embed.weight"] == 0.1


def test_layers_told_by_a_function():
    """As CaiT's are."""
    model = timm.create_model("segmenter", backbone="cait_xxs24_224", decoder="linear", num_classes=3, img_size=64, depth=2)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    known = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: known[id(p)] for name, p in model.named_parameters()}
    assert scales["encoder.patch_embed.proj.weight"] < scales["encoder.blocks.1.mlp.fc1.weight"] < 1
    assert {scale for name, scale in scales.items() if name.startswith("decoder.")} == {1}


def test_a_folder_loads_by_timm(tmp_path):
    options = {"backbone": "twicing_vit_tiny", "decoder": {"name": "mask", "num_heads": 2}, "num_classes": 5, **TINY}
    model = timm.create_model("segmenter", **options).eval()
    arguments = {key: value for key, value in options.items() if key != "num_classes"}
    write_json(tmp_path / "config.json", timm_config(model, arguments, None))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), again(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "maks"}, "decoder must be one of linear, mask, depict, got 'maks'"),  # codespell:ignore
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"decoder": {"name": "mask", "hed": 3}}, "hed"),
        ({"num_classes": 2}, "num_classes of the mask decoder must be at least 3, got 2: .* Use decoder='linear'"),
        ({"decoder": {"name": "mask", "num_heads": 7}}, "width must be a multiple of num_heads, 7, got 32"),
        ({"decoder": {"name": "depict", "num_heads": 7}}, "width must be a multiple of num_heads, 7, got 32"),
        ({"decoder": {"name": "depict", "subspace_dim": 33}}, "subspace_dim must be from 1 to .* 32, got 33"),
        ({"decoder": {"name": "depict", "depth": 0}}, "depth must be at least 1, got 0"),
        ({"decoder": {"name": "mask", "num_heads": 2, "positions": "absolute"}}, "positions must not be .*, got 'absolute'"),
        ({"decoder": {"name": "mask", "num_heads": 2, "kernel": "bilatral"}}, "kernel.*got 'bilatral'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("segmenter", backbone="plain_vit_tiny", **{"num_classes": 3, **TINY, **options})


def test_the_hubs_weights_are_those_of_the_whole(monkeypatch):
    """As timm asks for ``hf-hub:``; not its backbone's behind a random decoder."""
    options = {"backbone": "nlm_vit_tiny", "decoder": {"name": "mask", "num_heads": 2}, **TINY}
    model = timm.create_model("segmenter", num_classes=5, **options).eval()
    asked = []
    monkeypatch.setattr(checkpoints, "load_state_dict_from_hf", lambda name: asked.append(name) or model.state_dict())
    cfg = {**timm_config(model, options, None)["pretrained_cfg"], "source": "hf-hub", "hf_hub_id": "me/seg", "num_classes": 5}
    again = timm.create_model("segmenter", pretrained=True, pretrained_cfg=cfg, **options).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), again(image))
    assert asked == ["me/seg"]
    with pytest.raises(ValueError, match="me/seg must hold the weights of the Segmenter built here"):
        timm.create_model("segmenter", pretrained=True, pretrained_cfg=cfg, **{**options, "depth": 3})


def test_backbones_of_one_size_see_smaller_pictures_padded():
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64}
    model = timm.create_model("segmenter", backbone="beit_base_patch16_224", decoder="linear", num_classes=3, **options).eval()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        whole = model(nn.functional.pad(image, (0, 8, 0, 24)))
        assert torch.equal(model(image), whole[..., :40, :56])
        assert segment(model, image[0], 64).shape == (40, 56)
        assert segment(model, torch.randn(3, 64, 100), 64, 48).shape == (64, 100)
        with pytest.raises(ValueError, match="Images for Beit must be at most 64 x 64, .* got 64 x 100. Use sliding windows"):
            model(torch.randn(1, 3, 64, 100))


@pytest.mark.parametrize("backbone", ["plain_vit_tiny", "vit_tiny_patch16_224"])
def test_other_numbers_of_channels(backbone):
    model = timm.create_model("segmenter", backbone=backbone, decoder="linear", num_classes=3, in_chans=1, **TINY).eval()
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    assert model.pretrained_cfg["input_size"] == (1, 64, 64)


def test_halves_are_interpolated_in_full():
    """Between two tokens of half precision many pixels would tie, and go to the class of the lower number."""
    model = timm.create_model("segmenter", backbone="plain_vit_tiny", decoder="linear", num_classes=3, **TINY).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(1, 3, 64, 64))
    assert logits.dtype == torch.float32
    assert (logits[0, 0, :, 8].diff() != 0).double().mean() > 0.5
