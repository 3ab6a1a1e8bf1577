"""One seed for all random inputs and all models that tests train: pytest's option ``--seed``."""

import torch

number = 0  # of this session; `conftest.py` sets it


def seed(offset: int = 0) -> None:
    """Start torch's random numbers again. Equal offsets give equal numbers within a session."""
    torch.manual_seed(1000 * number + offset)
