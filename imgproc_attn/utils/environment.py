"""What a number was made with: versions, commit, machine."""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from .plugins import imported

PACKAGES = ("torchvision", "timm", "kornia", "numpy", "scipy", "pillow", "matplotlib", "scikit-learn", "safetensors")


def environment(device: str) -> dict[str, Any]:
    """Versions of what computes, the commit of a checkout, the machine; all as JSON takes it."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "commit": _commit(),
        "extensions": extension_hashes(),
        "device": device,
        "hardware": _hardware(device),
    }


def versions() -> dict[str, str]:
    """Of this package and of those that numbers may depend on."""
    return {"imgproc-attn": __version__, "torch": torch.__version__, **{name: version(name) for name in PACKAGES}}


@contextmanager
def without_tf32() -> Iterator[None]:
    """For a while, float32 is float32 in convolutions too, whose factors torch rounds to TF32 on GPUs unless told otherwise."""
    usual = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = usual


def arithmetic(device: str | torch.device) -> dict[str, Any]:
    """What single precision means there: on GPUs torch may round the factors of convolutions and products to TF32."""
    kind = torch.device(device).type
    tf32 = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    return {"device": kind, **({"tf32": tf32} if kind == "cuda" else {})}


def sources_hash() -> str:
    """Of this package's code, which between two releases its version does not tell, and of one's own beside it."""
    own = "".join(f"{name}{content}" for name, content in extension_hashes().items())
    return hashlib.sha256(f"{_package_hash()}{own}".encode()).hexdigest() if own else _package_hash()


@cache
def _package_hash() -> str:
    return _hash_of(Path(__file__).with_name("__init__.py"))


def extension_hashes() -> dict[str, str]:
    """Of the modules that were imported beside this package, by name."""
    return {name: _hash_of(source) for name, source in imported.items()}


def _hash_of(source: Path) -> str:
    """Of a module, or of all below a package, given by its ``__init__.py``."""
    folder = source.parent
    files = sorted(folder.rglob("*.py")) if source.name == "__init__.py" else [source]
    return hashlib.sha256(b"".join(f.relative_to(folder).as_posix().encode() + f.read_bytes() for f in files)).hexdigest()


def _commit() -> str | None:
    """Of the checkout this package runs from, with ``+changes`` if it has any; None for an installed wheel."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _hardware(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
        found["cuda"] = torch.version.cuda
    return found


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Keep glibc, for the rest of this process, from handing freed memory back to the system between runs.

    Otherwise every step pays page faults, up to half its time, that depend on what ran before it.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 1 << 28)  # M_TOP_PAD
