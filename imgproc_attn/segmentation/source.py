"""Pictures with label maps as the source of an evaluation."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from ..data import Preprocessing, check_classes, random_subset
from .data import READERS, LabeledPictures
from .measure import PixelMeasure, SlidingWindow
from .model import Segmenter
from .transforms import SegmentationPreprocessing


@dataclass
class PictureSource:
    """What a segmenter is evaluated on, and how it looks at it.

    Attributes:
        data: Reader, as in a recipe's ``data.name``: ``ade20k``, ``camvid``, ``labeled``.
        root: Folder.
        split: Of the data; empty for ``root`` itself.
        limit: Only so many pictures, drawn at random from ``seed``.
        seed: Of that draw.
        short_side: In pixels, to which pictures are resized. Default: as they are.
        windows: How the model looks at a picture.
        scales: Factors of the size, over which probabilities of pictures that are not attacked are averaged.
        flip: Mirror images of them too.
    """

    data: str
    root: str
    split: str = ""
    limit: int | None = None
    seed: int = 0
    short_side: int | None = None
    windows: SlidingWindow = field(default_factory=SlidingWindow)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.data not in READERS:
            raise ValueError(
                f"The data {self.data!r} has no label maps, which segmenters need; there are {', '.join(READERS)}."
            )

    @cached_property
    def _pictures(self) -> LabeledPictures:
        return READERS[self.data](self.root, self.split)

    def open(self, model: Any, channels: int) -> LabeledPictures:
        """The pictures.

        Raises:
            FileNotFoundError: There are none.
            ValueError: Their classes are not the model's.
        """
        if channels != 3:
            raise ValueError(f"The model takes {channels} channels, but pictures with label maps are read in color.")
        pictures = self._pictures
        known = model.pretrained_cfg.get("label_names")
        trained = {name: label for label, name in enumerate(known)} if known else None
        check_classes(pictures.classes, model.num_classes, trained, (self.split or self.data, "trained on"))
        chosen = random_subset(len(pictures), self.limit, self.seed)
        pictures = pictures if chosen is None else pictures.some(chosen)
        pictures.check()
        return pictures

    def prepare(self, preprocessing: Preprocessing) -> SegmentationPreprocessing:
        """At their own size, or resized; with the model's normalization."""
        return SegmentationPreprocessing(preprocessing.mean, preprocessing.std, self.short_side)

    def measure(self, model: Any) -> PixelMeasure:
        """Areas of the data's classes."""
        return PixelMeasure(tuple(self._pictures.classes), self.windows, self.scales, self.flip)

    def restrict(self, model: nn.Module) -> nn.Module:
        """The model itself: windows are the judges'.

        Raises:
            ValueError: It is none that segments.
        """
        if not isinstance(model, Segmenter):
            raise ValueError(
                f"A {type(model).__name__} gives no label a pixel, which label maps are for; name a segmenter's run."
            )
        return model

    @property
    def protocol(self) -> dict[str, Any]:
        """What answers depend on beside pictures, model and judges."""
        return {"classes": None, "short_side": self.short_side}

    @property
    def record(self) -> dict[str, Any]:
        """For reports."""
        return {"name": self.data, "root": self.root, "split": self.split, **self.protocol}
