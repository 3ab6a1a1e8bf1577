"""Looking at a model between epochs: are its filters still filters?"""

import warnings
from typing import Any

from torch import Tensor, nn

from ..diagnostics import SATURATED_SHARE, saturation
from ..models import FilterVisionTransformer
from ..segmentation import Segmenter


class SaturationWarning(UserWarning):
    """Filters that copy single tokens."""


class SaturationCallback:
    """Warns of saturated filters: they train badly, and feign robustness to attacks that follow the gradient.

    Args:
        images: ``[B, C, H, W]`` to look at, as the model gets them.
    """

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """``saturated_rows`` of a filter model, or of the encoder of one, for the record of an epoch; nothing of others."""
        images = self._images
        if isinstance(model, Segmenter):
            images, model = model.padded(images), model.encoder
        if not isinstance(model, FilterVisionTransformer):
            return {}
        share = saturation(model.eval(), images)
        if share > SATURATED_SHARE:
            warnings.warn(
                f"{100 * share:.1f} % of the filter's rows copy one token (a weight above 1 - 1e-4): hardly any gradient "
                "reaches their bandwidths, queries and keys. A smaller learning rate or a larger initial bandwidth helps.",
                SaturationWarning,
                stacklevel=2,
            )
        return {"saturated_rows": share}
