"""Labels go with their pixels; colors change as mmsegmentation's do."""

import colorsys

import numpy as np
import pytest
import seeding
import skimage
import torch
from PIL import Image
from shapes import shapes_folder
from skimage import data as photographs
from torchvision import tv_tensors
from torchvision.transforms import v2

from imgproc_attn.segmentation.data import open_labeled_folder
from imgproc_attn.segmentation.transforms import (
    CropOfSeveral,
    PhotometricDistortion,
    RandomScale,
    _saturation,
    joint_transform,
    resized,
)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.37, 2.0])
def test_labels_stay_where_their_pixels_are(factor):
    """Not half a pixel off: where the picture shows its column, labels do. (At 0.5 two labels are equally near.)"""
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 100, 200)
    pair = tv_tensors.Image(ramp.float()), tv_tensors.Mask(ramp[0])  # in 8 bits halves are rounded as the processor does
    image, mask = RandomScale(None, (factor, factor))(*pair)
    assert image.shape[-2:] == mask.shape == (round(100 * factor), round(200 * factor))
    inside = slice(5, -5)
    assert abs((mask.double() - image[0].double())[:, inside].mean()) < 0.1  # half a pixel is 0.25 columns at least


@pytest.mark.parametrize(
    ("sides", "expected"), [((360, 480), (180, 240)), ((20, 2000), (7, 720)), ((5000, 1), (720, 1)), ((100, 400), (180, 720))]
)
def test_strips_do_not_grow_beyond_measure(sides, expected):
    picture = torch.zeros(3, *sides, dtype=torch.uint8)
    assert resized(picture, 180).shape[-2:] == expected
    factor_one = RandomScale(180, (1.0, 1.0))(tv_tensors.Image(picture), tv_tensors.Mask(picture[0]))
    assert factor_one[0].shape[-2:] == factor_one[1].shape == expected


def test_labels_go_with_their_pixels(tmp_path):
    """Each pixel of a picture that shows its own label keeps it through scale, crop and flip; none is invented."""
    root = shapes_folder(tmp_path)
    for name in "ab":
        label = np.asarray(Image.open(root / "annotations" / "train" / f"{name}.png"))
        Image.fromarray(np.stack([label] * 3, 2)).save(root / "images" / "train" / f"{name}.png")
        (root / "images" / "train" / f"{name}.jpg").unlink()
    pictures = open_labeled_folder(str(root), "train")
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
    # the middle half is met by chance in 17 % of the crops, and in 84 % of ten tries: 6 standard deviations above twice as many
    shares = [crop(tv_tensors.Image(image), tv_tensors.Mask(mask))[1].double().mean().item() for _ in range(120)]
    anything = v2.RandomCrop((100, 100))
    plain = [anything(tv_tensors.Image(image), tv_tensors.Mask(mask))[1].double().mean().item() for _ in range(120)]
    assert sum(0.25 <= share <= 0.75 for share in shares) > 2 * sum(0.25 <= share <= 0.75 for share in plain)
    small = tv_tensors.Image(image[:, :50, :50]), tv_tensors.Mask(mask[:50, :50])
    assert crop(*small)[0].shape == (3, 50, 50)
    image, mask = joint_transform((100, 100), scale=(1.0, 1.0))(*small)
    assert image.shape == (3, 100, 100)
    assert (image[:, 50:] == 124).all(), "padding is not colored"
    assert (mask[50:] == 255).all()
    assert (mask == 255).sum() == 7500


def test_colors_change_the_picture_alone(tmp_path):
    pictures = open_labeled_folder(str(shapes_folder(tmp_path)), "train")
    image, mask = pictures[0]
    seeding.seed()
    plain = joint_transform((300, 451), 300, (1.0, 1.0), 0.0, photometric=False)(image, mask)
    seeding.seed()
    colored = [joint_transform((300, 451), 300, (1.0, 1.0), 0.0)(image, mask) for _ in range(4)]
    assert all(torch.equal(plain[1], found[1]) for found in colored)
    assert any(not torch.equal(plain[0], found[0]) for found in colored)


def test_colors_are_mmsegmentations():
    """Shifts, factors and turns of the pixels, with the probabilities and in the ranges published."""
    picture = torch.from_numpy(photographs.astronaut()[:64, 300:364]).permute(2, 0, 1)
    for factor in (0.5, 0.8, 1.3, 1.5):
        theirs = skimage.color.rgb2hsv(picture.permute(1, 2, 0).numpy())
        theirs[..., 1] = np.clip(theirs[..., 1] * factor, 0, 1)
        theirs = torch.from_numpy(skimage.color.hsv2rgb(theirs) * 255).permute(2, 0, 1)
        assert (_saturation(picture, factor) - theirs).abs().max() <= 1
    gray, colors = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8)), PhotometricDistortion()
    found = torch.stack([colors(gray, None)[0][:, 0, 0] for _ in range(2000)]).double()
    assert (found == found[:, :1]).all(), "gray stays gray"
    found = found[:, 0]
    assert (found == 100).double().mean().item() == pytest.approx(0.25, abs=0.05)  # neither brightness nor contrast
    assert found.min() < 50
    assert 160 < found.max() <= 1.5 * 132
    # tolerances are five standard deviations of so many draws
    red = tv_tensors.Image(torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 8, 8))
    angles = torch.tensor([colorsys.rgb_to_hsv(*(colors(red, None)[0][:, 0, 0] / 255).tolist())[0] for _ in range(3200)])
    angles = ((angles + 0.5) % 1 - 0.5) * 360
    assert (angles == 0).double().mean().item() == pytest.approx(0.5, abs=0.045)
    turned = angles[angles != 0]  # uniformly in 36 degrees to either side; 8 bits and clipping blur the ends
    assert turned.quantile(0.25).item() == pytest.approx(-18, abs=5)
    assert turned.quantile(0.75).item() == pytest.approx(18, abs=5)
    assert turned.abs().quantile(0.99) < 50  # dark and pale colors have a hue of few bits
