"""Training: the loop, and the folder of a run."""

from .loop import Trainer
from .run import train

__all__ = ["Trainer", "train"]
