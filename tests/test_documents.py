"""Check README and the pages of docs/: blocks run, commands have the options they show, links lead somewhere."""

import re

import pytest
import torch
from snippets import PAGES, ROOT, blocks, commands, run_alone

from imgproc_attn.cli import parser

README = (ROOT / "README.md").read_text(encoding="utf-8")


def named(found):
    return [pytest.param(*rest, id=f"{page.relative_to(ROOT)}:{line}") for page, line, *rest in found]


@pytest.mark.parametrize("code", named(blocks("python")))
def test_blocks_run_alone(code, tmp_path):
    """Saved in an empty file, in a process of its own."""
    run_alone(code, tmp_path)


def test_a_block_that_forgets_an_import_fails(tmp_path):
    with pytest.raises(AssertionError, match="name 'timm' is not defined"):
        run_alone("import torch\ntimm.create_model('vit_tiny_patch16_224')\n", tmp_path)


@pytest.mark.parametrize("words", named(commands()))
def test_commands_parse(words):
    if "…" in words or "..." in words:
        pytest.skip("an abbreviated command")
    words = [re.sub(r"^(PATH|FOLDER|FILE)\b", "path", word) for word in words]
    if "--version" in words or "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parser().parse_args(words)
        return
    parsed, rest = parser().parse_known_args(words)
    assert parsed.command
    assert all("=" in word and not word.startswith("-") for word in rest), rest


def test_there_are_commands_and_blocks():
    assert len(list(blocks("python"))) > 30
    assert len(list(commands())) > 30


def test_readme_fits_a_screen():
    lines = README.splitlines()
    assert len(lines) <= 110
    assert all(len(line) <= 200 for line in lines), "a row that wraps"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    for link in re.findall(r"\]\(((?!http|mailto)[^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, section = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert section in slugs, link


def test_the_model_table_of_readme():
    """Names, and parameters in millions, of every row."""
    import timm

    import imgproc_attn  # noqa: F401

    rows = re.findall(r"^\| `(\w+)` \|.*?\| (\d+\.\d) \| (\d+\.\d) \|", README, re.MULTILINE)
    assert len(rows) >= 10
    for name, millions, _ in rows:
        with torch.device("meta"):
            model = timm.create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == millions, name
