"""Names of readers. The schema of recipes checks them. Therefore this module imports no torch."""

from collections.abc import Iterable

__all__ = ["LABEL_MAPS", "REGRESSION", "SEQUENCES", "TEXT", "check_columns", "check_reader", "reads_from_a_place"]

READERS = ("folder", "npz", "digits", "pathfinder")
PREFIXES = ("torch", "wds", "hfds", "hfids", "tfds")  # timm defines these.
LABEL_MAPS = ("ade20k", "camvid", "labeled")  # Readers of images with label maps, in `imgproc_attn.segmentation.data`.

SEQUENCES = ("listops", "reviews", "retrieval")  # Readers of labeled sequences, in `imgproc_attn.sequences.sources`.

TEXT = "text"  # Reader of text files, in `imgproc_attn.language.text`.
REGRESSION = "regression"  # Random functions, drawn by `imgproc_attn.in_context`.


def check_reader(name: str, beside: Iterable[str] = ()) -> None:
    """Check the name of a reader. timm would take an unknown name for a folder of images.

    Args:
        name: Name of a reader, such as ``folder`` or ``torch/cifar10``.
        beside: Further valid names.

    Raises:
        ValueError: There is no such reader.
    """
    kind, _, which = name.partition("/")
    if name not in (*READERS, *beside) and not (kind in PREFIXES and which):
        raise ValueError(
            f"The reader must be {', '.join((*READERS, *beside))} or begin with "
            f"{', '.join(f'{prefix}/' for prefix in PREFIXES)}, got {name!r}. Correct the name."
        )


def reads_from_a_place(name: str) -> bool:
    """Return whether the reader needs a root folder or file."""
    return name not in ("digits", REGRESSION) and not name.startswith(("hfds/", "hfids/"))


def check_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    """Refuse column names for readers without columns.

    Args:
        name: Name of the reader.
        image_column: Name of the image column; None if not given.
        label_column: Name of the label column; None if not given.

    Raises:
        ValueError: A column is given, but the reader has no such column.
    """
    kind = name.partition("/")[0]
    for key, value, kinds in (
        ("image_column", image_column, ("hfds", "hfids")),
        ("label_column", label_column, ("hfds", "hfids", "wds")),
    ):
        if value is not None and kind not in kinds:
            raise ValueError(f"{key} must be left out for {name!r}, got {value!r}. Only {', '.join(kinds)} take it.")
