"""Augmentation of a recipe, from transforms of timm and torchvision."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import posterize
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Compose, InterpolationMode, RandomAffine, RandomCrop, Resize

from ..data import Preprocessing
from ..recipe.sections import Augmentation

__all__ = ["mixup", "training_transform"]


def training_transform(a: Augmentation, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
    """Build the transform from a PIL image to an array ``[channels, height, width]`` of 8 bits.

    Random erasing and mixup are applied later, on the device.

    Args:
        a: Section ``augmentation`` of the recipe.
        preprocessing: Preprocessing of the images, as the model needs them.

    Raises:
        ValueError: timm does not know the policy ``auto_augment``.
    """
    first: list[Any] = []
    height, width = size = preprocessing.input_size[1:]
    if a.crop_padding:
        # Images that already have this size, such as CIFAR's, are not changed.
        shape = height if height == width else size
        first.append(Resize(shape, interpolation=str_to_interp_mode(preprocessing.interpolation)))
        first.append(RandomCrop(size, padding=a.crop_padding, padding_mode="reflect"))
    if a.degrees or a.translate or list(a.zoom) != [1.0, 1.0]:
        bilinear = InterpolationMode.BILINEAR
        first.append(RandomAffine(a.degrees, (a.translate, a.translate), tuple(a.zoom), interpolation=bilinear))
    options: dict[str, Any] = {
        "scale": tuple(a.scale),
        "ratio": tuple(ratio * width / height for ratio in a.ratio),
        "hflip": a.hflip,
        "color_jitter": a.color_jitter or None,
        "auto_augment": a.auto_augment,
        "interpolation": a.interpolation or preprocessing.interpolation,
        "mean": preprocessing.mean,  # color of areas that a policy moves into the image
    }
    try:
        rest = create_transform(preprocessing.input_size, is_training=True, use_prefetcher=True, **options)
    except (AssertionError, ValueError) as error:
        if a.auto_augment is None:
            raise
        raise ValueError(
            f"augmentation.auto_augment must be a policy of timm, got {a.auto_augment!r} ({error or 'unknown policy'}). Use "
            "one such as rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0 or 3a."
        ) from error
    _mend_posterize(rest)
    return Compose([*first, rest])


def _mend_posterize(transform: Any) -> None:
    """Make timm's strongest posterizing return black images.

    It keeps 0 bits per channel, which Pillow refuses since version 13.
    """
    for policy in transform.transforms:
        operations = [*getattr(policy, "ops", []), *(op for row in getattr(policy, "policy", []) for op in row)]
        for operation in operations:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def mixup(a: Augmentation, num_classes: int, label_smoothing: float) -> Mixup | None:
    """Return timm's mixup and cutmix if the recipe asks for either, else None. They also smooth the labels.

    Args:
        a: Section ``augmentation`` of the recipe.
        num_classes: Number of classes.
        label_smoothing: Label smoothing, from 0 to 1.

    Example:
        >>> mixup(Augmentation(), 10, 0.1) is None
        True
    """
    if not a.mixes:
        return None
    return Mixup(
        mixup_alpha=a.mixup,
        cutmix_alpha=a.cutmix,
        prob=a.mixup_prob,
        switch_prob=a.mixup_switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )
