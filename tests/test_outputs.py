"""The place of results is tried before any work; results are kept whatever file names, consoles and disks are like."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data
from timm.models import save_for_hf

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn import cli
from imgproc_attn.data import Digits, Images, evaluation_loader
from imgproc_attn.data.loaders import Preprocessing
from imgproc_attn.evaluation.results_log import ResultsLog
from imgproc_attn.utils.io import check_output_file, check_output_folder, write_atomically, write_json, write_text

# nothing that these name is there, nor can be trained in a test: what comes first is the output
MODEL = "test_vit num_classes=10 --checkpoint none.pt --data digits --split test --device cpu"
FOLDERS = {
    "train": "train quickstart --variant plain --device cpu",
    "compare": "compare quickstart --device cpu",
    "quickstart": "quickstart --device cpu",
    "evaluate": f"evaluate {MODEL}",
    "attack": f"attack {MODEL}",
    "attack --dry-run": f"attack {MODEL} --dry-run",
    "corrupt": f"corrupt {MODEL}",
    "shift": "shift test_vit --checkpoint none.pt --imagenet-val . --device cpu",
    "segment": "segment . --checkpoint . --device cpu",
}
FILES = {"report": "report .", "benchmark": "benchmark --what operators", "recipes": "recipes --copy quickstart"}
OPTION = {"recipes": "--to"}


def refused(command, capsys, *output):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), *map(str, output)])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("link").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("output", ["file", "file/below/it", "link", "/proc/results", "x" * 300, f"new/{'y' * 300}/z"])
def test_commands_look_at_the_output_before_they_work(name, output, here, capsys):
    error = refused(FOLDERS[name], capsys, "--output", output)
    assert error.splitlines()[-1].startswith(("imgproc-attn: The output", f"imgproc-attn: {output}")), error
    assert "hoose another output" in error
    assert "Traceback" not in error
    assert sorted(p.name for p in here.iterdir()) == ["file", "link"], "nothing is left behind"
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("output", ["file/below.x", "link/x", "/proc/x", f"{'x' * 300}/x", "/dev/null"], ids=range(5))
def test_commands_look_at_the_file_that_they_will_write(name, output, here, capsys):
    error = refused(FILES[name], capsys, OPTION.get(name, "--output"), output)
    assert any(remedy in error for remedy in ("hoose another output", "ive another name", "Choose a shorter name")), error
    assert sorted(p.name for p in here.iterdir()) == ["file", "link"]
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OSError, match="must be a file, got a folder"):
        check_output_file(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folders_of_others(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied. Check its folder and your permissions"):
        check_output_folder(tmp_path / "new")


def test_looking_leaves_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b", tmp_path / "a" / ".." / "c"):
        check_output_folder(folder)
    check_output_file(tmp_path / "d" / "e.json")
    assert not list(tmp_path.iterdir())


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_file_and_the_room(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"old": 1})
    message = r"x.json cannot be written: No space left on device. [\d.]+ MiB are free: make room"
    with pytest.raises(OSError, match=message):
        write_atomically(tmp_path / "x.json", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=message):
        write_json(tmp_path / "x.json", {"new": 2})
    log = ResultsLog(tmp_path / "log", "clean", {})
    with pytest.raises(OSError, match=r"clean.process-0.jsonl cannot be written: No space left.* MiB are free"):
        log.add(torch.tensor([1]), None, torch.tensor([], dtype=torch.int64))
    monkeypatch.undo()
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of two classes, as timm saves it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8}
    save_for_hf(timm.create_model("test_nlm_vit", num_classes=2, **options), folder, model_args=options)
    return folder


def pictures(root, *names):
    for name in names:
        file = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            Image.fromarray(data.astronaut()[:32, :32]).save(opened, format="PNG")
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
@pytest.mark.parametrize("command", ["evaluate", "attack --attacks fgsm --eps 1/255 --checks 2", "corrupt --corruptions fog"])
def test_file_names_that_are_not_utf_8_are_kept_written_out(command, model, tmp_path, capsys):
    root = pictures(tmp_path / "data", b"a/bad\xff.png", b"a/good.png", b"b\xe9/\xfe.png", b"b\xe9/1.png")
    (root / "a" / os.fsdecode(b"cut\xff.png")).write_bytes(b"no image")
    output = tmp_path / "out"
    common = ["--root", root, "--skip-broken", "--workers", 0, "--device", "cpu", "--output", output]
    cli.main([*command.split()[:1], str(model), *command.split()[1:], *map(str, common)])
    table = "predictions.csv" if command == "evaluate" else "per_sample.csv"
    rows = list(csv.DictReader((output / table).open(encoding="utf-8")))
    assert r"bad\udcff.png" in " ".join(row["image"] for row in rows)
    assert r"cut\udcff.png" in (output / "result.json").read_text().replace("\\\\", "\\")
    if command != "evaluate":
        cli.main(["report", str(output), "--output", str(tmp_path / os.fsdecode(b"report\xff.html"))])
        assert r"cut\udcff.png" in (tmp_path / os.fsdecode(b"report\xff.html")).read_text(encoding="utf-8").replace(
            "\\\\", "\\"
        )
    else:
        assert r"b\udce9" in (output / "per_class.csv").read_text(encoding="utf-8")
    assert "cut\\udcff.png" in capsys.readouterr().out.replace("\\\\", "\\")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_console_cannot_show_is_written_and_printed_as_far_as_possible(encoding, model, tmp_path, monkeypatch):
    root = pictures(tmp_path / "data", "猫/1.png".encode(), "犬/2.png".encode())
    consoles = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, console in consoles.items():
        monkeypatch.setattr(sys, name, console)
    cli.main(
        ["evaluate", str(model), "--root", str(root), *["--workers", "0", "--device", "cpu", "--output"], str(tmp_path / "out")]
    )
    consoles["stdout"].flush()
    assert b"\\u732b" in consoles["stdout"].buffer.getvalue()
    assert "猫" in (tmp_path / "out" / "per_class.csv").read_text(encoding="utf-8")


FEW_FILES = """
import resource, torch
from imgproc_attn.data import Digits, Images, evaluation_loader
from imgproc_attn.data.loaders import Preprocessing
from imgproc_attn.evaluation.conditions import clean_condition
from imgproc_attn.evaluation.samples import Samples
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.tasks import ClassificationTask
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
preprocessing, device = Preprocessing((1, 8, 8), (0.5,), (0.5,), "bilinear", 1.0), torch.device("cpu")
images = Images(Digits("test"), 10, range(120), channels=1)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
print(len(list(evaluation_loader(images, preprocessing, 1, 1, device))))
print(len(list(Samples(images).batches(preprocessing, 1, 1, device))))
task = ClassificationTask(10)
runtime, silent = Runtime(device, batch_size=1, workers=1), lambda *_: None
session = EvaluationSession(model, task, preprocessing, runtime, progress=silent)
print(len(session.run([clean_condition(Samples(images), task)])["clean"].labels))
"""


def test_batches_that_are_kept_keep_no_file_open():
    """More batches than the system allows open files."""
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["120", "120", "120"], done.stderr


def test_batches_own_their_labels():
    images = Images(Digits("test"), 10, range(8), channels=1)
    loader = evaluation_loader(images, Preprocessing((1, 8, 8), (0.5,), (0.5,), "bilinear", 1.0), 4, 1, torch.device("cpu"))
    assert not any(labels.is_shared() for _, labels in loader)
    assert np.concatenate([labels.numpy() for _, labels in loader]).tolist() == [images[i][1] for i in range(8)]


def test_text_that_is_no_text_is_written_out(tmp_path):
    write_text(tmp_path / "x", os.fsdecode(b"\xff") + "猫")
    assert (tmp_path / "x").read_text(encoding="utf-8") == r"\udcff猫"
