"""Readers of the Long Range Arena's files, in the published formats, and the gray values of images."""

import io
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from texts import descriptions

from imgproc_attn.data import Images, Pathfinder, open_images
from imgproc_attn.sequences import LabeledSequences, ListOpsFile, PixelSequences, RetrievalFile, Reviews, luminance
from imgproc_attn.sequences.sources import SOURCES


def texts(count):
    """Paragraphs of real text."""
    parts = [part for text in descriptions().values() for part in text.split("\n\n") if len(part) > 40]
    return parts[:count]


def test_luminance_is_the_published_formula():
    """In exact fractions, where float32 cannot round to another whole number; and one gray level around PIL's at most."""
    image = data.astronaut()[::8, ::8]
    red, green, blue = (Fraction(w) for w in ("0.2989", "0.5870", "0.1140"))
    gray = luminance(image)
    assert gray.dtype == np.uint8
    exact = [(red * int(r) + green * int(g) + blue * int(b)) * Fraction("255.5") / 255 for r, g, b in image.reshape(-1, 3)]
    for value, found in zip(exact, gray.reshape(-1).tolist()):
        assert abs(value - round(value)) < Fraction(1, 10_000) or found == int(value)
    assert np.abs(gray.astype(int) - np.asarray(Image.fromarray(image).convert("L")).astype(int)).max() <= 1
    same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert luminance(same).reshape(-1).tolist() == list(range(256))


def test_pixels(tmp_path):
    picture = data.astronaut()[100:132, 200:232]
    (tmp_path / "test" / "person").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "test" / "person" / "0.png")
    images = Images(open_images("folder", str(tmp_path), "test"), num_classes=2)
    tokens, label = LabeledSequences(PixelSequences(images, (32, 32)), context=1024)[0]
    assert (tokens.tolist(), label) == (luminance(picture).reshape(-1).tolist(), 0)
    halved, _ = LabeledSequences(PixelSequences(images, (16, 16)), context=256)[0]
    means = picture.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved.view(16, 16).numpy() - luminance(means.round().astype(np.uint8)).astype(int)).max() <= 1


def write_reviews(folder, names):
    for text, name in zip(texts(len(names)), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_reviews_in_a_zip_file_are_divided_at_random(tmp_path):
    folder = write_reviews(
        tmp_path / "reviews", [f"movie_reviews/{kind}/{i:02}.txt" for kind in ("neg", "pos") for i in range(20)]
    )
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("movie_reviews/README", "what this is")
        for file in sorted(folder.rglob("*.txt")):
            archive.write(file, file.relative_to(folder).as_posix())
    splits = {name: Reviews.open(str(tmp_path / "reviews.zip"), name, seed=1) for name in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [28, 4, 8]
    names = [split.name(i) for split in splits.values() for i in range(len(split))]
    assert len(set(names)) == 40
    for split in splits.values():
        labels = [split.read(i)[1] for i in range(len(split))]
        assert sum(labels) == len(labels) / 2
        assert labels == [int("/pos/" in split.name(i)) for i in range(len(split))]
    again, other = (Reviews.open(str(folder), "test", seed=seed) for seed in (1, 2))  # the same files as a folder
    assert [again.name(i) for i in range(8)] == [splits["test"].name(i) for i in range(8)]
    assert [other.name(i) for i in range(8)] != [splits["test"].name(i) for i in range(8)]
    tokens, _ = LabeledSequences(again, context=30)[0]
    assert bytes(t - 1 for t in tokens.tolist()) == (folder / again.name(0)).read_bytes()[:30]


def test_reviews_in_the_layout_of_imdb(tmp_path):
    names = [f"{split}/{kind}/{i}_7.txt" for split in ("train", "test") for kind in ("pos", "neg") for i in range(3)]
    write_reviews(tmp_path, [*names, "train/unsup/0_0.txt"])
    for split in ("train", "test"):
        source = Reviews.open(str(tmp_path), split)
        assert [source.name(i) for i in range(len(source))] == sorted(name for name in names if name.startswith(split))
    with pytest.raises(ValueError, match=r"split must be one of .* \(test, train\), got 'val'"):
        Reviews.open(str(tmp_path), "val")


def test_bytes_outside_utf8_stay(tmp_path):
    write_reviews(tmp_path, [f"{kind}/{i}.txt" for kind in ("pos", "neg") for i in range(10)])
    (tmp_path / "pos" / "0.txt").write_bytes(b"tr\xe8s bon \xff")
    tokens = [
        LabeledSequences(Reviews.open(str(tmp_path), split), context=100)[i][0].tolist()
        for split, count in (("train", 14), ("val", 2), ("test", 4))
        for i in range(count)
    ]
    assert [b + 1 for b in b"tr\xe8s bon \xff"] in tokens


def test_retrieval(tmp_path):
    first, second, third = (text.replace("\n", " ").replace("\t", " ") for text in texts(3))
    rows = [f"1.0\tP01\tP02\t{first}\t{second}", f'0.0\tP01\tP03\t"{first}\t{third}']
    for split in ("train", "eval", "test"):
        (tmp_path / f"new_aan_pairs.{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    pairs = LabeledSequences(RetrievalFile.open(str(tmp_path), "val"), context=60)
    (tokens, label), (quoted, other) = pairs[0], pairs[1]
    assert (tokens.shape, label, other) == ((2, 60), 1, 0)
    assert bytes(t - 1 for t in tokens[1].tolist()) == second.encode()[:60]
    assert bytes(t - 1 for t in quoted[0].tolist()) == b'"' + first.encode()[:59]
    whole = LabeledSequences(pairs.source, context=10_000)[0][0]
    shorter = min((first, second), key=lambda text: len(text.encode()))
    assert (whole == 0).sum() == abs(len(first.encode()) - len(second.encode()))
    assert bytes(t - 1 for t in whole[(first, second).index(shorter)].tolist() if t) == shorter.encode()


def write_pathfinder(root, count=20):
    """Images and metadata with the names and columns of the published files; the second image is an empty file."""
    (root / "imgs" / "0").mkdir(parents=True)
    (root / "metadata").mkdir()
    lines = []
    for i in range(count):
        Image.fromarray(data.camera()[i : i + 32, 2 * i : 2 * i + 32]).save(root / "imgs" / "0" / f"sample_{i}.png")
        lines.append(f"imgs/0 sample_{i}.png {i} {i % 2} 1 14 0.75 2 1.0 2 0.5")
    (root / "imgs" / "0" / "sample_1.png").write_bytes(b"")
    (root / "metadata" / "0.npy").write_text("\n".join(lines) + "\n")
    return root


def test_pathfinder(tmp_path):
    root = write_pathfinder(tmp_path / "curv_contour_length_14")
    splits = [open_images("pathfinder", str(root), split, seed=3) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [15, 2, 2]
    found = {split.filename(i): split[i] for split in splits for i in range(len(split))}
    assert sorted(found) == sorted(f"imgs/0/sample_{i}.png" for i in range(20) if i != 1)
    for name, (file, label) in found.items():
        i = int(name.split("_")[1].removesuffix(".png"))
        assert label == i % 2
        assert np.array_equal(np.asarray(Image.open(file)), data.camera()[i : i + 32, 2 * i : 2 * i + 32])
    tokens, _ = LabeledSequences(PixelSequences(Images(splits[2], 2, channels=1), (32, 32)), context=1024)[0]
    assert tokens.tolist() == np.asarray(Image.open(splits[2][0][0])).reshape(-1).tolist()


def test_pathfinder_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold metadata/\*.npy, got none"):
        Pathfinder(tmp_path, "train")
    root = write_pathfinder(tmp_path / "images")
    with pytest.raises(ValueError, match="must be one of train, val, test, got 'dev'"):
        Pathfinder(root, "dev")
    meta = root / "metadata" / "0.npy"
    for line, message in (
        ("imgs/0 sample_0.png 0", "line 1: there must be folder, file, number and a label"),
        ("imgs/0 sample_0.png 0 2", "a label of 0 or 1"),
    ):
        meta.write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            Pathfinder(root, "train")
    meta.write_text("imgs/0 sample_99.png 0 1\n")
    with pytest.raises(FileNotFoundError, match="line 1: the image must be a file, got"):
        Pathfinder(root, "train")
    np.save(meta, np.arange(300))
    with pytest.raises(ValueError, match="must be text, one line per image, got binary content"):
        Pathfinder(root, "train")


HEAD = b"Source\tTarget\r\n"
BAD_FILES = [
    ("listops", "basic_train.tsv", b"( ( ( [MAX 1 ) 2 ) ] )\t2\r\n", r"must have the columns Source and Target.*got '\( \("),
    ("listops", "basic_train.tsv", b"", "must have the columns Source and Target, separated by tabs, got ''"),
    ("listops", "basic_train.tsv", HEAD, "must hold at least one sequence, got none"),
    ("listops", "basic_train.tsv", HEAD + b"[AVG 1 2 ]\t1\r\n", r"line 2: tokens must be 0 1 .*got '\[AVG'"),
    (
        "listops",
        "basic_train.tsv",
        HEAD + b"[MAX 1 2 ]\t10\r\n",
        "line 2: the label must be a whole number from 0 to 9, got '10'",
    ),
    ("listops", "basic_train.tsv", HEAD + b"[MAX 1 2 ]\r\n", "line 2: the label must be a whole number from 0 to 9, got ''"),
    ("listops", "basic_train.tsv", HEAD + b"( )\t1\r\n", "line 2: Source must be an expression, got nothing"),
    ("retrieval", "aan.train.tsv", b"1.0\ta\tb\ttext\n", "line 1: there must be 5 columns.*got 4"),
    ("retrieval", "aan.train.tsv", b"2.0\ta\tb\ttext\ttext\n", "line 1: the label must be a whole number from 0 to 1, got '2'"),
    ("retrieval", "aan.train.tsv", b"1.0\ta\tb\ttext\t \n", "line 1: both texts must hold text, got an empty one"),
    ("retrieval", "aan.train.tsv", b"", "must hold at least one sequence, got none"),
    ("reviews", "pos/1.txt", b" \n", r"pos/1.txt must hold text, got an empty file"),
    ("reviews", "good/1.txt", b"fine", "must hold text files in the folders pos and neg, got 1 text files elsewhere"),
]


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"), BAD_FILES, ids=[f"{b[0]} {i}" for i, b in enumerate(BAD_FILES)]
)
def test_bad_files(tmp_path, kind, name, content, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SOURCES[kind].open(str(tmp_path), "train", 0)


def test_missing_files(tmp_path):
    for kind in ("listops", "retrieval"):
        with pytest.raises(FileNotFoundError, match=r"must hold one file .* for the split 'train', got nothing"):
            SOURCES[kind].open(str(tmp_path), "train", 0)
        with pytest.raises(FileNotFoundError, match="must be an existing folder or file"):
            SOURCES[kind].open(str(tmp_path / "nowhere"), "train", 0)
    (tmp_path / "a_train.tsv").touch()
    (tmp_path / "b_train.tsv").touch()
    with pytest.raises(FileNotFoundError, match="must hold one file .* got a_train.tsv, b_train.tsv"):
        ListOpsFile.open(str(tmp_path), "train")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "reviews.zip").write_bytes(b"this is text")
    with pytest.raises(ValueError, match=r"complete zip file of reviews, got an unreadable file \(File is not a zip file\)"):
        Reviews.open(str(tmp_path / "reviews.zip"), "train")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pos/1.txt", "a fine film " * 50)
        archive.writestr("neg/1.txt", "a film")
    (tmp_path / "reviews.zip").write_bytes(content.getvalue().replace(b"fine film", b"bad  film", 1))
    with pytest.raises(ValueError, match="got an unreadable file .*CRC"):
        Reviews.open(str(tmp_path / "reviews.zip"), "train")


def test_sequences_are_cut():
    sequences = LabeledSequences(Reviews(["a", "b"], [b"abcdef", b"gh"], [0, 1]), context=4, positions=[1, 0])
    assert [sequences[i][0].tolist() for i in range(2)] == [[104, 105], [98, 99, 100, 101]]
    assert list(sequences.indices) == [1, 0]
    assert sequences[0][0].dtype == torch.int64
