"""Results that survive kills, protocols that do not mix."""

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from digits import SMALL, tensors
from evaluated import PREPROCESSING, TASK, arguments, conditions_of, result, run, session
from PIL import Image
from skimage import data as photographs

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.data import Digits, Images, StreamedImages, World
from imgproc_attn.evaluation import FGSM, PGD
from imgproc_attn.evaluation.conditions import Condition, clean_condition
from imgproc_attn.evaluation.imagenet_c import ImageNetC
from imgproc_attn.evaluation.results import row
from imgproc_attn.evaluation.results_log import remove_results
from imgproc_attn.evaluation.samples import Samples, StreamSamples
from imgproc_attn.evaluation.session import EvaluationSession
from imgproc_attn.evaluation.specs import DatasetSpec, architecture_hash
from imgproc_attn.utils.serialization import describe


def test_results_are_the_attacks_own_whatever_the_batch(exact_model, samples, tmp_path):
    model = exact_model
    conditions = conditions_of(samples, {"PGD 20/255": PGD(20 / 255, 5, restarts=2, seed=3)})
    found = [session(model, tmp_path / str(size), batch_size=size).run(conditions) for size in (360, 50)]
    images, labels = tensors("test")
    ids = samples.ids
    assert torch.equal(found[0]["clean"].correct, model(images).argmax(1) == labels)
    expected = PGD(20 / 255, 5, restarts=2, seed=3)(model, images, labels, ids)
    assert 0.1 < expected.success.double().mean() < 0.9
    for results in found:
        assert torch.equal(results["PGD 20/255"].correct, ~expected.success)
        assert torch.equal(results["PGD 20/255"].labels, labels)
        assert results["PGD 20/255"].scores.max() <= 20 / 255 + 2**-24  # a rounding of x + eps


def test_a_subset_has_the_results_it_has_in_the_whole(exact_model, samples, tmp_path):
    attack = {"PGD": PGD(20 / 255, 5)}
    whole = session(exact_model, tmp_path / "whole").run(conditions_of(samples, attack))["PGD"]
    few = Samples(Images(Digits("test"), 10, [3, 50, 200], channels=1))
    part = session(exact_model, tmp_path / "part").run(conditions_of(few, attack))["PGD"]
    assert part.ids.tolist() == [3, 50, 200]
    assert torch.equal(part.correct, whole.correct[[3, 50, 200]])


def test_models_of_equal_weights_are_told_apart():
    """Heads and temperatures leave no trace in weights, nor in what models print."""
    build = partial(timm.create_model, "vit_tiny_patch16_224", depth=1, num_classes=0)
    three, six, again = build(num_heads=3), build(num_heads=6), build(num_heads=3)
    assert repr(three) == repr(six)
    assert architecture_hash(three) == architecture_hash(again) != architecture_hash(six)
    plain, twicing = (timm.create_model("plain_vit_tiny", **SMALL, residual=rule) for rule in ("plain", "twicing"))
    assert architecture_hash(plain) != architecture_hash(twicing)


def test_what_is_done_is_not_done_again(model, samples, tmp_path):
    class Counting(torch.nn.Module):
        seen = 0

        def forward(self, images):
            Counting.seen += len(images)
            return model(images)

    conditions = conditions_of(samples)
    first = session(Counting().eval(), tmp_path, batch_size=100).run(conditions)["clean"]
    file = next((tmp_path / "log").glob("clean*"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:70])  # two batches, and half a line
    Counting.seen = 0
    again = session(Counting().eval(), tmp_path, batch_size=100).run(conditions)["clean"]
    assert Counting.seen == 160
    assert torch.equal(first.ids, again.ids)
    assert first.columns == again.columns
    assert [len(json.loads(line).get("ids", [])) for line in file.read_text().splitlines()] == [0, 100, 100, 100, 60]


def test_checks_go_on_where_they_were_stopped(model, samples, tmp_path):
    """Finished checks are not repeated, and the report is that of checks in one go."""
    attacks, last = [PGD(20 / 255, 5)], "sanity check: PGD at eps 0.25"

    class Stopped(Exception):
        pass

    def check(folder, stop_at=None):
        """The report, and per check the number of images that it began with and that it computed."""
        seen = {}

        def progress(name, images):
            if name == stop_at:
                raise Stopped
            seen.setdefault(name, []).append(images)

        return session(model, tmp_path / folder, progress, batch_size=4).check(samples, attacks, 8), seen

    whole, seen = check("whole")
    assert whole.images == 8
    assert list(seen)[:4] == [f"sanity check: {name}" for name in ("gradients", "FGSM", "PGD", "PGD of 100 steps")]
    assert all(images == [0, 4, 4] for images in seen.values())
    with pytest.raises(Stopped):
        check("stopped", stop_at=last)
    again, resumed = check("stopped")
    assert again == whole
    before = list(seen).index(last)
    assert list(resumed.values()) == [[8]] * before + [[0, 4, 4]] * (len(seen) - before)
    assert check("stopped") == (whole, {}), "the report of finished checks is kept"


class Stream:
    """Digits in their order, as a reader of timm's that can only be iterated over."""

    def __init__(self, num_samples=360):
        self.num_samples = num_samples

    def __len__(self):
        return self.num_samples

    def __iter__(self):
        digits, info = Digits("test"), torch.utils.data.get_worker_info()
        for i in range(360):
            if info is None or i % info.num_workers == info.id:  # as shards are given to workers
                yield digits[i]


@pytest.mark.parametrize("announced", [360, 0])
def test_a_stream_gives_every_image_once_however_it_is_read(announced, exact_model, samples, tmp_path):
    """Each time from its start: the order, hence the numbers of the images, depends on the number of workers."""
    stream = StreamSamples(StreamedImages(Stream(announced), "L"))
    expected = session(exact_model, tmp_path / "numbered").run(conditions_of(samples, {}))["clean"]
    wanted = sorted(zip(expected.column("labels"), expected.column("loss")))
    for workers in (0, 2):
        read = session(exact_model, tmp_path / "stream", batch_size=50, workers=workers)
        found = read.run(conditions_of(stream, {}))["clean"]
        assert torch.equal(found.ids, samples.ids)
        for ours, theirs in zip(sorted(zip(found.column("labels"), found.column("loss"))), wanted, strict=True):
            assert ours == pytest.approx(theirs)
    assert not list((tmp_path / "stream").rglob("*.jsonl"))


def test_the_first_samples_of_a_stream_are_looked_at():
    stream = StreamSamples(StreamedImages(Stream(), "L")).random(70, 0)
    assert stream.ids.tolist() == list(range(70))
    batches = list(stream.batches(PREPROCESSING, 32, 0, torch.device("cpu")))
    assert [len(batch[0]) for batch in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), tensors("test")[0][:70])


def test_streams_of_other_data_are_told_apart():
    def identity(**source):
        return StreamSamples(StreamedImages(Stream(), "L"), source).identity

    assert identity(name="hfids/a", split="test") == identity(name="hfids/a", split="test")
    assert identity(name="hfids/a", split="test") != identity(name="hfids/b", split="test")


def test_what_attacks_needs_numbers(exact_model, tmp_path):
    stream = StreamSamples(StreamedImages(Stream(), "L"))
    with pytest.raises(ValueError, match="Use a reader of numbered images"):
        stream.corrupted(object())
    with pytest.raises(ValueError, match="Use a reader of numbered images"):
        stream.only(torch.tensor([3]))


@pytest.mark.parametrize("options", [{"limit": 9, "skip_broken": True}, {}])
def test_a_stream_is_not_cut_short_nor_stops_at_broken_images(options):
    message = "The stream 'wds/x' must be read to its end .* got limit=.*Leave out --limit and give --skip-broken"
    with pytest.raises(ValueError, match=message):
        TASK.numbered(StreamedImages(Stream(), "L"), DatasetSpec("wds/x", "", **options), 10, 1)


def test_two_evaluations_do_not_write_to_one_file(model, samples, tmp_path):
    pytest.importorskip("fcntl")
    conditions = conditions_of(samples)
    first = session(model, tmp_path, lambda *_: session(model, tmp_path).run(conditions))  # while the first is under way
    with pytest.raises(ValueError, match=r"must be free, but it is in use by process \d+ on .*Wait"):
        first.run(conditions)
    assert len(session(model, tmp_path).run(conditions)["clean"].ids) == len(samples)
    assert not list(tmp_path.glob(".*"))


def test_logs_alone_are_removed(model, samples, tmp_path):
    session(model, tmp_path / "logs" / "key").run(conditions_of(samples))
    theirs = ["germany.png", "key/log/clean.process-9.jsonl", "else/mine.process-0.jsonl", "clean.jsonl"]
    for name in theirs:
        (tmp_path / "logs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "logs" / name).write_text('{"mine": 1}\n')
    (tmp_path / "logs" / "key" / "log" / "cut.process-0.jsonl").touch()  # as a kill before its first line leaves it
    remove_results(tmp_path / "logs")
    assert {p.relative_to(tmp_path / "logs").as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(theirs)
    session(model, tmp_path / "ours").run(conditions_of(samples))
    remove_results(tmp_path / "ours" / "log")
    assert not (tmp_path / "ours" / "log").exists()
    remove_results(tmp_path / "ours" / "log")


def test_what_became_unreadable_counts_where_it_was_read(model, samples, tmp_path):
    conditions = conditions_of(samples, {"PGD 20/255": PGD(20 / 255, 2)})
    results = session(model, tmp_path).run(conditions)
    attacked = results["PGD 20/255"]
    results["PGD 20/255"] = attacked.only(attacked.ids[1:])
    rows = [row(condition, results[condition.name], TASK, (0.5,)) for condition in conditions]
    assert [r["n"] for r in rows] == [360, 359]
    assert TASK.cross_checks(rows, results) == []
    harmed = TASK.harmed(results["clean"], results["PGD 20/255"])
    assert 0 not in harmed
    assert len(harmed) == int((results["clean"].correct[1:] & ~results["PGD 20/255"].correct).sum())


def test_other_images_of_equal_names_are_refused(model, tmp_path):
    class Renamed(Digits):
        def _filename(self, index, basename=False, absolute=False):
            return f"test-{index}"

    first, second = (Samples(Images(Renamed("test", seed), 10, channels=1)) for seed in (0, 1))
    session(model, tmp_path).run(conditions_of(first))
    with pytest.raises(ValueError, match="another protocol.*images.content_sha256"):
        session(model, tmp_path).run(conditions_of(second))
    assert first.names == second.names


def test_names_are_told_apart(model, tmp_path):
    class Repeated(Digits):
        def _filename(self, index, basename=False, absolute=False):
            return f"{index % 300}.png"

    names = Samples(Images(Repeated("test"), 10, channels=1)).names
    assert len(set(names)) == 360
    assert (names[5], names[200]) == ("5.png#5", "200.png")


def test_another_protocol_is_refused(model, samples, tmp_path):
    session(model, tmp_path).run([Condition("A", samples, TASK.under(FGSM(0.1)))])
    with pytest.raises(ValueError, match=r"another protocol.*condition.scorer.attack.threat.eps: 0.1 -> 0.2"):
        session(model, tmp_path).run([Condition("A", samples, TASK.under(FGSM(0.2)))])
    fewer = Samples(Images(Digits("test"), 10, range(100), channels=1))
    with pytest.raises(ValueError, match="images.n: 360 -> 100"):
        session(model, tmp_path).run([Condition("A", fewer, TASK.under(FGSM(0.1)))])
    with pytest.raises(ValueError, match="must have its own name, got A, A"):
        session(model, tmp_path).run([clean_condition(samples, TASK, "A")] * 2)


def test_a_damaged_file_is_named(model, samples, tmp_path):
    session(model, tmp_path, batch_size=100).run(conditions_of(samples))
    file = next((tmp_path / "log").glob("clean*"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    with pytest.raises(ValueError, match=r"clean.process-0.jsonl must be a log .*, but is damaged.*Remove it"):
        session(model, tmp_path).run(conditions_of(samples))


def test_processes_share_a_folder(exact_model, samples, tmp_path, monkeypatch):
    """Two processes leave one set of results, for any number of processes that go on with it."""
    model = exact_model
    conditions = conditions_of(samples, {"PGD": PGD(20 / 255, 3)})
    alone = session(model, tmp_path / "alone").run(conditions)
    monkeypatch.setattr(EvaluationSession, "_wait", lambda self: None)
    together = tmp_path / "together"
    with pytest.raises(ValueError, match="180 of 360 samples have no result.*All processes must see one folder"):
        session(model, together, world=World(1, 2)).run(conditions)
    found = session(model, together).run(conditions)
    assert len(list((together / "log").glob("PGD*"))) == 2
    assert all(torch.equal(alone[name].correct, found[name].correct) for name in alone)


SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from imgproc_attn import cli
import matplotlib.backends.backend_agg
import imgproc_attn.evaluation.protocols, imgproc_attn.evaluation.presets, imgproc_attn.training.run
import imgproc_attn.evaluation.attacks, imgproc_attn.evaluation.sanity, imgproc_attn.evaluation.session
import imgproc_attn.tasks.classification, imgproc_attn.tasks.segmentation
from imgproc_attn.data import Digits
Digits("test")  # what is imported before the fork takes no time of the child's
for line in sys.stdin:
    kill_after, kill_at_write, words = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        sys.stderr = open(os.devnull, "w")
        if kill_after:
            signal.setitimer(signal.ITIMER_PROF, kill_after)  # SIGPROF, which ends a process as abruptly as SIGKILL
        writes, fsync = 0, os.fsync
        def kill_in_write(descriptor):
            global writes
            writes += 1
            if writes == kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        os.fsync = kill_in_write
        cli.main(words)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([status, usage.ru_utime + usage.ru_stime]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_nothing_is_lost_or_done_twice(folder, tmp_path):
    """By turns in a write, and at a moment of its own processor time, which does not depend on what else the machine does."""
    job = ["attack", *arguments(folder), "--attacks", "fgsm", "pgd", "--eps", "20/255", "--steps", "5", "--limit", "128"]
    job += ["--checks", "4", "--batch-size", "16"]
    rng = random.Random(0)
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def attempt(output, kill_after=0.0, kill_at_write=0):
            """Its status, and seconds of the processor."""
            print(json.dumps([kill_after, kill_at_write, [*job, "--output", str(output)]]), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        status, length = attempt(tmp_path / "whole")
        assert status == 0
        killed, kills, progress = [tmp_path / "killed-0"], 0, set()
        while kills < 12 or len(progress) < 3:  # until kills have met the work at several places
            assert kills < 60
            when = {"kill_after": rng.uniform(0.05, 0.3) * length} if kills % 2 else {"kill_at_write": rng.randint(1, 12)}
            status, _ = attempt(killed[-1], **when)
            assert status in (0, signal.SIGKILL, signal.SIGPROF)
            if status:
                kills += 1
                progress.add(sum(len(file.read_bytes().splitlines()) for file in (killed[-1] / "log").rglob("*.jsonl")))
            else:  # it was done before: the next attempts begin again, and sooner
                killed.append(tmp_path / f"killed-{len(killed)}")
                length *= 0.8
        assert attempt(killed[-1])[0] == 0
        server.stdin.close()
    for folder in killed:
        assert (tmp_path / "whole" / "per_sample.csv").read_bytes() == (folder / "per_sample.csv").read_bytes()
        assert result(tmp_path / "whole")["conditions"] == result(folder)["conditions"]
        for file in (folder / "log").rglob("*.jsonl"):
            ids = [i for line in file.read_text().splitlines()[1:] for i in json.loads(line)["ids"]]
            assert sorted(ids) == sorted(set(ids))


def test_other_code_or_photographs_are_another_protocol(folder, tmp_path, capsys, monkeypatch):
    """Half an evaluation is not finished by code that has changed since; nor with other pictures of frost."""
    words = ["attack", *arguments(folder), "--attacks fgsm --eps 0.1 --limit 8 --checks 2", "--output", tmp_path / "out"]
    run(*words)
    monkeypatch.setattr("imgproc_attn.evaluation.session.sources_hash", lambda: "changed")
    with pytest.raises(SystemExit):
        run(*words)
    assert "another protocol" in (said := capsys.readouterr().err)
    assert "sources_sha256" in said
    for place, shift in (("a", 0), ("b", 1)):
        for i, ending in enumerate(("png", "png", "png", "jpg", "jpg"), start=1):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(photographs.rocket()[shift:]).save(tmp_path / place / f"frost{i}.{ending}")
    one, two, again = (ImageNetC("frost", 1, frost_folder=tmp_path / place) for place in "aba")
    assert describe(one) == describe(again) != describe(two)
