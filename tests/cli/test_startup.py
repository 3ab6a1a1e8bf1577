"""The console command shows help and refuses arguments without importing what computes."""

import subprocess
import sys

import pytest

from imgproc_attn import cli

HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "matplotlib", "sklearn", "kornia", "PIL", "einops"}
COMMANDS = next(action.choices for action in cli.parser()._actions if action.dest == "command")
RUN = f"""
import sys
from imgproc_attn import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    status = end.code
else:
    status = 0
print("imported:", *sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)
sys.exit(status)
"""


def run(*words):
    """In a process of its own; returns its status, its output, and the last line of its standard error."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_is_light(words):
    status, output, imported = run(*words, "--help")
    assert (status, imported) == (0, "imported:")
    assert output.startswith(f"usage: {' '.join(['imgproc-attn', *words])} [-h]")
    assert output.isascii(), "a console may have any encoding"


@pytest.mark.parametrize("name", ["quickstart", "camvid/comparison_half"])
def test_showing_a_recipe_needs_only_its_schema(name):
    status, output, imported = run("recipes", "--show", name)
    assert (status, imported) == (0, "imported: pydantic")
    assert output.startswith("# Purpose:")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], 0),
        (["recipes"], 0),
        ([], 2),
        (["no-such-command"], 2),
        (["train"], 2),
        (["attack", "model", "--attacks", "no-such-attack"], 2),
        (["corrupt", "model", "--severities", "6"], 2),
        (["benchmark", "--tokens", "197"], 2),
        (["evaluate", "model", "--no-such-option"], 2),
    ],
    ids=str,
)
def test_what_computes_nothing_is_light(words, expected):
    status, _, imported = run(*words)
    assert (status, imported) == (expected, "imported:")
