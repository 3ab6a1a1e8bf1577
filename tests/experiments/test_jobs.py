"""Jobs in processes: where they run, and what stops them."""

import os
import signal
import sys
import time
import warnings

import pytest
import torch

from imgproc_attn.experiments.jobs import Job, JobFailed, run_jobs
from imgproc_attn.utils import plugins
from imgproc_attn.utils.progress import JobsProgress

JOBS = [Job("a", 0), Job("b", 0), Job("a", 1), Job("b", 1)]


class Look:
    """Says where it runs."""

    def __init__(self, device):
        pass

    def __call__(self, job, log, progress):
        log("looks")
        if job == JOBS[1]:
            warnings.warn("looks twice", stacklevel=1)
        progress(1)
        open(f"process-{os.getpid()}", "w").close()
        while len([name for name in os.listdir() if name.startswith("process-")]) < 2:  # none takes all the jobs
            time.sleep(0.05)
        return os.getpid(), os.getcwd(), torch.get_num_threads(), "own_module" in sys.modules, str(job)


class Fail:
    """One job ends as it is told once the other one runs, which would never end."""

    def __init__(self, device):
        pass

    def __call__(self, job, log, progress):
        open(f"{job.label}-{os.getpid()}", "w").close()
        while len(os.listdir()) < 2 or job.label == "b":
            time.sleep(0.05)
        self.end()

    def end(self):
        raise ValueError("the loss\nis nan")


class Die(Fail):
    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Leave(Fail):
    def end(self):
        sys.exit(3)


def run(kind, jobs=JOBS, devices=("cpu", "cpu")):
    with JobsProgress(len(jobs), 1) as progress:
        return run_jobs(kind, jobs, devices, progress)


def test_each_process_does_several_jobs_with_one_thread_where_and_with_what_it_was_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_module.py").write_text("")
    monkeypatch.setattr(plugins, "requested", ["own_module.py"])
    found = run(Look)
    assert list(found) == JOBS
    processes, folders, threads, imported, names = zip(*found.values())
    assert len(set(processes)) == 2
    assert os.getpid() not in processes
    assert set(folders) == {str(tmp_path.resolve())}
    assert set(threads) == {1}
    assert all(imported)
    assert list(names) == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Other programs")]
    assert sorted(lines) == sorted(["b, seed 0: warning: looks twice", *(f"{job}: looks" for job in JOBS)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Fail, "^a, seed 0: the loss is nan$"),
        (Die, r"^a, seed 0: its process was killed by signal 9 \(SIGKILL\). If there is too little memory, use --jobs 1"),
        (Leave, "^a, seed 0: its process ended with exit status"),
    ],
)
def test_the_others_are_stopped_when_one_fails(kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobFailed, match=message):
        run(kind, JOBS[:2])
    for name in os.listdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(name.partition("-")[2]), 0)


def test_one_job_at_a_time_runs_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").touch()
    with pytest.raises(JobFailed, match="^a, seed 0: the loss is nan$") as failed:
        run(Fail, JOBS[:1], ("cpu",))
    assert isinstance(failed.value.__cause__, ValueError)
    assert f"a-{os.getpid()}" in os.listdir()
