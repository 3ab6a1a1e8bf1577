"""The theorem of attention-only transformers, run: where the factor per layer is 1 + eta tau, and where it is not."""

import json
import math

import numpy as np
import pytest
import torch

from imgproc_attn.cli import main
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.diagnostics import (
    PUBLISHED_RATIOS,
    THEOREM_CASES,
    DenoisingCase,
    denoise,
    growth,
    largest_tau,
    low_rank_mixture,
    signal_to_noise,
    theorem_layer,
)

STEP, TAU = 0.1, 0.55


@pytest.mark.parametrize("case", THEOREM_CASES.values(), ids=list(THEOREM_CASES))
def test_the_layer_is_its_formula(case):
    """Z + eta sum_k U_k U_k^T Z phi(Z^T U_k U_k^T Z), in numpy, with tokens as columns."""
    tokens, _, bases = low_rank_mixture(3, 6, 7, noise=0.3)
    found, _ = theorem_layer(bases, case, STEP, TAU)(tokens[None], grid_geometry(1, 21, 0, tokens))
    Z = tokens.numpy().T
    Y = (Z - Z.mean(0)) / np.sqrt(Z.var(0) + 1e-5) if case.norm else Z
    out = Z.copy()
    for basis in bases.numpy():
        w = basis.T @ Y
        scores = w.T @ w / (math.sqrt(6) if case.temperature else 1.0)
        weights = np.exp(scores - scores.max(0))
        weights /= weights.sum(0)
        if case.threshold:
            weights = TAU * (weights > TAU)
        out += STEP * basis @ (w @ weights)
    assert np.abs(found[0].detach().numpy().T - out).max() < 1e-12


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_each_layer_multiplies_the_ratio(noise):
    """With the threshold and the temperature, the factor is 1 + eta tau within 1 %, in each class and each of 12 layers."""
    mixture = low_rank_mixture(noise=noise)
    ratios = denoise(mixture, 12, DenoisingCase(), STEP, TAU)
    assert torch.equal(ratios[0], signal_to_noise(*mixture))
    factors = ratios[1:] / ratios[:-1]
    assert (factors / (1 + STEP * TAU) - 1).abs().max() < 0.01
    assert growth(ratios.mean(dim=1).tolist()).law == "geometric"


@pytest.mark.slow
@pytest.mark.parametrize("subspaces", [2, 4, 8])
@pytest.mark.parametrize(("dim", "tau"), [(128, 0.55), (128, 0.75), (256, 0.95)])
def test_each_layer_multiplies_the_ratio_for_other_sizes(subspaces, dim, tau):
    """A larger threshold needs wider subspaces: with p = 64 and 0.95, the first factors are up to 8 % too small."""
    for _ in range(3):
        mixture = low_rank_mixture(subspaces, dim, 64, noise=0.3)
        ratios = denoise(mixture, 12, DenoisingCase(), STEP, tau)
        factors = ratios[1:] / ratios[:-1]
        assert (factors / (1 + STEP * tau) - 1).abs().max() < 0.01


@pytest.mark.parametrize("noise", [0.2, 0.5])
@pytest.mark.parametrize("name", ["threshold, as stated", "softmax"])
def test_without_temperature_the_theorem_fails(noise, name):
    """The amplified tokens attract the attention of the noise: after 12 layers, the ratio is far below the theorem's."""
    ratios = denoise(low_rank_mixture(noise=noise), 12, THEOREM_CASES[name], STEP, TAU)
    assert (ratios[-1] < 0.8 * ratios[0] * (1 + STEP * TAU) ** 12).all()
    assert (ratios[-1] < ratios.amax(dim=0)).all(), "the ratio falls in the end"


def test_plain_softmax_with_temperature_falls_in_the_end():
    ratios = denoise(low_rank_mixture(noise=0.5), 12, THEOREM_CASES["softmax, temperature"], STEP, TAU)
    assert (ratios[-1] < ratios.amax(dim=0)).all()


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_a_layer_norm_makes_growth_arithmetic(noise):
    """The published figure grows by a constant increment per layer. So does the layer that models use, Z + f(norm(Z))."""
    case = THEOREM_CASES["threshold, temperature, layer norm"]
    ratios = denoise(low_rank_mixture(noise=noise), 12, case, STEP, TAU).mean(dim=1)
    assert growth(ratios.tolist()).law == "arithmetic"
    assert all(growth(published).law == "arithmetic" for published in PUBLISHED_RATIOS.values())


def test_thresholds_outside_the_theorem():
    """A warning at construction for the threshold, the step and the number of tokens."""
    mixture = low_rank_mixture(2, 8, 32)
    assert largest_tau(64, 8) < 0.55
    with pytest.warns(UserWarning, match=r"tau must be at most 1 / \(1 \+ N exp\(-9 p / 32\)\) = 0.1291 .* got 0.55"):
        denoise(mixture, 1, DenoisingCase(), STEP, TAU)
    with pytest.warns(UserWarning, match="tau must be above 0.5 for the theorem of AoT, got 0.4"):
        theorem_layer(mixture.bases, DenoisingCase(), STEP, 0.4)
    with pytest.warns(UserWarning, match="step must be positive for the signal-to-noise ratio to grow, got -0.1"):
        theorem_layer(mixture.bases, DenoisingCase(), -0.1, TAU)


def test_growth_needs_layers():
    with pytest.raises(ValueError, match="number of ratios must be at least 3, got 2"):
        growth([1.0, 2.0])


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    output = tmp_path / "theorem.json"
    main(["theorem", "--layers", "4", "--noise", "0.2", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "1 + step * tau = 1.055" in printed
    assert "published figure" in printed
    result = json.loads(output.read_text())
    ratios = result["results"][0]["ratios"]
    assert list(ratios) == list(THEOREM_CASES)
    assert all(len(values) == 5 for values in ratios.values())
    assert f"| {ratios['softmax'][-1]:.2f} |" in printed
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_another_file(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        main(["theorem", "--output", str(tmp_path / "notes.json")])
    assert stop.value.code == 2
    assert (tmp_path / "notes.json").read_text() == "{}"
