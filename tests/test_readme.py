"""What the README says runs, and links lead somewhere."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_snippets_run_in_order(tmp_path, monkeypatch):
    assert len(BLOCKS) >= 3
    monkeypatch.setitem(sys.modules, "mine", module := ModuleType("mine"))  # where timm notes who registers a model
    namespace = vars(module)
    namespace["folder"] = tmp_path / "run"
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["filters"].shape == (1, 6, 196, 196)
    assert namespace["smooth"].shape == namespace["picture"].shape
    assert namespace["result"]["test"]["n"] == 360
    # the plug-ins of the guide: each short, each at work
    model, (guide,) = namespace["model"].eval(), [block for block in BLOCKS if "class Cosine" in block]
    for name, body in re.findall(r"class (\w+)\(.*?\):\n(.*?)(?=\n\n\n)", guide, re.DOTALL):
        assert len(body.splitlines()) < 20
        assert any(type(module).__name__ == name for module in model.modules())
    assert model(torch.randn(1, 3, 224, 224)).isfinite().all()
    weights = model.attention_weights(torch.randn(1, 3, 224, 224), [0])[0]
    assert weights[0, 0, 1, 15:].max() == 0  # the first row of 14 patches, behind the class token


def links():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("r*/README.md")):
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
            yield pytest.param(page, *link.partition("#")[::2], id=f"{page.relative_to(ROOT)}: {link}")


@pytest.mark.parametrize(("page", "file", "section"), list(links()))
def test_links_exist(page, file, section):
    target = page.parent / file
    assert target.exists()
    assert not section or f"# {section}" in target.read_text().lower()
