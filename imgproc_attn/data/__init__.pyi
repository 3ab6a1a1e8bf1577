"""Images and labels: readers that timm does not have, and the data loaders for training and evaluation."""

from .fingerprints import Fingerprint, fingerprint
from .images import UNREADABLE_LABEL, Images, Unreadable, check_label, random_subset, readable
from .loaders import SINGLE_PROCESS, Preprocessing, PreprocessingLike, World, evaluation_loader, training_loader
from .pathfinder import Pathfinder
from .readers import Digits, PackedImages, check_classes, find_root, open_images
from .streams import StreamedImages

__all__ = [
    "SINGLE_PROCESS",
    "UNREADABLE_LABEL",
    "Digits",
    "Fingerprint",
    "Images",
    "PackedImages",
    "Pathfinder",
    "Preprocessing",
    "PreprocessingLike",
    "StreamedImages",
    "Unreadable",
    "World",
    "check_classes",
    "check_label",
    "evaluation_loader",
    "find_root",
    "fingerprint",
    "open_images",
    "random_subset",
    "readable",
    "training_loader",
]
