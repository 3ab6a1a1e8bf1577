import pytest
import torch

from imgproc_attn.filters import SoftmaxFilter
from imgproc_attn.kernels import DotProduct, GaussianRange
from imgproc_attn.residuals import Plain, Twicing


def boost(residual, a, v):
    """The recurrence, with a matrix for A."""
    u = a @ v
    for _ in range(residual.steps):
        u = residual.update(u, a @ residual.operand(u, v))
    return u


@pytest.fixture
def matrix():
    q, k = torch.randn(2, 1, 2, 11, 8, dtype=torch.float64)
    return SoftmaxFilter().weights(GaussianRange(2, 8, dtype=torch.float64)(q, k))


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


@pytest.mark.parametrize("residual", [Plain(), Twicing(2, 3), Twicing(2, 2, 0.3)])
def test_constants_pass_unchanged(matrix, residual):
    constant = torch.full((1, 2, 11, 5), 3.0, dtype=torch.float64)
    torch.testing.assert_close(boost(residual, matrix, constant), constant)


def test_learned_gate_gets_its_gradient(matrix, v):
    residual = Twicing(2, 2, 0.7, learned=True, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: boost(residual, matrix, v), tuple(residual.parameters()))


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_refuses_steps(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, but must be a whole number, at least 1"):
        Twicing(2, steps)


def test_two_calls_of_the_fused_operator():
    q, k, v = torch.randn(3, 1, 2, 33, 8, dtype=torch.float64)
    filter = SoftmaxFilter()
    operator = filter(DotProduct(8)(q, k))
    y = filter.smooth(operator, v)
    a = filter.weights(DotProduct(8)(q, k))
    torch.testing.assert_close(y + filter.smooth(operator, v - y), (2 * a - a @ a) @ v, rtol=1e-12, atol=1e-12)
