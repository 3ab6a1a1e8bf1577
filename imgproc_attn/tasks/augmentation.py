"""The recipe's augmentation, made of timm's and torchvision's transforms."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import posterize
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Compose, InterpolationMode, RandomAffine, RandomCrop, Resize

from ..data import Preprocessing
from ..recipe.schema import Augmentation


def training_transform(a: Augmentation, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
    """PIL image to an array of bytes ``[channels, height, width]``. Random erasing and mixup come later, on the device.

    Raises:
        ValueError: A policy that timm does not know.
    """
    first: list[Any] = []
    height, width = size = preprocessing.input_size[1:]
    if a.crop_padding:
        # images of that size already, as CIFAR's, are left as they are
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
        "mean": preprocessing.mean,  # fills what a policy moves into view
    }
    try:
        rest = create_transform(preprocessing.input_size, is_training=True, use_prefetcher=True, **options)
    except (AssertionError, ValueError) as error:
        if a.auto_augment is None:
            raise
        raise ValueError(
            f"augmentation.auto_augment is {a.auto_augment!r}, which timm does not take ({error or 'unknown policy'}); as "
            "rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0, 3a."
        ) from error
    _mend_posterize(rest)
    return Compose([*first, rest])


def _mend_posterize(transform: Any) -> None:
    """The strongest posterising of timm keeps no bits, which Pillow refuses from 13 on; it means black."""
    for policy in transform.transforms:
        operations = [*getattr(policy, "ops", []), *(op for row in getattr(policy, "policy", []) for op in row)]
        for operation in operations:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def mixup(a: Augmentation, num_classes: int, label_smoothing: float) -> Mixup | None:
    """Timm's mixup and cutmix, if the recipe asks for either; they smooth labels themselves."""
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
