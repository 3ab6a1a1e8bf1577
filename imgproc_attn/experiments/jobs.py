"""Run the jobs of a comparison in parallel processes. Each process runs one job after another on its device."""

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, NoReturn

from ..utils import plugins
from ..utils.cores import OtherPrograms, one_thread, own_seconds
from ..utils.environment import keep_freed_memory
from ..utils.errors import one_line
from ..utils.progress import JobsProgress, print_line

__all__ = ["Job", "JobFailed", "run_jobs"]

PATIENCE = 10.0  # seconds within which a process must end


class Job(NamedTuple):
    """Job of a comparison: train and evaluate one variant with one seed.

    Attributes:
        label: Label of the variant.
        seed: Seed of the training.

    Example:
        >>> str(Job("twicing", 0))
        'twicing, seed 0'
    """

    label: str
    seed: int

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


# Function that runs a job and returns its result. Its arguments are the job, a function that takes lines of the log, and a
# function that takes the number of finished steps.
Work = Callable[[Job, Callable[[str], Any], Callable[[int], Any]], Any]


class JobFailed(RuntimeError):
    """Error of a job that failed or whose process ended early."""


@dataclass(frozen=True)
class _Line:
    text: str


@dataclass(frozen=True)
class _Warning:
    text: str


@dataclass(frozen=True)
class _Steps:
    done: int


@dataclass(frozen=True)
class _Done:
    result: Any


@dataclass(frozen=True)
class _Failed:
    line: str
    trace: str


def run_jobs(
    start: Callable[[str], Work], jobs: Sequence[Job], devices: Sequence[str], progress: JobsProgress
) -> dict[Job, Any]:
    """Run jobs, and return their results in the order of ``jobs``.

    With one device, jobs run in this process. With several devices, they run in one process per device. These processes end
    when this process ends, even if it is killed.

    Args:
        start: Picklable function that is called once in each process with its device. It returns a function that runs a job.
        jobs: Jobs to run.
        devices: Device of each process.
        progress: Display of the jobs' log lines and finished steps.

    Raises:
        JobFailed: A job failed, or its process ended early. The message names the job and the reason. Other jobs are stopped.
    """
    others = OtherPrograms(len(devices)) if devices[0] == "cpu" else None

    def check_load(children: float = 0.0) -> None:
        if others is not None and (remark := others.remark(children)):
            print_line(remark)

    run = _here if len(devices) == 1 else _in_processes
    results = run(start, jobs, devices, progress, check_load)
    check_load()
    return {job: results[job] for job in jobs}


def _here(
    start: Callable[[str], Work],
    jobs: Sequence[Job],
    devices: Sequence[str],
    progress: JobsProgress,
    check_load: Callable[..., None],
) -> dict[Job, Any]:
    """Run one job after another in this process."""
    results = {}
    with one_thread(devices[0]):
        work = start(devices[0])
        for job in jobs:
            try:
                results[job] = work(job, partial(progress.log, job), partial(progress.step, job))
            except Exception as error:
                raise JobFailed(f"{job}: {_line(error)}") from error
            progress.end(job)
            check_load()
    return results


def _in_processes(
    start: Callable[[str], Work],
    jobs: Sequence[Job],
    devices: Sequence[str],
    progress: JobsProgress,
    check_load: Callable[..., None],
) -> dict[Job, Any]:
    waiting, results, workers = list(jobs), {}, []
    seconds: dict[str, float] = {}  # {label: duration of its last job}
    try:
        for device in devices:
            workers.append(_Worker(start, device))
            workers[-1].begin(waiting.pop(0))
        while busy := {worker.connection: worker for worker in workers if worker.job is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                message, job = worker.receive()
                match message:
                    case _Line(text):
                        progress.log(job, text)
                    case _Warning(text):
                        print_line(f"{job}: warning: {text}")
                    case _Steps(done):
                        progress.step(job, done)
                    case _Failed(line, trace):
                        raise JobFailed(f"{job}: {line}") from RuntimeError(trace)
                    case _Done(result):
                        results[job], seconds[job.label] = result, time.monotonic() - worker.began
                        progress.end(job)
                        # Unknown jobs start first, then the longest ones, so that no long job runs alone at the end.
                        waiting.sort(key=lambda job: -seconds.get(job.label, float("inf")))
                        worker.begin(waiting.pop(0) if waiting else None)
                        check_load(sum(worker.cpu for worker in workers))
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.stop()
    return results


class _Worker:
    """Handle of a process that runs jobs.

    Attributes:
        connection: Connection to the process in both directions. When one side ends, the other side is notified.
        job: Current job; None if there is none.
        began: Start of the current job, in seconds of the monotonic clock.
        cpu: Processor time of the process until its last message, in seconds.
    """

    def __init__(self, start: Callable[[str], Work], device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self.began, self.cpu = 0.0, 0.0
        arguments = (theirs, start, device, os.getcwd(), tuple(plugins.requested))
        self._process = context.Process(target=_serve, args=arguments)
        with _children_ignore_interrupts():
            self._process.start()
        theirs.close()

    def begin(self, job: Job | None) -> None:
        self.job, self.began = job, time.monotonic()
        if job is not None:
            try:
                self.connection.send(job)
            except OSError:
                self._fail()

    def receive(self) -> tuple[Any, Job]:
        assert self.job is not None
        try:
            message, self.cpu = self.connection.recv()
        except (EOFError, OSError):
            self._fail()
        return message, self.job

    def stop(self) -> None:
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _fail(self) -> NoReturn:
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name}). If there is too little memory, use --jobs 1"
        elif self.cpu == 0:
            how = (
                f"ended with exit status {code} before its first job. In a script, call compare below "
                '`if __name__ == "__main__":`, or with jobs=1'
            )
        else:
            how = f"ended with exit status {code}"
        raise JobFailed(f"{self.job}: its process {how}. Repeat the command to resume.")


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Make processes that are started in the body ignore Ctrl-C.

    A terminal sends it to all processes, but this process stops the others itself.
    """
    if threading.current_thread() is not threading.main_thread():  # Handlers can be set only in the main thread.
        yield
        return
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _serve(connection: Connection, start: Callable[[str], Work], device: str, folder: str, modules: Sequence[str]) -> None:
    """Run jobs until the other side of the connection ends."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, jobs), daemon=True).start()

    def send(message: Any) -> None:
        connection.send((message, own_seconds()))

    warnings.showwarning = lambda message, *_: send(_Warning(str(message)))
    try:
        os.chdir(folder)
        for name in modules:
            plugins.import_extension(name)
        if device == "cpu":
            keep_freed_memory()
        with one_thread(device):
            work = start(device)
            while True:
                send(_Done(work(jobs.get(), lambda text: send(_Line(text)), lambda done: send(_Steps(done)))))
    except Exception as error:
        send(_Failed(_line(error), traceback.format_exc()))
        jobs.get()  # It blocks until the connection ends.


def _listen(connection: Connection, jobs: "queue.SimpleQueue[Job]") -> None:
    """Receive jobs. End this process when the other side of the connection ends."""
    try:
        while True:
            jobs.put(connection.recv())
    finally:
        os._exit(1)


def _line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(one_line(error).split())
