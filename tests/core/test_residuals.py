"""Boosting: each rule against its polynomial or recurrence in float64, with A from the kernels of this package."""

import math
import warnings

import pytest
import torch
from reference import recurrence

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.layer_state import LayerState, next_state
from imgproc_attn.core.residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Twicing

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def boost(residual, a, v, state=None):
    """Return the result of the recurrence with a matrix as A."""
    return recurrence(residual, lambda x: a @ x, v, state)


@pytest.fixture
def matrix():
    q, k = torch.randn(2, 1, 2, 11, 8, dtype=torch.float64)
    return SoftmaxFilter()(GaussianRange(2, 8, dtype=torch.float64)(q, k)).dense()


@pytest.fixture
def v():
    return torch.randn(1, 2, 11, 5, dtype=torch.float64)


def test_plain(matrix, v):
    assert torch.equal(boost(Plain(), matrix, v), matrix @ v)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_twicing_is_its_polynomial(matrix, v, steps):
    identity = torch.eye(11, dtype=torch.float64)
    polynomial = identity - torch.linalg.matrix_power(identity - matrix, steps + 1)
    torch.testing.assert_close(boost(Twicing(2, steps), matrix, v), polynomial @ v, rtol=1e-12, atol=1e-12)


def test_one_step_is_twicing_attention(matrix, v):
    torch.testing.assert_close(boost(Twicing(2), matrix, v), (2 * matrix - matrix @ matrix) @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("gate", [0.0, 0.4, 1.0])
def test_gate(matrix, v, gate, learned):
    residual = Twicing(2, 2, gate, learned, dtype=torch.float64)
    u = matrix @ v
    for _ in range(2):
        u = u + gate * (matrix @ (v - u))
    result = boost(residual, matrix, v)
    torch.testing.assert_close(result, u, rtol=1e-12, atol=1e-12)
    if gate == 0:
        assert torch.equal(result, matrix @ v)
    assert len(list(residual.parameters())) == learned


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_bregman_is_twicing_for_frozen_weights(matrix, v, steps):
    torch.testing.assert_close(boost(Bregman(2, steps), matrix, v), boost(Twicing(2, steps), matrix, v), **EXACT)


@pytest.mark.parametrize("gate", [0.0, 0.3])
def test_bregman_recurrence(matrix, v, gate):
    """The rule equals ``r <- r + (v - u)``, ``u <- u + g (A (v + r) - u)``."""
    u, r = matrix @ v, torch.zeros_like(v)
    for _ in range(3):
        r = r + (v - u)
        u = u + gate * (matrix @ (v + r) - u)
    torch.testing.assert_close(boost(Bregman(2, 3, gate), matrix, v), u, **EXACT)


@pytest.mark.parametrize(("rho", "tau"), [(0.5, None), (1.0, 0.5), (2.0, 0.3), (-0.3, 1.0), (0.0, 1.0)])
def test_sos_recurrence(matrix, v, rho, tau):
    residual = SOS(2, 4, rho, tau)
    x = matrix @ v
    for _ in range(4):
        x = residual.tau * matrix @ (v + rho * x) - (residual.tau * rho + residual.tau - 1) * x
    torch.testing.assert_close(boost(residual, matrix, v), x, **EXACT)


@pytest.mark.parametrize(("rho", "tau"), [(0.5, None), (0.5, 0.6), (3.0, None), (-0.4, None), (1.5, 0.1)])
def test_sos_converges_to_its_fixed_point(matrix, v, rho, tau):
    """The limit is ``(I + rho (I - A))^-1 A v`` for every tau."""
    identity = torch.eye(11, dtype=torch.float64)
    fixed = torch.linalg.solve(identity + rho * (identity - matrix), matrix @ v)
    torch.testing.assert_close(boost(SOS(2, 600, rho, tau), matrix, v), fixed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rho", [-0.45, -0.1, 0.0, 0.3, 0.5, 1.0, 4.0, 50.0])
def test_the_default_tau_of_sos_converges_for_any_row_stochastic_matrix(rho):
    """Error factors are ``1 - tau (1 + rho (1 - a))`` for every eigenvalue a in the unit disc."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tau = SOS(1, rho=rho).tau
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    a = torch.polar(torch.ones_like(angle), angle)
    factor = (1 - tau * (1 + rho * (1 - a))).abs()
    assert factor.max() < 1


@pytest.mark.parametrize("tau", [0.0, -0.5, 2.0, math.nan, math.inf])
def test_sos_refuses_tau(tau):
    with pytest.raises(ValueError, match=r"tau must be in \(0, 2\), outside of which even constants diverge, got"):
        SOS(2, tau=tau)


def test_constants_diverge_outside_and_stay_inside(matrix):
    """Each step multiplies the error of a constant by 1 - tau, so tau must be in (0, 2)."""
    residual = SOS(2, 1, 0.0, 1.99)
    constant = torch.ones(1, 2, 11, 1, dtype=torch.float64)
    assert (
        residual.update(2 * constant, matrix @ residual.operand(2 * constant, constant, constant)) - constant
    ).abs().max() < 1


@pytest.mark.parametrize(("rho", "tau"), [(1.0, 1.0), (1.0, 2 / 3), (-0.5, 0.5), (-1.0, 1.0)])
def test_sos_warns_where_it_may_diverge(rho, tau):
    with pytest.warns(UserWarning, match=rf"rho={rho} and tau={tau}.* may diverge.* rho > -0\.5 and tau < 2 / max"):
        SOS(2, rho=rho, tau=tau)


def carried_of(layers):
    """Return the state after layers with these values."""
    state = LayerState()
    for v in layers:
        state = next_state(state, v)
    return state


def test_neutreno(matrix, v):
    first, middle = torch.randn(2, *v.shape, dtype=torch.float64)
    state = carried_of([first, middle])
    torch.testing.assert_close(boost(NeuTRENO(2), matrix, v, state), matrix @ v + 0.6 * (first - v), **EXACT)
    assert torch.equal(boost(NeuTRENO(2), matrix, v, LayerState()), matrix @ v)  # the first layer is plain


def test_pid(matrix, v):
    """The rule equals the written-out sums and differences over three layers."""
    values = [*torch.randn(3, *v.shape, dtype=torch.float64), v]
    errors = [values[0] - x for x in values]
    gains = {"proportional": 0.7, "integral": 0.4, "derivative": 0.2}
    expected = matrix @ v + 0.7 * errors[3] + 0.4 * sum(errors[1:]) + 0.2 * (errors[3] - errors[2])
    torch.testing.assert_close(boost(PID(2, **gains), matrix, v, carried_of(values[:3])), expected, **EXACT)
    torch.testing.assert_close(boost(PID(2, **gains, gate=0.5), matrix, v, carried_of(values[:3])), (expected + matrix @ v) / 2)
    assert torch.equal(boost(PID(2), matrix, v, LayerState()), matrix @ v)


def test_proportional_alone_is_neutreno(matrix, v):
    state = carried_of(torch.randn(3, *v.shape, dtype=torch.float64))
    torch.testing.assert_close(boost(PID(2, 0.6, 0.0, 0.0), matrix, v, state), boost(NeuTRENO(2), matrix, v, state), **EXACT)


@pytest.mark.parametrize("rule", [NeuTRENO, PID])
def test_state_asked_where_there_is_none(matrix, v, rule):
    with pytest.raises(ValueError, match=f"state= must be a LayerState for {rule.__name__}, got None"):
        boost(rule(2), matrix, v)


def test_l2_boosting_of_a_stream():
    z, y = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    state = LayerState(tokens=y)
    assert torch.equal(L2Boosting().entry(z, LayerState()), z)  # the first block is plain
    torch.testing.assert_close(L2Boosting().entry(z, state), y - z, **EXACT)
    torch.testing.assert_close(L2Boosting(gate=0.25).entry(z, state), 0.75 * z + 0.25 * (y - z), **EXACT)
    assert torch.equal(L2Boosting(gate=0.0, learned=True).entry(z.float(), LayerState(tokens=y.float())), z.float())
    with pytest.raises(ValueError, match="LayerState for L2Boosting"):
        L2Boosting().entry(z, None)


RULES = [Plain(), Twicing(2, 3), Twicing(2, 2, 0.3), Bregman(2, 2), SOS(2, 3), SOS(2, 1, -0.3), NeuTRENO(2), PID(2)]


@pytest.mark.parametrize("residual", RULES, ids=str)
def test_constants_pass_unchanged(matrix, residual):
    constant = torch.full((1, 2, 11, 5), 3.0, dtype=torch.float64)
    torch.testing.assert_close(boost(residual, matrix, constant, carried_of([constant, constant])), constant)


@pytest.mark.parametrize("rule", [Twicing, Bregman, SOS, NeuTRENO, PID])
@pytest.mark.parametrize("learned", [False, True])
def test_gate_zero_is_plain_filtering(matrix, v, rule, learned):
    residual = rule(2, gate=0.0, learned=learned)
    assert torch.equal(boost(residual, matrix, v, carried_of(torch.randn(2, *v.shape).double())), matrix @ v)
    assert len(list(residual.parameters())) == learned


@pytest.mark.parametrize("rule", [Twicing, Bregman, SOS, NeuTRENO, PID])
def test_learned_gates_get_their_gradient(matrix, v, rule):
    residual = rule(2, gate=0.7, learned=True, dtype=torch.float64)
    state = carried_of(torch.randn(2, *v.shape).double())
    assert torch.autograd.gradcheck(lambda *_: boost(residual, matrix, v, state), tuple(residual.parameters()))


@pytest.mark.parametrize("rule", [Twicing, Bregman, SOS])
@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_refuses_steps(rule, steps):
    with pytest.raises(ValueError, match=f"{rule.__name__.lower()}: steps must be a whole number of at least 1, got {steps}"):
        rule(2, steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Twicing(2, gate=math.nan), "twicing: gate must be a finite number, got nan"),
        (lambda: SOS(2, rho=math.inf), "sos: rho must be finite, got inf"),
        (lambda: PID(2, integral=math.nan), "pid: integral must be finite, got nan"),
        (lambda: NeuTRENO(2, gate=math.inf), "neutreno: gate must be a finite number, got inf"),
    ],
)
def test_refuses_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_calls_of_the_fused_operator():
    q, k, v = torch.randn(3, 1, 2, 33, 8, dtype=torch.float64)
    filter = SoftmaxFilter()
    operator = filter(DotProduct(8)(q, k))
    y = operator.apply(v)
    a = filter(DotProduct(8)(q, k)).dense()
    torch.testing.assert_close(y + operator.apply(v - y), (2 * a - a @ a) @ v, rtol=1e-12, atol=1e-12)
