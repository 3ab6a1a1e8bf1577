"""Manifests: own and foreign files, and damaged files, also after a kill at any time."""

import os
import signal
from functools import partial

import pytest

from imgproc_attn.utils import io as files
from imgproc_attn.utils import manifest
from imgproc_attn.utils.io import write_text
from imgproc_attn.utils.manifest import MANIFEST, Manifest, check_listed

REMEDY = "Restore it."


def text(content):
    return lambda file: file.write_text(content)


def test_files_of_others_are_neither_overwritten_nor_removed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link.txt").symlink_to("nowhere")
    ours = Manifest(tmp_path)
    for name in ("mine.txt", "link.txt"):
        with pytest.raises(FileExistsError, match=f"must not hold {name}, which would be overwritten, .*Move"):
            ours.claim(["a.txt", name])
        with pytest.raises(FileExistsError, match=name):
            ours.write({"a.txt": text("a"), name: text("b")})
    assert not (tmp_path / MANIFEST).exists()
    assert not (tmp_path / "a.txt").exists()
    ours.write({"a.txt": text("a"), "folder/b.txt": text("b")})
    ours.remove(["mine.txt", "link.txt", "a.txt", "not-there.txt"])
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link.txt", MANIFEST, "mine.txt"]
    Manifest(tmp_path).remove(["folder/b.txt"])
    assert not (tmp_path / MANIFEST).exists(), "it lists nothing"


def test_a_claimed_file_may_be_written_by_anybody_and_is_ours(tmp_path):
    ours = Manifest(tmp_path)
    ours.claim(["log.txt", "never.txt"])
    (tmp_path / "log.txt").write_text("appended to")
    Manifest(tmp_path).settle()
    assert Manifest(tmp_path).files == {"log.txt": []}
    ours.remove(["log.txt"])
    assert list(tmp_path.iterdir()) == []


def change(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change, "its content has changed"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its content has changed"),
        (lambda file: file.write_bytes(b""), "its content has changed"),
        (lambda file: file.unlink(), "it is missing"),
    ],
)
def test_what_happened_to_a_file_is_noticed(damage, problem, tmp_path):
    ours = Manifest(tmp_path)
    ours.write({"last/weights": text("some weights")})
    ours.check("last/weights", REMEDY)
    check_listed(tmp_path / "last" / "weights", REMEDY)
    damage(tmp_path / "last" / "weights")
    with pytest.raises(
        ValueError, match=rf"last/weights must be (there )?as imgproc-attn wrote it, but {problem}.* Restore it\."
    ):
        ours.check("last/weights", REMEDY)
    with pytest.raises(ValueError, match=problem):
        check_listed(tmp_path / "last" / "weights", REMEDY)


def test_files_beside_manifests_of_other_programs_are_not_checked(tmp_path):
    write_text(tmp_path / MANIFEST, '{"manifest_version": 3}')
    write_text(tmp_path / "last" / "weights", "x")
    check_listed(tmp_path / "last" / "weights", REMEDY)
    with pytest.raises(ValueError, match=r"manifest.json must be .*files: Field required.* Move it"):
        Manifest(tmp_path).claim(["a.txt"])
    assert (tmp_path / MANIFEST).read_text() == '{"manifest_version": 3}'


def rounds(folder, moment):
    """Write two files together three times. The process kills itself at a system call that changes files."""
    left = [moment]

    def killing(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    files.Path.replace = killing(files.Path.replace)
    files.os.fsync = killing(os.fsync)
    manifest._checksum = killing(manifest._checksum)
    ours = Manifest(folder)
    for i in range(3):
        ours.write({"weights": text(f"weights {i}"), "state": text(f"state {i}")})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_what_is_there_is_known(tmp_path):
    """Several kills in a row, before a write has finished, have the same result."""
    for folder in (tmp_path / "once", tmp_path / "again"):
        for moment in range(1, 26):
            target = folder / (str(moment) if folder.name == "once" else "")
            child = os.fork()
            if child == 0:
                rounds(target, moment % 9 + 1 if folder.name == "again" else moment)
                os._exit(0)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            there = {name for name in ("weights", "state") if (target / name).exists()}
            for name in there:
                Manifest(target).check(name, REMEDY)
            if there == {"weights", "state"}:
                old, new = (int((target / name).read_text().split()[1]) for name in ("state", "weights"))
                assert folder.name == "again" or new - old in (0, 1), "the state is written last"
            if not killed:
                assert {n: len(sums) for n, sums in Manifest(target).files.items()} == {"weights": 2, "state": 2}


def test_a_failed_write_changes_nothing(tmp_path):
    ours = Manifest(tmp_path)
    ours.write({"a": text("1"), "b": text("1")})

    def fail(file):
        file.write_text("2")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        ours.write({"a": text("2"), "b": fail})
    assert [(tmp_path / name).read_text() for name in "ab"] == ["1", "1"]
    ours.check("a", REMEDY)
    ours.check("b", REMEDY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", MANIFEST]
    ours.write({"a": partial(type(tmp_path).write_text, data="3")})
    ours.check("a", REMEDY)
