import math

import pytest
import torch

from imgproc_attn.core.bandwidths import Bandwidth


@pytest.mark.parametrize("initial", [2.5, [1.0, 2.0, 4.0]])
@pytest.mark.parametrize("learned", [True, False])
def test_starts_at_initial(initial, learned):
    bandwidth = Bandwidth(initial, 3, floor=0.1, learned=learned)
    expected = initial if isinstance(initial, list) else [initial] * 3
    torch.testing.assert_close(bandwidth(), torch.tensor(expected))
    assert len(list(bandwidth.parameters())) == learned
    assert bandwidth.log_excess.ndim == 1  # timm exempts 1-D parameters from weight decay


@pytest.mark.parametrize(
    ("initial", "floor"),
    [
        (0.0, 0.1),
        (-1.0, 0.1),
        (math.nan, 0.1),
        (math.inf, 0.1),
        (0.1, 0.1),
        (0.05, 0.1),
        (1.0, 0.0),
        (1.0, math.nan),
        (1.0, -1.0),
    ],
)
def test_refuses(initial, floor):
    with pytest.raises(ValueError, match="range_bandwidth") as info:
        Bandwidth(initial, 2, floor, name="range_bandwidth")
    assert str(floor) in str(info.value)


def test_refuses_wrong_count():
    with pytest.raises(ValueError, match=r"one value per head \(3\), got 2"):
        Bandwidth([1.0, 2.0], 3, 0.1)


def test_never_reaches_the_floor_nor_sticks_there():
    bandwidth = Bandwidth(1.0, 1, floor=0.5)
    with torch.no_grad():
        bandwidth.log_excess.fill_(-8.0)
    h = bandwidth()
    assert h > 0.5
    h.backward()
    assert bandwidth.log_excess.grad > 0


def test_half_precision_parameters_give_float32():
    assert Bandwidth(1.0, 2, 0.1).to(torch.bfloat16)().dtype == torch.float32
    assert Bandwidth(1.0, 2, 0.1).to(torch.float64)().dtype == torch.float64


def test_reset():
    bandwidth = Bandwidth(3.0, 2, 0.1, dtype=torch.float64)
    with torch.no_grad():
        bandwidth.log_excess.add_(1.0)
    bandwidth.reset_parameters()
    torch.testing.assert_close(bandwidth(), torch.tensor([3.0, 3.0], dtype=torch.float64))
