"""Cases are tables, and runs are interleaved."""

from imgproc_attn import benchmark
from imgproc_attn.benchmark.timing import baseline_of, measure, summarize
from imgproc_attn.models import FAMILIES


def test_cases_are_a_table():
    """Names are unique in a section, and each section has one baseline."""
    for cases in benchmark.CASES.values():
        assert len({case.name for case in cases}) == len(cases)
        assert sum(case.baseline for case in cases) == 1
        assert baseline_of(cases) in {case.name for case in cases}


def test_models_are_those_of_all_families():
    assert ("vit_small_patch16_224", *(f"{family}_small" for family in FAMILIES)) == benchmark.MODELS


def test_interleaved():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure(steps, 3, lambda: None)
    assert order == ["a", "b"] * 5
    assert [len(t) for t in times.values()] == [3, 3]
    rows = summarize({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}, "a")
    assert [row["ratio"] for row in rows] == [1.0, 2.0]
