"""One seed for all random inputs and all models that tests train: pytest's option ``--seed``."""

import os

import torch

VARIABLE = "IMGPROC_ATTN_TEST_SEED"  # tells it to processes that tests start
number = int(os.environ.get(VARIABLE, "0"))


def set_number(given: int) -> None:
    """Use this seed, here and in processes that are started from here."""
    global number
    number = given
    os.environ[VARIABLE] = str(given)


def seed(offset: int = 0) -> None:
    """Start torch's random numbers again. Equal offsets give equal numbers within a session."""
    torch.manual_seed(1000 * number + offset)
