"""Readers of pictures with labels, and what they refuse."""

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from shapes import label_map, recipe_of, shapes_folder
from skimage import data as photographs

from imgproc_attn.evaluation.specs import DatasetSpec
from imgproc_attn.segmentation.data import open_ade20k, open_camvid, open_labeled_folder, read_label
from imgproc_attn.tasks import SegmentationTask
from imgproc_attn.training import train
from imgproc_attn.training.model_factory import dry_run


def write_png(file, height, width, bits, kind, rows):
    """What Pillow does not write; ``kind`` 0 is gray, 2 colors."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_labeled_folder(tmp_path):
    pictures = open_labeled_folder(str(shapes_folder(tmp_path)), "train")
    image, mask = pictures[0]
    assert (image.shape, image.dtype) == ((3, 300, 451), torch.uint8)
    assert mask.shape == (300, 451)
    assert (mask[:20] == 255).all()
    assert torch.equal(mask[20:].long(), label_map(photographs.chelsea(), 6)[20:])
    assert pictures.classes == {f"class {i}": i for i in range(6)}
    assert [pictures.name(i) for i in range(2)] == ["a.jpg", "b.jpg"]
    (tmp_path / "images" / "train" / "folder.png").mkdir()
    names = tmp_path / "classes.txt"
    names.write_text(names.read_text(), encoding="utf-8-sig")  # as editors of Windows store it
    assert open_labeled_folder(str(tmp_path), "train").classes == pictures.classes


def rewrite(change):
    """Change the first label map of a folder."""

    def apply(root):
        file = root / "annotations" / "train" / "a.png"
        label = np.asarray(Image.open(file))
        change(label, file)

    return apply


def in_four_bits(label, file):
    """A PNG as tools write it that save room: two values a byte."""
    height, width = label.shape
    pairs = np.pad(label, ((0, 0), (0, width % 2)))
    rows = np.pad(pairs[:, ::2] << 4 | pairs[:, 1::2], ((0, 0), (1, 0)))
    write_png(file, height, width, 4, 0, rows.tobytes())


def in_colors_of_16_bits(file, height=300, width=451):
    write_png(file, height, width, 16, 2, bytes((6 * width + 1) * height))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewrite(in_four_bits), r"a\.png must have 8 bits per pixel, got 4"),
        (
            rewrite(lambda label, file: Image.fromarray(label[:100]).save(file)),
            "must have the size of its labels .*, 451 x 100, got 451 x 300",
        ),
        (
            rewrite(lambda label, file: Image.fromarray(label + 3).save(file)),
            r"must be classes \(0 to 5\) or ignored values \(255\), got \[6, 7\]. Correct the label maps.",
        ),
        (
            rewrite(lambda label, file: Image.fromarray(label).convert("P").save(file)),
            "must have one 8-bit gray value per pixel, got a palette. If its indices",
        ),
        (rewrite(lambda label, file: Image.fromarray(label.astype(np.uint16)).save(file)), "got 16 bits"),
        (rewrite(lambda label, file: Image.fromarray(np.stack([label] * 3, 2)).save(file)), "got colors"),
        (
            rewrite(lambda label, file: Image.fromarray(label > 2).save(file)),
            "must have one 8-bit gray value per pixel, got 1 bit",
        ),
        (
            lambda root: Image.open(root / "images" / "train" / "a.jpg").save(root / "images" / "train" / "a.png"),
            "Names of images must differ not only in their ending, got several of .*a. Rename",
        ),
        (rewrite(lambda label, file: file.write_bytes(file.read_bytes()[:90])), "Cannot read .*a.png"),
        (
            lambda root: Image.fromarray(np.zeros((300, 451), np.uint16)).save(
                root / "images" / "train" / "a.jpg", format="PNG"
            ),
            "has more than 8 bits per value",
        ),
        (lambda root: in_colors_of_16_bits(root / "images" / "train" / "a.jpg"), "has more than 8 bits per value"),
        (
            lambda root: (root / "classes.txt").write_text("".join(f"{i}\n" for i in range(255))),
            "number of classes must be at most 254, got 255",
        ),
        (rewrite(lambda label, file: file.unlink()), "must hold 2 label maps, got 1 missing: a.png"),
        (lambda root: (root / "classes.txt").unlink(), "must have the file .*classes.txt, got no such file"),
        (
            lambda root: (root / "classes.txt").write_text("Straße", encoding="latin-1"),
            "classes.txt must be a text file in UTF-8",
        ),
    ],
)
def test_data_refuses(spoil, message, tmp_path):
    spoil(shapes_folder(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_labeled_folder(str(tmp_path), "train")[0]


def without_labels(root):
    """Nothing but pixels to ignore."""
    for file in (root / "annotations" / "train").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rewrite(lambda label, file: Image.fromarray(label[:100]).save(file)), ", 451 x 100, got 451 x 300"),
        (
            rewrite(lambda label, file: Image.fromarray(np.stack([label] * 3, 2)).save(file)),
            "must have one 8-bit gray value per pixel, got colors",
        ),
        (rewrite(lambda label, file: file.write_bytes(b"none")), "Cannot read .*a.png"),
        (
            rewrite(lambda label, file: Image.fromarray(label + 3).save(file)),
            r"a\.png must be classes .*, got \[6, 7\]",
        ),
        (without_labels, r"got only the ignored values \[255\] in 2 label maps"),
    ],
)
def test_mistakes_show_before_training(spoil, message, tmp_path):
    """And before evaluation; nothing is built then."""
    root = shapes_folder(tmp_path / "data")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        train(recipe_of(root).variant("plain", 0), tmp_path / "run", "cpu", log=lambda line: None)
    assert not (tmp_path / "run" / "last").exists()
    with pytest.raises(ValueError, match=message):
        SegmentationTask(6).open_dataset(
            DatasetSpec("labeled", str(root), "train"), SimpleNamespace(num_classes=6, pretrained_cfg={}), 3
        )


def test_backbones_of_one_size_are_refused_before_training(tmp_path):
    """Unless evaluation looks at windows of it."""
    changes = ["data.input_size=[3,64,64]", "model.img_size=64", "segmentation.short_side=80"]
    recipe = recipe_of(shapes_folder(tmp_path), *changes)
    for window, refused in (
        (None, "must take whole images in evaluation"),
        (80, "must take windows of 80 in evaluation"),
        (64, ""),
    ):
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
                dry_run(single)
        else:
            dry_run(single)


def test_other_splits_and_layouts_are_named(tmp_path):
    shapes_folder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="must have the folder .*images/test, got no such folder. Name one of these .* train, val"
    ):
        open_labeled_folder(str(tmp_path), "test")
    with pytest.raises(FileNotFoundError, match="objectInfo150.txt, got no such file. Copy it from ADEChallengeData2016"):
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


def test_pictures_that_exif_data_would_turn(tmp_path):
    """As labels may be of either, a person decides."""
    root = shapes_folder(tmp_path)
    file = root / "images" / "train" / "a.jpg"
    picture, exif = Image.open(file), Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    picture.save(file, exif=exif)
    with pytest.warns(UserWarning, match=r"1 of 2 images have an EXIF orientation, for example .*a\.jpg"):
        open_labeled_folder(str(root), "train").check()
    picture.transpose(Image.Transpose.ROTATE_90).save(file)
    with pytest.raises(ValueError, match="Does an EXIF orientation turn the image"):
        open_labeled_folder(str(root), "train").check()
