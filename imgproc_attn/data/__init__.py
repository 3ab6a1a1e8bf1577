"""Images and labels: readers beyond timm's, and the loaders of training and evaluation."""

from .fingerprint import Fingerprint, fingerprint
from .images import IGNORED, Images, Unreadable, check_label, readable, some_of
from .loaders import ALONE, Preparation, Prepares, Processes, evaluation_loader, training_loader
from .readers import Digits, PackedImages, check_classes, find_root, open_images
from .streams import StreamedImages

__all__ = [
    "ALONE",
    "IGNORED",
    "Digits",
    "Fingerprint",
    "Images",
    "PackedImages",
    "Preparation",
    "Prepares",
    "Processes",
    "StreamedImages",
    "Unreadable",
    "check_classes",
    "check_label",
    "evaluation_loader",
    "find_root",
    "fingerprint",
    "open_images",
    "readable",
    "some_of",
    "training_loader",
]
