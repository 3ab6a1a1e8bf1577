"""`imgproc-attn corrupt`, generated and published contaminations; their definitions are tested in `test_imagenet_c.py`."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from digits import tensors
from evaluated import PREPROCESSING, arguments, class_folders, crops, result, run, save
from PIL import Image

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation.imagenet_c import COMMON, EXTRA, ImageNetC
from imgproc_attn.evaluation.imagenet_c.errors import ALEXNET_ERRORS, corruption_summary
from imgproc_attn.evaluation.imagenet_c.published import CorruptedArrays
from imgproc_attn.evaluation.results import cautions
from imgproc_attn.evaluation.samples import Samples
from imgproc_attn.tasks import ClassificationTask


def test_corrupted_samples_are_the_corruptions(samples, tmp_path):
    corruption = ImageNetC("gaussian_noise", 3, seed=5)
    batches = list(Samples(samples.images, corruption).batches(PREPROCESSING, 100, 0, torch.device("cpu")))
    found, ids = torch.cat([b[0] for b in batches]), torch.cat([b[2] for b in batches])
    images, _ = tensors("test")
    assert torch.equal(found, corruption(images, ids))
    assert torch.equal(ids, samples.ids)


def test_corrupt_command(folder, tmp_path, capsys):
    run("corrupt", *arguments(folder), "--corruptions", "common", "brightness", "--limit", 40, "--output", tmp_path)
    printed = capsys.readouterr().out
    found = result(tmp_path)
    names = [row["name"] for row in found["conditions"]]
    assert names == ["clean", *(f"{name} {s}" for name in COMMON if name != "frost" for s in range(1, 6))]
    assert "mean accuracy" not in printed, "a mean of 14 is not the mean of 15"
    assert found["generated"]
    assert set(found["summary"]["per_corruption"]) == set(COMMON) - {"frost"}
    for picture in ("corruptions.png", "gallery.png"):
        assert Image.open(tmp_path / picture).size[0] > 200


def test_means_of_corruptions():
    whole = {name: dict.fromkeys(range(1, 6), 50.0) for name in COMMON}
    whole["fog"] = {1: 90.0, 2: 80.0, 3: 70.0, 4: 60.0, 5: 50.0}
    found = corruption_summary(whole, imagenet=True)
    assert found["mean_accuracy"] == pytest.approx((14 * 50 + 70) / 15)
    assert found["mean_error"] == pytest.approx(100 - (14 * 50 + 70) / 15)
    by_hand = (sum(50 / ALEXNET_ERRORS[name] for name in COMMON if name != "fog") + 30 / ALEXNET_ERRORS["fog"]) / 15
    assert found["mce_alexnet"] == pytest.approx(by_hand)
    alexnet = {name: dict.fromkeys(range(1, 6), 100 - 100 * ALEXNET_ERRORS[name]) for name in COMMON}
    assert corruption_summary(alexnet, imagenet=True)["mce_alexnet"] == pytest.approx(100)
    assert "mce_alexnet" not in corruption_summary(whole, imagenet=False)
    assert "mean_accuracy" not in corruption_summary({**whole, "fog": {1: 90.0}}, imagenet=True)
    assert corruption_summary({name: dict.fromkeys(range(1, 6), 10.0) for name in EXTRA}, True)["mean_accuracy_extra"] == 10


def test_published_imagenet_c_is_not_resized_again(tmp_path, capsys):
    """Pictures of the files' 224 pixels reach the model as they are, though it would cut the middle out of others."""
    for severity in (1, 2):
        class_folders(tmp_path / "c" / "weather" / "fog" / str(severity), ["a", "b"], 2, 224)
    weights = save(tmp_path, "vit_tiny_patch16_224", num_classes=2, depth=1)
    common = ["vit_tiny_patch16_224", "num_classes=2", "depth=1", "--checkpoint", weights, "--workers", 0, "--device", "cpu"]
    run("corrupt", *common, "--root", tmp_path / "c", "--files", "--severities", 1, 2, "--output", tmp_path / "out")
    found = result(tmp_path / "out")
    assert [row["name"] for row in found["conditions"]] == ["fog 1 (file)", "fog 2 (file)"]
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1, checkpoint_path=str(weights)).eval()
    rows = list(csv.DictReader((tmp_path / "out" / "per_sample.csv").open()))
    assert len(rows) == 4
    for row in rows:
        picture = np.asarray(Image.open(tmp_path / "c" / "weather" / "fog" / "1" / row["image"]))
        image = (torch.tensor(picture).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        assert int(row["fog 1 (file)"]) == int(model(image).argmax() == int(row["label"]))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path / "c", "--files", "--corruptions", "snow", "--output", tmp_path / "out2")
    assert "must hold snow, as CORRUPTION/SEVERITY/CLASS/… or CORRUPTION.npy, got fog." in capsys.readouterr().err


def test_published_cifar_10_c(tmp_path, capsys):
    pictures = np.stack(crops(20, 32))
    np.save(
        tmp_path / "snow.npy",
        np.concatenate([np.clip(pictures.astype(int) + 10 * s, 0, 255) for s in range(5)]).astype(np.uint8),
    )
    np.save(tmp_path / "labels.npy", np.tile(np.arange(20) % 10, 5))
    options = {"img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 32, "depth": 1, "num_heads": 2}
    weights = save(tmp_path, "nlm_vit_tiny", **options)
    common = [
        "nlm_vit_tiny",
        *(f"{k}={v}" for k, v in options.items()),
        "--checkpoint",
        weights,
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    common += ["--input-size", 3, 32, 32]
    run("corrupt", *common, "--root", tmp_path, "--files", "--severities", 3, "--output", tmp_path / "out")
    (row,) = result(tmp_path / "out")["conditions"]
    model = timm.create_model("nlm_vit_tiny", **options, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    images = (torch.tensor(np.clip(pictures.astype(int) + 20, 0, 255)).permute(0, 3, 1, 2) / 255 - mean) / std
    assert row["correct"] == int((model(images.float()).argmax(1) == torch.arange(20) % 10).sum())
    np.save(tmp_path / "snow.npy", np.zeros((7, 32, 32, 3), np.uint8))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path, "--files", "--output", tmp_path / "out2")
    assert "must hold five severities of images" in capsys.readouterr().err
    (tmp_path / "snow.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SystemExit):
        run("corrupt", *common, "--root", tmp_path, "--files", "--output", tmp_path / "out2")
    assert "must be complete .npy files" in capsys.readouterr().err


@pytest.fixture
def arrays(tmp_path):
    """Writes pictures, told apart by their gray level, and labels, as CIFAR-10-C has them."""

    def write(pictures, labels):
        np.save(tmp_path / "fog.npy", np.broadcast_to(pictures[:, None, None, None], (len(pictures), 4, 4, 3)).astype(np.uint8))
        np.save(tmp_path / "labels.npy", labels)
        return tmp_path / "fog.npy"

    return write


def read(reader):
    return [(int(np.asarray(picture).max()), label) for picture, label in (reader[i] for i in range(len(reader)))]


@pytest.mark.parametrize("count", [10, 12, 25])
def test_arrays_of_one_severity_are_not_cut_in_five(arrays, count):
    labels = np.random.default_rng(0).permutation(np.arange(count) % 3)
    file = arrays(np.arange(count), labels)
    for severity in (1, 3, 5):
        assert read(CorruptedArrays(file, severity, [severity])) == list(enumerate(labels.tolist()))
    with pytest.raises(ValueError, match=rf"severities 1, 2, 3, 4, 5, got one \({count} images, {count} labels\)"):
        CorruptedArrays(file, 1)


@pytest.mark.parametrize("repeats", [1, 5])
def test_arrays_of_five_severities(arrays, repeats):
    """With labels once, or again for each severity."""
    labels = np.array([2, 0, 1, 1])
    file = arrays(np.arange(20), np.tile(labels, repeats))
    for severity in range(1, 6):
        found = read(CorruptedArrays(file, severity))
        assert found == [(4 * (severity - 1) + i, label) for i, label in enumerate(labels.tolist())]


@pytest.mark.parametrize("counts", [(20, 3), (20, 21), (21, 5), (7, 1), (10, 50)])
def test_arrays_that_do_not_agree_are_refused_with_both_lengths(arrays, counts):
    pictures, labels = counts
    file = arrays(np.arange(pictures), np.zeros(labels, dtype=int))
    with pytest.raises(ValueError, match=rf"must hold five severities .*, got {pictures} images and {labels} labels"):
        CorruptedArrays(file, 1, [1])


def test_generated_corruptions_have_no_published_mce():
    row = {"unreadable": []}
    found = {"conditions": [row], "generated": True, "summary": {"mce_alexnet": 70.0}, "preprocessing": {}}
    assert "Do not compare this mCE" in cautions(found)[0]
    assert cautions({**found, "generated": False}) == []
    small = {**found, "preprocessing": {"input_size": [3, 32, 32]}, "summary": {}}
    assert "224 x 224. On 32 x 32 they are different corruptions" in cautions(small)[0]


def test_errors_are_divided_by_alexnets_for_all_of_imagenet_alone():
    model, whole = SimpleNamespace(num_classes=1000), {name: dict.fromkeys(range(1, 6), 50.0) for name in COMMON}

    def divided(model, **options):
        return "mce_alexnet" in ClassificationTask.for_model(model, **options).summarize(whole)

    found = {name: divided(model, classes=name) for name in ("imagenet", "imagenet-1k")}
    assert found == {"imagenet": False, "imagenet-1k": True}, "any of its folders may be ten easy ones"
    assert divided(model)
    assert not divided(SimpleNamespace(num_classes=10))
