"""JSON files: errors name the damaged file."""

import json

import pytest
from typing_extensions import TypedDict

from imgproc_attn.utils.io import read_json, write_json


class Scores(TypedDict):
    names: list[str]
    best: float


def test_what_is_written_is_read(tmp_path):
    content = {
        "names": ["a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\udcff"],
        "best": 1,
        "more": {"nested": [1.5, None, True]},
    }
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    with pytest.raises(FileNotFoundError, match=r"y\.json"):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "got an empty file"),
        (b'{"names": ["a"', "got JSONDecodeError: Expecting"),
        (b"\xff\xfe\x00", "got .*(Unicode|JSON)DecodeError"),
        (b"[" * 100_000, "got RecursionError"),
        (b"[]", "got content: Input should be a valid dictionary"),
        (b"null", "got content: "),
        (b'{"names": []}', "got best: Field required"),
        (b'{"names": {}, "best": 1}', "got names: Input should be a valid list"),
        (b'{"names": ["a", 2], "best": 1}', "got names.1: Input should be a valid string"),
        (b'{"names": [], "best": "1"}', "got best: Input should be a valid number"),
    ],
)
def test_damaged_json_is_named(content, problem, tmp_path):
    file = tmp_path / "scores.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"scores\.json must be a JSON file as this package writes it, {problem}") as found:
        read_json(file, Scores, "Run the evaluation again.")
    assert str(found.value).endswith(". Run the evaluation again.")
    assert "\n" not in str(found.value)


def test_other_forms_are_kept_whole(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([[1, "a"], [2, "b"]]))
    assert read_json(tmp_path / "x.json", list[list[int | str]]) == [[1, "a"], [2, "b"]]
