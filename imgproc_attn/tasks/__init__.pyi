"""Tasks: one class per task holds its data, loss, metrics, scorers, attacks, checks and figures."""

from .base import Loading, Task, register_task, task_of
from .classification import ClassificationTask
from .in_context import InContextTask
from .language import LanguageTask
from .segmentation import SegmentationTask
from .sequences import SequenceTask
from .splits import Splits

__all__ = [
    "ClassificationTask",
    "InContextTask",
    "LanguageTask",
    "Loading",
    "SegmentationTask",
    "SequenceTask",
    "Splits",
    "Task",
    "register_task",
    "task_of",
]
