"""Output in any encoding, and readers that leave early."""

import io
import os
import subprocess
import sys

import pytest

from imgproc_attn import cli
from imgproc_attn.cli.console import console

TEXT = "96.1 ± 0.3 % … 模型 \udcff"  # the last one is a byte of a file name that is no UTF-8
POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes of Unix")


def command(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    """Run the command; returns its status, output and errors."""
    arguments, variables = [sys.executable, "-m", "imgproc_attn", *words], {**os.environ, **environment}
    done = subprocess.run(arguments, stdout=stdout, stderr=stderr, env=variables, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def unread():
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def stream(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding, errors)


def printed(stream):
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "shift-jis", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding, errors, monkeypatch):
    out, err = stream(encoding, errors), stream(encoding, errors)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with console():
        print(TEXT)
        print(TEXT, file=sys.stderr)
    expected = TEXT.encode(encoding, "backslashreplace").decode(encoding) + os.linesep
    assert printed(out) == printed(err) == expected


def test_a_way_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream("ascii", "replace"))
    with console():
        print(TEXT)
    assert printed(sys.stdout).startswith("96.1 ? 0.3 % ?")


def test_outputs_that_are_none_or_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # as in notebooks
    monkeypatch.setattr(sys, "stderr", None)  # as without a console on Windows
    with console():
        print(TEXT)
    assert sys.stdout.getvalue() == TEXT + "\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=lambda environment: next(iter(environment.values())),
)
def test_commands_end_well_in_other_encodings(environment):
    for words, status in ((["recipes"], 0), (["attack", "--help"], 0), (["recipes", "--copy", "…"], 2)):
        found, _, errors = command(*words, **environment)
        assert found == status, errors
        assert b"Traceback" not in errors


@POSIX
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "statuses"),
    [(["recipes"], {141}), (["attack", "--help"], {0, 141}), (["--version"], {0, 141})],  # argparse may ignore the closed pipe
    ids=str,
)
def test_a_closed_pipe_ends_quietly(words, statuses, unbuffered, unread):
    status, _, errors = command(*words, stdout=unread, PYTHONUNBUFFERED=unbuffered)
    assert errors == b""
    assert status in statuses


@POSIX
def test_closed_pipes_for_errors_end_quietly(unread):
    status, output, _ = command("recipes", "--copy", "no-such-recipe", stderr=unread)
    assert (status, output) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_is_told_in_a_line():
    with open("/dev/full", "w") as full:
        status, _, errors = command("recipes", stdout=full)
    assert status == 2
    assert errors.startswith(b"imgproc-attn: ")
    assert b"No space left on device" in errors
    assert b"Traceback" not in errors


@POSIX
def test_other_broken_pipes_are_errors(capsys, monkeypatch):
    """As one to a process that reads images and was killed."""

    def broken(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli.training, "_recipes", broken)
    with pytest.raises(SystemExit) as end:
        cli.main(["recipes"])
    assert end.value.code == 2
    assert "Broken pipe" in capsys.readouterr().err
