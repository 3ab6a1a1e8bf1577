"""Operators do equal work, and the command reports what it measured."""

import json

import torch

from imgproc_attn import cli
from imgproc_attn.benchmark.operators import HEAD_DIM, HEADS, OPERATORS, OperatorWork
from imgproc_attn.benchmark.timing import build_cases


def test_operators_do_the_same_work():
    """Lifted and explicit non-local means agree, and all results have one shape."""
    q, k, v = torch.randn(3, 1, HEADS, 196, HEAD_DIM)
    operators = build_cases(OPERATORS, OperatorWork((14, 14), "cpu"))
    results = {name: operator(q, k, v) for name, operator in operators.items()}
    torch.testing.assert_close(results["non-local means"], results["explicit distances + softmax"], rtol=1e-4, atol=1e-5)
    assert {tuple(r.shape) for r in results.values()} == {(1, 196, 384)}


def test_command_writes_json(tmp_path, capsys):
    file = tmp_path / "b.json"
    cli.main(["benchmark", "--what", "operators", "--tokens", "196", "--runs", "2", "--output", str(file)])
    content = json.loads(file.read_text())
    assert len(content["operators"]) == 2 * len(OPERATORS)
    assert content["environment"]["versions"]["torch"] == torch.__version__
    assert "bilateral" in capsys.readouterr().out
