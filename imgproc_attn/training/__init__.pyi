"""Training of the model of a recipe: the training loop and the folder of a run."""

from .loop import Trainer
from .run import train

__all__ = ["Trainer", "train"]
