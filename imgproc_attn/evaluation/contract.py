"""Checks of the types, shapes and ranges of images, labels and logits, for attacks, corruptions and evaluations.

Images are floats ``[B, C, H, W]``, finite and in [0, 1]. Labels are class indices ``[B]``. Logits have one row per image.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.bandwidths import at_least_float32

__all__ = [
    "BOUNDS",
    "check_batch",
    "check_classes_of_labels",
    "check_corrupted",
    "check_evaluation_mode",
    "check_images",
    "check_logits",
    "check_pixels",
    "finite_logits",
]

BOUNDS = (0.0, 1.0)

# Images that were normalized and denormalized leave [0, 1] by rounding. There are eight roundings (mean, std, difference or
# sum, quotient or product, twice). Each changes a number of at most 1 by at most half a unit in the last place.
ROUNDINGS = 8
AXES = ("batch", "classes", "height", "width")


def check_batch(
    model: nn.Module, images: Tensor, labels: Tensor | None = None, bounds: tuple[float, float] | None = BOUNDS
) -> Tensor:
    """Check a model, images and labels, so that no mistake in them makes a robustness number wrong.

    Args:
        model: Model in evaluation mode.
        images: ``[B, C, H, W]``, as in `check_images`.
        labels: ``[B]`` class indices; None to check no labels.
        bounds: Range of the values, as in `check_images`.

    Returns:
        The images, as `check_images` returns them.

    Raises:
        TypeError: Images or labels are not tensors.
        ValueError: The model is in training mode, the call is inside ``torch.inference_mode()``, the images break the rules of
            `check_images`, or the labels are not one class index per image.
    """
    check_evaluation_mode(model)
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Attacks must run outside torch.inference_mode(), which rules out gradients, got a call inside it. Use "
            "torch.no_grad() instead."
        )
    images = check_images(images, bounds)
    if labels is not None:
        _check_labels(labels, images)
    return images


def check_evaluation_mode(model: Any) -> None:
    """Check that the model and all its modules are in evaluation mode.

    Args:
        model: Module. Other callables pass the check.

    Raises:
        ValueError: A module is in training mode. The message names it.
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    training = next((name for name, module in modules if module.training), None)
    if training is not None:
        module = f"its module {training!r}" if training else "it"
        raise ValueError(f"The model must be in evaluation mode, got {module} in training mode. Call model.eval().")


def check_images(images: Tensor, bounds: tuple[float, float] | None = BOUNDS, what: str = "Images") -> Tensor:
    """Return the images if they are finite floats ``[B, C, H, W]`` in the bounds.

    Args:
        images: ``[B, C, H, W]``.
        bounds: Range of the values; None for any finite value.
        what: Name of the images in messages.

    Returns:
        The same tensor. Values that left the bounds only by rounding (`ROUNDINGS` halves of the last place) are clamped.

    Raises:
        TypeError: The images are not a tensor.
        ValueError: The images are not floating point, do not have four axes, or have values that are not finite or out of
            bounds.

    Example:
        >>> check_images(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{what} must be a tensor [batch, channels, height, width], got {type(images).__name__}. For arrays [n, height, "
            "width, channels] of 8 bits give torch.from_numpy(images).movedim(-1, 1) / 255."
        )
    if not images.is_floating_point() or images.ndim != 4:
        remedy = "Divide 8-bit images by 255" if images.dtype == torch.uint8 else "Give images[None] for a single image"
        raise ValueError(
            f"{what} must be floats [batch, channels, height, width], got {images.dtype} of shape {list(images.shape)}. "
            f"{remedy}."
        )
    if not images.numel():
        return images
    # aminmax passes over the images once, and returns NaN twice if there is any.
    low, high = torch.stack(images.aminmax()).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} must be finite, got values from {low} to {high}. Repair or leave out those images.")
    if bounds is None or bounds[0] <= low <= high <= bounds[1]:
        return images
    slack = _rounding(images.dtype) * max(map(abs, bounds))
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(
            f"{what} must be in [{bounds[0]:g}, {bounds[1]:g}], got values from {low:.4g} to {high:.4g}. {_remedy(low, high)}."
        )
    return images.clamp(*bounds)


def _rounding(dtype: torch.dtype) -> float:
    """Return how far images may leave [0, 1] by being normalized and denormalized, in at most float32 precision."""
    return ROUNDINGS / 2 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _remedy(low: float, high: float) -> str:
    """Return the advice for images with values from ``low`` to ``high``."""
    if low >= 0 and high > 2:
        return "Divide images of 0 to 255 by 255"
    if low >= -0.5 and high <= 1.5:
        return "Clamp values outside the range, and leave normalization to NormalizedModel"
    return "Leave normalization to NormalizedModel"


def _check_labels(labels: Tensor, images: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"Labels must be a tensor [batch] of class indices, got {type(labels).__name__}. Give torch.tensor(labels)."
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"Labels must be {len(images)} class indices in int64, got {labels.dtype} of shape {list(labels.shape)}. Give one "
            "label per image."
        )
    if len(labels) and labels.min() < 0:
        raise ValueError(f"Labels must be at least 0, got {labels.min()}. Leave out images without a label.")


def check_logits(output: Any, images: Tensor, axes: int = 2) -> Tensor:
    """Return the output of a model if it is logits with one row per image.

    Args:
        output: Output of the model.
        images: ``[B, C, H, W]`` input of the model.
        axes: 2 for ``[B, classes]``, 4 for ``[B, classes, height, width]``.

    Raises:
        TypeError: The output is not a tensor but a dictionary, a tuple, or an output object of Hugging Face.
        ValueError: The output has the wrong number of axes or rows, or integers.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The model must return logits, a tensor [{', '.join(AXES[:axes])}], got {_kind(output)}. Wrap it in a module "
            f"whose forward returns {_logits_in(output)}."
        )
    if output.ndim != axes:
        unit = "image" if axes == 2 else "pixel"
        raise ValueError(
            f"The model must return logits [{', '.join(AXES[:axes])}], got shape {list(output.shape)} for {len(images)} "
            f"images. Return one row of class scores per {unit}."
        )
    if len(output) != len(images):
        raise ValueError(
            f"The model must return one row of logits per image, got {len(output)} for {len(images)} images. Return "
            f"[{', '.join(AXES[:axes])}], in the order of the images."
        )
    if not output.is_floating_point():
        raise ValueError(f"The model must return floating-point logits, got {output.dtype}. Return scores, not class indices.")
    return output


def _kind(output: Any) -> str:
    """Return the type of an output in words, with its keys or its length."""
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with {', '.join(map(repr, output))}"
    return f"a {name} of {len(output)}" if isinstance(output, tuple | list) else f"a {name}"


def _logits_in(output: Any) -> str:
    """Return the code that gets the logits out of an output."""
    if isinstance(output, Mapping):
        return f"model(x)[{next((key for key in ('logits', 'out') if key in output), 'KEY')!r}]"
    return "model(x)[0]" if isinstance(output, tuple | list) else "model(x).logits"


@torch.no_grad()
def finite_logits(model: nn.Module, images: Tensor, axes: int = 2) -> Tensor:
    """Return the logits of ``images``, in float32 or higher precision, with the checks of `check_logits`.

    Raises:
        FloatingPointError: Logits are not finite. Their argmax would count as a prediction.
    """
    logits = check_logits(model(images), images, axes)
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"Logits must be finite, got {(~logits.isfinite()).sum()} of {logits.numel()} that are not. Check the weights "
            "and the precision of the model."
        )
    return at_least_float32(logits)


def check_classes_of_labels(labels: Tensor, logits: Tensor) -> None:
    """Check that the model has a logit for every label.

    Raises:
        ValueError: A label is too large. The message names the largest one.
    """
    if labels.numel() and labels.max() >= logits.shape[1]:
        raise ValueError(
            f"Labels must be less than the number of classes of the model, {logits.shape[1]}, got {labels.max()}. Check the "
            "labels, or use a model with more classes."
        )


def check_corrupted(name: str, result: Tensor, images: Tensor) -> Tensor:
    """Return the corrupted images if they pass `check_images` and have the shape and dtype of the clean images.

    Args:
        name: Name of the corruption, for messages.
        result: Output of the corruption.
        images: ``[B, C, H, W]`` input of the corruption.

    Raises:
        TypeError: The output is not a tensor.
        ValueError: The output has another shape or dtype, or values that are not finite or out of [0, 1].
    """
    what = f"Images of corruption {name!r}"
    if isinstance(result, Tensor) and (result.shape, result.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"{what} must stay {images.dtype} of shape {list(images.shape)}, got {result.dtype} of shape {list(result.shape)}. "
            "Return one image of the same size per image."
        )
    return check_images(result, what=what)


def check_pixels(name: str, result: Any, pixels: np.ndarray) -> np.ndarray:
    """Return the corrupted pixels if they have the shape and dtype of the 8-bit ``pixels``.

    Args:
        name: Name of the corruption, for messages.
        result: Output of the corruption.
        pixels: ``[C, H, W]`` input of the corruption, uint8.

    Raises:
        ValueError: The output has another shape or dtype.
    """
    result = np.asarray(result)
    if (result.shape, result.dtype) != (pixels.shape, pixels.dtype):
        raise ValueError(
            f"Pixels of corruption {name!r} must stay {pixels.dtype} of shape {list(pixels.shape)}, got {result.dtype} of "
            f"shape {list(result.shape)}. Return whole gray levels, 0 to 255, of an image of the same size."
        )
    return result
