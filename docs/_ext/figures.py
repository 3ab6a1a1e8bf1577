"""Image scraper of sphinx-gallery for figures that pyplot does not know.

The drawing functions of the package return figures without registering them with pyplot. This scraper finds them among the
variables of an example.
"""

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

__all__ = ["scrape_figures"]


def scrape_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any], **kwargs: Any) -> str:
    """Save each figure that a code block assigned, once, and return the reStructuredText that shows them."""
    names = block_vars["example_globals"]
    done = names.setdefault("__scraped__", [])
    found = [v for v in names.values() if isinstance(v, Figure) and not hasattr(v, "number") and all(v is not d for d in done)]
    paths = []
    for figure in found:
        done.append(figure)
        path = next(block_vars["image_path_iterator"])
        figure.savefig(path, dpi=100)
        paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])
