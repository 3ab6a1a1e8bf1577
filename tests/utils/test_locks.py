"""Locks on folders: one process at a time, released when the process ends."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from imgproc_attn.utils import locks
from imgproc_attn.utils.locks import LOCK, locked

pytest.importorskip("fcntl")

FORK = multiprocessing.get_context("fork")


def leave(folder):
    with locked(folder):
        pass


def leave_as_a_stranger(folder):
    """Lock and release the folder without the set of this process, so that only the system knows of the lock."""
    locks._held.clear()
    leave(folder)


def hold(folder, kind, pipe):
    """Hold the lock, start a child that outlives this process, and wait to be killed."""
    with locked(folder):
        if kind == "exec":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False).pid
        else:
            worker = FORK.Process(target=time.sleep, args=(600,))
            worker.start()
            child = worker.pid
        pipe.send(child)
        time.sleep(600)  # This is longer than any test may take.


@pytest.mark.parametrize("kind", ["fork", "exec"])
def test_a_lock_ends_with_its_process_whatever_its_children_do(kind, tmp_path):
    ours, theirs = FORK.Pipe()
    holder = FORK.Process(target=hold, args=(tmp_path / "run", kind, theirs))
    holder.start()
    child = ours.recv()
    try:
        with pytest.raises(ValueError, match=rf"run must be free, but it is in use by process {holder.pid} on .*Wait for it"):
            leave(tmp_path / "run")
        holder.kill()
        holder.join()
        os.kill(child, 0)  # The child is still running.
        with locked(tmp_path / "run"):
            assert f"process {os.getpid()} on" in (tmp_path / "run" / LOCK).read_text()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
    assert list((tmp_path / "run").iterdir()) == []


def test_threads_of_one_process_are_told_apart(tmp_path):
    found = []

    def second():
        try:
            with locked(tmp_path / ".." / tmp_path.name):  # This is the same folder through another path.
                pass
        except ValueError as error:
            found.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        second()
    assert len(found) == 2
    assert f"in use by process {os.getpid()}" in found[0]
    second()
    assert len(found) == 2


def test_what_a_child_does_frees_nothing(tmp_path):
    """A forked child cannot lock the folder, and its end does not release the lock."""
    with locked(tmp_path):
        child = FORK.Process(target=leave, args=(tmp_path,))
        child.start()
        child.join()
        assert child.exitcode == 1
        # The end of the first child did not release the lock.
        again = FORK.Process(target=leave_as_a_stranger, args=(tmp_path,))
        again.start()
        again.join()
        assert again.exitcode == 1
        assert (tmp_path / LOCK).exists()
    leave(tmp_path)


def test_folders_that_stay_empty_are_not_left(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "mine.txt").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    leave(tmp_path / "empty")
    assert (tmp_path / "empty").exists(), "it was there before"


def test_a_lock_that_was_left_by_a_killed_process_is_taken(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    leave(tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_files_cannot_be_locked_a_warning_says_so(reason, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .*no other process writes to it"), locked(tmp_path):
        pass


def test_systems_without_such_locks_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(UserWarning, match="cannot be locked .this system has no fcntl"), locked(tmp_path):
        pass
