"""Processes of a run: rank and device of this process, and waiting for the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.distributed as dist
from timm.utils import init_distributed_device, world_info_from_env

from ..data import World

__all__ = ["first_alone", "start_processes", "wait"]


def start_processes(device: str) -> tuple[torch.device, World]:
    """Join the processes that torchrun or SLURM started, if any. With several GPUs, each process gets its own.

    Args:
        device: ``cpu``, ``cuda`` or a device such as ``cuda:1``; ``auto`` for a GPU if there is one, else the CPU.

    Returns:
        The device of this process, and its rank with the number of processes.

    Raises:
        ValueError: The device does not exist, or there is none for this process.

    Example:
        >>> start_processes("cpu")
        (device(type='cpu'), World(rank=0, size=1))
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu, cuda or one such as cuda:0, got {device!r}. Correct it.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device must be cpu if torch sees no GPU, got {device}. Use --device cpu.")
    if dist.is_available() and dist.is_initialized():
        joined = torch.device("cuda", torch.cuda.current_device()) if device.startswith("cuda") else torch.device(device)
        return joined, World(dist.get_rank(), dist.get_world_size())
    rank, _, _ = world_info_from_env()
    if device == "cuda" and rank >= torch.cuda.device_count():
        raise ValueError(
            f"Process {rank} of this machine must have a GPU of its own, got {torch.cuda.device_count()} GPU(s). Start one "
            "process per GPU with torchrun --nproc-per-node, or use --device cpu."
        )
    args = SimpleNamespace(device=device)
    own = init_distributed_device(args)
    return own, World(args.rank, args.world_size)


@contextmanager
def first_alone(world: World) -> Iterator[None]:
    """Run the body in the first process before the others, for files that all processes would write."""
    if world.rank:
        wait(world)
    try:
        yield
    finally:
        if not world.rank:
            wait(world)


def wait(world: World) -> None:
    """Wait until all processes have called this function."""
    if world.size > 1:
        dist.barrier()
