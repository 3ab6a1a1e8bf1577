"""Filters on a photograph, timed beside other libraries."""

import json

import pytest

from imgproc_attn import cli
from imgproc_attn.benchmark import filtering
from imgproc_attn.benchmark.timing import Case


def test_a_new_case_is_one_line(monkeypatch):
    """A new case is timed like the others. A case whose package is missing is left out."""
    own = Case("identity", lambda work: lambda: work.image)
    missing = Case("of a missing package", lambda work: None, package="no_such_package")
    kept = [case for case in filtering.FILTERS if case.name == "bilateral_filter" or case.baseline]
    monkeypatch.setattr(filtering, "FILTERS", (*kept, own, missing))
    rows = filtering.benchmark_filtering(2)
    assert [row["name"] for row in rows] == ["kornia bilateral_blur", "bilateral_filter", "identity"]
    assert rows[0]["ratio"] == 1


def test_one_run_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--what", "filtering", "--runs", "1"])
    assert "must be a whole number, at least 2, got '1'" in capsys.readouterr().err


@pytest.mark.slow
def test_filters_beside_their_peers(tmp_path):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "filtering", "--runs", "2", "--output", str(file)])
    names = {row["name"]: row["ratio"] for row in json.loads(file.read_text())["filtering"]}
    assert names["kornia bilateral_blur"] == 1
    assert {"bilateral_filter", "non_local_means", "scikit-image denoise_nl_means, slow"} < set(names)
