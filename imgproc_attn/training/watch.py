"""Looking at a model between epochs: are its filters still filters?"""

import warnings
from typing import Any

import torch
from torch import nn

from ..data import Images, Preparation, evaluation_loader
from ..diagnostics import SATURATED_SHARE, saturation
from ..models import FilterVisionTransformer


class SaturationWarning(UserWarning):
    """Filters that copy single tokens."""


class SaturationWatch:
    """Warns of saturated filters: they train badly, and feign robustness to attacks that follow the gradient.

    Args:
        images: The first four are what is looked at, as evaluation sees them.
        preparation: How.
        device: Of the model.
    """

    def __init__(self, images: Images, preparation: Preparation, device: torch.device) -> None:
        four = Images(images.reader, images.num_classes, images.indices[:4], preparation.input_size[0], "ignore")
        self._images = next(iter(evaluation_loader(four, preparation, 4, 0, device)))[0]

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """``saturated_rows`` of a filter model, for the record of an epoch; nothing of others."""
        if not isinstance(model, FilterVisionTransformer):
            return {}
        share = saturation(model.eval(), self._images)
        if share > SATURATED_SHARE:
            warnings.warn(
                f"{100 * share:.1f} % of the filter's rows copy one token (a weight above 1 - 1e-4): hardly any gradient "
                "reaches their bandwidths, queries and keys. A smaller learning rate or a larger initial bandwidth helps.",
                SaturationWarning,
                stacklevel=2,
            )
        return {"saturated_rows": share}
