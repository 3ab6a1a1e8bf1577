"""Killed for real, at any moment, a run goes on to exactly the weights of the uninterrupted one.

A server process imports the library once and forks a child for every attempt; the child trains, and is killed in the middle of
a write, or at a random moment of its own processor time, which does not depend on what else the machine does.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imgproc_attn.utils.locks import LOCK

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
import imgproc_attn.utils.io as files
from imgproc_attn.recipe import find_recipe, load_recipe
from imgproc_attn.training import train
from imgproc_attn.data import Digits
from imgproc_attn.training import run, run_logger
import matplotlib.backends.backend_agg, torch.utils.tensorboard

Digits("train")  # what is imported before the fork takes no time of the child's

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        writes, fsync = 0, os.fsync
        def kill_in_write(descriptor):
            global writes
            writes += 1
            if writes == job["kill_at_write"]:
                if job["half"]:  # half of the file is on the disk
                    os.ftruncate(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY), os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        files.os.fsync = kill_in_write
        epoch = run.Run.epoch
        def kill_in_epoch(self, number):
            if number == job["kill_in_epoch"]:  # after its first batch, while processes load the next ones
                self.trainer.progress = lambda images: os.kill(os.getpid(), signal.SIGKILL)
            return epoch(self, number)
        run.Run.epoch = kill_in_epoch
        if job["kill_after"]:
            signal.setitimer(signal.ITIMER_PROF, job["kill_after"])  # SIGPROF, which ends a process as abruptly as SIGKILL
        recipe = load_recipe(find_recipe("quickstart"), job["overrides"]).variant("bilateral + twicing", 0)
        train(recipe, Path(job["folder"]), resume=True, log=lambda line: None)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps({"status": status, "seconds": usage.ru_utime + usage.ru_stime}), flush=True)
"""
OVERRIDES = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.drop_path_rate=0.1",
    "augmentation.mixup=0.2",
    "run.ema_decay=0.9",
    "schedule.epochs=12",
    "schedule.warmup_epochs=1",
    "data.validation_images=64",
    "data.train_images=384",
    "data.test_images=64",
]


class Server:
    def __init__(self, overrides):
        self.overrides = overrides
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder, kill_after=0.0, kill_at_write=0, half=False, kill_in_epoch=None):
        """Train until the end or the kill: whether it was killed, and seconds of the processor."""
        job = {"overrides": self.overrides, "folder": str(folder), "kill_after": kill_after, "kill_in_epoch": kill_in_epoch}
        print(json.dumps({**job, "kill_at_write": kill_at_write, "half": half}), file=self.process.stdin, flush=True)
        ended = json.loads(self.process.stdout.readline())
        assert ended["status"] in (0, signal.SIGKILL, signal.SIGPROF), ended
        return ended["status"] != 0, ended["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def survive(workers, kills, tmp_path):
    """Kill a run ``kills`` times, by turns at random and in a write, then let it end."""
    server = Server([*OVERRIDES, f"data.workers={workers}"])
    try:
        assert not server.run(tmp_path / "whole")[0]
        _, duration = server.run(tmp_path / "twice")
        compare(tmp_path / "whole", tmp_path / "twice")
        rng, killed, rounds, folder, progress = random.Random(workers), 0, 0, tmp_path / "broken", []
        while killed < kills:
            if (folder / "final.json").exists():  # it got through between kills: once more from the start
                rounds += 1
                folder.rename(tmp_path / f"survived-{rounds}")
                compare(tmp_path / "whole", tmp_path / f"survived-{rounds}")
            if killed % 2:
                was_killed, _ = server.run(folder, kill_at_write=rng.randint(1, 28), half=rng.random() < 0.7)
            else:
                was_killed, _ = server.run(folder, kill_after=rng.uniform(0.02, 0.5) * duration)
            killed += was_killed
            if (folder / "state.pt").exists():
                progress.append(len(torch.load(folder / "state.pt", weights_only=True)["records"]))  # whole at all times
        assert not server.run(folder)[0]
        compare(tmp_path / "whole", folder)
        assert len(set(progress)) > 1
    finally:
        server.close()


def compare(whole, broken):
    for which in ("best", "last"):
        a, b = (load_file(folder / which / "model.safetensors") for folder in (whole, broken))
        assert all(torch.equal(a[name], b[name]) for name in a)
    results = [json.loads((folder / "final.json").read_text()) for folder in (whole, broken)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, broken)]
    assert [json.loads(line)["epoch"] for line in lines[1]] == list(range(12))
    assert [json.loads(line)["train_loss"] for line in lines[0]] == [json.loads(line)["train_loss"] for line in lines[1]]
    assert not list(Path(broken).rglob(".*"))


def test_a_killed_run_goes_on_at_once_whatever_its_workers_do(tmp_path):
    """They outlive it by some seconds, and must not keep its folder."""
    server = Server([*OVERRIDES, "data.workers=1"])
    try:
        for epoch in (0, 2):
            assert server.run(tmp_path, kill_in_epoch=epoch)[0]
            assert (tmp_path / LOCK).exists()
        assert not server.run(tmp_path)[0]
    finally:
        server.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 12
    assert not (tmp_path / LOCK).exists()


def test_killed_runs_end_where_whole_runs_end(tmp_path):
    survive(0, 20, tmp_path)


@pytest.mark.slow
def test_killed_runs_with_workers_end_where_whole_runs_end(tmp_path):
    survive(2, 20, tmp_path)
