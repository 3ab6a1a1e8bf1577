"""The jobs of a comparison in parallel processes, each of which does one after another on its device."""

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

PATIENCE = 10.0  # seconds in which a process must end


class Job(NamedTuple):
    """Train one variant at one seed, and examine it."""

    label: str
    seed: int

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


# Does a job and returns its result. Its arguments: the job, a function of log lines, a function of the number of steps done.
Work = Callable[[Job, Callable[[str], Any], Callable[[int], Any]], Any]


class JobFailed(RuntimeError):
    """A job that ended with an error, or whose process ended."""


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
    """Do the jobs, and return their results in the order of ``jobs``.

    With one device they are done here, else in processes of their own. Processes end with this one, however it ends.

    Args:
        start: Called once in each process with its device, gives what does the jobs. It is pickled.
        jobs: What to do.
        devices: One for each process.
        progress: Shows lines and steps.

    Raises:
        JobFailed: One failed, or its process ended; the message says which and why. The others are stopped.
    """
    others = OtherPrograms(len(devices)) if devices[0] == "cpu" else None

    def look(children: float = 0.0) -> None:
        if others is not None and (remark := others.remark(children)):
            print_line(remark)

    done = _here if len(devices) == 1 else _in_processes
    results = done(start, jobs, devices, progress, look)
    look()
    return {job: results[job] for job in jobs}


def _here(
    start: Callable[[str], Work],
    jobs: Sequence[Job],
    devices: Sequence[str],
    progress: JobsProgress,
    look: Callable[..., None],
) -> dict[Job, Any]:
    """One job after another in this process."""
    results = {}
    with one_thread(devices[0]):
        work = start(devices[0])
        for job in jobs:
            try:
                results[job] = work(job, partial(progress.say, job), partial(progress.step, job))
            except Exception as error:
                raise JobFailed(f"{job}: {_line(error)}") from error
            progress.end(job)
            look()
    return results


def _in_processes(
    start: Callable[[str], Work],
    jobs: Sequence[Job],
    devices: Sequence[str],
    progress: JobsProgress,
    look: Callable[..., None],
) -> dict[Job, Any]:
    waiting, results, workers = list(jobs), {}, []
    seconds: dict[str, float] = {}  # by label, what its last job took
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
                        progress.say(job, text)
                    case _Warning(text):
                        print_line(f"{job}: warning: {text}")
                    case _Steps(done):
                        progress.step(job, done)
                    case _Failed(line, trace):
                        raise JobFailed(f"{job}: {line}") from RuntimeError(trace)
                    case _Done(result):
                        results[job], seconds[job.label] = result, time.monotonic() - worker.began
                        progress.end(job)
                        # longest first, and first of all those that nothing is known of: no process is left with a long one
                        waiting.sort(key=lambda job: -seconds.get(job.label, float("inf")))
                        worker.begin(waiting.pop(0) if waiting else None)
                        look(sum(worker.cpu for worker in workers))
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.stop()
    return results


class _Worker:
    """A process, seen from this one.

    Attributes:
        connection: To the process, in both directions. When one side ends, however it ends, the other one gets to know.
        job: What it does; None if nothing.
        began: When it began.
        cpu: Seconds of processor time that it took until its last message.
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
            how = f"was killed by signal {-code} ({signal.Signals(-code).name}); is there too little memory? Try --jobs 1"
        elif self.cpu == 0:
            how = (
                f"ended with exit status {code} before it began. A script that calls compare must do so below "
                '`if __name__ == "__main__":`, or with jobs=1'
            )
        else:
            how = f"ended with exit status {code}"
        raise JobFailed(f"{self.job}: its process {how}. The same command goes on with what is done.")


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Start processes that take no notice of Ctrl-C, which a terminal sends to them too: this process stops them."""
    if threading.current_thread() is not threading.main_thread():  # handlers are set in the main thread only
        yield
        return
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _serve(connection: Connection, start: Callable[[str], Work], device: str, folder: str, modules: Sequence[str]) -> None:
    """Do jobs until the other side of the connection ends."""
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
        jobs.get()  # until the connection ends


def _listen(connection: Connection, jobs: "queue.SimpleQueue[Job]") -> None:
    """Take jobs; end the process with the other side of the connection."""
    try:
        while True:
            jobs.put(connection.recv())
    finally:
        os._exit(1)


def _line(error: Exception) -> str:
    """Its message without line breaks."""
    return " ".join(one_line(error).split())
