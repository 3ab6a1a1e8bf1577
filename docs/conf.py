"""Sphinx configuration. Build with ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import sys
import warnings
from pathlib import Path

import matplotlib

import imgproc_attn

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
matplotlib.use("agg")
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "imgproc_attn"
author = "The imgproc_attn contributors"
copyright = f"2026, {author}"
version = release = imgproc_attn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_design",
    "sphinx_copybutton",
    "recipe_keys",
    "sphinx_gallery.gen_gallery",
    "matplotlib.sphinxext.plot_directive",
    "api",
]
exclude_patterns = ["_build", "gallery/README.txt", "gallery/*.py", "auto_gallery/*.ipynb"]
templates_path = ["_templates"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

autosummary_imported_members = False
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "forward, training, extra_repr"}
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"

plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("png", 110)]
plot_rcparams = {"figure.constrained_layout.use": True, "font.size": 9}

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "image_scrapers": ("matplotlib", "figures.scrape_figures"),
    "capture_repr": (),
    "show_memory": False,
    "download_all_examples": False,
    "backreferences_dir": "auto_gallery/backreferences",
    "write_computation_times": False,  # Their page loads scripts from the internet.
    "doc_module": ("imgproc_attn",),
    "inspect_global_variables": True,
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "imgproc_attn"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
linkcheck_timeout = 20
linkcheck_ignore = [r"https://github\.com/OWNER/.*"]
