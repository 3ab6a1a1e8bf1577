"""Class folders and tar archives: images, their classes, and warnings about skipped files."""

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import warnings

import pytest
from crops import crops, save_crops

from imgproc_attn.data import Images, open_images
from imgproc_attn.data.folders import is_hidden, list_images, natural_order


def opened(root, split="", name="folder"):
    """Return the reader and the warnings of its creation."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader = open_images(name, str(root), split)
    return reader, " ".join(str(w.message) for w in caught)


def names(reader):
    return [reader.filename(i) for i in range(len(reader))]


def test_the_order_of_names_is_total():
    expected = ["2", "02", "10", "A", "a", "a2", "A10", "B", "m²", "²", "É", "é", "e\u0301", "٣x"]
    ordered = sorted(expected, key=natural_order)
    for seed in range(20):
        mixed = random.Random(seed).sample(expected, len(expected))
        assert sorted(mixed, key=natural_order) == ordered
    assert [n for n in ordered if n.isascii()] == ["02", "2", "10", "A", "a", "a2", "A10", "B"]


def test_labels_are_the_same_in_every_process(tmp_path):
    classes = ["A", "a", "B", "b", "1", "01", "001", "Straße", "STRASSE", "straße"]
    save_crops(tmp_path, [f"{name}/{i}" for name in classes for i in range(2)])
    asked = f"import json; from imgproc_attn.data import open_images as o; r = o('folder', {str(tmp_path)!r}, '')\n"
    asked += "print(json.dumps([r.class_to_idx, [r.filename(i) for i in range(len(r))]]))"
    found = [
        json.loads(subprocess.check_output([sys.executable, "-c", asked], env={**os.environ, "PYTHONHASHSEED": seed}))
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert found[0][0] == {name: label for label, name in enumerate(sorted(classes, key=natural_order))}


def test_the_first_folder_is_the_class(tmp_path):
    save_crops(tmp_path, ["cats/indoor/0", "cats/outdoor/far/1", "dogs/indoor/0", "dogs/2"])
    reader, message = opened(tmp_path)
    assert reader.class_to_idx == {"cats": 0, "dogs": 1}
    assert [reader[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert "3 images are in subfolders of a class folder" in message
    assert "cats/indoor/0.png" in message
    save_crops(tmp_path / "flat", ["cats/0", "dogs/0"])
    assert opened(tmp_path / "flat")[1] == ""


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("cats/.ipynb_checkpoints/0-checkpoint.png", "1 hidden folders (cats/.ipynb_checkpoints)"),
        (".ipynb_checkpoints/0.png", "1 hidden folders (.ipynb_checkpoints)"),
        ("__MACOSX/cats/._0.png", "1 hidden folders (__MACOSX)"),
        ("cats/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "1 hidden folders (cats/@eaDir)"),
        ("cats/._0.png", "1 hidden images (cats/._0.png)"),
        ("cats/x.psd", "1 files of other types (cats/x.psd)"),
        ("loose.png", "1 images outside of class folders (loose.png)"),
        ("cats/Thumbs.db", ""),
        ("cats/.DS_Store", ""),
        ("README.md", ""),
    ],
)
def test_what_is_left_out_is_told_once(tmp_path, left_out, message):
    save_crops(tmp_path, ["cats/0", "dogs/0"])
    (tmp_path / left_out).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "cats/0.png", tmp_path / left_out)
    reader, warned = opened(tmp_path)
    assert names(reader) == ["cats/0.png", "dogs/0.png"]
    assert list(reader.class_to_idx) == ["cats", "dogs"]
    assert message in warned
    assert (warned == "") == (message == "")


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".TIFF", ".gif", ".ppm", ".JPEG", ".jp2", ".tga"])
def test_all_that_pillow_reads_is_read(tmp_path, suffix):
    save_crops(tmp_path, ["cats/0", "dogs/0"])
    save_crops(tmp_path, ["cats/1"], suffix)
    reader, message = opened(tmp_path)
    assert len(reader) == 3
    assert message == ""
    assert Images(reader, 2)[1][0].size == (24, 24)


def test_links_are_followed_once(tmp_path):
    save_crops(tmp_path / "elsewhere", ["more/0", "more/1"])
    root = save_crops(tmp_path / "data", ["a/0", "b/0"])
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "sibling").symlink_to(root / "b")  # Images of b keep the class b, although a comes first.
    (root / "a" / "itself.png").symlink_to("itself.png")
    (root / "b" / "nothing.png").symlink_to("nothing there")
    reader, message = opened(root)
    assert names(reader) == ["a/0.png", "a/itself.png", "a/more/0.png", "a/more/1.png", "b/0.png", "b/nothing.png"]
    assert reader.labels == [0, 0, 0, 0, 1, 1]
    assert "3 folders already read through another path (a/loop, a/sibling, a/up)" in message
    with pytest.raises(ValueError, match=r"Cannot read image b/nothing.png"):
        Images(reader, 2)[5]


def test_class_folders_may_be_links(tmp_path):
    save_crops(tmp_path / "store", ["x/0", "y/0"])
    (tmp_path / "data").mkdir()
    for name, place in (("first", "x"), ("second", "y")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / place)
    reader, message = opened(tmp_path / "data")
    assert reader.class_to_idx == {"first": 0, "second": 1}
    assert message == ""
    (tmp_path / "data" / "third").symlink_to(tmp_path / "store" / "y")
    with pytest.raises(ValueError, match=r"class folder .*third must hold an image.* 1 folders already read through"):
        open_images("folder", str(tmp_path / "data"), "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_no_image(tmp_path):
    save_crops(tmp_path, ["a/0", "b/0"])
    os.mkfifo(tmp_path / "a" / "1.png")
    reader, message = opened(tmp_path)
    assert len(reader) == 2
    assert "1 images that are not regular files (a/1.png)" in message


def test_folders_without_images_say_what_they_hold(tmp_path):
    root = save_crops(tmp_path / "x", ["0", "1"])
    with pytest.raises(
        ValueError, match=r"images in class folders, got none.*2 images outside of class folders \(0.png, 1.png\)"
    ):
        open_images("folder", str(root), "")
    save_crops(root, ["a/0"])
    (root / "b").mkdir()
    (root / "b" / "0.psd").touch()
    with pytest.raises(ValueError, match=r"class folder .*b must hold an image.*1 files of other types \(b/0.psd\).*\.webp"):
        open_images("folder", str(root), "")
    (tmp_path / "y" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images in class folders, got none. Its folders hold no files: a"):
        open_images("folder", str(tmp_path / "y"), "")


def test_torchvision_names_keep_torchvision_order(tmp_path):
    save_crops(tmp_path, [f"{i}/0" for i in (1, 2, 10)])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert opened(tmp_path, name="torch/image_folder")[0].class_to_idx == {"1": 0, "10": 1, "2": 2}
    assert opened(tmp_path)[0].class_to_idx == {"1": 0, "2": 1, "10": 2}


def tar_of(folder, file, below="", mode="w"):
    with tarfile.open(file, mode) as tar:
        tar.add(folder, below)
    return file


@pytest.mark.parametrize("below", ["", ".", "train", "home/me/train"])
def test_a_tar_file_is_read_as_the_folder(tmp_path, below):
    root = save_crops(tmp_path / "f", ["cats/0", "cats/old/1", "dogs/0", "Dogs/0", ".ipynb_checkpoints/0"])
    os.link(root / "dogs/0.png", root / "dogs/1.png")  # The archive stores it as a link.
    tar, message = opened(tar_of(root, tmp_path / "t.tar", below))
    folder, warned = opened(root)
    assert (tar.class_to_idx, tar.labels, names(tar)) == (folder.class_to_idx, folder.labels, names(folder))
    assert "hidden" in message
    assert warned.partition(": ")[2].count("images are in subfolders") == message.count("images are in subfolders") == 1
    for i in range(len(tar)):
        with tar[i][0] as one, folder[i][0] as other:
            assert one.read() == other.read()


def test_a_tar_file_per_class(tmp_path):
    """The training images of ImageNet are published in this form."""
    root = save_crops(tmp_path / "f", ["n01/0", "n01/1", "n02/0"])
    (tmp_path / "g").mkdir()
    for name in ("n01", "n02"):
        tar_of(root / name, tmp_path / "g" / f"{name}.tar")
    tar, folder = opened(tar_of(tmp_path / "g", tmp_path / "t.tar"))[0], opened(root)[0]
    assert (tar.class_to_idx, names(tar)) == (folder.class_to_idx, names(folder))
    assert [Images(tar, 2)[i][0].tobytes() for i in range(3)] == [Images(folder, 2)[i][0].tobytes() for i in range(3)]


def test_other_archives_are_refused_in_a_sentence(tmp_path):
    root = save_crops(tmp_path / "f", ["a/0", "b/0"])
    for kind in ("zip", "gztar"):
        file = shutil.make_archive(str(tmp_path / "x"), kind, root)
        with pytest.raises(ValueError, match=r"must be a folder of class folders, or an uncompressed .tar.*Unpack"):
            open_images("folder", file, "")
    with pytest.raises(ValueError, match=r"must be a folder of class folders.*0\.png"):
        open_images("folder", str(root / "a" / "0.png"), "")
    compressed = tar_of(root, tmp_path / "compressed.tar", mode="w:gz")
    (tmp_path / "empty.tar").touch()
    for file in (compressed, tmp_path / "empty.tar"):
        with pytest.raises(ValueError, match=r"\.tar must be a complete, plain tar file, got .* Pack or copy it again"):
            open_images("folder", str(file), "")
    nothing = tar_of(tmp_path / "f" / "a" / "0.png", tmp_path / "nothing.tar", "0.png")
    with pytest.raises(ValueError, match=r"nothing.tar must hold images in class folders, got none. It holds 1 images outside"):
        open_images("folder", str(nothing), "")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_off_tar_file_is_refused(tmp_path, part):
    root = save_crops(tmp_path / "f", [f"{c}/{i}" for c in "ab" for i in range(5)])
    content = tar_of(root, tmp_path / "t.tar").read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar:
        whole = [member.offset for member in tar if member.isreg()][int(part * 10)]
        end = max(member.offset_data + member.size for member in tar.getmembers())
    for cut in (int(part * end), whole):  # The archive ends inside a file, and between two files.
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"cut.tar must be a complete.* tar file, got .* Pack or copy it again"):
            open_images("folder", str(tmp_path / "cut.tar"), "")


def test_a_listing_of_one_folder_alone(tmp_path):
    save_crops(tmp_path, ["b", "a/0"])
    assert list_images(tmp_path, deep=False).files == ["b.png"]
    assert list_images(tmp_path).files == ["a/0.png", "b.png"]
    assert is_hidden("..")


def test_classes_of_one_photograph_each_are_read(tmp_path):
    for label, crop in crops(3):
        (tmp_path / str(label)).mkdir()
        crop.convert("P").save(tmp_path / str(label) / "0.gif")
    images = Images(open_images("folder", str(tmp_path), ""), 3)
    assert [images[i][1] for i in range(3)] == [0, 1, 2]
