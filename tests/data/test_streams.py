"""WebDataset: shards are checked before training, and the images of each pass are counted."""

import io
import json
import shutil
import tarfile
import warnings

import pytest
import torch
from crops import crops

from imgproc_attn.data import Preprocessing, StreamedImages, evaluation_loader, fingerprint, open_images

pytest.importorskip("webdataset")
CPU = torch.device("cpu")
COLOR = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


def shard(file, count, extension="png", label="cls", encode=str):
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "xyz": "PNG"}.get(extension, extension.upper())
    with tarfile.open(file, "w") as tar:
        for i, (number, crop) in enumerate(crops(count)):
            image = io.BytesIO()
            crop.save(image, kind)
            for end, content in ((extension, image.getvalue()), (label, encode(number).encode())):
                member = tarfile.TarInfo(f"{i:04}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def announce(root, shards, lengths=None, **changes):
    lengths = [6] * len(shards) if lengths is None else lengths
    split = {"name": "train", "num_samples": sum(lengths), "filenames": shards, "shard_lengths": lengths, **changes}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


@pytest.fixture
def root(tmp_path):
    for i in range(2):
        shard(tmp_path / f"{i}.tar", 6)
    announce(tmp_path, ["0.tar", "1.tar"])
    return tmp_path


def opened(root, split="train", **kwargs):
    return open_images("wds/x", str(root), split, batch_size=4, **kwargs)


def labels(stream, workers=0):
    return sorted(torch.cat([y for _, y in evaluation_loader(stream, COLOR, 4, workers, CPU)]).tolist())


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "gif"])
def test_members_of_all_endings_are_read(tmp_path, extension):
    shard(tmp_path / "0.tar", 6, extension)
    announce(tmp_path, ["0.tar"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels(opened(tmp_path)) == [0, 0, 1, 1, 2, 2]


def test_labels_in_json_members(tmp_path):
    shard(tmp_path / "0.tar", 6, label="json", encode=lambda number: json.dumps({"kind": number}))
    announce(tmp_path, ["0.tar"])
    assert labels(opened(tmp_path, label_column="kind")) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(
        ValueError, match=r"got 0 of 6 samples.*labels in \.json with the field 'sort'\. Its members end in \.json, \.png"
    ):
        opened(tmp_path, label_column="sort")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "1.tar").unlink(),
            r"hold 2 shards of the split, got 1 missing: 1\.tar\. Copy them there",
        ),
        (
            lambda root: shard(root / "0.tar", 6, "xyz"),
            r"0.tar must hold 6 or more samples.*got 0 of 6.*Its members end in \.cls, \.xyz",
        ),
        (
            lambda root: shard(root / "0.tar", 6, label="label.txt"),
            r"got 0 of 6 samples.*labels in \.cls\. Its members end in \.label\.txt",
        ),
        (lambda root: shard(root / "1.tar", 4), r"1.tar must hold 6 or more samples with an image and a label, got 4 of 4"),
        (
            lambda root: announce(root, ["0.tar", "1.tar"], num_samples=100),
            r"100 images, 2 shards and 2 lengths with the sum 12",
        ),
        (lambda root: announce(root, ["0.tar", "1.tar"], [12]), r"got 12 images, 2 shards and 1 lengths with the sum 12"),
        (lambda root: announce(root, []), r"num_samples not specified"),
        (lambda root: (root / "0.tar").write_bytes(b"no tar"), r"0.tar must be a complete tar archive, got .* Copy it again"),
        (
            lambda root: (root / "_info.json").write_text('{"splits": {"train": {}}}'),
            r"_info.json must describe the split 'train'",
        ),
        (lambda root: (root / "_info.json").write_text("[]"), r"split 'train'"),
        (lambda root: (root / "_info.json").unlink(), r"split train not found in info"),
    ],
)
def test_what_is_not_there_is_told_before_training(root, spoil, message):
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened(root, training=True)


def test_a_split_by_names_of_shards(root):
    assert labels(opened(root, "{0..1}.tar|12")) == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(FileNotFoundError, match=r"3 shards of the split, got 1 missing"):
        opened(root, "{0..2}.tar|18")


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_are_counted(root, workers):
    assert len(labels(opened(root), workers)) == 12
    stream = opened(root)
    shutil.copy(root / "0.tar", root / "whole.tar")
    shard(root / "0.tar", 2)  # The shard changes after the checks.
    with pytest.warns(UserWarning, match="The stream yielded 8 images instead of the announced 12"):
        assert len(labels(stream, workers)) == 8
    for i in range(2):
        shard(root / f"{i}.tar", 6, "xyz")
    with pytest.raises(ValueError, match="The stream must yield 12 images, got 0"):
        labels(opened_unchecked(root), workers)


def opened_unchecked(root):
    from timm.data import create_dataset

    return StreamedImages(create_dataset("wds/x", root=str(root), split="train").reader, "RGB")


def test_labels_beyond_the_classes_are_refused(root):
    stream = opened(root)
    stream.num_classes = 2
    with pytest.raises(ValueError, match=r"must be a whole number from 0 to 1 with 2 classes, got 2"):
        labels(stream)


def test_fingerprints_know_shards(root):
    before = fingerprint(opened(root))
    assert before["images"] == 12
    assert fingerprint(opened(root)) == before
    shard(root / "1.tar", 8)
    assert fingerprint(opened(root))["sha256"] != before["sha256"]
