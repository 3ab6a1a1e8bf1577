"""Examples in docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest

import imgproc_attn

ROOT = Path(imgproc_attn.__file__).parent
WITH_EXAMPLES = sorted(
    file.relative_to(ROOT.parent) for file in ROOT.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=str)
def test_examples_run(file):
    module = importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
