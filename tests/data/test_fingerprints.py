"""Fingerprints: equal for equal splits, different for changed ones."""

import json
import shutil

import pytest
from crops import crops, save_crops
from shapes import shapes_folder

from imgproc_attn.data import Digits, Images, fingerprint, open_images
from imgproc_attn.segmentation.data import open_labeled_folder


def folder_fingerprint(root):
    return fingerprint(Images(open_images("folder", str(root), ""), 2))


@pytest.fixture
def root(tmp_path):
    return save_crops(tmp_path / "f", ["cats/0", "cats/1", "dogs/0", "dogs/1"])


def swap(root):
    shutil.move(root / "cats", root / "x")
    shutil.move(root / "dogs", root / "cats")
    shutil.move(root / "x", root / "dogs")


def test_a_copy_is_the_same(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere")
    found = folder_fingerprint(root)
    assert folder_fingerprint(tmp_path / "elsewhere") == found
    assert json.loads(json.dumps(found)) == found
    assert (found["images"], found["classes"]) == (4, ["cats", "dogs"])


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda root: shutil.copy(root / "cats/0.png", root / "cats/2.png"),
        lambda root: (root / "cats/0.png").unlink(),
        lambda root: (root / "cats/0.png").rename(root / "cats/5.png"),
        lambda root: shutil.move(root / "cats/0.png", root / "dogs/5.png"),
        lambda root: next(crops(1))[1].resize((9, 9)).save(root / "cats/0.png"),
    ],
)
def test_a_change_shows(root, change):
    before = folder_fingerprint(root)
    change(root)
    assert folder_fingerprint(root)["sha256"] != before["sha256"]


def test_subsets_and_splits_differ():
    train, test = (Images(Digits(split), 10, channels=1) for split in ("train", "test"))
    some = Images(Digits("train"), 10, range(5), channels=1)
    assert len({fingerprint(images)["sha256"] for images in (train, test, some)}) == 3
    assert fingerprint(some) == fingerprint(Images(Digits("train"), 10, range(5), channels=1))


def test_pictures_with_label_maps(tmp_path):
    root = shapes_folder(tmp_path)
    pictures = open_labeled_folder(str(root), "train")
    before = fingerprint(pictures)
    assert before["images"] == len(pictures)
    assert fingerprint(pictures.some([0]))["sha256"] != before["sha256"]
    (root / "annotations" / "train" / "a.png").open("ab").write(b"x")
    assert fingerprint(open_labeled_folder(str(root), "train"))["sha256"] != before["sha256"]
