"""Progress: bars on terminals, plain lines elsewhere."""

import io

import pytest

from imgproc_attn import cli
from imgproc_attn.utils import progress
from imgproc_attn.utils.progress import JobsProgress, Lines, on_terminal, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminals(monkeypatch):
    """Make standard output and standard error terminals."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(progress.sys, "stdout", out)
    monkeypatch.setattr(progress.sys, "stderr", err)
    return out, err


def test_bars_need_a_terminal_for_output_and_errors(monkeypatch):
    terminals(monkeypatch)
    assert on_terminal()
    assert not isinstance(progress_bar(3), Lines)
    for stream in ("stdout", "stderr"):
        with monkeypatch.context() as patch:
            patch.setattr(progress.sys, stream, io.StringIO())
            assert not on_terminal()
            assert isinstance(progress_bar(3), Lines)


def test_a_line_per_condition_and_one_at_the_end(capsys):
    with progress_bar(20) as bar:
        for name in ("clean", "PGD 4/255"):
            for _ in range(5):
                bar.set_description(name, refresh=False)
                bar.update(2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "clean: 0 of 20 images",
        "PGD 4/255: 10 of 20 images",
        "PGD 4/255: 20 of 20 images",
    ]


def test_a_line_per_minute_of_what_has_no_conditions(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar(None) as bar:
        for _ in range(13):
            bar.update(100)
            now[0] += 10
    assert capsys.readouterr().out == "700 images, 01:00 elapsed\n1300 images, 02:00 elapsed\n"


def test_nothing_is_printed_where_nothing_is_shown(capsys):
    with progress_bar(3, shown=False) as bar:
        bar.set_description("clean")
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def run_two_jobs():
    with JobsProgress(2, 3) as shown:
        for step in range(3):
            for job in ("plain, seed 0", "twicing, seed 0"):
                shown.log(job, f"epoch {step + 1}/3")
                shown.log(job, f"epoch {step + 1}/3")
                shown.step(job, step + 1)
        shown.end("plain, seed 0")


def test_jobs_as_lines(capsys):
    run_two_jobs()
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{job}, seed 0: epoch {step}/3" for step in (1, 2, 3) for job in ("plain", "twicing")]
    assert err == ""


def test_jobs_as_one_bar(monkeypatch):
    streams = terminals(monkeypatch)
    run_two_jobs()
    out, err = (stream.getvalue() for stream in streams)
    assert out == ""
    assert "6/6" in err
    assert "plain, seed 0: epoch 1/3 | twicing, seed 0: epoch 1/3" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "quickstart", "--variant", "plain"], ["epoch 1/2  ", "epoch 2/2  "]),
        (
            ["quickstart", "comparison.variants={plain: {name: vit_tiny_patch16_224}}", "--jobs", "1"],
            ["plain, seed 0: PGD-1 0.1"],
        ),
    ],
)
def test_commands_print_plain_lines_into_pipes(words, expected, tmp_path, capsys):
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "schedule.epochs=2", "schedule.warmup_epochs=0"]
    small += ["data.test_images=50", "data.train_images=256", "comparison.seeds=[0]", "evaluation.pgd_steps=1"]
    cli.main([*words, *small, "--output", str(tmp_path), "--device", "cpu"])
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    for text in expected:
        assert sum(line == text or line.startswith(text + "loss") for line in out.splitlines()) == 1
