"""Columns of Hugging Face data: chosen by type, given by name, or listed in an error."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from crops import crops
from PIL import Image

from imgproc_attn.data import Images, fingerprint, open_images
from imgproc_attn.recipe.sections import Data

datasets = pytest.importorskip("datasets")
NAMES = ["a", "b", "c"]
KINDS = {
    "classes": datasets.ClassLabel(names=NAMES),
    "numbers": datasets.Value("int32"),
    "text": datasets.Value("string"),
    "fractions": datasets.Value("float32"),
}
VALUES = {"classes": [0, 1, 2], "numbers": [0, 1, 2], "text": ["two", "Ten", "two"], "fractions": [0.0, 1.0, 2.0]}


def open_set(root, kind="hfds", download=True, **columns):
    return open_images(f"{kind}/{root / 'Set'}", str(root / "cache"), "train", download=download, **columns)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Write a data set of three images with label columns ``{column: kind}``."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def write(image, **labels):
        features = datasets.Features({image: datasets.Image(), **{c: KINDS[kind] for c, kind in labels.items()}})
        table = {image: [crop for _, crop in crops(3)], **{c: VALUES[kind] for c, kind in labels.items()}}
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "Set" / "train.parquet")
        return partial(open_set, tmp_path)

    return write


streams = pytest.mark.skipif(find_spec("timm.data.readers._hfds") is None, reason="old timm asks new datasets for remote code")


@pytest.mark.parametrize("kind", ["hfds", pytest.param("hfids", marks=streams)])
@pytest.mark.parametrize(
    ("image", "labels", "named"),
    [
        ("image", {"label": "classes"}, {}),
        ("img", {"label": "classes"}, {}),  # CIFAR-10
        ("img", {"fine_label": "classes", "coarse_label": "classes"}, {"label_column": "fine_label"}),  # CIFAR-100
        ("image", {"labels": "classes"}, {}),  # beans
        ("image", {"label": "numbers"}, {}),
        ("photo", {"label": "text", "target": "classes"}, {"label_column": "target"}),
        ("image", {"kind": "numbers"}, {"label_column": "kind", "image_column": "image"}),
    ],
)
def test_columns_are_found(stored, kind, image, labels, named):
    images = stored(image, **labels)(kind, **named)
    got = [images[i][1] for i in range(3)] if kind == "hfds" else [label for _, label in images]
    assert got == [0, 1, 2]
    column = named.get("label_column") or next(iter(labels))
    assert images.class_to_idx == ({"a": 0, "b": 1, "c": 2} if labels[column] == "classes" else None)


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
@pytest.mark.parametrize(
    ("image", "labels", "named", "message"),
    [
        ("img", {"fine_label": "classes", "coarse_label": "classes"}, {}, "no name, and 2 columns of type ClassLabel"),
        ("img", {"kind": "numbers"}, {}, "no name, and 0 columns of type ClassLabel"),
        ("img", {"label": "classes"}, {"label_column": "lable"}, "'lable'"),  # codespell:ignore
        ("img", {"label": "classes"}, {"image_column": "image"}, "'image'"),
    ],
)
def test_columns_that_are_not_found_are_listed(stored, kind, image, labels, named, message):
    kinds = {"classes": "ClassLabel", "numbers": "int32"}
    listed = r"one of the columns img \(Image\), " + ", ".join(
        rf"{column} \({kinds[kind]}\)" for column, kind in labels.items()
    )
    with pytest.raises(ValueError, match=rf"{listed}, got {message}. Name one: data\.(image|label)_column=NAME"):
        stored(image, **labels)(kind, **named)


def test_text_labels_are_numbered_in_natural_order(stored):
    images = stored("image", label="text")()
    assert images.class_to_idx == {"Ten": 0, "two": 1}
    assert [Images(images, 2)[i][1] for i in range(3)] == [1, 0, 1]
    with pytest.raises(ValueError, match=r"got the column 'label' of string.*Only hfds/ reads text labels"):
        stored("image", label="text")("hfids")


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_labels_of_other_types_are_refused(stored, kind):
    with pytest.raises(ValueError, match="labels must be class labels or whole numbers, got the column 'label' of float32"):
        stored("image", label="fractions")(kind)


def test_a_missing_label_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for dtype, value, message in (
        ("string", "x", r"got 1 without one \(images 1\)"),
        ("int64", 0, "must be a whole number .*got None"),
    ):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(dtype)})
        table = {"image": [crop for _, crop in crops(2)], "label": [value, None]}
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / dtype / "train.parquet")
        with pytest.raises(ValueError, match=message):
            Images(open_images(f"hfds/{tmp_path / dtype}", str(tmp_path), "train"), 2)[1]


def test_a_column_that_holds_no_images(stored):
    with pytest.raises(ValueError, match="the column 'label' must hold images"):
        stored("image", label="classes", other="classes")(image_column="label", label_column="other")


def test_fingerprints_know_labels_and_sizes(stored):
    opened = stored("img", label="classes", other="numbers")
    images = Images(opened(), 3)
    found = fingerprint(images)
    assert (found["images"], found["classes"]) == (3, NAMES)
    assert fingerprint(Images(opened(), 3)) == found
    assert fingerprint(Images(opened(), 3, [0, 2, 1]))["sha256"] != found["sha256"]
    assert [size > 100 for _, _, size in images.entries()] == [True] * 3


@streams
def test_streams_have_fingerprints_and_the_same_rule_of_bits(stored, tmp_path):
    opened = stored("img", label="classes")
    assert fingerprint(opened("hfids")) == fingerprint(opened("hfids"))
    assert fingerprint(opened("hfids"))["images"] == 3
    deep = {"image": [Image.fromarray(np.zeros((8, 8), np.uint16))], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(deep, features=features).to_parquet(tmp_path / "Deep" / "train.parquet")
    stream = open_images(f"hfids/{tmp_path / 'Deep'}", str(tmp_path), "train", download=True)
    with pytest.raises(ValueError, match="more than 8 bits"):
        list(stream)


@streams
def test_a_stream_of_unknown_length_says_what_to_do(stored, tmp_path):
    opened = stored("image", label="classes")
    (tmp_path / "cache").mkdir()
    with pytest.raises(ValueError, match=r"length is unknown.* Give data.download=true, or read it with hfds/"):
        opened("hfids", download=False)


def test_other_readers_have_no_columns():
    with pytest.raises(ValueError, match="image_column must be left out for 'digits', got 'img'"):
        open_images("digits", "", "train", image_column="img")
    with pytest.raises(ValueError, match="label_column must be left out for 'npz'"):
        Data(name="npz", root="x", num_classes=2, input_size=[3, 8, 8], label_column="y")
    Data(name="wds/x", root="x", num_classes=2, input_size=[3, 8, 8], label_column="y", on_broken_image="skip")
