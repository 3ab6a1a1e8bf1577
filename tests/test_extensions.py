"""Models of a user's own, in the commands."""

import json
import subprocess
import sys

import pytest
from training.runs import SMALL

from imgproc_attn import cli, environment
from imgproc_attn.extensions import import_extension

MODEL = '''
import timm
from timm.models import register_model
from torch import nn

from imgproc_attn.residuals import Residual


class Damped(Residual):
    def __init__(self):
        super().__init__(steps=1)

    def operand(self, u, v, last):
        return u

    def update(self, u, smoothed):
        return u + STRENGTH * (u - smoothed)


STRENGTH = 0.5


@register_model
def damped_vit(pretrained=False, **kwargs):
    """Without weights."""
    return timm.create_model("plain_vit_tiny", residual=lambda layer: Damped(), **kwargs)
'''


def command(folder, *words):
    """In a process of its own, as imports last."""
    arguments = [sys.executable, "-m", "imgproc_attn", *map(str, words), "--import", "damped.py"]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)


def test_a_model_of_ones_own_is_trained_and_attacked(tmp_path):
    (tmp_path / "damped.py").write_text(MODEL)
    recipe = [*SMALL, "schedule.epochs=1", "schedule.warmup_epochs=0", "comparison.variants={damped: {name: damped_vit}}"]
    trained = command(tmp_path, "train", "quickstart", *recipe, "--variant", "damped", "--output", "run", "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    (session,) = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert list(session["extensions"]) == ["damped"]
    attack = ["attack", "run", "--attacks", "fgsm", "--eps", "0.1", "--limit", "20", "--workers", "0", "--output", "out"]
    attacked = command(tmp_path, *attack, "--device", "cpu")
    assert attacked.returncode == 0, attacked.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["environment"]["extensions"] == session["extensions"]
    (tmp_path / "damped.py").write_text(MODEL.replace("STRENGTH = 0.5", "STRENGTH = 0.4"))
    refused = command(tmp_path, *attack, "--device", "cpu")
    assert refused.returncode == 2, "flags of another model are not gone on with"
    assert "sources" in refused.stderr


def test_without_its_module_the_name_is_unknown(capsys):
    for words in (
        ["train", "quickstart", "comparison.variants={a: {name: damped_vit}}", "--variant", "a"],
        ["evaluate", "damped_vit", "--checkpoint", "x.pt", "--data", "digits"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 2
        assert "name its module with --import" in capsys.readouterr().err


def test_what_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text("")
    (tmp_path / "broken.py").write_text("import there_is_no_such_thing")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("gone.py", FileNotFoundError, "--import gone.py: there is no such file"),
        ("no_such_module", ValueError, "no such module, in .* or installed"),
        ("json.no_such_part", ValueError, "no such module"),
        ("json.py", ValueError, "'json' is imported already, from .*; give the file another name"),
        ("folder", ValueError, "no Python source; of a folder, give one with an __init__.py"),
        ("broken", ModuleNotFoundError, "there_is_no_such_thing"),
    ):
        with pytest.raises(error, match=message):
            import_extension(name)


def test_sources_hash_knows_what_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("imgproc_attn.extensions._imported", {})
    before = environment.sources_hash()
    (tmp_path / "hashed").mkdir()
    (tmp_path / "hashed" / "__init__.py").write_text("from . import part")
    (tmp_path / "hashed" / "part.py").write_text("VALUE = 1")
    monkeypatch.chdir(tmp_path)
    import_extension("hashed")
    first = environment.sources_hash()
    (tmp_path / "hashed" / "part.py").write_text("VALUE = 2")
    assert len({before, first, environment.sources_hash()}) == 3
