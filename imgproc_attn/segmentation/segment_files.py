"""Overlays and label maps of image files, for `imgproc-attn segment`."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.decoding import IMAGE_EXTENSIONS
from ..evaluation.normalization import NormalizedModel
from ..evaluation.specs import ModelSpec
from ..utils.io import check_output_folder, write_atomically
from ..utils.manifest import claimed
from ..utils.progress import progress_bar
from .data import find_images, read_image
from .inference import SlidingWindow, check_scales, segment
from .model import Segmenter
from .overlays import with_legend
from .transforms import resized

__all__ = ["segment_images"]


def _with_progress(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files with a progress bar."""
    with progress_bar(len(files)) as bar:
        for file in files:
            yield file
            bar.update()


def segment_images(
    subject: ModelSpec,
    source: Path,
    output: Path,
    device: torch.device,
    short_side: int | None = None,
    windows: SlidingWindow | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> list[Path]:
    """Segment image files: ``overlays/NAME.png`` with a legend, ``labels/NAME.png`` with class numbers as 8-bit gray.

    Args:
        subject: The segmentation model.
        source: An image, or a folder of images. Files in ``output`` are left out.
        output: Folder of the results. It is created if it does not exist.
        device: Device of the model.
        short_side: Shorter side in pixels to which images are resized for the model. Results have the size of the original
            image. Default: no resizing.
        windows: Sliding windows. Default: the whole image at once.
        scales: Factors of the image size. Probabilities are averaged over them.
        flip: Whether to average also over the mirrored image at each scale.

    Returns:
        The files of the overlays.

    Raises:
        FileNotFoundError: There is no image.
        FileExistsError: ``output`` holds files that would be overwritten and were not written by this function.
        ValueError: The model is not a segmentation model, two images have the same name, or some images cannot be read. All
            other images are written first.
    """
    check_output_folder(output)
    check_scales(scales)
    own = output.resolve()
    found = find_images(source) if source.is_dir() else [source] * source.is_file()
    files = [f for f in found if f == source or not f.resolve().is_relative_to(own)]
    if not files:
        raise FileNotFoundError(
            f"The source must be an image or a folder with images ({', '.join(sorted(IMAGE_EXTENSIONS))}), got {source}. Check "
            "the path."
        )
    inner, preprocessing = subject.build()
    if not isinstance(inner, Segmenter):
        raise ValueError(
            f"The model must be a segmentation model, got {subject.model}, a {type(inner).__name__}. Name a segmenter's run."
        )
    names = inner.pretrained_cfg.get("label_names") or [f"class {i}" for i in range(inner.num_classes)]
    model = NormalizedModel(inner, preprocessing.mean, preprocessing.std).to(device).eval()
    view, written = windows or SlidingWindow(), []
    broken: list[str] = []
    top = source if source.is_dir() else source.parent
    names_of_results = {file: file.relative_to(top).with_suffix(".png").as_posix() for file in files}
    with claimed(output, [f"{kind}/{name}" for name in names_of_results.values() for kind in ("labels", "overlays")]):
        for file in _with_progress(files):
            try:
                pixels = read_image(file, upright=True)
            except ValueError as error:
                broken.append(str(error))
                continue
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            image = image if short_side is None else resized(image, short_side)
            size = (pixels.shape[0], pixels.shape[1])
            classes = segment(model, image.to(device) / 255, view.window, view.stride, size=size, scales=scales, flip=flip)
            labels = classes.cpu().numpy().astype(np.uint8)
            results = {"labels": Image.fromarray(labels), "overlays": with_legend(pixels, labels, list(names))}
            for kind, result in results.items():
                write_atomically(output / kind / names_of_results[file], partial(result.save, format="PNG"))
            written.append(output / "overlays" / names_of_results[file])
    if broken:
        done = f"{len(written)} images are segmented in {output}, but not {len(broken)}: " if written else ""
        raise ValueError(done + " ".join(broken[:10]))
    return written
