"""Models are registered with timm whatever is imported first, and importing the package costs next to nothing beside timm."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import imgproc_attn
from imgproc_attn import core, evaluation, experiments, recipe, segmentation, tasks, training

ASK = """
import sys
if not (set(timm.list_models("*nlm_vit*")) and all(map(timm.is_model, ("converted_vit", "segmenter")))):
    sys.exit("the models are not registered")
timm.create_model("test_nlm_vit", depth=1)
"""
ADDED = """
import sys
import timm
before = set(sys.modules)
import imgproc_attn
added = {name.partition(".")[0] for name in sys.modules.keys() - before} - sys.stdlib_module_names
if not added <= {"imgproc_attn", "einops", "lazy_loader"}:
    sys.exit(f"imports {added}")
"""
PACKAGE_FIRST = """
import sys
import imgproc_attn, imgproc_attn.evaluation, imgproc_attn.segmentation, imgproc_attn.training
import imgproc_attn.experiments, imgproc_attn.recipe, imgproc_attn.tasks
found = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"imgproc_attn", "lazy_loader"}
if found & {"torch", "timm", "numpy"}:
    sys.exit(f"imports {found}")
import timm
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "imports",
    [
        PACKAGE_FIRST,
        ADDED,
        "from imgproc_attn.core import FilterAttention\nimport timm",  # models need it while it is half imported
        "from imgproc_attn import from_timm\nimport timm",
    ],
    ids=["package first", "timm first", "layers", "from_timm"],
)
def test_models_are_registered(imports):
    done = python(imports + ASK)
    assert done.returncode == 0, done.stderr


def test_timm_that_fails_to_import_can_be_imported_again(tmp_path):
    """The second time the models are registered."""
    code = """
import sys
import imgproc_attn
sys.modules["torchvision"] = None
try:
    import timm
except ImportError:
    pass
else:
    sys.exit("timm does without torchvision")
del sys.modules["torchvision"]
import timm
"""
    done = python(code + ASK)
    assert done.returncode == 0, done.stderr


PACKAGES = [imgproc_attn, core, evaluation, experiments, recipe, segmentation, tasks, training]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_loaded_on_first_use(package):
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    listed = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(package.__all__) == sorted(listed)
    assert set(dir(package)) == set(listed) - {"__version__"}
    for name in listed:
        loaded = getattr(package, name)
        is_subpackage = isinstance(loaded, ModuleType)
        assert is_subpackage == (package is imgproc_attn and loaded is sys.modules.get(f"imgproc_attn.{name}")), name
    with pytest.raises(AttributeError):
        _ = package.no_such_name
