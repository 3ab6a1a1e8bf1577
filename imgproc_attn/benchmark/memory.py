"""Peak memory of a training step.

On a CUDA device, it is the peak of the allocator. On a CPU, it is the growth of the resident set in a fresh process that does
the step once.
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.progress import progress_bar
from .models import ModelWork

__all__ = ["benchmark_memory"]


def _peak(name: str, n: int, device: str, dtype: torch.dtype, pipe: Any) -> None:
    """Send the peak bytes of a training step, with optimizer state and gradients. Runs in a fresh process."""
    try:
        step = ModelWork(n, 1, True, device, dtype).step(name)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            step()
            pipe.send(torch.cuda.max_memory_allocated(device))
            return
        step()
        _peak_so_far(pipe)
    except BaseException as error:
        pipe.send(repr(error))
        raise


def _peak_so_far(pipe: Any) -> None:
    """Send the largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux, ru_maxrss starts at the value of the parent process.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        pipe.send(1024 * int(line.split()[1]))
        return
    import resource  # not available on every system

    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _in_fresh_process(function: Callable[..., None], *arguments: Any) -> int:
    """Return the number that ``function`` sends from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, send))
    process.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        answer = "no answer"
    process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"The measuring process must return bytes, got {answer}. Give fewer tokens if memory ran out.")
    return answer


def benchmark_memory(
    names: Sequence[str], n: int = 3136, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Measure the peak memory of a training step on one image of ``n`` patches, minus that of interpreter and libraries."""
    bare = 0 if device.startswith("cuda") else _in_fresh_process(_peak_so_far)
    peaks = {}
    with progress_bar(len(names), "models", "memory") as bar:
        for name in names:
            peaks[name] = _in_fresh_process(_peak, name, n, device, dtype) - bare
            bar.update()
    return [{"name": name, "tokens": n, "peak_bytes": peak, "ratio": peak / peaks[names[0]]} for name, peak in peaks.items()]
