"""Settings all tests share."""

import os
import re
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is there; processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif not any(re.search(r"(?<!not )\bgpu\b", word) for word in sys.argv):
    # what is compared to the bit, and processes that share a machine, belong on the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import seeding
import torch

# Marks of timm's own tests, which the contract tier imports.
TIMM_MARKS = (
    "base cfg cfg_nonstd torchscript features fxforward fxbackward forward backward features_contract".split()  # noqa: SIM905
)


def pytest_addoption(parser):
    group = parser.getgroup("imgproc_attn", "arithmetic and random numbers")
    group.addoption("--seed", type=int, default=0, help="seed of random inputs and of models that tests train (default: 0)")
    group.addoption("--without-onednn", action="store_true", help="compute without oneDNN, in the process of the test")


def pytest_report_header(config):
    """What the rounding of a result depends on, and what else may differ between two sessions."""
    threads = os.environ.get("OMP_NUM_THREADS") or ("1" if config.getoption("numprocesses") else torch.get_num_threads())
    set_by = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "PYTHONHASHSEED", "LC_ALL")
    return [
        f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()}, threads per process: {threads}, "
        f"oneDNN: {'off' if config.getoption('without_onednn') else 'on'}, seed: {seeding.number}",
        "environment: " + (", ".join(f"{name}={os.environ[name]}" for name in set_by if name in os.environ) or "as it is"),
    ]


def pytest_configure(config):
    seeding.set_number(config.getoption("seed"))
    if config.getoption("without_onednn"):
        torch.backends.mkldnn.set_flags(_enabled=False)
    for mark in TIMM_MARKS:
        config.addinivalue_line("markers", f"{mark}: a mark of timm's tests")


# Files of a minute and more, the longest first. The other files fill the time until the last of these ends.
LONG_FILES = (
    "experiments/test_comparison.py",
    "test_distributed.py",
    "models/test_execution.py",
    "test_exports.py",
    "utils/test_plugins.py",
    "segmentation/test_segmenter_training.py",
    "evaluation/test_report.py",
    "evaluation/test_attack_command.py",
    "evaluation/test_sanity.py",
)


def pytest_collection_modifyitems(items):
    order = {Path(__file__).parent / file: rank for rank, file in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed():
    seeding.seed()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data of IMGPROC_ATTN_DATA; the test is skipped without it."""
    folder = os.environ.get("IMGPROC_ATTN_DATA")
    if not folder:
        pytest.skip("IMGPROC_ATTN_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def vit_weights() -> Path:
    """The trained weights of IMGPROC_ATTN_VIT_WEIGHTS, of timm's vit_small_patch14_dinov2; the test is skipped without it."""
    file = os.environ.get("IMGPROC_ATTN_VIT_WEIGHTS")
    if not file:
        pytest.skip("IMGPROC_ATTN_VIT_WEIGHTS does not name weights of vit_small_patch14_dinov2")
    return Path(file)
