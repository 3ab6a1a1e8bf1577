"""Segmentation: metrics against brute force, windows against their sum, any backbone behind any decoder."""

import colorsys
import io
import json
import math
import re
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from imgproc_attn.comparison import compare
from imgproc_attn.data import ALONE
from imgproc_attn.files import write_json
from imgproc_attn.models import checkpoints
from imgproc_attn.segmentation import Areas, Windowed, segment, sliding_strips
from imgproc_attn.segmentation.data import open_ade20k, open_camvid, open_labelled_folder, read_label
from imgproc_attn.segmentation.inference import window_starts
from imgproc_attn.segmentation.source import PictureSource
from imgproc_attn.segmentation.transforms import CropOfSeveral, PhotometricDistortion, _saturation, joint_transform
from imgproc_attn.training import find_recipe, list_recipes, load_recipe, train
from imgproc_attn.training.checkpoints import save_weights, timm_config
from imgproc_attn.training.run import Run, check, create

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


def label_map(picture, classes):
    """Real shapes: a photograph's grey levels, cut into classes."""
    grey = torch.tensor(picture).float().mean(-1)
    return (grey * classes / 256).long()


def brute_force(predicted, label, classes):
    """Pixel by pixel and class by class, as the definition reads."""
    kept = label != 255
    predicted, label = predicted[kept], label[kept]
    iou, accuracy = [], []
    for c in range(classes):
        both, either, there = (
            ((predicted == c) & (label == c)).sum(),
            ((predicted == c) | (label == c)).sum(),
            (label == c).sum(),
        )
        iou.append(both / either if either else np.nan)
        accuracy.append(both / there if there else np.nan)
    return 100 * (predicted == label).mean(), 100 * np.nanmean(accuracy), 100 * np.nanmean(iou)


def test_metrics_are_brute_force():
    """Absent classes, ignored pixels, several images."""
    rng, areas = np.random.default_rng(0), Areas(13)  # classes 11 and 12 are in no label
    labels = [label_map(picture, 11) for picture in (photographs.astronaut(), photographs.coffee(), photographs.chelsea())]
    pairs = []
    for label in labels:
        wrong = torch.tensor(rng.random(label.shape) < 0.3)
        predicted = torch.where(wrong, torch.tensor(rng.integers(0, 12, label.shape)), label)  # class 12 is never predicted
        label = torch.where(torch.tensor(rng.random(label.shape) < 0.1), 255, label)
        areas.update(predicted[None], label[None])
        pairs.append((predicted.flatten().numpy(), label.flatten().numpy()))
    found = areas.compute()
    expected = brute_force(*(np.concatenate(side) for side in zip(*pairs)), 13)
    assert (found["pixel_accuracy"], found["mean_accuracy"], found["miou"]) == pytest.approx(expected, abs=1e-12)
    assert found["iou"][12] is None
    assert found["iou"][11] == 0
    logits = nn.functional.one_hot(torch.tensor(pairs[0][0]).view(512, 512), 13).movedim(-1, 0)[None].float()
    again = Areas(13)
    again.update(logits, torch.tensor(pairs[0][1]).view(1, 512, 512))
    assert again.compute()["miou"] == pytest.approx(brute_force(*pairs[0], 13)[2], abs=1e-12)


@pytest.mark.data
def test_metrics_on_camvid(data_folder):
    rng = np.random.default_rng(0)
    files = sorted((data_folder / "camvid" / "valannot").glob("*.png"))
    labels = [np.asarray(Image.open(file))[::4, ::4].astype(int) for file in files[:10]]
    for _ in range(1000):
        label = np.where((chosen := labels[rng.integers(10)]) == 11, 255, chosen)
        predicted = np.where(
            rng.random(label.shape) < rng.random(), rng.permutation(11)[np.minimum(label, 10)], np.minimum(label, 10)
        )
        areas = Areas(11)
        areas.update(torch.tensor(predicted)[None], torch.tensor(label)[None])
        found = areas.compute()
        expected = brute_force(predicted.ravel(), label.ravel(), 11)
        assert (found["pixel_accuracy"], found["mean_accuracy"], found["miou"]) == pytest.approx(expected, abs=1e-12)


def test_metrics_refuse():
    areas = Areas(3)
    with pytest.raises(ValueError, match="No pixel to evaluate on"):
        areas.compute()
    with pytest.raises(ValueError, match="Labels range from 0 to 3, but with 3 classes"):
        areas.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([[[0, 1], [2, 3]]]))
    with pytest.raises(ValueError, match="Predictions range from 0 to 4, but with 3 classes"):
        areas.update(torch.tensor([[[0, 4]]]), torch.zeros(1, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="differ in shape"):
        areas.update(torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long))


class Pointwise(nn.Module):
    """Logits that depend on the pixel and on its place in the window: what blending must average."""

    def __init__(self, classes=5):
        super().__init__()
        self.mix = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        rows = torch.arange(x.shape[-2]).view(1, 1, -1, 1) / x.shape[-2]
        return self.mix(x) * (1 + rows)


@pytest.fixture
def picture():
    return torch.tensor(photographs.chelsea()[:150, :201] / 255, dtype=torch.float32).permute(2, 0, 1)


def test_a_window_of_the_whole_image_is_whole_image_inference(picture):
    model = timm.create_model("segmenter", backbone="nlm_vit_tiny", num_classes=7, **TINY).eval()
    whole = model(picture[None])[0]
    ((top, strip),) = sliding_strips(model, picture, 201, 201)
    assert top == 0
    assert torch.equal(strip, whole)
    assert torch.equal(segment(model, picture, 300), segment(model, picture))


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 40), (96, 17), (150, 50), (33, 1)])
def test_windows_are_averaged(picture, window, stride):
    model = Pointwise()
    total, times = torch.zeros(5, 150, 201), torch.zeros(150, 201)
    for top in window_starts(150, window, stride):
        for left in window_starts(201, window, stride):
            where = (slice(None), slice(top, top + window), slice(left, left + window))
            with torch.no_grad():
                total[where] += model(picture[where][None])[0]
            times[where[1:]] += 1
    assert times.min() >= 1
    strips = list(sliding_strips(model, picture, window, stride, batch_size=3))
    found = torch.cat([strip for _, strip in strips], dim=1)
    torch.testing.assert_close(found, total / times)
    assert [top for top, _ in strips] == [sum(strip.shape[1] for _, strip in strips[:i]) for i in range(len(strips))]
    assert max(strip.shape[1] for _, strip in strips) <= min(window, 64)


def test_windows_refuse_gaps():
    with pytest.raises(ValueError, match="stride is 65, but must be from 1 to the window, 64"):
        window_starts(100, 64, 65)


@pytest.mark.parametrize("size", [(150, 201), (300, 402), (97, 130)])
@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 48)])
def test_scales_and_mirror_images(picture, window, stride, size):
    """As the mean of all probabilities, held at once; bands of views come in different heights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 4, 3, padding=1))
    total = torch.zeros(4, *size)
    with torch.no_grad():
        for scale in (0.75, 1.0, 1.5):
            sides = [round(side * scale) for side in (150, 201)]
            scaled = nn.functional.interpolate(picture[None], size=sides, mode="bilinear", antialias=scale < 1)
            for mirrored in (False, True):
                logits = Windowed(model, window, stride)(scaled.flip(-1) if mirrored else scaled)
                logits = nn.functional.interpolate(logits, size=size, mode="bilinear")[0].softmax(0)
                total += logits.flip(-1) if mirrored else logits
    found = segment(model, picture, window, stride, size=size, scales=(0.75, 1.0, 1.5), flip=True)
    assert found.shape == size
    assert (found == total.argmax(0)).double().mean() > 0.9999
    with pytest.raises(ValueError, match="must be positive factors"):
        segment(model, picture, scales=(0.0, 1.0))


@pytest.mark.parametrize(
    "decoder", ["linear", "mask", {"name": "mask", "depth": 3, "residual": "twicing", "positions": "spatial_gaussian"}]
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
    if isinstance(decoder, dict) or decoder == "mask":
        decoder = {"name": "mask", **(decoder if isinstance(decoder, dict) else {}), "num_heads": 2}
    model = timm.create_model("segmenter", backbone=backbone, decoder=decoder, num_classes=6, **TINY)
    logits = model(torch.randn(2, 3, 50, 84))
    assert logits.shape == (2, 6, 50, 84)
    nn.functional.cross_entropy(logits, torch.randint(6, (2, 50, 84))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == [], (
        "processes would wait for what gets no gradient"
    )


@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_small_patch14_dinov2", "deit_tiny_distilled_patch16_224"])
def test_other_backbones(backbone):
    options = {"depth": 1} if "vit" in backbone or "deit" in backbone else {}
    size = 56 if "patch14" in backbone else 64
    model = timm.create_model("segmenter", backbone=backbone, decoder="linear", num_classes=4, img_size=size, **options).eval()
    assert model(torch.randn(1, 3, 61, 90)).shape == (1, 4, 61, 90)


@pytest.mark.parametrize("backbone", ["plain_vit_tiny", "bilateral_vit_tiny", "nlm_vit_tiny", "convnext_atto"])
def test_the_decoder_gets_normalised_features(backbone):
    """Of models that normalise behind the pooling, too."""
    options = TINY if "vit" in backbone else {"img_size": 64}
    encoder = timm.create_model("segmenter", backbone=backbone, **options).eval().encoder
    x = torch.rand(1, 3, 64, 64) * 9
    features = encoder.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(features.shape[:2]), rtol=0, atol=1e-2)


def test_bandwidths_keep_their_unit_when_the_grid_grows():
    """The same patch has the same neighbours, however large the image."""
    model = timm.create_model("segmenter", backbone="bilateral_vit_tiny", decoder="linear", num_classes=3, **TINY).eval()
    kernels = {}
    for side in (64, 128):
        captured = []
        hook = model.encoder.blocks[0].attn.register_forward_pre_hook(lambda module, args, kept=captured: kept.append(args[1]))
        model(torch.zeros(1, 3, side, side))
        hook.remove()
        geometry = captured[0]
        apart = geometry.coordinates[0, -1] - geometry.coordinates[0, -2]
        kernels[side] = apart.tolist()
    assert kernels[64] == kernels[128] == [0.0, 1.0]


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
        ({"decoder": "maks"}, "unknown member 'maks'; there are linear and mask"),
        ({"num_classes": 0}, "num_classes is 0, but a segmenter has at least 1"),
        ({"decoder": {"name": "mask", "hed": 3}}, "hed"),
        ({"decoder": {"name": "mask", "num_heads": 7}}, "width 32 is not divisible by num_heads 7"),
        ({"decoder": {"name": "mask", "num_heads": 2, "positions": "absolute"}}, "belong to the tokens of an image"),
        ({"decoder": {"name": "mask", "num_heads": 2, "kernel": "bilatral"}}, "unknown member 'bilatral'"),
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
    with pytest.raises(ValueError, match="me/seg is of another model than Segmenter"):
        timm.create_model("segmenter", pretrained=True, pretrained_cfg=cfg, **{**options, "depth": 3})


# --- data


def write_png_of_16_bits(file, height=300, width=451):
    """Colours, which Pillow does not write."""
    rows = b"".join(b"\0" + bytes(6 * width) for _ in range(height))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def shapes_folder(root):
    """Photographs with label maps made of their grey levels, in the layout of a labelled folder."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"class {i}\n" for i in range(6)))
    for split in ("train", "val"):  # the same photographs, the second time upside down
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for name, picture in zip("ab", (photographs.chelsea(), photographs.coffee())):
            picture = picture if split == "train" else picture[::-1]
            Image.fromarray(picture).save(root / "images" / split / f"{name}.jpg")
            label = label_map(picture.copy(), 6).numpy().astype(np.uint8)
            label[:20] = 255
            Image.fromarray(label).save(root / "annotations" / split / f"{name}.png")
    return root


def test_a_labelled_folder(tmp_path):
    pictures = open_labelled_folder(str(shapes_folder(tmp_path)), "train")
    image, mask = pictures[0]
    assert (image.shape, image.dtype) == ((3, 300, 451), torch.uint8)
    assert mask.shape == (300, 451)
    assert (mask[:20] == 255).all()
    assert torch.equal(mask[20:].long(), label_map(photographs.chelsea(), 6)[20:])
    assert pictures.classes == {f"class {i}": i for i in range(6)}
    assert [pictures.name(i) for i in range(2)] == ["a.jpg", "b.jpg"]


def rewrite(change):
    """Change the first label map of a folder."""

    def apply(root):
        file = root / "annotations" / "train" / "a.png"
        label = np.asarray(Image.open(file))
        change(label, file)

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewrite(lambda label, file: Image.fromarray(label[:100]).save(file)), "is 451 x 300, but its labels .* are 451 x 100"),
        (
            rewrite(lambda label, file: Image.fromarray(label + 3).save(file)),
            r"has the values \[6, 7\], which are none of the 6 classes",
        ),
        (
            rewrite(lambda label, file: Image.fromarray(label).convert("P").save(file)),
            "has a palette, not one 8-bit grey value",
        ),
        (rewrite(lambda label, file: Image.fromarray(label.astype(np.uint16)).save(file)), "has 16 bits"),
        (rewrite(lambda label, file: Image.fromarray(np.stack([label] * 3, 2)).save(file)), "has colours"),
        (rewrite(lambda label, file: Image.fromarray(label > 2).save(file)), "has 1 bit, not one 8-bit grey value"),
        (
            lambda root: Image.open(root / "images" / "train" / "a.jpg").save(root / "images" / "train" / "a.png"),
            "one name, and would",
        ),
        (rewrite(lambda label, file: file.write_bytes(file.read_bytes()[:90])), "Cannot read .*a.png"),
        (
            lambda root: Image.fromarray(np.zeros((300, 451), np.uint16)).save(
                root / "images" / "train" / "a.jpg", format="PNG"
            ),
            "has more than 8 bits a value",
        ),
        (lambda root: write_png_of_16_bits(root / "images" / "train" / "a.jpg"), "has more than 8 bits a value"),
        (
            lambda root: (root / "classes.txt").write_text("".join(f"{i}\n" for i in range(255))),
            "There are 255 classes, but 8-bit label maps",
        ),
        (rewrite(lambda label, file: file.unlink()), "1 of 2 label maps are not in .*: a.png"),
        (lambda root: (root / "classes.txt").unlink(), "which names the classes, one a line"),
    ],
)
def test_data_refuses(spoil, message, tmp_path):
    spoil(shapes_folder(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_labelled_folder(str(tmp_path), "train")[0]


def without_labels(root):
    """Nothing but pixels to ignore."""
    for file in (root / "annotations" / "train").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewrite(lambda label, file: Image.fromarray(label[:100]).save(file)), "are 451 x 100; they must be equal"),
        (rewrite(lambda label, file: Image.fromarray(np.stack([label] * 3, 2)).save(file)), "has colours, not one 8-bit"),
        (rewrite(lambda label, file: file.write_bytes(b"none")), "Cannot read .*a.png"),
        (rewrite(lambda label, file: Image.fromarray(label + 3).save(file)), r"have the values \[6, 7\], which are none of"),
        (without_labels, r"All of 2 label maps looked at hold nothing but \[255\], which is ignored"),
    ],
)
def test_mistakes_show_before_training(spoil, message, tmp_path):
    """And before evaluation; nothing is built then."""
    root = shapes_folder(tmp_path / "data")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        train(recipe_of(root).variant("plain", 0), tmp_path / "run", "cpu", say=lambda line: None)
    assert not (tmp_path / "run" / "last").exists()
    with pytest.raises(ValueError, match=message):
        PictureSource("labelled", str(root), "train").open(SimpleNamespace(num_classes=6, pretrained_cfg={}), 3)


def test_backbones_of_one_size_are_refused_before_training(tmp_path):
    """Unless evaluation looks at windows of it."""
    changes = ["data.input_size=[3,64,64]", "model.img_size=64", "segmentation.short_side=80"]
    recipe = recipe_of(shapes_folder(tmp_path), *changes)
    for window, refused in ((None, "evaluation looks at whole pictures"), (80, "evaluation looks at windows of 80"), (64, "")):
        beit = {**recipe.model.model_dump(), "backbone": "beit_base_patch16_224"}
        single = recipe.model_copy(
            update={
                "comparison": None,
                "model": type(recipe.model)(**beit),
                "segmentation": recipe.segmentation.model_copy(update={"window": window}),
            }
        )
        if refused:
            with pytest.raises(ValueError, match=refused):
                check(single)
        else:
            check(single)


def test_backbones_of_one_size_see_smaller_pictures_padded():
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64}
    model = timm.create_model("segmenter", backbone="beit_base_patch16_224", decoder="linear", num_classes=3, **options).eval()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        whole = model(nn.functional.pad(image, (0, 8, 0, 24)))
        assert torch.equal(model(image), whole[..., :40, :56])
        assert segment(model, image[0], 64).shape == (40, 56)
        assert segment(model, torch.randn(3, 64, 100), 64, 48).shape == (64, 100)
        with pytest.raises(ValueError, match="Beit takes images of up to 64 x 64, .* 64 x 100: look at it in windows"):
            model(torch.randn(1, 3, 64, 100))


def test_other_splits_and_layouts_are_named(tmp_path):
    shapes_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder .*images/test"):
        open_labelled_folder(str(tmp_path), "test")
    with pytest.raises(FileNotFoundError, match="objectInfo150.txt; it comes with ADEChallengeData2016"):
        open_ade20k(str(tmp_path), "validation")


@pytest.mark.data
def test_real_data(data_folder):
    ade = open_ade20k(str(data_folder / "ade20k_sample"), "")
    assert len(ade) == 3
    assert (len(ade.classes), list(ade.classes)[:2]) == (150, ["wall", "building"])
    raw = read_label(ade.pairs[0][1])
    assert torch.equal(ade[0][1] == 255, torch.tensor(raw == 0))
    assert ade[0][1][torch.tensor(raw > 0)].max() == raw.max() - 1
    camvid = open_camvid(str(data_folder / "camvid"), "val")
    assert len(camvid) == 101
    assert len(camvid.classes) == 11
    assert set(camvid[0][1].unique().tolist()) <= {*range(11), 255}


def test_labels_go_with_their_pixels(tmp_path):
    """Each pixel of a picture that shows its own label keeps it through scale, crop and flip; none is invented."""
    root = shapes_folder(tmp_path)
    for name in "ab":
        label = np.asarray(Image.open(root / "annotations" / "train" / f"{name}.png"))
        Image.fromarray(np.stack([label] * 3, 2)).save(root / "images" / "train" / f"{name}.png")
        (root / "images" / "train" / f"{name}.jpg").unlink()
    pictures = open_labelled_folder(str(root), "train")
    pictures.transform = joint_transform((128, 160), 300, photometric=False)
    known = {*range(6), 255}
    for i in (0, 1, 0, 1):
        image, mask = pictures[i]
        assert image.shape == (3, 128, 160)
        assert mask.shape == (128, 160)
        assert set(mask.unique().tolist()) <= known
        inside = mask != 255
        off = (image[0].int() - mask.int()).abs()[inside]
        assert (off > 0).double().mean() < 0.35  # borders, where the picture is interpolated and the label is not
        assert off.double().mean() < 1.0


def test_crops_show_several_classes():
    """One class that fills nearly all is left for what else there is, if a try finds it."""
    mask = torch.zeros(400, 400, dtype=torch.uint8)
    mask[:, 300:] = 1
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    crop = CropOfSeveral((100, 100))
    shares = [crop(tv_tensors.Image(image), tv_tensors.Mask(mask))[1].double().mean().item() for _ in range(40)]
    anything = v2.RandomCrop((100, 100))
    plain = [anything(tv_tensors.Image(image), tv_tensors.Mask(mask))[1].double().mean().item() for _ in range(40)]
    assert sum(0.25 <= share <= 0.75 for share in shares) > 2 * sum(0.25 <= share <= 0.75 for share in plain)
    small = tv_tensors.Image(image[:, :50, :50]), tv_tensors.Mask(mask[:50, :50])
    assert crop(*small)[0].shape == (3, 50, 50)
    image, mask = joint_transform((100, 100), scale=(1.0, 1.0))(*small)
    assert image.shape == (3, 100, 100)
    assert (image[:, 50:] == 124).all(), "padding is not coloured"
    assert (mask[50:] == 255).all()
    assert (mask == 255).sum() == 7500


def test_colours_change_the_picture_alone(tmp_path):
    pictures = open_labelled_folder(str(shapes_folder(tmp_path)), "train")
    image, mask = pictures[0]
    torch.manual_seed(0)
    plain = joint_transform((300, 451), 300, (1.0, 1.0), 0.0, photometric=False)(image, mask)
    torch.manual_seed(0)
    coloured = [joint_transform((300, 451), 300, (1.0, 1.0), 0.0)(image, mask) for _ in range(4)]
    assert all(torch.equal(plain[1], found[1]) for found in coloured)
    assert any(not torch.equal(plain[0], found[0]) for found in coloured)


def test_colours_are_mmsegmentations():
    """Shifts, factors and turns of the pixels, with the probabilities and in the ranges published."""
    picture = torch.from_numpy(photographs.astronaut()[:64, 300:364]).permute(2, 0, 1)
    for factor in (0.5, 0.8, 1.3, 1.5):
        theirs = skimage.color.rgb2hsv(picture.permute(1, 2, 0).numpy())
        theirs[..., 1] = np.clip(theirs[..., 1] * factor, 0, 1)
        theirs = torch.from_numpy(skimage.color.hsv2rgb(theirs) * 255).permute(2, 0, 1)
        assert (_saturation(picture, factor) - theirs).abs().max() <= 1
    grey, colours = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8)), PhotometricDistortion()
    found = torch.stack([colours(grey, None)[0][:, 0, 0] for _ in range(2000)]).double()
    assert (found == found[:, :1]).all(), "grey stays grey"
    found = found[:, 0]
    assert (found == 100).double().mean().item() == pytest.approx(0.25, abs=0.05)  # neither brightness nor contrast
    assert found.min() < 50
    assert 160 < found.max() <= 1.5 * 132
    red = tv_tensors.Image(torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 8, 8))
    angles = torch.tensor([colorsys.rgb_to_hsv(*(colours(red, None)[0][:, 0, 0] / 255).tolist())[0] for _ in range(800)])
    angles = ((angles + 0.5) % 1 - 0.5) * 360
    assert (angles == 0).double().mean().item() == pytest.approx(0.5, abs=0.06)
    turned = angles[angles != 0]  # uniformly in 36 degrees to either side; 8 bits and clipping blur the ends
    assert turned.quantile(0.25).item() == pytest.approx(-18, abs=5)
    assert turned.quantile(0.75).item() == pytest.approx(18, abs=5)
    assert turned.abs().max() < 50


# --- training


def recipe_of(root, *more):
    changes = [f"data.root={root}", "data.name=labelled", "data.test_split=val", "data.num_classes=6", "data.workers=0"]
    changes += ["data.input_size=[3,48,64]", "segmentation.short_side=64", "model.img_size=[48,64]", "model.embed_dim=32"]
    changes += ["model.depth=2", "model.num_heads=2", "schedule.epochs=60", "schedule.warmup_epochs=2", "run.batch_size=2"]
    return load_recipe(find_recipe("camvid/comparison_half"), [*changes, *more])


def test_crops_need_not_be_whole_patches(tmp_path):
    """The look at saturated filters pads as the model does."""
    more = ["data.input_size=[3,50,66]", "model.img_size=[56,72]", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    recipe = recipe_of(shapes_folder(tmp_path / "data"), *more).variant("bilateral + twicing", 0)
    assert train(recipe, tmp_path / "run", "cpu", say=lambda line: None)["test"]["pixels"] > 0


@pytest.mark.parametrize("variant", ["plain", "bilateral + twicing"])
def test_it_learns(variant, tmp_path):
    """Two photographs, their grey levels for classes: better than the commonest class, by the checkpoint that timm loads."""
    root = shapes_folder(tmp_path / "data")
    recipe = recipe_of(root, "optimiser.lr=3e-3").variant(variant, 0)
    result = train(recipe, tmp_path / "run", "cpu", say=lambda line: None)
    assert result["losses"][-1] < 0.7 * result["losses"][0]
    test = result["test"]
    labels = np.concatenate([np.asarray(Image.open(file)).ravel() for file in (root / "annotations" / "val").glob("*.png")])
    counts = np.bincount(labels[labels != 255], minlength=6)
    assert test["pixel_accuracy"] > 100 * counts.max() / counts.sum() + 8
    assert test["miou"] > 100 / 6
    assert test["pixels"] == counts.sum(), "each labelled pixel of each picture, at its own size, once"
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True).eval()
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["label_names"] == [f"class {i}" for i in range(6)]
    # by hand: resized in 8 bits, normalised, segmented, enlarged
    areas = Areas(6)
    pictures = open_labelled_folder(str(root), "val")
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    for image, mask in (pictures[0], pictures[1]):
        factor = 64 / min(image.shape[-2:])
        size = [int(side * factor) for side in image.shape[-2:]]
        x = nn.functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True).round()
        x = (x / 255 - mean) / std
        with torch.no_grad():
            logits = nn.functional.interpolate(model(x), size=mask.shape, mode="bilinear")
        areas.update(logits, mask[None])
    assert areas.compute()["miou"] == pytest.approx(test["miou"], abs=0.02)


LARGE = """
import resource, timm, torch, imgproc_attn
from imgproc_attn.segmentation import segment
from skimage import data, transform
model = timm.create_model("segmenter", backbone="nlm_vit_small", num_classes=150, img_size=512).eval()
picture = torch.tensor(transform.resize(data.astronaut(), (1024, 2048)), dtype=torch.float32).permute(2, 0, 1)
assert segment(model, picture, 512, 512).shape == (1024, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
def test_windows_bound_memory():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3e6


def test_it_shows_what_it_makes_of_examples(tmp_path):
    """Overlays in TensorBoard, an epoch each."""
    recipe = recipe_of(shapes_folder(tmp_path / "data"), "schedule.epochs=3").variant("plain", 0)
    train(recipe, tmp_path / "run", "cpu", say=lambda line: None)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0}).Reload()
    shown = board.Images("examples")
    assert [event.step for event in shown] == [0, 1, 2]
    assert min(shown[0].width, shown[0].height) > 300
    assert Image.open(io.BytesIO(shown[0].encoded_image_string)).size == (shown[0].width, shown[0].height)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_it_starts_from_a_classifier(pooling, tmp_path):
    """Weights of a classifier's run go to the encoder, position tables resampled; the decoder is new."""
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    options |= {"global_pool": pooling, "class_token": pooling == "token"}
    classifier = timm.create_model("bilateral_vit_tiny", img_size=32, num_classes=10, **options)
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_weights(classifier.state_dict(), classifier, options, None, tmp_path / "classifier" / "last")
    recipe = recipe_of(shapes_folder(tmp_path / "data"), f"model.checkpoint={tmp_path / 'classifier'}", "schedule.epochs=3")
    said = []
    run = Run(recipe.variant("bilateral + twicing", 0), tmp_path / "run", torch.device("cpu"), ALONE, said.append)
    encoder, trained = run.model.encoder, classifier.state_dict()
    for name in ("blocks.1.attn.qkv.weight", "patch_embed.proj.weight", "blocks.0.attn.kernel.range_bandwidth.log_excess"):
        assert torch.equal(encoder.state_dict()[name], trained[name])
    norm = "norm.weight" if pooling == "token" else "fc_norm.weight"
    assert torch.equal(encoder.norm.weight, trained[norm])
    assert encoder.pos_embed.shape[1] == 6 * 8
    assert re.search("but for decoder.*, pos_embed resampled", said[0])
    # and it sees pictures as the classifier did, unless the recipe has its own way
    assert (run.preparation.mean, run.preparation.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = recipe_of(tmp_path / "data", f"model.checkpoint={tmp_path / 'classifier'}", "data.mean=[0.5, 0.5, 0.5]")
    assert create(own.variant("plain", 0)).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def ade_recipes():
    return [name for name in list_recipes() if name.startswith("ade20k/")]


@pytest.mark.parametrize("name", ade_recipes())
def test_ade20k_recipes_take_steps(name, tmp_path):
    """Small: other pictures, crops and windows; all else as the recipe says."""
    changes = [f"data.root={shapes_folder(tmp_path / 'data')}", "data.name=labelled", "data.train_split=train"]
    changes += ["data.test_split=val", "data.num_classes=6", "data.workers=0", "data.input_size=[3,64,64]", "run.batch_size=2"]
    changes += ["segmentation.short_side=64", "segmentation.window=64", "segmentation.stride=64", "model.pretrained=false"]
    recipe = load_recipe(find_recipe(name), [*changes, "model.checkpoint=''", "schedule.epochs=1"])
    takes_steps(recipe, tmp_path / "run")


def takes_steps(recipe, folder):
    """An epoch, in which every weight moves, and an evaluation through windows."""
    run = Run(recipe, folder, torch.device("cpu"), ALONE, lambda line: None)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert math.isfinite(run.epoch(0)["train_loss"])
    still = [name for name, p in run.model.named_parameters() if torch.equal(p, before[name])]
    assert not still, f"not trained: {still}"
    found = run.evaluate(run.splits.test or run.splits.validation)
    assert found["pixels"] > 0
    assert len(found["iou"]) == recipe.data.num_classes


def test_ade20k_recipes_differ_in_the_model_alone():
    contents = [load_recipe(find_recipe(name)).model_dump(exclude={"title", "model"}) for name in ade_recipes()]
    assert len(contents) == 14
    assert all(content == contents[0] for content in contents)


@pytest.mark.data
@pytest.mark.parametrize("name", ade_recipes())
def test_ade20k_recipes_on_real_pictures(name, data_folder, tmp_path):
    """Three pictures of ADE20K, at the recipe's own size: two to train on, one to evaluate through windows."""
    changes = [f"data.root={data_folder / 'ade20k_sample'}", "data.train_split=''", "data.test_split=null", "data.workers=0"]
    changes += ["data.validation_images=1", "run.batch_size=2", "model.pretrained=false", "model.checkpoint=''"]
    takes_steps(load_recipe(find_recipe(name), changes), tmp_path)


def test_a_comparison_of_segmenters(tmp_path):
    """The report has both metrics, attacks and corruptions; again, nothing is repeated."""
    more = ["schedule.epochs=2", "schedule.warmup_epochs=0", "comparison.seeds=[0]", "evaluation.pgd=[2/255]"]
    recipe = recipe_of(shapes_folder(tmp_path / "data"), *more, "evaluation.pgd_steps=2", "evaluation.corruptions=[fog 3]")
    report = compare(recipe, tmp_path / "report", "cpu")
    text = report.read_text()
    assert "In mIoU:" in text
    assert "In pixel accuracy:" in text
    assert "on 2 held-out pictures" in text
    results = json.loads((report.parent / "results.json").read_text())["results"]
    conditions = ["clean", "PGD 0.00784314", "SegPGD 0.00392157", "fog 3"]
    assert all(list(r["metrics"][metric]) == conditions for r in results for metric in ("miou", "pixel_accuracy"))
    final = json.loads((report.parent / "runs" / "plain-seed0" / "final.json").read_text())["test"]
    assert results[0]["metrics"]["miou"]["clean"] == pytest.approx(final["miou"], abs=1e-2)
    assert {file.stem for file in report.parent.glob("*.png")} == {"learning", "curves", "bandwidths", "segmented"}
    evaluated = report.parent / "runs" / "plain-seed0" / "evaluation.json"
    before = evaluated.stat().st_mtime_ns
    compare(recipe, tmp_path / "report", "cpu")
    assert evaluated.stat().st_mtime_ns == before
    fewer = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test_images": 1})})
    assert "on 1 held-out pictures" in compare(fewer, tmp_path / "report", "cpu").read_text()
    assert evaluated.stat().st_mtime_ns != before, "other pictures, other numbers"


def test_it_goes_on_where_it_was(tmp_path):
    root = shapes_folder(tmp_path / "data")
    more = ["schedule.epochs=4", "data.test_split=null", "data.validation_images=1", "run.batch_size=1"]
    recipe = recipe_of(root, *more).variant("plain", 0)
    whole = train(recipe, tmp_path / "whole", "cpu", say=lambda line: None)
    assert whole["validation"] > 0
    run_epochs(recipe, tmp_path / "parts", 2)
    again = train(recipe, tmp_path / "parts", "cpu", resume=True, say=lambda line: None)
    assert again["losses"] == whole["losses"]


def run_epochs(recipe, folder, epochs):
    """A run that is broken off."""

    class Enough(Exception):
        pass

    def stop(line):
        if line.startswith(f"epoch {epochs}/"):
            raise Enough

    with pytest.raises(Enough):
        train(recipe, folder, "cpu", say=stop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.test_split=train", "The splits train and test share pictures"),
        ("data.validation_split=val", "The splits validation and test share pictures"),
        ("evaluation.corruptions=[frost 3]", "frost needs photographs"),
        ("data.crop_pct=0.9", "segmentation has no crop_pct"),
        ("data.num_classes=7", "data.num_classes is 7, but .* names 6 classes"),
        ("segmentation=null", "'labelled' needs a section segmentation"),
        ("data.name=folder", "'folder' excludes a section segmentation"),
        ("augmentation.mixup=0.2", "segmentation has no mixup"),
        ("segmentation.stride=20", "stride is 20, but must not be above window, None"),
        ("segmentation.shrot_side=20", "unknown key; did you mean 'short_side'"),
        ("evaluation.gaussian_noise=[0.1]", "segmentation has no gaussian_noise"),
        ("evaluation.corruptions=[fogg 3]", "'fogg 3' is none; write a name and a severity, fog 3"),
    ],
)
def test_recipes_refuse(change, message, tmp_path):
    root = shapes_folder(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        train(recipe_of(root, change).variant("plain", 0), tmp_path / "run", "cpu", say=lambda line: None)


@pytest.mark.data
def test_recipes_on_real_pictures(data_folder, tmp_path):
    """CamVid: data, forward, loss, updates and sliding evaluation."""
    changes = [f"data.root={data_folder / 'camvid'}", "data.train_images=16", "data.test_images=4", "schedule.epochs=1"]
    changes += ["schedule.warmup_epochs=0", "segmentation.window=128", "segmentation.stride=96"]
    recipe = load_recipe(find_recipe("camvid/comparison_half"), changes).variant("untied + twicing", 0)
    result = train(recipe, tmp_path / "run", "cpu", say=lambda line: None)
    assert result["test"]["pixels"] > 4 * 360 * 480 * 0.8
    assert len(result["test"]["iou"]) == 11
