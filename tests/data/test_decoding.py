"""Bit depth: every reader accepts 8 bits per value and refuses more, with the name of the image."""

import io
import pickle
import shutil

import numpy as np
import pytest
from crops import crops, save_crops
from PIL import Image

from imgproc_attn.data import Images, PackedImages, Unreadable, open_images
from imgproc_attn.data.decoding import to_8_bits
from imgproc_attn.segmentation.data import read_image


def gray():
    return np.asarray(next(crops(1))[1].convert("L"))


DEEP = {
    "16-bit.png": lambda file: Image.fromarray(gray().astype(np.uint16) * 257).save(file, "PNG"),
    "16-bit.tif": lambda file: Image.fromarray(gray().astype(np.uint16) * 257).save(file, "TIFF"),
    "big-endian.tif": lambda file: Image.fromarray(gray().astype(">u2")).save(file, "TIFF"),
    "16-bit.pgm": lambda file: file.write(b"P5 24 24 65535\n" + (gray().astype(">u2") * 257).tobytes()),
    "32-bit.tif": lambda file: Image.fromarray(gray().astype(np.int32)).save(file, "TIFF"),
    "float.tif": lambda file: Image.fromarray(gray().astype(np.float32) / 255).save(file, "TIFF"),
}


def stored(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


@pytest.fixture(params=DEEP)
def deep(request):
    """Return name and content of a file with more than 8 bits per value."""
    return request.param, stored(DEEP[request.param])


def write_image(root, name, content):
    (root / "b").mkdir(parents=True)
    (root / "b" / name).write_bytes(content)
    return save_crops(root, ["a/0"])


REFUSED = r"more than 8 bits per value \(mode [IF].*\); scale it to 0 to 255 and store 8 bits"


@pytest.mark.parametrize("channels", [1, 3])
def test_folders_tars_and_packs_refuse_more_bits_by_name(deep, tmp_path, channels):
    name, content = deep
    root = write_image(tmp_path / "f", name, content)
    tar = shutil.make_archive(str(tmp_path / "t"), "tar", root)
    for reader in (open_images("folder", str(root), ""), open_images("folder", tar, "")):
        with pytest.raises(ValueError, match=rf"Cannot read image b/{name}: it has {REFUSED}"):
            Images(reader, 2, channels=channels)[1]
    pack = {"train_bytes": np.frombuffer(content, np.uint8), "train_lengths": [len(content)], "train_labels": [0]}
    np.savez(tmp_path / "p.npz", **pack, classes=np.array(["a", "b"]))
    with pytest.raises(ValueError, match=f"Cannot read image train-0: it has {REFUSED}"):
        Images(PackedImages(tmp_path / "p.npz", "train"), 2, channels=channels)[0]


def test_segmentation_has_the_same_rule(deep, tmp_path):
    name, content = deep
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: it has {REFUSED}"):
        read_image(tmp_path / name)


def test_torchvision_and_hugging_face_have_the_same_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    content = stored(DEEP["16-bit.png"])
    with pytest.raises(ValueError, match=REFUSED):
        Images(open_images("torch/image_folder", str(write_image(tmp_path / "f", "0.png", content)), ""), 2)[1]
    table = {"image": [{"bytes": content, "path": None}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    where = (str(tmp_path / "cache"), "train")
    with pytest.raises(ValueError, match=REFUSED):
        Images(open_images(f"hfds/{tmp_path / 'set'}", *where, download=True), 2)[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_are_read(mode):
    image = next(crops(1))[1].convert(mode)
    for wanted in ("L", "RGB"):
        assert np.array_equal(np.asarray(to_8_bits(image, wanted)), np.asarray(image.convert(wanted)))


def test_sixteen_bits_per_pixel_are_not_per_value(tmp_path):
    """A BMP file with 16 bits per pixel has 5 or 6 bits per color."""
    pixels = np.arange(16, dtype="<u2").tobytes()
    header = (54 + 32).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    header += (4).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (16).to_bytes(2, "little") + bytes(24)
    (tmp_path / "x.bmp").write_bytes(b"BM" + header + pixels)
    assert read_image(tmp_path / "x.bmp").shape == (4, 4, 3)


def test_the_reason_is_told_where_no_image_can_be_read(deep, tmp_path):
    name, content = deep
    root = write_image(tmp_path / "f", name, content)
    images = Images(
        open_images("folder", str(root), ""), 2, [1], on_unreadable="replace", unreadable=Unreadable(tmp_path / "u")
    )
    with pytest.raises(ValueError, match=rf"1 images must be readable, got none \(b/{name}: it has {REFUSED}\)"):
        images[0]


@pytest.mark.parametrize("policy", ["stop", "replace", "ignore"])
def test_labels_that_are_no_numbers_are_no_broken_images(policy):
    class Texts:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return next(crops(1))[1], "cat"

        def filename(self, index):
            return "x"

    with pytest.raises(ValueError, match="The label of image x must be a whole number from 0 to 2 with 3 classes, got 'cat'"):
        Images(Texts(), 3, on_unreadable=policy)[0]


def test_a_pickled_reader_reads_on(tmp_path):
    """Data loaders that spawn their workers pickle the data set."""
    root = save_crops(tmp_path / "f", ["a/0", "b/0"])
    for where in (str(root), shutil.make_archive(str(tmp_path / "t"), "tar", root)):
        images = pickle.loads(pickle.dumps(Images(open_images("folder", where, ""), 2)))
        assert [images[i][1] for i in range(2)] == [0, 1]
