"""Write the pages of the API reference from the public names of the package, before Sphinx reads the sources.

Every module of `MODULES` gets a page with one line per public name, and every function and class a page of its own. A name that
several modules export is listed once, in the first of them.
"""

import importlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MODULES = {
    "imgproc_attn": "Models, conversion from timm, filters for images",
    "imgproc_attn.models": "Backbones and their components",
    "imgproc_attn.language": "Causal language models and generation",
    "imgproc_attn.in_context": "In-context regression",
    "imgproc_attn.sequences": "Classifiers of long sequences and their data",
    "imgproc_attn.evaluation": "Evaluation, attacks, corruptions, sanity checks",
    "imgproc_attn.segmentation": "Segmentation models, inference, metrics",
    "imgproc_attn.training": "Training",
    "imgproc_attn.recipe": "Recipes",
    "imgproc_attn.tasks": "Tasks",
    "imgproc_attn.data": "Readers and loaders of images",
    "imgproc_attn.diagnostics": "Measures of filters and tokens, figures",
    "imgproc_attn.core.kernels": "Kernels",
    "imgproc_attn.core.positions": "Positions",
    "imgproc_attn.core.relative_buckets": "Relative buckets",
    "imgproc_attn.core.filters": "Filters and operators",
    "imgproc_attn.core.elementwise_filters": "Filters without softmax",
    "imgproc_attn.core.linear_filters": "Filters of linear cost",
    "imgproc_attn.core.feature_filters": "Filters of positive features",
    "imgproc_attn.core.landmark_filters": "Filters through landmarks",
    "imgproc_attn.core.sliding_window": "Sliding window",
    "imgproc_attn.core.residuals": "Residuals and block residuals",
    "imgproc_attn.core.projections": "Projections",
    "imgproc_attn.core.pointwise": "Pointwise layers",
    "imgproc_attn.core.terms": "Log-weights in factored form",
    "imgproc_attn.core.lifting": "Gaussians as inner products",
    "imgproc_attn.core.geometry": "Coordinates of tokens",
    "imgproc_attn.core.layer_state": "State between layers",
    "imgproc_attn.core.layer_cache": "Cache of a layer",
    "imgproc_attn.core.attention": "The attention layer",
    "imgproc_attn.core.block": "The block",
    "imgproc_attn.core.components": "Resolution of component names",
    "imgproc_attn.core.bandwidths": "Bandwidths",
    "imgproc_attn.core.gates": "Gates",
}

CONSTANTS = {
    "imgproc_attn.models.FAMILIES": "Families of models: per name, its default components and its docstring.",
    "imgproc_attn.language.LANGUAGE_FAMILIES": "Families of language models: per name, components and shapes of the sizes.",
    "imgproc_attn.in_context.BASELINES": "Predictors that every comparison shows beside the models, by name.",
    "imgproc_attn.sequences.SEQUENCE_FAMILIES": "Families of sequence classifiers: the components per name.",
    "imgproc_attn.core.lifting.LONGEST_LINE": "Number of tokens up to which a spatial Gaussian on a line is exact.",
    "imgproc_attn.evaluation.COMMON": "Names of the 15 corruptions of ImageNet-C.",
    "imgproc_attn.evaluation.EXTRA": "Names of its 4 extra corruptions.",
    "imgproc_attn.evaluation.LINF": "The L-infinity norm of a `ThreatModel`, the default.",
    "imgproc_attn.evaluation.L2_NORM": "The L2 norm of a `ThreatModel`.",
    "imgproc_attn.diagnostics.SATURATED_SHARE": "Share of saturated filter rows above which a model is reported.",
    "imgproc_attn.diagnostics.PUBLISHED_RATIOS": "Published signal-to-noise ratios per layer, by noise, read by eye.",
    "imgproc_attn.diagnostics.THEOREM_CASES": "Forms of the layer that `imgproc-attn theorem` runs, by name.",
    "imgproc_attn.data.UNREADABLE_LABEL": "Label of images that cannot be read.",
    "imgproc_attn.data.SINGLE_PROCESS": "The `World` of a run in one process.",
    "imgproc_attn.core.components.Spec": "Type of a component's keyword: name, dictionary, factory, or a list of these.",
}

PAGE = """{title}
{line}

.. module:: {name}

.. autosummary::
   :toctree: ../generated
   :nosignatures:

"""


def write_pages(app: Sphinx, config: Any) -> None:
    """Write ``api/modules/MODULE.rst`` for each module, unless the file already has this content."""
    folder, seen, pages = Path(app.srcdir) / "api" / "modules", set[int](), set[str]()
    folder.mkdir(exist_ok=True)
    for name, title in MODULES.items():
        module = importlib.import_module(name)
        values = {key: getattr(module, key) for key in sorted(module.__all__, key=str.lower)}
        own = {key: v for key, v in values.items() if id(v) not in seen and not _is_module(v) and not key.startswith("_")}
        seen |= {id(v) for v in own.values()}
        listed = [key for key in own if f"{name}.{key}" not in CONSTANTS]
        pages |= {f"{name}.{key}" for key in listed}
        text = PAGE.format(title=title, line="=" * len(title), name=name) + "".join(f"   {key}\n" for key in listed)
        constants = {key: CONSTANTS[f"{name}.{key}"] for key in own if f"{name}.{key}" in CONSTANTS}
        text += "".join(f"\n.. py:data:: {key}\n\n   {about}\n" for key, about in constants.items())
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    config.autosummary_generate = [f"api/modules/{name}.rst" for name in MODULES]
    for page in (folder.parent / "generated").glob("*.rst"):  # pages of names that are gone
        if page.stem not in pages:
            page.unlink()


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Skip fields of named tuples, which the docstring of the class documents."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _is_module(value: Any) -> bool:
    return type(value) is type(importlib)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("config-inited", write_pages)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True}
