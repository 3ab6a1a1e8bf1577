"""Readers and loaders: each image is read exactly once, and errors name broken images."""

import io
import itertools
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from crops import crops
from PIL import Image
from skimage import data as photographs

from imgproc_attn.data import (
    Digits,
    Images,
    PackedImages,
    Preprocessing,
    Unreadable,
    World,
    check_classes,
    evaluation_loader,
    find_root,
    open_images,
    training_loader,
)
from imgproc_attn.data.readers import TorchvisionImages
from imgproc_attn.recipe.sections import Augmentation
from imgproc_attn.tasks.augmentation import mixup, training_transform

CPU = torch.device("cpu")
DIGITS = Preprocessing((1, 8, 8), (0.0,), (1.0,), "bicubic", 1.0)
COLOR = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


@pytest.fixture
def folder(tmp_path):
    """Write ``train`` and ``val`` folders of three classes."""
    names = ["astronaut", "coffee", "cat"]
    for split, count in (("train", 12), ("val", 6)):
        for i, (label, crop) in enumerate(crops(count)):
            path = tmp_path / split / names[label]
            path.mkdir(parents=True, exist_ok=True)
            crop.save(path / f"{i:03}.png")
    return tmp_path


def pack(path, **changes):
    content = {}
    for split, count in (("train", 12), ("test", 6)):
        files, labels = [], []
        for label, crop in crops(count):
            file = io.BytesIO()
            crop.save(file, "JPEG")
            files.append(file.getvalue())
            labels.append(label)
        content |= {
            f"{split}_bytes": np.frombuffer(b"".join(files), np.uint8),
            f"{split}_lengths": np.array([len(f) for f in files], np.uint16),
            f"{split}_labels": np.array(labels, np.uint8),
        }
    np.savez(path, **{**content, "classes": np.array(["astronaut", "coffee", "cat"]), **changes})
    return path


def test_digits():
    train, test = Digits("train", 0), Digits("test", 0)
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount([test[i][1] for i in range(360)]).min() >= 35
    pictures = [np.asarray(train[i][0]) for i in range(1437)]
    assert min(p.min() for p in pictures) == 0
    assert max(p.max() for p in pictures) == 255
    # The set of scikit-learn has no duplicates, so no image may be in both splits.
    seen = {p.tobytes() for p in pictures}
    assert not [i for i in range(360) if np.asarray(test[i][0]).tobytes() in seen]
    assert [test.filename(i) for i in range(5)] != [Digits("test", 1).filename(i) for i in range(5)]


def test_packed_images(tmp_path):
    reader = PackedImages(pack(tmp_path / "p.npz"), "test")
    assert len(reader) == 6
    assert reader.class_to_idx == {"astronaut": 0, "coffee": 1, "cat": 2}
    images = Images(reader, 3)
    picture, label = images[4]
    assert picture.size == (24, 24)
    assert label == 1
    assert images.name(4) == "test-4"


def test_packed_images_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz must be an .npz file, got a path that does not exist"):
        PackedImages(tmp_path / "none.npz", "train")
    with pytest.raises(ValueError, match=r"The split must be one of .* \(train, test\), got 'validation'"):
        PackedImages(pack(tmp_path / "p.npz"), "validation")
    with pytest.raises(FileNotFoundError, match=r"got a folder. Name the .npz file in it: p.npz"):
        PackedImages(tmp_path, "train")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:900])
    with pytest.raises(ValueError, match="must be a complete .npz pack of images"):
        PackedImages(tmp_path / "cut.npz", "train")
    with pytest.raises(ValueError, match="2 lengths, 12 labels"):
        PackedImages(pack(tmp_path / "q.npz", train_lengths=np.array([3, 4], np.uint16)), "train")
    pack(tmp_path / "pickled.npz", classes=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):  # The file is never unpickled.
        PackedImages(tmp_path / "pickled.npz", "train")


def test_folder(folder):
    reader = open_images("folder", str(folder), "validation")
    assert len(reader) == 6
    assert list(reader.class_to_idx) == ["astronaut", "cat", "coffee"]
    assert len(open_images("folder", str(folder / "train"), "")) == 12
    with pytest.raises(FileNotFoundError, match=r"which holds train, val, got 'test'"):
        open_images("folder", str(folder), "test")
    with pytest.raises(
        ValueError, match=r"must hold class folders, got the splits train, val\. .* the root, and '.*' as the split"
    ):
        open_images("folder", str(folder), "")
    (folder / "train" / "bear").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*bear must hold an image"):
        open_images("folder", str(folder), "train")


def test_splits_of_equal_size_are_told_apart():
    """Both splits of QMNIST have 60,000 images, so their number does not tell them apart."""
    names = [TorchvisionImages(SimpleNamespace(train=train)).filename(7) for train in (True, False)]
    assert names == ["SimpleNamespace-train-7", "SimpleNamespace-test-7"]


def test_numeric_folders_sort_as_numbers(tmp_path):
    """ImageNet-V2 names its folders 0 to 999. Sorted as text, 10 would come before 2."""
    for i, (_, crop) in enumerate(crops(12)):
        (tmp_path / str(i)).mkdir()
        crop.save(tmp_path / str(i) / "x.png")
    assert open_images("folder", str(tmp_path), "").class_to_idx == {str(i): i for i in range(12)}


def test_tar_of_a_folder(folder, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(folder / "train", "train")
    shutil.rmtree(folder / "train")
    for root, split in ((tmp_path / "train.tar", ""), (tmp_path, "training")):
        reader = open_images("folder", str(root), split)
        assert list(reader.class_to_idx) == ["astronaut", "cat", "coffee"]
        images = Images(reader, 3)
        assert len(images) == 12
        assert images[0][0].size == (24, 24)
    # Read once here, then in two workers at once. A shared open file would mix up the images.
    expected = [np.asarray(image) for image, _ in (images[i] for i in range(12))]
    images.transform = np.asarray
    for image, index in torch.utils.data.DataLoader(Indexed(images, 50), None, num_workers=2):
        assert np.array_equal(image, expected[index])
    with pytest.raises(ValueError, match=r"train.tar must be empty, got 'validation'"):
        open_images("folder", str(tmp_path / "train.tar"), "validation")


class Indexed(torch.utils.data.Dataset):
    """Endless images with their indices."""

    def __init__(self, images, times):
        self.images, self.times = images, times

    def __len__(self):
        return self.times * len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self.images)][0], index % len(self.images)


def test_torchvision_set(folder):
    images = Images(open_images("torch/image_folder", str(folder), "train"), 3)
    assert len(images) == 12
    assert images.name(0).endswith("000.png")
    with pytest.raises(ValueError, match="data.name='torch/nothing'.*Unknown torchvision dataset"):
        open_images("torch/nothing", str(folder), "train")


def test_torchvision_imagenet_has_a_class_a_folder(tmp_path):
    """Classes are not counted once per synonym."""
    words = {"n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",), "n03126707": ("crane", "hoist")}
    torch.save((words, []), tmp_path / "meta.bin")
    for i, (label, crop) in enumerate(crops(6)):
        class_folder = tmp_path / "val" / list(words)[label]
        class_folder.mkdir(parents=True, exist_ok=True)
        crop.save(class_folder / f"ILSVRC2012_val_{i:08d}.JPEG")
    images = Images(open_images("torch/imagenet", str(tmp_path), "val"), 3)
    assert images.classes == {name: i for i, name in enumerate(words)}
    check_classes(images.classes, 3)
    assert [images[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]


def test_webdataset(folder, tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "shard-%03d.tar"), maxcount=6, verbose=0) as sink:
        for i, (label, crop) in enumerate(crops(12)):
            sink.write({"__key__": f"{i:03}", "png": crop, "cls": label})
    (tmp_path / "_info.json").write_text(
        '{"splits": {"train": {"name": "train", "num_samples": 12, "filenames": ["shard-000.tar", "shard-001.tar"], '
        '"shard_lengths": [6, 6]}}}'
    )
    dataset = open_images("wds/shards", str(tmp_path), "train", batch_size=4)
    loader = evaluation_loader(dataset, COLOR, 4, 0, CPU)
    labels = torch.cat([y for _, y in loader])
    assert labels.bincount().tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="Evaluate it in one process"):
        evaluation_loader(dataset, COLOR, 4, 0, CPU, World(0, 2))


def test_hugging_face_set(folder, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    table = {"image": [crop for _, crop in crops(6)], "label": [label for label, _ in crops(6)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    images = Images(open_images(f"hfds/{tmp_path / 'set'}", str(tmp_path), "train"), 3)
    assert [images[i][1] for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert len({images.name(i) for i in range(6)}) == 6
    with pytest.raises(ValueError, match=r"root .* Give data.download=true"):
        open_images("torch/cifar10", str(tmp_path), "train")


def test_roots(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("IMGPROC_ATTN_DATA", str(tmp_path))
    assert find_root("here") == tmp_path / "here"
    with pytest.raises(FileNotFoundError, match=r"got nowhere and .*nowhere\. Give data.root=PATH"):
        find_root("nowhere")


def test_a_download_makes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", lambda self: (tmp_path / "new" / "there").mkdir(parents=True))
    with pytest.raises(ValueError, match="not found or corrupted"):
        open_images("torch/cifar10", str(tmp_path / "new"), "train", download=True)
    assert (tmp_path / "new" / "there").is_dir()
    with pytest.raises(FileNotFoundError, match="The root must be an existing folder or file"):
        open_images("torch/cifar10", str(tmp_path / "newer"), "train")


def test_classes_that_differ_are_shown():
    a, b = {"cat": 0, "dog": 1}, {"cat": 0, "cow": 1}
    with pytest.raises(
        ValueError,
        match=r"test must have equal classes, got classes only in train: dog \(1\); only in test: cow \(1\)",
    ):
        check_classes(a, 2, b)
    with pytest.raises(ValueError, match="with the same names and other labels"):
        check_classes(a, 2, {"cat": 1, "dog": 0})
    with pytest.raises(ValueError, match=r"split must have 10 classes, got 2"):
        check_classes(a, 10)
    check_classes(None, 3, b)


def test_labels_out_of_range_are_named():
    images = Images(Digits("train"), 5)
    with pytest.raises(ValueError, match=r"image digit-\d+ must be a whole number from 0 to 4 with 5 classes, got \d"):
        [images[i] for i in range(20)]


def break_one(folder, number=4):
    path = sorted((folder / "train").rglob("*.png"))[number]
    path.write_bytes(path.read_bytes()[:40])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images(folder, workers, tmp_path):
    path = break_one(folder)
    reader = open_images("folder", str(folder), "train")
    unreadable = Unreadable(tmp_path / "unreadable.txt")
    loader = evaluation_loader(Images(reader, 3, on_unreadable="ignore", unreadable=unreadable), COLOR, 5, workers, CPU)
    labels = torch.cat([y for _, y in loader])
    assert labels.tolist().count(-1) == 1
    assert unreadable.names() == [f"{path.parent.name}/{path.name}"]
    assert "UnidentifiedImageError" in (tmp_path / "unreadable.txt").read_text()
    images = Images(reader, 3, on_unreadable="replace", unreadable=unreadable)
    assert [images[i][1] for i in range(12)].count(-1) == 0
    assert images[4][1] == images[5][1]
    assert len(unreadable.names()) == 1
    stop = Images(reader, 3)
    with pytest.raises(ValueError, match=r"Cannot read image .*png: .*data.on_broken_image=skip"):
        [stop[i] for i in range(12)]
    Images(reader, 3, on_unreadable="ignore", unreadable=unreadable.of("val"))[4]
    assert unreadable.names()[1:] == [f"val/{path.parent.name}/{path.name}"], "equal names in two splits are two images"
    only = Images(reader, 3, [4], on_unreadable="replace", unreadable=unreadable)
    with pytest.raises(ValueError, match="At least one of the 1 images must be readable, got none"):
        only[0]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_sees_every_image_once(world):
    images = Images(Digits("test"), 10, channels=1)
    seen = []
    for rank in range(world):
        loader = evaluation_loader(images, DIGITS, 64, 0, CPU, World(rank, world))
        for x, _ in loader:
            seen += [image.numpy().tobytes() for image in x]
    expected = [np.asarray(images.reader[i][0]).astype(np.float32) / 255 for i in range(360)]
    assert sorted(seen) == sorted(e.tobytes() for e in expected)


def training(world=1, rank=0, batch=64, workers=0, aug_repeats=1, indices=None):
    images = Images(Digits("train"), 10, indices, channels=1)
    images.transform = training_transform(Augmentation(), DIGITS)
    return training_loader(images, DIGITS, batch // world, workers, CPU, World(rank, world), aug_repeats)


@pytest.mark.parametrize("count", [1437, 192, 191])
def test_the_batches_of_one_process_are_those_of_two_together(count):
    loaders = [training(indices=range(count)), training(2, 0, indices=range(count)), training(2, 1, indices=range(count))]
    batches = []
    for loader in loaders:
        loader.sampler.set_epoch(3)
        batches.append([sorted(image.numpy().tobytes() for image in x) for x, _ in loader])
    assert len(batches[0]) == len(batches[1]) == len(batches[2]) == count // 64
    for whole, a, b in zip(*batches):
        assert whole == sorted(a + b)


def test_epochs_differ_and_return():
    loader = training()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([y for _, y in loader]))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


def test_repeated_augmentation_repeats():
    loader = training(aug_repeats=3)
    labels = next(iter(loader))[0]
    assert len({image.numpy().tobytes() for image in labels}) == 22  # 64 images, three of each


def test_fewer_images_than_processes():
    with pytest.raises(ValueError, match="at most the number of images, 2, got 3"):
        evaluation_loader(Images(Digits("test"), 10, [0, 1], 1), DIGITS, 4, 0, CPU, World(0, 3))


def test_too_few_images_and_too_many_workers():
    with pytest.raises(ValueError, match="at most the number of training images, 50, got 64"):
        training(indices=range(50))
    with pytest.warns(UserWarning, match="9999 worker processes"):
        training(workers=9999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training(workers=1)


def test_augmentation():
    picture = next(crops(1, 40))[1]
    size = COLOR._replace(input_size=(3, 40, 40))
    plain = training_transform(Augmentation(), size)
    assert np.array_equal(np.asarray(plain(picture)), np.asarray(picture).transpose(2, 0, 1)), "off by default"
    for a in (
        Augmentation(crop_padding=4),
        Augmentation(scale=[0.2, 1.0]),
        Augmentation(degrees=10.0),
        Augmentation(translate=0.1),
        Augmentation(hflip=1.0),
        Augmentation(color_jitter=0.4),
        Augmentation(auto_augment="rand-m9-mstd0.5-inc1"),
    ):
        transform = training_transform(a, size)
        results = [np.asarray(transform(picture)) for _ in range(8)]
        assert all(r.shape == (3, 40, 40) and r.dtype == np.uint8 for r in results)
        assert any(not np.array_equal(r, np.asarray(picture).transpose(2, 0, 1)) for r in results), a
    wide = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[:, None, None] * 4, 32, 1).repeat(3, 2))
    for a in (Augmentation(), Augmentation(crop_padding=1)):  # The crop keeps all rows, or all but one.
        rows = np.asarray(training_transform(a, COLOR._replace(input_size=(3, 64, 32)))(wide))[0, :, 16].astype(int)
        assert rows[0] <= 8
        assert rows[-1] >= 244
    large, small = (next(crops(1, side))[1] for side in (400, 30))
    for image in (large, small):  # Images are resized to the input size before the crop, as in evaluation.
        found = np.asarray(training_transform(Augmentation(crop_padding=2), size)(image)).astype(float)
        whole = np.asarray(image.resize((40, 40), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(float)
        moved = (np.roll(whole, shift, (1, 2)) for shift in itertools.product(range(-2, 3), repeat=2))
        assert min(np.abs(found - one)[:, 4:-4, 4:-4].mean() for one in moved) < 3
    strongest = training_transform(Augmentation(auto_augment="rand-m10-inc1"), size)
    for _ in range(60):  # Some policies posterize to 0 bits, which Pillow 13 refuses.
        assert np.asarray(strongest(picture)).shape == (3, 40, 40)
    gray = training_transform(Augmentation(auto_augment="rand-m9-mstd0.5-inc1"), DIGITS)
    for _ in range(60):  # Policies fill empty regions with the mean, which has one value per channel.
        assert np.asarray(gray(picture.convert("L"))).shape == (1, 8, 8)
    assert mixup(Augmentation(), 10, 0.1) is None
    mixed = mixup(Augmentation(mixup=0.8, cutmix=1.0), 10, 0.1)
    _, targets = mixed(torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]))
    assert targets.shape == (4, 10)
    assert torch.allclose(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "test_nlm_vit", "tf_efficientnet_lite0"]
)
def test_images_are_prepared_as_timm_prepares_them(name, folder):
    """Images are equal to those of timm's transform for the configuration of the model."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config(pretrained_cfg=cfg)
    picture = photographs.coffee()
    Image.fromarray(picture).save(folder / "train" / "cat" / "wide.png")
    reader = open_images("folder", str(folder), "train")
    index = [reader.filename(i) for i in range(len(reader))].index("cat/wide.png")
    loader = evaluation_loader(Images(reader, 3, [index]), Preprocessing.of(config), 1, 0, CPU)
    expected = timm.data.create_transform(**config)(Image.fromarray(picture))
    torch.testing.assert_close(next(iter(loader))[0][0], expected, rtol=1e-5, atol=1e-5)
