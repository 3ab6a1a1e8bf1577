"""How long runs tell how far they are."""

import sys

from tqdm import tqdm

SECONDS = 60.0  # between lines where there is no terminal


def progress_bar(total: int | None, shown: bool = True) -> tqdm:
    """A bar of images on a terminal; a line a minute elsewhere, for logs of batch systems.

    Args:
        total: Number of images; None if unknown.
        shown: Not in processes other than the first.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, unit="img", dynamic_ncols=True, disable=not shown)
    line = "{desc}{n_fmt} of {total_fmt} images, {elapsed} gone, {remaining} left, {rate_fmt}\n"
    return tqdm(total=total, unit="img", mininterval=SECONDS, maxinterval=SECONDS, bar_format=line, disable=not shown)
