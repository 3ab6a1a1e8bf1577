"""Causal operators do equal work, and a token with the cache is the token without it."""

import json

import pytest
import torch

from imgproc_attn import benchmark, cli
from imgproc_attn.benchmark.causal import CAUSAL_OPERATORS, CausalWork
from imgproc_attn.benchmark.generation import GenerationWork
from imgproc_attn.benchmark.operators import HEAD_DIM, HEADS
from imgproc_attn.benchmark.timing import build_cases

FEW = 40


def test_causal_operators_are_causal():
    """All results have one shape, and those of the first tokens do not depend on later tokens."""
    q, k, v = torch.randn(3, 1, HEADS, FEW, HEAD_DIM)
    later = torch.randn(3, 1, HEADS, FEW, HEAD_DIM)
    later[..., : FEW // 2, :] = torch.stack([q, k, v])[..., : FEW // 2, :]
    for name, operator in build_cases(CAUSAL_OPERATORS, CausalWork(FEW, "cpu")).items():
        first, second = operator(q, k, v), operator(*later)
        assert first.shape == (1, FEW, HEADS * HEAD_DIM), name
        torch.testing.assert_close(first[:, : FEW // 2], second[:, : FEW // 2])
        assert not torch.allclose(first[:, FEW // 2 :], second[:, FEW // 2 :]), name


def test_causal_operators_are_timed_in_both_modes():
    rows = benchmark.benchmark_causal(2, tokens=FEW)
    assert [(row["mode"], row["name"]) for row in rows] == [
        (mode, case.name) for mode in ("inference", "training") for case in CAUSAL_OPERATORS
    ]
    assert rows[0]["ratio"] == rows[len(CAUSAL_OPERATORS)]["ratio"] == 1
    assert {(row["batch"], row["tokens"]) for row in rows} == {(2, FEW)}


def test_training_mode_reaches_positions():
    """The backward pass includes the projection of untied positions and their vectors."""
    work = CausalWork(FEW, "cpu")
    q, k, v = torch.randn(3, 1, HEADS, FEW, HEAD_DIM)
    work.layer(positions=[work.untied])(q, k, v).square().sum().backward()
    assert work.untied.qk.weight.grad.abs().sum() > 0
    assert work.geometry.position_embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [f"test_{name.removesuffix('_base')}" for name in benchmark.LANGUAGE_MODELS])
def test_both_ways_find_the_same_token(name):
    work = GenerationWork(name, FEW, rounds=1, device="cpu", dtype=torch.float64)
    assert torch.equal(work.cached(), work.uncached())


def test_command_measures_generation(tmp_path, capsys, monkeypatch):
    measured = benchmark.benchmark_generation
    monkeypatch.setattr(benchmark, "benchmark_generation", lambda *args: measured(*args, ["test_gpt2_lm"], FEW))
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "generation", "--runs", "2", "--output", str(file)])
    (row,) = json.loads(file.read_text())["generation"]
    assert (row["name"], row["tokens"]) == ("test_gpt2_lm", FEW)
    assert row["ratio"] == row["median_s"] / row["uncached_median_s"]
    assert "without cache / ms" in capsys.readouterr().out
