"""timm's own tests, from its source distribution, on our models.

They are not in timm's wheel. `IMGPROC_ATTN_TIMM_TESTS` names the unpacked `tests` folder of the source distribution of the
installed version (``pip download --no-deps --no-binary timm timm==...``); .ci/run sets it.

timm collects its tests from its registry by name patterns which take our names for convolutional networks, so the plain
functions are called here.
"""

import importlib.util
import inspect
import os
from pathlib import Path

import pytest

from imgproc_attn.models import FAMILIES

FOLDER = os.environ.get("IMGPROC_ATTN_TIMM_TESTS")

pytestmark = [
    pytest.mark.timm_contract,
    pytest.mark.skipif(
        not FOLDER, reason="IMGPROC_ATTN_TIMM_TESTS does not name the tests folder of timm's source distribution"
    ),
    pytest.mark.filterwarnings("ignore"),
]

SMALLEST = [f"test_{family}" for family in FAMILIES]
NAMES = SMALLEST + [f"{family}_tiny" for family in FAMILIES]

# (function, batch size). The `std` configuration test is for convolutional networks; `non_std` is the transformers'. Left out:
# `test_model_forward_torchscript` and `test_model_forward_fx_torchscript`, since torch has deprecated TorchScript.
TESTS = [
    ("test_model_forward", 1),
    ("test_model_backward", 2),
    ("test_model_default_cfgs_non_std", 1),
    ("test_model_forward_features", 1),
    ("test_model_forward_intermediates_features", 1),
    ("test_model_forward_intermediates", 1),
    ("test_prune_intermediate_layers_contract", None),
    ("test_prune_intermediate_layers_params_used", None),
    ("test_model_forward_fx", 1),
    ("test_model_backward_fx", 2),
]


@pytest.fixture(scope="module")
def timm_tests():
    # under another name: our own tests have a file of that name too
    spec = importlib.util.spec_from_file_location("timm_test_models", Path(FOLDER) / "test_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("function", "batch_size"), TESTS)
def test_contract(timm_tests, function, batch_size, name):
    if "prune" in function and name not in SMALLEST:
        pytest.skip("prunes a model at every layer: minutes for a dozen of them; the smallest sizes stand for their family")
    if "prune" in function and not hasattr(timm_tests, function):
        pytest.skip(f"this version of timm has no {function}")
    test = getattr(timm_tests, function)
    arguments = {"model_name": name}
    parameters = inspect.signature(test).parameters
    if "batch_size" in parameters:
        arguments["batch_size"] = batch_size
    if "cfg_device" in parameters:
        arguments["cfg_device"] = "meta"
    assert set(arguments) == set(parameters), "timm has changed the arguments of its test"
    test(**arguments)
