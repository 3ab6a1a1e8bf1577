"""Load of other programs, and a number of threads that does not depend on the number of cores."""

import os

import pytest
import torch

from imgproc_attn.utils import cores
from imgproc_attn.utils.cores import OtherPrograms, one_thread, slowdown, usable_cores


@pytest.mark.parametrize(
    ("wall", "own", "busy", "workers", "share", "factor"),
    [
        (100, 104, 200, 2, 0.48, 1.9),  # one busy process beside two
        (100, 67, 200, 2, 0.665, 3.0),  # two busy processes beside two
        (100, 52, 200, 1, 0.74, 1.9),  # one process, beside three
    ],
)
def test_a_run_that_others_slow_down_is_told_so(wall, own, busy, workers, share, factor):
    found = slowdown(wall, own, busy, 2, workers)
    assert found.share == pytest.approx(share)
    assert found.factor == pytest.approx(factor, abs=0.1)
    assert str(found) == (
        f"Other programs used {100 * share:.0f} % of the 2 cores; this took about {found.factor:.1f} times as long."
    )


@pytest.mark.parametrize(
    ("wall", "own", "busy", "workers"),
    [
        (100, 196, 199, 2),  # alone
        (100, 99, 198, 1),  # one process, and another program on the other core
        (100, 60, 110, 2),  # The run waits for a disk or another thread, so half a core is idle.
        (100, 185, 200, 2),  # Other programs used little.
        (0, 0, 0, 2),
        (100, 0, 200, 2),  # The own processor time is unknown.
    ],
)
def test_other_runs_are_not(wall, own, busy, workers):
    assert slowdown(wall, own, busy, 2, workers) is None


def test_it_is_told_once_and_not_at_once(monkeypatch):
    """Two cores: no remark after 10 seconds, a remark after 100 seconds with 52 of the run, no second remark."""
    now = iter([(0.0, 5.0, 1000.0), (10.0, 10.0, 1020.0), (100.0, 57.0, 1200.0), (200.0, 109.0, 1400.0)])
    state = {}

    def clock():
        state["wall"], state["own"], state["busy"] = next(now)
        return state["wall"]

    monkeypatch.setattr(cores.time, "monotonic", clock)
    monkeypatch.setattr(cores, "own_seconds", lambda: state["own"])
    monkeypatch.setattr(cores, "_busy_seconds", lambda: state["busy"])
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    others = OtherPrograms(2)
    assert others.remark() == ""
    assert others.remark(children=52.0) == "Other programs used 48 % of the 2 cores; this took about 1.9 times as long."
    assert others.remark(children=52.0) == ""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_no_more_cores_than_the_process_may_use():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    assert cores._busy_seconds() > 0


def test_one_thread_on_the_cpu_alone():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    with one_thread("cuda:0"):
        assert torch.get_num_threads() == 3
    with one_thread("cpu"):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    torch.set_num_threads(usual)
