"""Extensions: commands use your own models."""

import json
import subprocess
import sys

import pytest
from training.runs import SMALL

from imgproc_attn import cli
from imgproc_attn.utils import environment
from imgproc_attn.utils.plugins import import_extension

MODEL = '''
import timm
import torch
from timm.models import register_model
from torch import nn

from imgproc_attn.core.residuals import Residual
from imgproc_attn.core.terms import Terms


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
    return timm.create_model("plain_vit_tiny", pretrained=pretrained, residual=lambda layer: Damped(), **kwargs)


class Tempered(nn.Module):
    """Create the parameter on the default device of torch."""

    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, q, k, is_causal=False):
        return Terms([q * self.log_temperature.exp() * q.shape[-1] ** -0.5], [k])


@register_model
def tempered_vit(pretrained=False, **kwargs):
    return timm.create_model("plain_vit_tiny", pretrained=pretrained, kernel=lambda layer: Tempered(), **kwargs)


@register_model
def forgetful_vit(pretrained=False, **kwargs):
    """Ignore the requested weights."""
    return timm.create_model("plain_vit_tiny", residual="twicing", **kwargs)
'''


def command(folder, *words):
    """Run a command in its own process, because imports cannot be undone."""
    arguments = [sys.executable, "-m", "imgproc_attn", *map(str, words), "--import", "damped.py"]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)


def train_own(folder, name, output=None, *more):
    recipe = [*SMALL, "schedule.epochs=2", "schedule.warmup_epochs=0", f"comparison.variants={{own: {{name: {name}}}}}"]
    words = ["train", "quickstart", *recipe, "--variant", "own", "--output", output or name, "--device", "cpu", *more]
    return command(folder, *words)


@pytest.mark.parametrize("name", ["damped_vit", "tempered_vit"])
def test_what_is_evaluated_is_what_was_trained(name, tmp_path):
    (tmp_path / "damped.py").write_text(MODEL)
    trained = train_own(tmp_path, name)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / name / "last" / "config.json").read_text())["architecture"] == name
    evaluated = command(tmp_path, "evaluate", name, "--workers", "0", "--output", "out", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    final = json.loads((tmp_path / name / "final.json").read_text())
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["conditions"]
    assert row["accuracy"] == final["test"]["accuracy"]


def test_what_would_not_come_back_is_not_trained(tmp_path):
    (tmp_path / "damped.py").write_text(MODEL)
    refused = train_own(tmp_path, "forgetful_vit")
    assert refused.returncode == 2
    assert "got other weights. In the function registered with timm, pass pretrained" in refused.stderr
    assert not (tmp_path / "forgetful_vit" / "metrics.jsonl").exists()


def test_numbers_know_the_code_of_ones_own(tmp_path):
    (tmp_path / "damped.py").write_text(MODEL)
    trained = train_own(tmp_path, "damped_vit")
    assert trained.returncode == 0, trained.stderr
    (session,) = json.loads((tmp_path / "damped_vit" / "environment.json").read_text())["sessions"]
    assert list(session["extensions"]) == ["damped"]
    attack = ["attack", "damped_vit", "--attacks", "fgsm", "--eps", "0.1", "--limit", "20", "--workers", "0", "--output", "out"]
    attacked = command(tmp_path, *attack, "--device", "cpu")
    assert attacked.returncode == 0, attacked.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["environment"]["extensions"] == session["extensions"]
    (tmp_path / "damped.py").write_text(MODEL.replace("STRENGTH = 0.5", "STRENGTH = 0.4"))
    refused = command(tmp_path, *attack, "--device", "cpu")
    assert refused.returncode == 2, "flags of another model are not gone on with"
    assert "sources" in refused.stderr
    assert train_own(tmp_path, "forgetful_vit", "damped_vit", "--restart").returncode == 2
    assert (tmp_path / "damped_vit" / "final.json").exists(), "what cannot start again ends nothing"


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
        ("gone.py", FileNotFoundError, "--import must be an existing file, got gone.py"),
        ("no_such_module", ValueError, "must be a module that is installed or in .*, got no_such_module"),
        ("json.no_such_part", ValueError, "must be a module that is installed"),
        ("json.py", ValueError, "'json' must not be the name of another module, got that of .*json/__init__.py. Rename it"),
        ("folder", ValueError, "must be Python source code, got folder. Give a .py file, or a folder with an __init__.py"),
        ("broken", ModuleNotFoundError, "there_is_no_such_thing"),
    ):
        with pytest.raises(error, match=message):
            import_extension(name)


def test_sources_hash_knows_what_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("imgproc_attn.utils.plugins.imported", imported := {})
    monkeypatch.setattr("imgproc_attn.utils.plugins.requested", [])
    monkeypatch.setattr(environment, "imported", imported)
    before = environment.sources_hash()
    (tmp_path / "hashed" / "Above").mkdir(parents=True)  # This folder sorts before __init__.py.
    (tmp_path / "hashed" / "Above" / "x.py").write_text("")
    (tmp_path / "hashed" / "__init__.py").write_text("from . import part")
    (tmp_path / "hashed" / "part.py").write_text("VALUE = 1")
    monkeypatch.chdir(tmp_path)
    import_extension("hashed")
    first = environment.sources_hash()
    (tmp_path / "hashed" / "part.py").write_text("VALUE = 2")
    assert len({before, first, environment.sources_hash()}) == 3
