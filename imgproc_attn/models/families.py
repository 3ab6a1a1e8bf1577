"""Families of registered models, one entry per family in `FAMILIES`.

A family is a `FilterVisionTransformer` with some of its keywords set. This module registers one entry point per family and
size with timm: ``<family>_tiny``, ``<family>_small``, ``<family>_base``, ``test_<family>``, and ``<family>_large`` for some.
To add a family, add an entry to `FAMILIES`.

Notation: A is the matrix of filter weights of one head, ``A_ij = K_ij / sum_j K_ij`` for the kernel K. The queries, keys and
values of token i are q_i, k_i and v_i. d is the width of a head, and p_i is the position of patch i on the grid. A head returns
``u = A v`` unless the family has another formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import cleandoc
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch.nn import LayerNorm

from .crate import NormalizedPatchEmbed
from .filter_vit import FilterVisionTransformer, create_filter_vit

__all__ = ["FAMILIES", "SIZES", "Family"]  # register_model adds the entry points

# Shapes of DeiT (arXiv 2012.12877), of ViT-L (arXiv 2010.11929), and of timm's own models for quick tests. Patches are 16 x 16.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "test": {"img_size": 160, "embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3},
}


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        title: Name in the docstrings of the entry points.
        text: Formula and source, for the docstrings of the entry points.
        components: Keywords of `FilterVisionTransformer`.
        sizes: Keys of `shapes`.
        shapes: Keywords of `FilterVisionTransformer` per size.

    Example:
        >>> FAMILIES["nlm_vit"].components
        {'kernel': 'gaussian_range', 'positions': 'absolute'}
    """

    title: str
    text: str
    components: Mapping[str, Any]
    sizes: tuple[str, ...] = ("tiny", "small", "base", "test")
    shapes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SIZES)


# Attention-only models need more layers for the same number of parameters. `aot_mhsa_vit_small` has the 15 M parameters of
# arXiv 2506.03790, 384 wide and 24 deep. For the 22 M of its MSSA model no shape is known: 576 wide and 32 deep has 22.4 M.
AOT_MHSA = {
    "tiny": {"embed_dim": 192, "depth": 24, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 24, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 24, "num_heads": 12},
    "test": SIZES["test"],
}
AOT_MSSA = {
    "tiny": {"embed_dim": 288, "depth": 32, "num_heads": 4},
    "small": {"embed_dim": 576, "depth": 32, "num_heads": 9},
    "base": {"embed_dim": 1152, "depth": 32, "num_heads": 18},
    "test": SIZES["test"],
}
CRATE = {
    "tiny": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "small": {"embed_dim": 576, "depth": 12, "num_heads": 12},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "test": SIZES["test"],
}

WITH_LARGE = ("tiny", "small", "base", "large", "test")
# A class token has no position. With class-token pooling, the spatial bandwidths of the last block get no gradient.
AVERAGE = {"class_token": False, "global_pool": "avg"}
# The authors' layer norms, before and after the patch embedding too.
CRATE_NORMS = {"embed_layer": NormalizedPatchEmbed, "norm_layer": partial(LayerNorm, eps=1e-5)}

FAMILIES: Mapping[str, Family] = {
    "plain_vit": Family(
        "Plain ViT",
        """
        Softmax attention, ``K_ij = exp(q_i.k_j / sqrt(d))``, with learned positions added to the tokens (arXiv 2010.11929).

        Pooled by average, without a class token. It is one corner of the 2 x 2 {plain, bilateral} x {plain, boosted stream}.
        The others are `bilateral_vit`, `sos_stream_vit` and `bilateral_sos_stream_vit`, with the same pooling.
        """,
        {"kernel": "dot_product", "positions": "absolute", **AVERAGE},
    ),
    "nlm_vit": Family(
        "Non-local-means ViT",
        """
        Range kernel of non-local means, ``K_ij = exp(-|q_i - k_j|^2 / h_r^2)``, with its own query and key projections
        (Buades et al. 2005; kernel and starting bandwidth ``h_r = (4 d)^(1/4)`` as in arXiv 2506.10371). Learned positions are
        added to the tokens. Each head learns its h_r.
        """,
        {"kernel": "gaussian_range", "positions": "absolute"},
        WITH_LARGE,
    ),
    "bilateral_vit": Family(
        "Bilateral ViT",
        """
        Bilateral filter, ``K_ij = exp(-|q_i - k_j|^2 / h_r^2 - |p_i - p_j|^2 / h_s^2)`` (Tomasi and Manduchi 1998; for tokens
        arXiv 2506.10371). Learned positions are added to the tokens too. Each head learns its h_r and h_s.

        Pooled by average, without a class token. A class token has no position, so with class-token pooling the spatial
        bandwidths of the last block would get no gradient.
        """,
        {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian"), **AVERAGE},
        WITH_LARGE,
    ),
    "bilateral_untied_vit": Family(
        "Bilateral ViT with untied positions",
        """
        Dot-product content times dot-product positions, ``K_ij = exp(q_i.k_j / sqrt(d)) exp(a_i.b_j / sqrt(d))``. a and b are
        projections of learned position vectors, which are never added to the tokens. This is one reading of arXiv 2506.10371,
        whose exact formula is not public, and close to TUPE (arXiv 2006.15595).

        Pooled by average, without a class token, for the same reason as `bilateral_vit`.
        """,
        {"kernel": "dot_product", "positions": "untied", **AVERAGE},
    ),
    "elliptical_vit": Family(
        "Elliptical ViT",
        """
        Elliptical attention, ``K_ij = exp(q_i M k_j / sqrt(d))`` (arXiv 2406.13770). The metric M is diagonal. It is the mean
        change of the values since the previous layer, per coordinate, scaled so that the largest entry is 1. The first layer is
        softmax attention. Learned positions are added to the tokens.
        """,
        {"kernel": "elliptical", "positions": "absolute"},
    ),
    "twicing_vit": Family(
        "Twicing ViT",
        """
        Softmax attention with twicing in all layers, ``u = A v + A (v - A v) = (2 A - A^2) v`` (arXiv 2503.00687). Learned
        positions are added to the tokens.
        """,
        {"kernel": "dot_product", "positions": "absolute", "residual": "twicing"},
    ),
    "sos_vit": Family(
        "SOS ViT",
        """
        Softmax attention with one step of strengthen-operate-subtract in all layers,
        ``u <- tau A (v + rho u) - (tau rho + tau - 1) u`` from ``u = A v`` (Romano and Elad 2015), rho 0.5 and tau 0.9.
        Learned positions are added to the tokens.
        """,
        {"kernel": "dot_product", "positions": "absolute", "residual": "sos"},
    ),
    "neutreno_vit": Family(
        "NeuTRENO ViT",
        """
        Softmax attention that stays close to the values v_0 of the first layer, ``u = A v + lambda (v_0 - v)`` with lambda 0.6
        (arXiv 2312.00751). Learned positions are added to the tokens.
        """,
        {"kernel": "dot_product", "positions": "absolute", "residual": "neutreno"},
    ),
    "pid_vit": Family(
        "PID ViT",
        """
        Softmax attention with a PID controller towards the values v_0 of the first layer, after PIDformer (arXiv 2402.15989):
        ``u = A v + P e_l + I (e_1 + ... + e_l) + D (e_l - e_(l - 1))`` in layer l, with ``e_l = v_0 - v_l``. Learned positions
        are added to the tokens.

        Formula and gains come from secondary sources and are not verified (`imgproc_attn.core.residuals.PID`).
        """,
        {"kernel": "dot_product", "positions": "absolute", "residual": "pid"},
    ),
    "sos_stream_vit": Family(
        "SOS-stream ViT",
        """
        `plain_vit` with one step of strengthen-operate-subtract around each attention branch (Romano and Elad 2015). The filter
        is computed again from the operand of the step.
        """,
        {"kernel": "dot_product", "positions": "absolute", "block_residual": "sos", **AVERAGE},
    ),
    "bilateral_sos_stream_vit": Family(
        "Bilateral SOS-stream ViT",
        """
        `bilateral_vit` with one step of strengthen-operate-subtract around each attention branch (Romano and Elad 2015). The
        filter is computed again from the operand of the step.
        """,
        {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian"), "block_residual": "sos", **AVERAGE},
    ),
    "aot_mhsa_vit": Family(
        "Attention-only ViT",
        """
        `plain_vit` without MLPs, ``z <- z + MHSA(norm(z))`` (AoT-MHSA, arXiv 2506.03790), with a class token. Learned positions
        are added to the tokens.
        """,
        {"kernel": "dot_product", "positions": "absolute", "mlp": "none"},
        shapes=AOT_MHSA,
    ),
    "aot_mssa_vit": Family(
        "Attention-only ViT of shared subspaces",
        """
        Multi-head subspace self-attention without MLPs, ``z <- z + W [A_1 U_1^T z; ...; A_H U_H^T z]`` with ``A_h = softmax(z^T
        U_h U_h^T z / sqrt(p))`` (AoT-MSSA, arXiv 2506.03790). Queries, keys and values are one projection. The output matrix W
        is free; ``projection={"name": "subspaces", "tied": True}`` gives the one of the theory. The small model has the
        published number of parameters. Its published shape is not known. """,
        {"kernel": "dot_product", "positions": "absolute", "projection": "subspaces", "mlp": "none"},
        shapes=AOT_MSSA,
    ),
    "crate": Family(
        "CRATE",
        """
        Subspace self-attention, then one step of sparse coding, ``z <- z + MSSA(norm(z))``, ``z <- ISTA(norm(z))`` (arXiv
        2306.01129). Layer norms stand before and after the patch embedding. The authors' checkpoints load.
        """,
        {"kernel": "dot_product", "positions": "absolute", "projection": "subspaces", "mlp": "ista", **CRATE_NORMS},
        WITH_LARGE,
        CRATE,
    ),
    "tost_vit": Family(
        "ToST ViT",
        """
        Token-statistics attention, ``u_ic = -pi_i v_ic / (1 + m_c)``, linear in the number of tokens (arXiv 2412.17810), in the
        blocks of `plain_vit`. The published models are XCiTs in which this attention replaces that of channels.
        """,
        {"kernel": "dot_product", "positions": "absolute", "projection": "subspaces", "filter": "token_statistics"},
    ),
    "cbsa_vit": Family(
        "CBSA ViT",
        """
        Attention through 64 representatives, contract and broadcast (arXiv 2509.16875), with one step of sparse coding as in
        `crate`. Widths and depths are the published ones. The published models embed patches by four convolutions.
        """,
        {
            "kernel": "dot_product",
            "positions": "absolute",
            "projection": "subspaces",
            "filter": "representatives",
            "mlp": "ista",
        },
        WITH_LARGE,
    ),
}


def _model_name(family: str, size: str) -> str:
    return f"test_{family}" if size == "test" else f"{family}_{size}"


def _default_cfg(size: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's configuration of one size: the data settings of ImageNet-1k, no weights."""
    side = shape.get("img_size", 224)
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "crop_pct": 0.95 if size == "test" else 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


def _entry_point(name: str, family: Family, size: str) -> Callable[..., FilterVisionTransformer]:
    """Return the function that creates the model ``name``, with its own docstring."""
    shape = family.shapes[size]

    def create(pretrained: bool = False, **kwargs) -> FilterVisionTransformer:
        return create_filter_vit(name, pretrained, **{**shape, **family.components, **kwargs})

    purpose = f", {shape['img_size']} x {shape['img_size']}, for quick tests" if size == "test" else ""
    create.__name__ = create.__qualname__ = name  # timm registers a function under its name, and pickle finds it by both
    create.__doc__ = f"""{family.title}, {shape["embed_dim"]} wide, {shape["depth"]} deep, {shape["num_heads"]} heads{purpose}.

{cleandoc(family.text)}

Args:
    pretrained: Load trained weights, from a folder (``local-dir:``) or the hub (``hf-hub:``). None are published yet.
    **kwargs: Keywords of `FilterVisionTransformer`. They replace the defaults of the family and size.
"""
    return create


# register_model looks up the configuration of a model under this name.
default_cfgs = generate_default_cfgs(
    {
        _model_name(name, size): _default_cfg(size, family.shapes[size])
        for name, family in FAMILIES.items()
        for size in family.sizes
    }
)

for _name, _family in FAMILIES.items():
    for _size in _family.sizes:
        _model = _model_name(_name, _size)
        globals()[_model] = register_model(_entry_point(_model, _family, _size))
