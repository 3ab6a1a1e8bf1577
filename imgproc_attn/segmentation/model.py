"""Segmentation model: any timm backbone followed by a decoder."""

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import register_model
from torch import Tensor, nn
from torch.func import functional_call

from ..core.bandwidths import at_least_float32
from ..models.checkpoints import load_own_weights, own_config
from ..utils.checks import check_flag, check_whole
from .decoders import LinearDecoder, depict_decoder, mask_decoder

__all__ = ["DECODERS", "Segmenter", "segmenter"]

DECODERS: Mapping[str, Callable[..., nn.Module]] = {
    "linear": LinearDecoder,
    "mask": mask_decoder,
    "depict": depict_decoder,
}


class Segmenter(nn.Module):
    """Segmentation model: an encoder and a decoder (Segmenter, arXiv 2105.05633).

    Images may have any size, square or not. They are padded to whole patches at the right and at the bottom. Logits are
    interpolated bilinearly to the size of the padded image and then cropped to the size of the image. Spatial bandwidths
    keep their unit, the patch, when the grid grows.

    Args:
        encoder: timm model with ``forward_intermediates``. Its last features are decoded, normalized if it has a norm.
        decoder: Module that maps features ``[B, C, h, w]`` to logits ``[B, classes, h, w]``.
        num_classes: Number of classes of the decoder.
        only: (height, width) to which smaller images are padded, for an encoder that takes no other size.
        norm: Whether the encoder normalizes its features. Some models of timm cannot.

    Raises:
        ValueError: The encoder has no ``forward_intermediates``.

    Example:
        >>> import timm
        >>> model = timm.create_model("segmenter", decoder="linear", num_classes=5, img_size=32, depth=1).eval()
        >>> model(torch.rand(1, 3, 40, 56)).shape
        torch.Size([1, 5, 40, 56])
    """

    task = "segmentation"  # the commands evaluate the model under this task where no recipe names another

    def __init__(
        self,
        encoder: Any,
        decoder: nn.Module,
        num_classes: int,
        only: tuple[int, int] | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "forward_intermediates"):
            raise ValueError(
                f"The encoder must have the method forward_intermediates, got {type(encoder).__name__}. Choose a timm model "
                "that has it."
            )
        self.encoder, self.decoder, self.num_classes, self.only, self.norm = encoder, decoder, num_classes, only, norm
        last = encoder.feature_info[-1]
        self.num_features, self.stride = int(last["num_chs"]), int(last["reduction"])
        self.pretrained_cfg: dict[str, Any] = {**encoder.pretrained_cfg, "num_classes": num_classes}

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images ``[B, C, H, W]`` to logits ``[B, classes, H, W]``.

        Raises:
            ValueError: The encoder takes one size only, and the images are larger.
        """
        height, width = images.shape[-2:]
        if self.only is not None and (height > self.only[0] or width > self.only[1]):
            raise ValueError(
                f"Images for {type(self.encoder).__name__} must be at most {self.only[0]} x {self.only[1]}, the size that it "
                f"was built for, got {height} x {width}. Use sliding windows of that size."
            )
        padded = self.padded(images)
        logits = self.decoder(_features(self.encoder, padded, self.norm))
        # In half precision, classes would often tie between tokens, and a tie goes to the class of the lower index.
        logits = F.interpolate(at_least_float32(logits), size=padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]

    def padded(self, images: Tensor) -> Tensor:
        """Return the images as the encoder gets them: padded with 0 at the right and at the bottom.

        The padded size is a whole number of patches, and not smaller than ``only``.
        """
        height, width = (max(pair) for pair in zip(images.shape[-2:], self.only or images.shape[-2:]))
        height, width = height + -height % self.stride, width + -width % self.stride
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass.

        Raises:
            AttributeError: The encoder does not support gradient checkpointing.
            AssertionError: The encoder does not support gradient checkpointing.
        """
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay, for timm's optimizer factory."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{name}.{p}" for name, part in parts.items() for p in getattr(part, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return the encoder's groups of layers, for layer decay. The decoder is the last layer.

        Raises:
            AttributeError: The encoder has no ``group_matcher``.
        """
        matcher: Any = self.encoder.group_matcher(coarse=coarse)
        if callable(matcher):  # Some models of timm return a function of parameter names instead of patterns.
            return lambda name: matcher(name.removeprefix("encoder.")) if name.startswith("encoder.") else math.inf
        return {key: _of_encoder(patterns) for key, patterns in matcher.items()}


def _of_encoder(patterns: Any) -> Any:
    """Return regular expressions for names in the encoder as expressions for names in the segmenter."""
    if isinstance(patterns, str):
        return rf"^encoder\.(?:{patterns.replace('^', '')})"
    return [(_of_encoder(pattern), *rest) for pattern, *rest in patterns]


def _features(encoder: Any, images: Tensor, norm: bool) -> Tensor:
    """Return the last features ``[B, C, h, w]``."""
    return encoder.forward_intermediates(images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)[-1]


class _Encoded(nn.Module):
    """Module whose output is the features of an encoder."""

    def __init__(self, encoder: Any, norm: bool) -> None:
        super().__init__()
        self.encoder, self.norm = encoder, norm

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.encoder, images, self.norm)


def _probe_features(encoder: Any, images: tuple[int, ...]) -> tuple[int, bool]:
    """Return the number of channels of the features and whether the encoder can normalize them.

    A neck may change the number of channels, so it is measured by a forward pass on the meta device.
    """
    known = chain(encoder.named_parameters(), encoder.named_buffers())
    state = {f"encoder.{name}": torch.empty_like(value, device="meta") for name, value in known}
    for norm in (True, False):
        try:
            with torch.no_grad():
                # With tie_weights=True, a module that is registered twice would be left with its real parameters.
                features = functional_call(
                    _Encoded(encoder, norm), state, (torch.empty(images, device="meta"),), tie_weights=False
                )
            return features.shape[1], norm
        except AssertionError:  # timm raises this for features that it cannot normalize.
            continue
        except RuntimeError:  # Some models cannot run on the meta device.
            break
    return encoder.feature_info[-1]["num_chs"], True


def _stride_of(backbone: str, options: Mapping[str, Any]) -> int:
    """Return the stride of the features in pixels.

    The model is built on the meta device, or on the CPU if it cannot be built without memory.
    """
    kwargs = {**options, "pretrained": False, "num_classes": 0}
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(backbone, **kwargs)
    except RuntimeError:
        model = timm.create_model(backbone, **kwargs)
    return int(model.feature_info[-1]["reduction"])


def _encoder(backbone: str, size: tuple[int, int], options: Mapping[str, Any]) -> tuple[Any, bool]:
    """Build a timm backbone without its classifier, and return it and whether it takes one image size only.

    It is built for images of any size if possible, else for ``size``, else with its default size.
    """
    for sizes in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}):
        try:
            encoder: Any = timm.create_model(backbone, num_classes=0, **sizes, **options)
        except TypeError as error:
            if not any(name in str(error) for name in sizes):
                raise
            continue
        _norm_before_pooling(encoder)
        if hasattr(encoder, "prune_intermediate_layers"):  # Layers after the features would get no gradient.
            encoder.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        return encoder, "img_size" in sizes and "dynamic_img_size" not in sizes
    raise AssertionError("unreachable: the last attempt gives no sizes")


def _norm_before_pooling(encoder: Any) -> None:
    """Move a norm that follows the pooling, as in averaging ViTs and ConvNeXts, in front of it, to the features."""
    head: Any = getattr(encoder, "head", None)
    if isinstance(getattr(encoder, "fc_norm", None), nn.LayerNorm):
        encoder.norm, encoder.fc_norm = encoder.fc_norm, nn.Identity()
    elif isinstance(getattr(encoder, "norm_pre", None), nn.Identity) and isinstance(getattr(head, "norm", None), nn.LayerNorm):
        encoder.norm_pre, head.norm = head.norm, nn.Identity()


@register_model
def segmenter(
    pretrained: bool = False,
    backbone: str = "plain_vit_tiny",
    decoder: str | Mapping[str, Any] = "mask",
    num_classes: int | None = None,
    img_size: int | tuple[int, int] = 512,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> Segmenter:
    """Build a `Segmenter` with ``timm.create_model("segmenter", …)``.

    Args:
        pretrained: Start the backbone from timm's trained weights. From a folder (``local-dir:``) or the hub (``hf-hub:``),
            load the weights of the whole segmenter.
        backbone: Name of the encoder in timm.
        decoder: ``linear``, ``mask`` or ``depict``, or a dictionary with ``name`` and options of `mask_decoder` or
            `depict_decoder`.
        num_classes: Number of classes of the pixels. Default: 150, or the number of the folder.
        img_size: (height, width) of training crops. Positions are made for the grid of this size.
        pretrained_cfg: Configuration that timm passes for a folder or the hub.
        **kwargs: Keyword arguments of the backbone, such as ``drop_path_rate`` and ``residual``.

    Raises:
        ValueError: The decoder or an option is unknown, or ``num_classes`` is below 1.

    Example:
        >>> import timm
        >>> model = timm.create_model("segmenter", decoder="linear", num_classes=5, img_size=32, depth=1)
        >>> model.stride, model.num_classes
        (16, 5)
    """
    check_flag("pretrained", pretrained)
    if num_classes is not None and check_whole("num_classes", num_classes) < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}. For features, use the segmenter's `encoder`.")
    own = own_config(pretrained_cfg, kwargs)
    num_classes = num_classes or (own["num_classes"] if own else 150)
    height, width = to_2tuple(img_size)
    options = {"pretrained": pretrained and own is None, **kwargs}
    stride = _stride_of(backbone, options)
    grid = (-(-height // stride), -(-width // stride))
    # The size of padded crops. For any other size, positions would be resampled twice.
    whole = (grid[0] * stride, grid[1] * stride)
    encoder, of_one_size = _encoder(backbone, whole, options)
    in_chans = kwargs.get("in_chans", 3)
    channels, norm = _probe_features(encoder, (1, in_chans, *whole))
    parts: dict[str, Any] = {"name": decoder} if isinstance(decoder, str) else dict(decoder)
    name = parts.pop("name", None)
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {name!r}. Correct the name.")
    try:
        head = DECODERS[name](channels, num_classes, grid, **parts)
    except TypeError as error:
        raise ValueError(f"decoder={name!r} must get valid options, got {parts} ({error}). Correct the options.") from error
    head = head.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
    model = Segmenter(encoder, head, num_classes, whole if of_one_size else None, norm)
    model.pretrained_cfg = {
        **(own or model.pretrained_cfg),
        "architecture": "segmenter",
        "input_size": (in_chans, height, width),
    }
    if pretrained and own is not None:
        load_own_weights(model, own)
    return model
