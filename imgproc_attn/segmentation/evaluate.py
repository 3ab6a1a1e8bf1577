"""`imgproc-attn evaluate` and `segment` of segmenters: numbers on labelled pictures, overlays of any."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ..data import Preparation
from ..evaluation.assessment import Assessment
from ..evaluation.conditions import Condition
from ..evaluation.normalization import NormalizedModel
from ..evaluation.robustness import CLEAN
from ..evaluation.subject import Subject
from ..files import write_atomically, write_csv
from .data import PICTURES
from .inference import Windowed, classes_of, multi_scale, segment
from .model import Segmenter
from .overlays import with_legend


def evaluate_segmenter(assessment: Assessment) -> dict[str, Any]:
    """Metrics on the pictures of the assessment's source; results, by class too, are in its folder.

    Returns:
        What ``result.json`` holds; nothing in processes other than the first.
    """
    conditions = [Condition(CLEAN, assessment.samples(), assessment.measure.clean)]
    flags = assessment.ask(conditions)
    if assessment.place.processes.rank:
        return {}
    checked = assessment.check(conditions[0].samples, None)
    result = assessment.write("evaluate", conditions, flags, checked, {})
    numbers, names = result["conditions"][0], list(conditions[0].samples.images.classes or {})
    rows = zip(names, numbers["iou"], numbers["accuracy_by_class"])
    write_csv(assessment.place.output / "per_class.csv", [["class", "iou", "accuracy"], *(list(row) for row in rows)])
    return result


def find_pictures(source: Path) -> list[Path]:
    """A picture, or all below a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    if source.is_file():
        return [source]
    found = sorted(file for file in source.rglob("*") if file.suffix.lower() in PICTURES)
    if not found:
        raise FileNotFoundError(f"{source} is no picture, and no folder with any ({', '.join(PICTURES)}).")
    return found


def segment_pictures(
    subject: Subject,
    source: Path,
    output: Path,
    device: torch.device,
    short_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> list[Path]:
    """Segment pictures: ``overlays/NAME.png`` with a legend, ``labels/NAME.png`` with class numbers as 8-bit grey.

    Args:
        subject: The segmenter.
        source: A picture, or a folder of pictures.
        output: Folder of the results; made if need be.
        device: Where to run.
        short_side: Pictures are resized to it for the model; results have their own size. Default: as they are.
        window: Side of sliding windows. Default: whole pictures.
        stride: Between windows. Default: ``window``.
        scales: Factors of the size, over which probabilities are averaged.
        flip: Mirror images too.

    Returns:
        The overlays.

    Raises:
        FileNotFoundError: There is no picture.
        ValueError: A model that does not segment, or a picture that cannot be read.
    """
    files = find_pictures(source)
    model, preparation = subject.build()
    if not isinstance(model, Segmenter):
        raise ValueError(f"{subject.model} is a {type(model).__name__}, which gives no label a pixel; name a segmenter's run.")
    names = model.pretrained_cfg.get("label_names") or [f"class {i}" for i in range(model.num_classes)]
    model, written = model.to(device), []
    for file in tqdm(files, unit="img", dynamic_ncols=True, disable=None):
        picture = _read(file)
        image = torch.from_numpy(picture).permute(2, 0, 1)
        image = image if short_side is None else F.resize(image, [short_side], antialias=True)
        size = (picture.shape[0], picture.shape[1])
        found = _classes(model, preparation, image.to(device) / 255, size, window, stride, scales, flip)
        labels = found.cpu().numpy().astype(np.uint8)
        place = file.relative_to(source if source.is_dir() else source.parent).with_suffix(".png")
        results = {"labels": Image.fromarray(labels), "overlays": with_legend(picture, labels, list(names))}
        for kind, result in results.items():
            (output / kind / place).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output / kind / place, partial(result.save, format="PNG"))
        written.append(output / "overlays" / place)
    return written


def _classes(
    model: Segmenter,
    preparation: Preparation,
    image: Tensor,
    size: tuple[int, int],
    window: int | None,
    stride: int | None,
    scales: Sequence[float],
    flip: bool,
) -> Tensor:
    """``[H, W]`` of an image in [0, 1], by one view in bounded memory or by several."""
    normalized = NormalizedModel(Windowed(model, window, stride), preparation.mean, preparation.std).to(image.device).eval()
    if tuple(scales) == (1.0,) and not flip:
        return segment(model, normalized.normalize(image), window, stride, size=size)
    return classes_of(multi_scale(normalized, image[None], scales, flip), size)[0]


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            return np.array(opened.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error
