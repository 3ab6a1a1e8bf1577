"""Components of causal language models, one entry per member, on few tokens."""

import seeding
import torch
from torch import nn

from imgproc_attn.language import FilterLanguageModel

VOCABULARY, CONTEXT, DEPTH = 50, 32, 3
SMALL = {"vocab_size": VOCABULARY, "context": CONTEXT, "embed_dim": 24, "depth": DEPTH, "num_heads": 3}
BILATERAL = {"kernel": "gaussian_range", "positions": "spatial_gaussian"}

VARIANTS = {
    "plain": {},
    "no positions": {"positions": "none"},
    "sincos": {"positions": "sincos"},
    "spatial gaussian": {"positions": "spatial_gaussian"},
    "alibi": {"positions": {"name": "alibi", "learned": True, "learned_gate": True}},
    "relative table": {"positions": "relative_table"},
    "relative buckets": {"positions": {"name": "relative_buckets", "num_buckets": 8, "max_distance": 16}},
    "rotary": {"positions": "rotary"},
    "untied": {"positions": "untied"},
    "several positions": {"positions": ["absolute", "spatial_gaussian", "alibi", "rotary", "relative_buckets"]},
    "gaussian range": {"kernel": "gaussian_range"},
    "bilateral": BILATERAL,
    "elliptical": {"kernel": "elliptical"},
    "twicing": {"residual": {"name": "twicing", "steps": 2, "learned": True}},
    "bregman": {"residual": {"name": "bregman", "steps": 2, "gate": 0.5}},
    "sos": {"residual": {"name": "sos", "steps": 2}},
    "neutreno": {"residual": "neutreno"},
    "pid": {"residual": "pid"},
    "block twicing": {"block_residual": {"name": "twicing", "steps": 2}},
    "block sos": {"block_residual": "sos", "residual": "twicing"},
    "block bregman": {"block_residual": "bregman"},
    "l2 boosting": {"block_residual": "l2_boosting"},
    "subspaces": {"projection": "subspaces", "mlp": "none"},
    "tied subspaces": {"projection": {"name": "subspaces", "tied": True}, "mlp": "ista"},
    "narrow queries": {"projection": {"name": "qkv", "qk_dim": 4}, **BILATERAL},
    "relu": {"filter": "relu", "positions": ["absolute", "alibi"]},
    "threshold": {"filter": {"name": "threshold", "tau": 0.55}, "positions": ["absolute", "spatial_gaussian"]},
    "token statistics": {"filter": "token_statistics", "projection": "subspaces", "residual": "twicing"},
    "random features": {"filter": "random_features", "kernel": "gaussian_range", "residual": "twicing"},
    "random features, alibi": {"filter": "random_features", "positions": {"name": "alibi", "learned": True}},
    "elu features": {"filter": "elu_features", "positions": ["absolute", "alibi"]},
    "sliding window": {**BILATERAL, "filter": {"name": "sliding_window", "window": 5}},
    "adaptive softmax": {"cutoffs": [10, 30, 31]},
    "everything": {**BILATERAL, "residual": "twicing", "block_residual": "sos", "projection": "subspaces"},
}
FILTERED = {  # each with the fused and the dense filter
    f"{name}, {filter}": {**variant, **({} if "filter" in variant else {"filter": filter})}
    for name, variant in VARIANTS.items()
    for filter in (("softmax", "dense") if "filter" not in variant else (variant["filter"],))
}


def small(dtype=torch.float64, **components):
    """A model whose filters choose: in a fresh one, all weights of a row are almost the same."""
    seeding.seed(1)
    model = FilterLanguageModel(**{**SMALL, **components}, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
            if name.endswith("table"):
                nn.init.normal_(parameter)
    return model
