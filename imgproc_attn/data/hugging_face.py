"""Hugging Face data sets: choice of the image and label columns, and readers for map-style and streamed sets."""

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from timm.data.readers.reader import Reader

from .folders import natural_order, some_names
from .streams import StreamedImages

__all__ = ["Columns", "HuggingFaceImages", "choose_columns", "import_datasets", "number_classes", "stream_images"]

IMAGE, LABEL = "image", "label"  # Most data sets on the Hub use these names.


class Columns(NamedTuple):
    """Names of the image column and the label column.

    Attributes:
        image: Column of images.
        label: Column of labels.
    """

    image: str
    label: str


def choose_columns(name: str, features: Mapping[str, Any], image: str | None, label: str | None) -> Columns:
    """Choose the columns of images and labels.

    Without a given name, the column is the one named ``image`` or ``label``. If there is none, it is the only column of
    images or of class labels.

    Args:
        name: Name of the data set, for messages.
        features: Type of each column.
        image: Name of the image column. Default: see above.
        label: Name of the label column. Default: see above.

    Raises:
        ValueError: There is no such column, or several columns are possible.
    """
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    columns = ", ".join(f"{c} ({feature.dtype if kinds[c] == 'Value' else kinds[c]})" for c, feature in features.items())

    def chosen(what: str, given: str | None, usual: str, kind: str) -> str:
        fitting = [column for column, column_kind in kinds.items() if column_kind == kind]
        candidates = [given] if given else [usual] if usual in kinds else fitting
        if len(candidates) == 1 and candidates[0] in kinds:
            return candidates[0]
        problem = repr(given) if given else f"no name, and {len(fitting)} columns of type {kind}"
        raise ValueError(
            f"{name}: {what}_column must be one of the columns {columns}, got {problem}. Name one: "
            f"data.{what}_column=NAME in a recipe, --{what}-column NAME in a command."
        )

    return Columns(chosen("image", image, IMAGE, "Image"), chosen("label", label, LABEL, "ClassLabel"))


def number_classes(name: str, column: str, feature: Any, values: Sequence[Any] | None = None) -> dict[str, int] | None:
    """Number the classes of a label column.

    Args:
        name: Name of the data set, for messages.
        column: Name of the label column.
        feature: Type of the column.
        values: Values of the column, for text labels. Text labels are numbered in natural order.

    Returns:
        ``{name: label}``, or None for a column of numbers.

    Raises:
        ValueError: The labels have another type, or some are missing.
    """
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if "string" in dtype and values is not None:
        missing = [str(i) for i, value in enumerate(values) if value is None]
        if missing:
            raise ValueError(
                f"{name}: every image must have a label, got {len(missing)} without one (images {some_names(missing)}). "
                "Label or remove them."
            )
        return {text: number for number, text in enumerate(sorted(set(values), key=natural_order))}
    if hasattr(feature, "names"):
        return {text: number for number, text in enumerate(feature.names)}
    if not dtype.startswith(("int", "uint")):
        raise ValueError(
            f"{name}: the labels must be class labels or whole numbers, got the column {column!r} of {dtype}. Name another "
            "one: data.label_column=NAME in a recipe, --label-column NAME in a command. Only hfds/ reads text labels."
        )
    return None


def import_datasets() -> Any:
    """Import Hugging Face's ``datasets`` with the code of downloaded data sets disabled.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"The package datasets must be installed for hfds/ and hfids/, got {error}. Run: pip install datasets."
        ) from error
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
    return datasets


def stream_images(name: str, mode: str, image: str | None, label: str | None, **options: Any) -> StreamedImages:
    """Open an iterable data set of Hugging Face.

    Args:
        name: Argument of ``datasets.load_dataset_builder``: a name on the Hub, or a folder.
        mode: ``L`` for gray, ``RGB`` for color.
        image: Name of the image column. Default: see `choose_columns`.
        label: Name of the label column. Default: see `choose_columns`.
        options: Keyword arguments of timm's ``ReaderHfids``.

    Raises:
        ValueError: As in `choose_columns` and `number_classes`, or the number of images is unknown.
    """
    datasets = import_datasets()
    from timm.data.readers.reader_hfids import ReaderHfids  # The import takes a second.

    builder = datasets.load_dataset_builder(name, cache_dir=options["root"])
    features = builder.info.features
    if features is None:
        stream = builder.as_streaming_dataset(split=options["split"])
        features = stream.features or stream._resolve_features().features
    columns = choose_columns(name, features, image, label)
    classes = number_classes(name, columns.label, features[columns.label])
    try:  # timm must not convert the images: its conversion would turn 16 bits into white.
        reader = ReaderHfids(name, input_key=columns.image, target_key=columns.label, input_img_mode="", **options)
    except ValueError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{name}: {problem} Give data.download=true, or read it with hfds/.") from error
    return StreamedImages(reader, mode, classes)


class HuggingFaceImages(Reader):
    """Reader of a map-style data set of Hugging Face.

    Text labels are numbered in natural order of their values.

    Args:
        name: Argument of ``datasets.load_dataset``: a name on the Hub, or a folder.
        root: Folder of the cache. Default: that of Hugging Face.
        split: Split of the data set.
        image: Name of the image column. Default: see `choose_columns`.
        label: Name of the label column. Default: see `choose_columns`.

    Raises:
        ValueError: The data set cannot be built, has no such split or columns, or has labels of another type.
    """

    def __init__(self, name: str, root: str | None, split: str, image: str | None = None, label: str | None = None) -> None:
        super().__init__()
        datasets = import_datasets()
        try:
            dataset = datasets.load_dataset(name, split=split, cache_dir=root)
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(f"{name}: {error}") from error
        self.columns = columns = choose_columns(name, dataset.features, image, label)
        try:
            dataset = dataset.select_columns(list(columns)).cast_column(columns.image, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{name}: the column {columns.image!r} must hold images, got a column of another type ({error}). Name another "
                "one: data.image_column=NAME in a recipe, --image-column NAME in a command."
            ) from error
        self._dataset = dataset
        values = dataset[columns.label][:]
        self.class_to_idx = number_classes(name, columns.label, dataset.features[columns.label], values)
        is_text = any(isinstance(value, str) for value in values[:1])
        self.labels = [self.class_to_idx[value] for value in values] if is_text and self.class_to_idx else values

    def __getitem__(self, index: int) -> tuple[BinaryIO, Any]:
        image = self._dataset[index][self.columns.image]
        if image is None or not (image["bytes"] or image["path"]):
            raise ValueError("it is empty")
        return io.BytesIO(image["bytes"]) if image["bytes"] else open(image["path"], "rb"), self.labels[index]

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def _stored(self) -> tuple[list[str | None], np.ndarray]:
        """Path and number of bytes of each image, without reading the images."""
        import pyarrow.compute as pc

        images = self._dataset.with_format("arrow")[:].column(self.columns.image)
        sizes = pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), 0)
        return pc.struct_field(images, "path").to_pylist(), sizes.to_numpy()

    def entry(self, index: int) -> tuple[str, Any, int]:
        """Return name, label and number of bytes."""
        return self._filename(index), self.labels[index], int(self._stored[1][index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._stored[0][index] or f"image-{index}"
