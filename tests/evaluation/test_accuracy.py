"""The evaluate command: counts anyone can check by hand, on real images; a published model on real ImageNet pictures."""

import json

import numpy as np
import pytest
import seeding
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs

from imgproc_attn import cli
from imgproc_attn.evaluation.conditions import clean_condition
from imgproc_attn.evaluation.real_labels import count_real, load_real
from imgproc_attn.evaluation.results_log import SampleResults
from imgproc_attn.evaluation.samples import TensorSamples
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.evaluation.statistics import wilson_interval
from imgproc_attn.evaluation.tensors import as_given
from imgproc_attn.tasks import ClassificationTask
from imgproc_attn.training.checkpoints import save_weights


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (3, 7), (874, 1000), (1, 1)])
def test_interval_is_wilsons(correct, n):
    """The score interval: the shares p whose z score ``|share - p| / sqrt(p (1 - p) / n)`` is at most 1.96."""
    share = correct / n
    for bound, edge in zip(wilson_interval(correct, n), (0.0, 100.0)):
        p = bound / 100
        on_the_edge = bound == pytest.approx(edge, abs=1e-9)
        assert on_the_edge or abs(share - p) / (p * (1 - p) / n) ** 0.5 == pytest.approx(1.959963984540054)


def test_counts():
    task, top, labels = ClassificationTask(3), [[0, 1], [1, 0], [2, 1], [0, 2]], [0, 0, 2, 1]
    columns = {"labels": labels, "top": top, "correct": [int(a[0] == b) for a, b in zip(top, labels)], "loss": [0.0] * 4}
    results = SampleResults(torch.arange(4), columns, 0, 1, [4])
    row = task.count(results)
    assert (row["n"], row["accuracy"], row["top5"]) == (4, 50.0, 75.0)
    assert row["top5_interval"] == list(wilson_interval(3, 4))
    assert task.intervals(results) == {"accuracy": list(wilson_interval(2, 4))}
    samples = TensorSamples(torch.zeros(5, 1, 1, 1), torch.tensor([*labels, -1]), class_names={0: "cat", 1: "dog", 2: "cow"})
    tables = task.tables(results, row, samples)
    assert tables["per_class.csv"] == [
        ["label", "name", "n", "top1", "top5"],
        [0, "cat", 2, 50.0, 100.0],
        [1, "dog", 1, 0.0, 0.0],
        [2, "cow", 1, 100.0, 100.0],
    ]
    assert tables["predictions.csv"][:3] == [["image", "label", "top1", "top2"], ["0", 0, 0, 1], ["1", 0, 1, 0]]
    assert task.remarks(row, tables)[1] == "Worst classes, top-1: dog 0 % of 1, cat 50 % of 2."


def test_harmed_samples_take_turns_by_class():
    """Readers order images by class. Sample 14 was wrong before the attack, and 11 withstands it."""

    def results(correct):
        columns = {"labels": [0, 0, 0, 1, 1, 1, 2], "correct": correct}
        return SampleResults(torch.arange(10, 17), columns, 0, 1, [])

    clean, attacked = results([1, 1, 1, 1, 0, 1, 1]), results([0, 1, 0, 0, 0, 0, 0])
    assert ClassificationTask(3).harmed(clean, attacked).tolist() == [10, 13, 16, 12, 15]
    assert ClassificationTask(3).harmed(clean, clean).tolist() == []


def test_real_labels(tmp_path):
    """An image counts if any of its labels is predicted, and not at all if it has none."""
    (tmp_path / "real.json").write_text(json.dumps([[3, 4], [], [7], [1]]))
    names = [f"n0{i}/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 4)]
    predicted, labels = torch.tensor([4, 0, 6, 1]), torch.tensor([3, 0, 7, 1])
    found = count_real(predicted, labels, load_real(names, tmp_path / "real.json"))
    assert (found["n"], found["top1"]) == (3, pytest.approx(200 / 3))
    with pytest.raises(ValueError, match="Names must be those of ImageNet validation images"):
        load_real(["x.JPEG"], tmp_path / "real.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([["3"], ["4"]], r"got \['3'\] for image 1"),
        ([[3], ["4"]], r"got \['4'\] for image 2"),
        ([[3], 4], "got 4 for image 2"),
        ([[3], None], "got None for image 2"),
        ([[3], [True]], r"got \[True\] for image 2"),
        ([[3], [1000]], r"whole numbers from 0 to 999 per image, got \[1000\]"),
        ([[3], [-1]], r"got \[-1\] for image 2"),
        ([[3.0]], r"got \[3.0\] for image 1"),
        ({"0": [3]}, "must hold a list of labels per image.* got {'0'"),
        ([], r"must hold a list of labels per image.* got \[\]"),
        ("[[3]]", r"must hold a list of labels per image"),
    ],
)
def test_real_labels_that_no_prediction_could_equal_are_refused(content, told, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"real.json {'' if told.startswith('must') else 'must hold .*'}{told}.* Use real.json of"
    ):
        load_real(["ILSVRC2012_val_00000001.JPEG"], tmp_path / "real.json")


def test_what_could_not_be_read_counts_nowhere():
    """In memory, as training validates."""
    logits, task, runtime = torch.eye(6)[[0, 1, 2, 3]], ClassificationTask(6), Runtime(torch.device("cpu"), batch_size=3)
    images = logits[:, :, None, None]
    session = EvaluationSession(torch.nn.Flatten().eval(), task, as_given(images), runtime)

    def count(labels):
        samples = TensorSamples(images[: len(labels)], torch.tensor(labels, dtype=torch.int64))
        return task.count(session.run([clean_condition(samples, task)])["clean"])

    found = count([0, 1, 5, -1])
    assert found["n"] == 3
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits[:3], torch.tensor([0, 1, 5])).item())
    for labels, message in (
        ([-1, -1], "At least one of the 2 images must be readable, got none"),
        ([], "at least 1 image to evaluate on, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            count(labels)


@pytest.fixture
def shots(tmp_path):
    """Photographs of scikit-image in two class folders, one of them broken."""
    names = {"cat": photographs.chelsea(), "rocket": photographs.rocket()}
    for name, picture in names.items():
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.roll(picture, 20 * i, axis=1)).save(tmp_path / "photographs" / name / f"{i}.jpg")
    broken = tmp_path / "photographs" / "cat" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    return tmp_path


def evaluate(*arguments):
    cli.main(["evaluate", *map(str, arguments)])


def test_command(shots, capsys, tmp_path):
    seeding.seed(1)
    model = timm.create_model("test_nlm_vit", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    out = tmp_path / "out"
    common = (
        "test_nlm_vit",
        "num_classes=2",
        "--checkpoint",
        tmp_path / "w.pt",
        "--root",
        shots / "photographs",
        "--output",
        out,
    )
    with pytest.raises(SystemExit):
        evaluate(*common)
    assert "Cannot read image cat/1.jpg" in capsys.readouterr().err
    evaluate(*common, "--skip-broken", "--workers", 0)
    printed = capsys.readouterr().out
    assert "1 unreadable images are left out: cat/1.jpg" in printed
    result = json.loads((out / "result.json").read_text())
    (row,) = result["conditions"]
    assert row["n"] == 5
    assert row["unreadable"] == ["cat/1.jpg"]
    assert result["preprocessing"]["crop_pct"] == 0.95
    assert (result["dtype"], result["options"], result["arithmetic"]) == ("float32", {"num_classes": "2"}, {"device": "cpu"})
    assert len(result["weights_sha256"]) == 64
    # by hand: timm's own transform and the model
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    right = 0
    for label, name in enumerate(("cat", "rocket")):
        for i in range(3):
            if (name, i) != ("cat", 1):
                image = Image.open(shots / "photographs" / name / f"{i}.jpg").convert("RGB")
                right += model.eval()(transform(image)[None]).argmax().item() == label
    assert row["accuracy"] == pytest.approx(100 * right / 5)
    assert len((out / "predictions.csv").read_text().splitlines()) == 6
    assert len((out / "per_class.csv").read_text().splitlines()) == 3
    for file in (shots / "photographs").rglob("*.jpg"):
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(file, "PNG")
    with pytest.raises(SystemExit):
        evaluate(*common[:-1], tmp_path / "none", "--skip-broken", "--workers", 0)
    assert "one of the 6 images must be readable, got none (cat/0.jpg: it has more than 8 bits" in capsys.readouterr().err


def test_columns_can_be_named(tmp_path, capsys, monkeypatch):
    """CIFAR-100 has two columns of class labels."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    labels = datasets.ClassLabel(names=["cat", "rocket"])
    pictures = [Image.fromarray(picture) for picture in (photographs.chelsea(), photographs.rocket())]
    table = {"img": pictures, "fine_label": [0, 1], "coarse_label": [1, 1]}
    features = datasets.Features({"img": datasets.Image(), "fine_label": labels, "coarse_label": labels})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    torch.save(timm.create_model("test_nlm_vit", num_classes=2).state_dict(), tmp_path / "w.pt")
    model = ("test_nlm_vit", "num_classes=2", "--checkpoint", tmp_path / "w.pt", "--workers", 0, "--output", tmp_path / "out")
    (tmp_path / "cache").mkdir()
    data = ("--data", f"hfds/{tmp_path / 'set'}", "--root", tmp_path / "cache", "--split", "train")
    with pytest.raises(SystemExit):
        evaluate(*model, *data)
    assert "fine_label (ClassLabel), coarse_label (ClassLabel), got no name" in capsys.readouterr().err
    for column, count in (("fine_label", 2), ("coarse_label", 1)):
        evaluate(*model, *data, "--label-column", column, "--output", tmp_path / column)
        result = json.loads((tmp_path / column / "result.json").read_text())
        assert len((tmp_path / column / "per_class.csv").read_text().splitlines()) == 1 + count
        assert result["data"]["label_column"] == column
        assert result["conditions"][0]["n"] == 2
    with pytest.raises(SystemExit):
        evaluate(*model, "--data", "npz", "--root", tmp_path, "--image-column", "img")
    assert "image_column must be left out for 'npz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit_tiny_patch16_224",), "random weights. Give --checkpoint FILE, or --pretrained"),
        (("vit_tinny", "--checkpoint", "w.pt"), "vit_tinny: Unknown model"),
        (("vit_tiny_patch16_224", "--checkpoint", "none.pt"), "Checkpoint must be an existing file, got none.pt"),
        (("test_nlm_vit", "num_classes", "--checkpoint", "w.pt"), "An option must have the form key=value, got 'num_classes'"),
        (("test_nlm_vit", "widht=2", "--checkpoint", "w.pt"), "widht"),  # codespell:ignore
        (("test_nlm_vit", "kernel={name", "--checkpoint", "w.pt"), "'kernel={name': the value is not YAML"),
        (("test_nlm_vit", "--crop-pct", "87.5", "--checkpoint", "w.pt"), "must be above 0 and at most 1, got '87.5'"),
    ],
)
def test_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate(*arguments, "--root", "/")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"],
        ["attack", "--attacks", "fgsm", "--eps", "1/255"],
        ["corrupt", "--corruptions", "gaussian_noise", "--severities", "1"],
    ],
)
def test_weights_that_do_not_cover_the_model_are_refused(command, tmp_path, capsys):
    """What training starts from is not what can be evaluated: the classifier would be random."""
    options = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2, "in_chans": 1}
    headless = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    seven = timm.create_model("vit_tiny_patch16_224", num_classes=7, **options)
    save_file(headless.state_dict(), tmp_path / "headless.safetensors")
    save_file(seven.state_dict(), tmp_path / "seven.safetensors")
    for name, model in (("headless", headless), ("seven", seven)):
        save_weights(model.state_dict(), model, options, None, tmp_path / name)
    words = [f"{key}={value}" for key, value in options.items()]
    file = ["vit_tiny_patch16_224", "num_classes=10", *words, "--checkpoint"]
    for model, message in (
        ([*file, tmp_path / "headless.safetensors"], "2 missing: head.weight, head.bias"),
        ([*file, tmp_path / "seven.safetensors"], "head.weight [7, 32], not [10, 32]"),
        ([tmp_path / "headless", "num_classes=10"], "num_classes must be 0"),
        ([tmp_path / "seven", "num_classes=10"], "num_classes must be 7"),
    ):
        data = ["--data", "digits", "--split", "test", "--limit", 20, "--device", "cpu", "--output", tmp_path / "out"]
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, [command[0], *model, *command[1:], *data])))
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_a_misspelt_reader_is_no_folder(shots, capsys, tmp_path):
    save_file(timm.create_model("test_nlm_vit", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    model = ["test_nlm_vit", "num_classes=2", "--checkpoint", tmp_path / "w.safetensors"]
    with pytest.raises(SystemExit):
        evaluate(*model, "--data", "fodler", "--root", shots / "photographs")
    assert "The reader must be folder, npz, digits, pathfinder or begin with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(*model, "--data", "torch/cifar10")
    assert "--data torch/cifar10 must have a --root, got none. Give --root PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(*model, "--data", "ade20k", "--root", shots)
    assert "one label per image, which classifiers need, got 'ade20k', which has label maps" in capsys.readouterr().err


def test_options_are_read_as_recipes_are():
    from imgproc_attn.cli.arguments import _option

    kernel = {"name": "gaussian_range", "range_bandwidth": 10}
    assert _option("kernel={name: gaussian_range, range_bandwidth: 1e1}") == ("kernel", kernel)


def test_classes_must_be_the_models(shots, capsys, tmp_path):
    torch.save(timm.create_model("test_nlm_vit").state_dict(), tmp_path / "w.pt")
    with pytest.raises(SystemExit):
        evaluate("test_nlm_vit", "--checkpoint", tmp_path / "w.pt", "--root", shots / "photographs")
    assert "classes, got 2" in capsys.readouterr().err


@pytest.mark.data
def test_a_published_model_on_real_imagenet_pictures(data_folder, tmp_path):
    """87.4 % top-1, 96.9 % top-5 was measured with plain timm code on this sample."""
    weights = data_folder / "weights" / "tf_efficientnet_lite0_fp16.safetensors"
    evaluate(
        "tf_efficientnet_lite0", "--checkpoint", weights, "--root", data_folder / "imagenet1k_sample", "--output", tmp_path
    )
    result = json.loads((tmp_path / "result.json").read_text())
    (row,) = result["conditions"]
    assert row["n"] == 1000
    assert row["accuracy"] == pytest.approx(87.4, abs=0.2)
    assert row["top5"] == pytest.approx(96.9, abs=0.2)
