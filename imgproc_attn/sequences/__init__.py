"""Classification of long sequences: classifiers, and the data of the Long Range Arena (arXiv 2011.04006)."""

from .classifier import SequenceClassifier
from .families import SEQUENCE_FAMILIES, create_classifier, list_classifiers
from .listops import Expression, ListOps, write_listops
from .sources import LabeledSequences, ListOpsFile, PixelSequences, RetrievalFile, Reviews, SequenceSource, luminance

__all__ = [
    "SEQUENCE_FAMILIES",
    "Expression",
    "LabeledSequences",
    "ListOps",
    "ListOpsFile",
    "PixelSequences",
    "RetrievalFile",
    "Reviews",
    "SequenceClassifier",
    "SequenceSource",
    "create_classifier",
    "list_classifiers",
    "luminance",
    "write_listops",
]
