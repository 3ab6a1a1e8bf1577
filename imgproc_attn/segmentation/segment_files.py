"""`imgproc-attn segment`: overlays and label maps of images."""

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
from .data import find_pictures, read_picture
from .inference import SlidingWindow, check_scales, segment
from .model import Segmenter
from .overlays import with_legend
from .transforms import resized


def _with_progress(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files with a progress bar."""
    with progress_bar(len(files)) as bar:
        for file in files:
            yield file
            bar.update()


def segment_pictures(
    subject: ModelSpec,
    source: Path,
    output: Path,
    device: torch.device,
    short_side: int | None = None,
    windows: SlidingWindow | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> list[Path]:
    """Segment pictures: ``overlays/NAME.png`` with a legend, ``labels/NAME.png`` with class numbers as 8-bit gray.

    Args:
        subject: The segmenter.
        source: A picture, or a folder of pictures; what lies in ``output`` is left out.
        output: Folder of the results; made if need be.
        device: Where to run.
        short_side: Pictures are resized to it for the model; results have their own size. Default: as they are.
        windows: How the model looks at a picture. Default: at the whole.
        scales: Factors of the size, over which probabilities are averaged.
        flip: Mirror images too.

    Returns:
        The overlays.

    Raises:
        FileNotFoundError: There is no picture.
        FileExistsError: ``output`` holds files that would be overwritten, and that were not written by this function.
        ValueError: A model that does not segment, or two pictures of one name; or pictures that cannot be read, once all others
            are written.
    """
    check_output_folder(output)
    check_scales(scales)
    own = output.resolve()
    pictures = find_pictures(source) if source.is_dir() else [source] * source.is_file()
    files = [f for f in pictures if f == source or not f.resolve().is_relative_to(own)]
    if not files:
        raise FileNotFoundError(f"{source} is no picture, and no folder with any ({', '.join(sorted(IMAGE_EXTENSIONS))}).")
    inner, preprocessing = subject.build()
    if not isinstance(inner, Segmenter):
        raise ValueError(f"{subject.model} is a {type(inner).__name__}, which gives no label a pixel; name a segmenter's run.")
    names = inner.pretrained_cfg.get("label_names") or [f"class {i}" for i in range(inner.num_classes)]
    model = NormalizedModel(inner, preprocessing.mean, preprocessing.std).to(device).eval()
    view, written = windows or SlidingWindow(), []
    broken: list[str] = []
    top = source if source.is_dir() else source.parent
    places = {file: file.relative_to(top).with_suffix(".png").as_posix() for file in files}
    with claimed(output, [f"{kind}/{place}" for place in places.values() for kind in ("labels", "overlays")]):
        for file in _with_progress(files):
            try:
                picture = read_picture(file, upright=True)
            except ValueError as error:
                broken.append(str(error))
                continue
            image = torch.from_numpy(picture).permute(2, 0, 1)
            image = image if short_side is None else resized(image, short_side)
            size = (picture.shape[0], picture.shape[1])
            found = segment(model, image.to(device) / 255, view.window, view.stride, size=size, scales=scales, flip=flip)
            labels = found.cpu().numpy().astype(np.uint8)
            results = {"labels": Image.fromarray(labels), "overlays": with_legend(picture, labels, list(names))}
            for kind, result in results.items():
                write_atomically(output / kind / places[file], partial(result.save, format="PNG"))
            written.append(output / "overlays" / places[file])
    if broken:
        done = f"{len(written)} pictures are segmented in {output}, but not {len(broken)}: " if written else ""
        raise ValueError(done + " ".join(broken[:10]))
    return written
