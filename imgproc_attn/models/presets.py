"""What the registered families share: DeiT's shapes and the data settings of ImageNet."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg

# DeiT (arXiv 2012.12877), `large` is ViT's (arXiv 2010.11929); patch 16, 224 x 224; `test` is timm's own size for quick tests.
TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
TEST = {"img_size": 160, "embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3}


def cfg(**kwargs: Any) -> dict[str, Any]:
    """A timm configuration: ImageNet-1k at 224, ImageNet's mean and standard deviation, no weights."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


def cfgs(family: str, *more_sizes: str) -> dict[str, dict[str, Any] | PretrainedCfg]:
    """Configurations of a family's sizes, by registered name."""
    sizes: dict[str, dict[str, Any] | PretrainedCfg] = {
        f"{family}_{size}": cfg() for size in ("tiny", "small", "base", *more_sizes)
    }
    return {**sizes, f"test_{family}": cfg(input_size=(3, 160, 160), crop_pct=0.95)}
