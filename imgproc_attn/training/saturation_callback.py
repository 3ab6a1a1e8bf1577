"""Check between epochs for saturated filters, which copy single tokens."""

import warnings
from typing import Any

from torch import Tensor, nn

from ..diagnostics import SATURATED_SHARE, saturation
from ..diagnostics.saturation import saturable_layers
from ..models import FilterVisionTransformer
from ..segmentation import Segmenter

__all__ = ["SaturationCallback", "SaturationWarning"]


class SaturationWarning(UserWarning):
    """Warning about filters that copy single tokens."""


class SaturationCallback:
    """Warn about saturated filters. They train badly and seem robust to gradient-based attacks.

    Args:
        images: Images ``[B, C, H, W]`` on which the filters are computed, normalized as for the model.

    Example:
        >>> import torch
        >>> SaturationCallback(torch.rand(2, 3, 8, 8))(nn.Identity())  # a model without filters
        {}
    """

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Return the share of saturated rows for the record of an epoch.

        Args:
            model: Filter model, or segmenter with a filter model as encoder.

        Returns:
            ``{"saturated_rows": share}``, or an empty dictionary for other models and for filters whose rows
            do not sum to 1.

        Warns:
            SaturationWarning: The share is too large.
        """
        images = self._images
        if isinstance(model, Segmenter):
            images, model = model.padded(images), model.encoder
        if not isinstance(model, FilterVisionTransformer) or not saturable_layers(model):
            return {}
        share = saturation(model.eval(), images)
        if share > SATURATED_SHARE:
            warnings.warn(
                f"{100 * share:.1f} % of the filter's rows copy one token (a weight above 1 - 1e-4). Hardly any gradient "
                "reaches their bandwidths, queries and keys. Lower the learning rate, or raise the initial bandwidth.",
                SaturationWarning,
                stacklevel=2,
            )
        return {"saturated_rows": share}
