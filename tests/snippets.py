"""Python and shell blocks of the documents, and a function that runs a block as a file of its own, in a process of its own."""

import multiprocessing
import os
import re
import runpy
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("r*/README.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts and "auto_gallery" not in page.parts]

# Processes start from one that has imported these already, but not this package: a block must import what it uses.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "timm", "torchvision", "kornia", "sklearn.datasets", "matplotlib.figure"])


def blocks(language):
    """All blocks of a language: page, number of the first line and text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            yield page, text[: match.start()].count("\n") + 2, re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE)


def commands():
    """All lines of shell blocks that call the console command: page, line number and words, without comments."""
    for language in ("bash", "console", "sh", "shell"):
        for page, first, text in blocks(language):
            joined = re.sub(r"\\\n\s*", " ", text)
            for line in joined.splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part, comments=True)
                    if "imgproc-attn" in words or "imgproc_attn" in words:
                        name = "imgproc-attn" if "imgproc-attn" in words else "imgproc_attn"
                        yield page, first, words[words.index(name) + 1 :]


def run_alone(code, folder):
    """Run a block saved as ``mine.py`` in a folder. Raises AssertionError with its output where it fails."""
    (folder / "mine.py").write_text(code, encoding="utf-8")
    process = PROCESSES.Process(target=_run_file, args=(folder,))
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, (folder / "output.txt").read_text(encoding="utf-8")[-4000:]


def _run_file(folder):
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    runpy.run_path("mine.py", run_name="__main__")
