"""The script that compares attacks with other libraries', which no dependency brings."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from evaluated import arguments

SCRIPT = Path(__file__).parents[2] / "robustness" / "compare_libraries.py"
PEERS = all(map(find_spec, ("torchattacks", "foolbox")))


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.skipif(PEERS, reason="the other libraries are installed")
def test_says_what_is_missing(monkeypatch):
    with pytest.raises(SystemExit, match=r"torchattacks.* not installed; see"):
        run(monkeypatch, "vit_tiny_patch16_224", "--root", "nowhere")


@pytest.mark.skipif(not PEERS, reason="torchattacks and foolbox are not installed")
def test_attacks_find_what_other_libraries_find(folder, tmp_path, monkeypatch):
    """On a small model of digits: one gradient step gives equal flags, many steps equal shares within the sampling error."""
    output = tmp_path / "libraries.json"
    asked = ["--attacks", "fgsm", "pgd", "apgd", "square", "--eps", "0.06", "--queries", "100", "--runs", "2", "--limit", "200"]
    run(monkeypatch, *map(str, arguments(folder)), *asked, "--output", str(output))
    found = json.loads(output.read_text())
    rows = {(row["attack"], row["library"]): row for row in found["agreement"]}
    assert len(rows) == 10
    for library in ("torchattacks", "foolbox"):
        assert rows["fgsm", library]["same flags as ours / %"] >= 99.5
    for (attack, _), row in rows.items():
        ours = rows[attack, "imgproc_attn"]
        assert 0 < ours["robust / %"] < 100
        assert abs(row["robust / %"] - ours["robust / %"]) <= 2 * 2**0.5 * ours["standard error"]
    assert [row["library"] for row in found["speed"]] == ["torchattacks", "foolbox", "imgproc_attn"]
