"""The contract of images and logits: one check of types, shapes and ranges for attacks, corruptions, models and evaluations.

Images are floats ``[B, C, H, W]``, finite and in [0, 1]; labels are class indices ``[B]``; logits have one row per image.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.bandwidths import at_least_float32

BOUNDS = (0.0, 1.0)

# Images that were normalized and brought back leave [0, 1] by rounding. Eight roundings (mean, std, difference or sum, quotient
# or product, twice) change a number of at most 1 by at most half a unit in the last place each.
ROUNDINGS = 8
AXES = ("batch", "classes", "height", "width")


def check_batch(
    model: nn.Module, images: Tensor, labels: Tensor | None = None, bounds: tuple[float, float] | None = BOUNDS
) -> Tensor:
    """Refuse what would make a robustness number wrong.

    Args:
        model: In evaluation mode.
        images: As `check_images`.
        labels: ``[B]`` class indices; None where there are none to check.
        bounds: As `check_images`.

    Returns:
        The images, as `check_images`.

    Raises:
        TypeError: Images or labels that are no tensors.
        ValueError: A model in training mode, a call inside ``torch.inference_mode()``, images outside the contract, or labels
            that are not one class index per image.
    """
    check_evaluation_mode(model)
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Attacks need gradients, which torch.inference_mode() rules out; call them outside it (no_grad is fine)."
        )
    images = check_images(images, bounds)
    if labels is not None:
        _check_labels(labels, images)
    return images


def check_evaluation_mode(model: Any) -> None:
    """Refuse a model of which a part is in training mode.

    Raises:
        ValueError: It is named.
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    training = next((name for name, module in modules if module.training), None)
    if training is not None:
        which = f"{training!r} of the model" if training else "The model"
        raise ValueError(f"{which} is in training mode, where dropout and its like feign robustness; call model.eval().")


def check_images(images: Tensor, bounds: tuple[float, float] | None = BOUNDS, what: str = "Images") -> Tensor:
    """Images, if they keep to the contract.

    Args:
        images: ``[B, C, H, W]``.
        bounds: Range of the values; None for any finite value.
        what: What messages call them.

    Returns:
        The same tensor; clamped, where rounding alone has left the bounds (by `ROUNDINGS` halves of the last place).

    Raises:
        TypeError: No tensor.
        ValueError: Not floating point, not four axes, values that are not finite or out of bounds.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{what} must be a tensor [batch, channels, height, width], got {type(images).__name__}. For arrays [n, height, "
            "width, channels] of 8 bits give torch.from_numpy(images).movedim(-1, 1) / 255."
        )
    if not images.is_floating_point() or images.ndim != 4:
        remedy = " in [0, 1]; divide 8-bit images by 255" if images.dtype == torch.uint8 else ""
        raise ValueError(
            f"{what} are {images.dtype} of shape {list(images.shape)}; give floats [batch, channels, height, width]{remedy}."
        )
    if not images.numel():
        return images
    low, high = torch.stack(images.aminmax()).tolist()  # one pass; NaN is least and largest
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} hold values that are not finite; repair or leave out those images.")
    if bounds is None or bounds[0] <= low <= high <= bounds[1]:
        return images
    slack = _rounding(images.dtype) * max(map(abs, bounds))
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(
            f"{what} range from {low:.4g} to {high:.4g}, but must lie in [{bounds[0]:g}, {bounds[1]:g}]; {_remedy(low, high)}."
        )
    return images.clamp(*bounds)


def _rounding(dtype: torch.dtype) -> float:
    """By how much images in [0, 1] may leave it after they were normalized and brought back, in float32 at best."""
    return ROUNDINGS / 2 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _remedy(low: float, high: float) -> str:
    """What to do about images that range from ``low`` to ``high``."""
    if low >= 0 and high > 2:
        return "divide images of 0 to 255 by 255"
    if low >= -0.5 and high <= 1.5:
        return "clamp what overshoots, and leave normalization to NormalizedModel"
    return "leave normalization to NormalizedModel"


def _check_labels(labels: Tensor, images: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"Labels must be a tensor [batch] of class indices, got {type(labels).__name__}. Give torch.tensor(labels)."
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"Labels are {labels.dtype} of shape {list(labels.shape)}; give {len(images)} class indices, int64.")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"A label is {labels.min()}, but classes count from 0; leave out images without a label.")


def check_logits(output: Any, images: Tensor, axes: int = 2) -> Tensor:
    """What a model returns for ``images``, if it is logits.

    Args:
        output: What it returns.
        images: ``[B, C, H, W]``.
        axes: 2 for ``[B, classes]``, 4 for ``[B, classes, height, width]``.

    Raises:
        TypeError: No tensor: a dictionary, a tuple, an object of Hugging Face's.
        ValueError: Another shape, another number of rows than images, or whole numbers.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The model must return logits, a tensor [{', '.join(AXES[:axes])}], got {_kind(output)}. Wrap it in a module "
            f"whose forward returns {_logits_in(output)}."
        )
    if output.ndim != axes:
        per = "an image" if axes == 2 else "a pixel"
        raise ValueError(f"The model gives {list(output.shape)} for {len(images)} images, not a label {per}.")
    if len(output) != len(images):
        raise ValueError(
            f"The model must return one row of logits per image, got {len(output)} for {len(images)} images. Return "
            f"[{', '.join(AXES[:axes])}], in the order of the images."
        )
    if not output.is_floating_point():
        raise ValueError(f"The model must return floating-point logits, got {output.dtype}. Return scores, not class indices.")
    return output


def _kind(output: Any) -> str:
    """The type of an output, and its keys or its length."""
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with {', '.join(map(repr, output))}"
    return f"a {name} of {len(output)}" if isinstance(output, tuple | list) else f"a {name}"


def _logits_in(output: Any) -> str:
    """Where in an output the logits are, as code."""
    if isinstance(output, Mapping):
        return f"model(x)[{next((key for key in ('logits', 'out') if key in output), 'KEY')!r}]"
    return "model(x)[0]" if isinstance(output, tuple | list) else "model(x).logits"


@torch.no_grad()
def finite_logits(model: nn.Module, images: Tensor, axes: int = 2) -> Tensor:
    """The logits of ``images``, in float32 at least. As `check_logits` otherwise.

    Raises:
        FloatingPointError: Some are not finite, whose argmax would count as a prediction.
    """
    logits = check_logits(model(images), images, axes)
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"{(~logits.isfinite()).sum()} of {logits.numel()} logits are not finite; the model is broken."
        )
    return at_least_float32(logits)


def check_classes_of_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that the model has no logit for.

    Raises:
        ValueError: The largest is named.
    """
    if labels.numel() and labels.max() >= logits.shape[1]:
        raise ValueError(f"A label is {labels.max()}, but the model has {logits.shape[1]} classes.")


def check_corrupted(name: str, found: Tensor, images: Tensor) -> Tensor:
    """What a corruption makes of ``images``, if it keeps to the contract and leaves their shape and type alone.

    Raises:
        TypeError: No tensor.
        ValueError: Another shape or type, values that are not finite or out of [0, 1]; the corruption is named.
    """
    what = f"Images of corruption {name!r}"
    if isinstance(found, Tensor) and (found.shape, found.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"{what} must stay {images.dtype} of shape {list(images.shape)}, got {found.dtype} of shape {list(found.shape)}. "
            "Return one image of the same size for each."
        )
    return check_images(found, what=what)


def check_pixels(name: str, found: Any, pixels: np.ndarray) -> np.ndarray:
    """What a corruption makes of 8-bit ``pixels``, if it leaves their shape and type alone.

    Raises:
        ValueError: It does not; the corruption is named.
    """
    found = np.asarray(found)
    if (found.shape, found.dtype) != (pixels.shape, pixels.dtype):
        raise ValueError(
            f"Pixels of corruption {name!r} must stay {pixels.dtype} of shape {list(pixels.shape)}, got {found.dtype} of shape "
            f"{list(found.shape)}. Return whole gray levels, 0 to 255, of an image of the same size."
        )
    return found
