"""The processes of a run: which this one is, its device, and who waits for whom."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.distributed as dist
from timm.utils import init_distributed_device, world_info_from_env

from ..data import World


def start_processes(device: str) -> tuple[torch.device, World]:
    """Join the processes that torchrun or SLURM started, if any; with several GPUs, each takes its own.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` for a GPU where there is one.

    Raises:
        ValueError: There is no such device, or none for this process.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; there are auto, cpu, cuda and cuda:0, cuda:1, …")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {device}, but torch sees no GPU; use --device cpu.")
    if dist.is_available() and dist.is_initialized():
        place = torch.device("cuda", torch.cuda.current_device()) if device.startswith("cuda") else torch.device(device)
        return place, World(dist.get_rank(), dist.get_world_size())
    rank, _, _ = world_info_from_env()
    if device == "cuda" and rank >= torch.cuda.device_count():
        raise ValueError(
            f"Process {rank} of this machine finds no GPU of its own among {torch.cuda.device_count()}: start as many "
            "processes as there are GPUs, torchrun --nproc-per-node; or use --device cpu."
        )
    found = SimpleNamespace(device=device)
    place = init_distributed_device(found)
    return place, World(found.rank, found.world_size)


@contextmanager
def first_alone(world: World) -> Iterator[None]:
    """The first process goes before the others, for what all would write to one place."""
    if world.rank:
        wait(world)
    try:
        yield
    finally:
        if not world.rank:
            wait(world)


def wait(world: World) -> None:
    """Until all are here."""
    if world.size > 1:
        dist.barrier()
