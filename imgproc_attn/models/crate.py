"""Parts of CRATE (arXiv 2306.01129) of its own: normalized patches, and the parameter names of the authors' checkpoints."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor, nn

__all__ = ["NormalizedPatchEmbed", "translate_crate"]


class NormalizedPatches(nn.Conv2d):
    """Linear map of disjoint patches whose values are layer-normalized first."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: tuple[int, int], bias: bool, device=None, dtype=None) -> None:
        super().__init__(in_chans, embed_dim, patch_size, patch_size, bias=bias, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(in_chans * patch_size[0] * patch_size[1], device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C, H / p, W / p]`` of images ``[B, c, H, W]``."""
        height, width = self.kernel_size
        # b c (h p) (w q) -> b h w (c p q), in operations that torch.fx can trace
        patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(self.norm(patches), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class NormalizedPatchEmbed(PatchEmbed):
    """Patch embedding of CRATE: layer norm, linear map, layer norm. Arguments are those of timm's `PatchEmbed`."""

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[..., nn.Module] | None = nn.LayerNorm,
        bias: bool = True,
        device=None,
        dtype=None,
        **kwargs: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(img_size, patch_size, in_chans, embed_dim, norm_layer, bias=bias, **kwargs, **dd)
        self.proj = NormalizedPatches(in_chans, embed_dim, self.patch_size, bias, **dd)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the size of the images. The size of the patches is fixed, because their norm has one weight per value.

        Raises:
            ValueError: ``patch_size`` is another one.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ValueError(f"patch_size must stay {self.patch_size} for normalized patches, got {patch_size}. Leave it out.")
        super().set_input_size(img_size)


# Names of the authors' model (their file model/crate.py), and ours.
_NAMES = (
    (r"^module\.", ""),
    (r"^pos_embedding$", "pos_embed"),
    (r"^to_patch_embedding\.1\.", "patch_embed.proj.norm."),
    (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
    (r"^to_patch_embedding\.3\.", "patch_embed.norm."),
    (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"blocks.\1.norm2."),
    (r"^transformer\.layers\.(\d+)\.1\.fn\.", r"blocks.\1.mlp."),
    (r"^mlp_head\.0\.", "norm."),
    (r"^mlp_head\.1\.", "head."),
)


def is_crate(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the names are those of the authors' model."""
    return any(re.match(r"(module\.)?transformer\.layers\.0\.0\.fn\.qkv\.weight$", name) for name in state_dict)


def translate_crate(state_dict: Mapping[str, Tensor], patch_size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the weights of the authors' model under our names.

    The authors list the values of a patch by row, column and channel. We list them by channel, row and column, as a
    convolution.

    Args:
        state_dict: Weights, as the authors save them.
        patch_size: (height, width) of a patch in pixels.
    """
    height, width = patch_size
    result = {}
    for name, value in state_dict.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        fits = value.shape[-1:] == (3 * height * width,)  # Patches of another size are left for loading to refuse.
        if fits and name.startswith("patch_embed.proj.norm."):
            value = rearrange(value, "(p q c) -> (c p q)", p=height, q=width)
        elif fits and name == "patch_embed.proj.weight" and value.dim() == 2:
            value = rearrange(value, "d (p q c) -> d c p q", p=height, q=width)
        result[name] = value
    return result
