"""Reader of the Pathfinder images of the Long Range Arena (arXiv 2011.04006): do two marked points lie on one curve?"""

import io
from pathlib import Path

import torch
from timm.data.readers.reader import Reader

__all__ = ["Pathfinder"]

SPLITS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}


class Pathfinder(Reader):
    """Reader of one difficulty of Pathfinder, a folder such as ``pathfinder32/curv_contour_length_14``.

    The files ``metadata/*.npy`` are text in spite of their suffix. A line holds folder and file name of an image, a number, the
    label, and more. Images whose file is empty are left out, as in the published pipeline. The images are divided at random
    into 80 % ``train``, 10 % ``val`` and 10 % ``test``.

    Args:
        root: Folder with ``metadata`` and the folders that it names.
        split: ``train``, ``val`` or ``test``.
        seed: Seed of the random split.

    Raises:
        FileNotFoundError: There is no metadata, or an image is missing.
        ValueError: There is no such split, or a line has another format.
    """

    def __init__(self, root: Path, split: str, seed: int = 0) -> None:
        super().__init__()
        if split not in SPLITS:
            raise ValueError(f"The split of pathfinder must be one of {', '.join(SPLITS)}, got {split!r}. Name one of them.")
        files = sorted(root.glob("metadata/*.npy"), key=lambda file: (len(file.name), file.name))
        if not files:
            raise FileNotFoundError(
                f"{root} must hold metadata/*.npy, got none. Name the folder of one difficulty, as curv_contour_length_14."
            )
        found = [(path, label) for file in files for path, label in _listed(root, file) if path.stat().st_size > 0]
        start, stop = (round(part * len(found)) for part in SPLITS[split])
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        self._root, self._images = root, [found[i] for i in sorted(order[start:stop])]
        self.class_to_idx = {"apart": 0, "connected": 1}

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        path, label = self._images[index]
        return io.BytesIO(path.read_bytes()), label

    def __len__(self) -> int:
        return len(self._images)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._images[index][0].relative_to(self._root).as_posix()

    def entry(self, index: int) -> tuple[str, int, int]:
        """Return name, label and file size."""
        path, label = self._images[index]
        return self._filename(index), label, path.stat().st_size


def _listed(root: Path, file: Path) -> list[tuple[Path, int]]:
    """Return images and labels of a file of metadata."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text, one line per image, got binary content. Copy the published file.") from error
    images = []
    for number, line in enumerate(lines, 1):
        words = line.split(" ")
        if len(words) < 4 or words[3] not in ("0", "1"):
            raise ValueError(
                f"{file}, line {number}: there must be folder, file, number and a label of 0 or 1, separated by spaces, got "
                f"{line[:60]!r}. Correct the line."
            )
        path = root / words[0] / words[1]
        if not path.is_file():
            raise FileNotFoundError(f"{file}, line {number}: the image must be a file, got {path}. Copy the images again.")
        images.append((path, int(words[3])))
    return images
