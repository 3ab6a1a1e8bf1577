"""Semantic segmentation: any timm backbone with a decoder behind it."""

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
from .decoders import LinearDecoder, mask_decoder

DECODERS: Mapping[str, Callable[..., nn.Module]] = {"linear": LinearDecoder, "mask": mask_decoder}


class Segmenter(nn.Module):
    """An encoder, a decoder, and the sizes between them.

    Images of any size, square or not, are padded at the right and at the bottom to whole patches; logits are enlarged to the
    padded image bilinearly, and cut to its size. Spatial bandwidths keep their unit, the patch, when the grid grows.

    Args:
        encoder: A timm model with ``forward_intermediates``: its last features are decoded, normalized if it has a norm.
        decoder: Maps ``[B, C, h, w]`` to ``[B, classes, h, w]``.
        num_classes: Of the decoder.
        only: (height, width) that smaller images are padded to, of an encoder that takes no other size.
        norm: Whether the encoder normalizes its features; some of timm's cannot.
    """

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
                f"{type(encoder).__name__} has no forward_intermediates; segmentation needs a timm model that has."
            )
        self.encoder, self.decoder, self.num_classes, self.only, self.norm = encoder, decoder, num_classes, only, norm
        last = encoder.feature_info[-1]
        self.num_features, self.stride = int(last["num_chs"]), int(last["reduction"])
        self.pretrained_cfg: dict[str, Any] = {**encoder.pretrained_cfg, "num_classes": num_classes}

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images ``[B, C, H, W]`` to logits ``[B, classes, H, W]``.

        Raises:
            ValueError: An encoder of one size, and larger images.
        """
        height, width = images.shape[-2:]
        if self.only is not None and (height > self.only[0] or width > self.only[1]):
            raise ValueError(
                f"{type(self.encoder).__name__} takes images of up to {self.only[0]} x {self.only[1]}, for which it was "
                f"made, but this one is {height} x {width}: look at it in windows of that size."
            )
        padded = self.padded(images)
        logits = self.decoder(_features(self.encoder, padded, self.norm))
        # halves would tie between tokens, and ties go to the class of the lower number
        logits = F.interpolate(at_least_float32(logits), size=padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]

    def padded(self, images: Tensor) -> Tensor:
        """To whole patches, and to the only size, at the right and at the bottom: what the encoder gets."""
        height, width = (max(pair) for pair in zip(images.shape[-2:], self.only or images.shape[-2:]))
        height, width = height + -height % self.stride, width + -width % self.stride
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass.

        Raises:
            AttributeError: The encoder cannot.
            AssertionError: Likewise.
        """
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The parts', for timm's optimizer factory."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{name}.{p}" for name, part in parts.items() for p in getattr(part, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """The encoder's, for layer decay; the decoder is the last layer.

        Raises:
            AttributeError: The encoder does not tell its layers.
        """
        matcher: Any = self.encoder.group_matcher(coarse=coarse)
        if callable(matcher):  # of names, as some of timm's are
            return lambda name: matcher(name.removeprefix("encoder.")) if name.startswith("encoder.") else math.inf
        return {key: _of_encoder(patterns) for key, patterns in matcher.items()}


def _of_encoder(patterns: Any) -> Any:
    """Regular expressions on names in the encoder, for the whole."""
    if isinstance(patterns, str):
        return rf"^encoder\.(?:{patterns.replace('^', '')})"
    return [(_of_encoder(pattern), *rest) for pattern, *rest in patterns]


def _features(encoder: Any, images: Tensor, norm: bool) -> Tensor:
    """``[B, C, h, w]``, the last."""
    return encoder.forward_intermediates(images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)[-1]


class _Encoded(nn.Module):
    """An encoder's features as a module's output."""

    def __init__(self, encoder: Any, norm: bool) -> None:
        super().__init__()
        self.encoder, self.norm = encoder, norm

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.encoder, images, self.norm)


def _what_it_gives(encoder: Any, images: tuple[int, ...]) -> tuple[int, bool]:
    """Channels of its features, which a neck may change, and whether it can normalize them; by a pass without numbers."""
    known = chain(encoder.named_parameters(), encoder.named_buffers())
    state = {f"encoder.{name}": torch.empty_like(value, device="meta") for name, value in known}
    for norm in (True, False):
        try:
            with torch.no_grad():
                found = functional_call(  # ties would leave modules that stand in two places without numbers
                    _Encoded(encoder, norm), state, (torch.empty(images, device="meta"),), tie_weights=False
                )
            return found.shape[1], norm
        except AssertionError:  # timm's word for features that it cannot normalize
            continue
        except RuntimeError:  # some models need numbers to run
            break
    return encoder.feature_info[-1]["num_chs"], True


def _stride_of(backbone: str, options: Mapping[str, Any]) -> int:
    """Pixels between features, by a model without numbers; by one with them, if it wants some to be built."""
    kwargs = {**options, "pretrained": False, "num_classes": 0}
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(backbone, **kwargs)
    except RuntimeError:
        model = timm.create_model(backbone, **kwargs)
    return int(model.feature_info[-1]["reduction"])


def _encoder(backbone: str, size: tuple[int, int], options: Mapping[str, Any]) -> tuple[Any, bool]:
    """A timm backbone without its classifier: for any size if it can, else for this one, else as it is. And: is it for one?"""
    for sizes in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}):
        try:
            encoder: Any = timm.create_model(backbone, num_classes=0, **sizes, **options)
        except TypeError as error:
            if not any(name in str(error) for name in sizes):
                raise
            continue
        _norm_before_pooling(encoder)
        if hasattr(encoder, "prune_intermediate_layers"):  # what is behind the features would get no gradient
            encoder.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        return encoder, "img_size" in sizes and "dynamic_img_size" not in sizes
    raise AssertionError("unreachable: the last attempt gives no sizes")


def _norm_before_pooling(encoder: Any) -> None:
    """Where a model normalizes behind the pooling, as averaging ViTs and ConvNeXts do, that norm becomes the features'."""
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
    """A `Segmenter` by name, so that recipes and checkpoints can say it.

    Args:
        pretrained: Start the backbone from timm's trained weights; or, from a folder (``local-dir:``) or the hub (``hf-hub:``),
            all from those there.
        backbone: timm's name of the encoder.
        decoder: ``linear`` or ``mask``; or a dictionary with ``name`` and options of `mask_decoder`.
        num_classes: Of the pixels. Default: 150, or those of the folder.
        img_size: (height, width) of training crops: the grid that positions are made for.
        pretrained_cfg: timm's, of a folder or the hub.
        **kwargs: Of the backbone, as ``drop_path_rate`` and ``residual``.

    Raises:
        ValueError: An unknown decoder or option, or no classes.
    """
    check_flag("pretrained", pretrained)
    if num_classes is not None and check_whole("num_classes", num_classes) < 1:
        raise ValueError(f"num_classes is {num_classes}, but a segmenter has at least 1; features come from its `encoder`.")
    own = own_config(pretrained_cfg, kwargs)
    num_classes = num_classes or (own["num_classes"] if own else 150)
    height, width = to_2tuple(img_size)
    options = {"pretrained": pretrained and own is None, **kwargs}
    stride = _stride_of(backbone, options)
    grid = (-(-height // stride), -(-width // stride))
    whole = (grid[0] * stride, grid[1] * stride)  # what crops are padded to, or positions would be resampled twice
    encoder, of_one_size = _encoder(backbone, whole, options)
    in_chans = kwargs.get("in_chans", 3)
    channels, norm = _what_it_gives(encoder, (1, in_chans, *whole))
    parts: dict[str, Any] = {"name": decoder} if isinstance(decoder, str) else dict(decoder)
    name = parts.pop("name", None)
    if name not in DECODERS:
        raise ValueError(f"decoder: unknown member {name!r}; there are {' and '.join(DECODERS)}.")
    try:
        head = DECODERS[name](channels, num_classes, grid, **parts)
    except TypeError as error:
        raise ValueError(f"decoder={name!r}: {error}") from error
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
