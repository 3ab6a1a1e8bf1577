"""Record of the environment of a result: versions, commit, hardware."""

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

__all__ = [
    "arithmetic",
    "environment",
    "extension_hashes",
    "keep_freed_memory",
    "sources_hash",
    "versions",
    "without_tf32",
]

PACKAGES = ("torchvision", "timm", "kornia", "numpy", "scipy", "pillow", "matplotlib", "scikit-learn", "safetensors")


def environment(device: str) -> dict[str, Any]:
    """Return package versions, the commit, hashes of extensions and the hardware, JSON-serializable.

    Args:
        device: Device of the computation, such as ``cpu`` or ``cuda:0``.
    """
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "commit": _commit(),
        "extensions": extension_hashes(),
        "device": device,
        "hardware": _hardware(device),
    }


def versions() -> dict[str, str]:
    """Return the versions of this package and of the packages that affect results."""
    return {"imgproc-attn": __version__, "torch": torch.__version__, **{name: version(name) for name in PACKAGES}}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32 in convolutions. By default, torch rounds their float32 factors to TF32 on GPUs."""
    usual = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = usual


def arithmetic(device: str | torch.device) -> dict[str, Any]:
    """Return the precision of float32 on a device. On GPUs, torch may round factors of convolutions and products to TF32."""
    kind = torch.device(device).type
    tf32 = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    return {"device": kind, **({"tf32": tf32} if kind == "cuda" else {})}


def sources_hash() -> str:
    """Return the SHA-256 hash of the code of this package and of imported extensions.

    The hash detects changes of the code between two releases, which have the same version.
    """
    own = "".join(f"{name}{content}" for name, content in extension_hashes().items())
    return hashlib.sha256(f"{_package_hash()}{own}".encode()).hexdigest() if own else _package_hash()


@cache
def _package_hash() -> str:
    return _hash_of(Path(__file__).with_name("__init__.py"))


def extension_hashes() -> dict[str, str]:
    """Return the SHA-256 hash of each imported extension, by module name."""
    return {name: _hash_of(source) for name, source in imported.items()}


def _hash_of(source: Path) -> str:
    """Return the hash of a module, or of all files of a package given by its ``__init__.py``."""
    folder = source.parent
    files = sorted(folder.rglob("*.py")) if source.name == "__init__.py" else [source]
    return hashlib.sha256(b"".join(f.relative_to(folder).as_posix().encode() + f.read_bytes() for f in files)).hexdigest()


def _commit() -> str | None:
    """Return the commit of the checkout, with ``+changes`` for uncommitted changes; None for an installed wheel."""
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
    hardware: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(torch.device(device))
        hardware["cuda"] = torch.version.cuda
    return hardware


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the system, for the rest of this process.

    Returned memory causes page faults in the next step. They take up to half of its time and depend on earlier steps.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 1 << 28)  # M_TOP_PAD
