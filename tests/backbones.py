"""Backbones small enough for every test, one for each way to compose them."""

from imgproc_attn.models import FAMILIES, FilterVisionTransformer

NAMES = [f"test_{family}" for family in FAMILIES]

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def small(**kwargs):
    return FilterVisionTransformer(**{**SMALL, **kwargs})


BILATERAL = {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian")}

VARIANTS = {
    "plain": {},
    "nlm": {"kernel": "gaussian_range"},
    "bilateral": BILATERAL,
    "bilateral, pooled": {**BILATERAL, "class_token": False, "global_pool": "avg"},
    "per axis + twicing": {
        "kernel": "gaussian_range",
        "positions": ["absolute", {"name": "spatial_gaussian", "per_axis": True}],
        "residual": {"name": "twicing", "steps": 2, "learned": True},
    },
    "untied + registers": {"positions": "untied", "reg_tokens": 3},
    "untied + spatial": {"positions": ["untied", "spatial_gaussian"], "class_token": False, "global_pool": "avg"},
    "none": {"positions": "none"},
    "elliptical": {"kernel": "elliptical", "reg_tokens": 1},
    "elliptical + bilateral": {
        "kernel": {"name": "elliptical", "scaling": "mean"},
        "positions": ["sincos", "spatial_gaussian"],
        "class_token": False,
        "global_pool": "avg",
    },
    "neutreno": {"residual": {"name": "neutreno", "learned": True}},
    "pid, last layers": {"kernel": "gaussian_range", "residual": {"name": "pid", "layers": [1, 2]}},
    "sos + bregman stream": {"residual": "sos", "block_residual": {"name": "bregman", "steps": 2, "layers": [0, 2]}},
    "sos stream": {**BILATERAL, "block_residual": {"name": "sos", "learned": True}},
    "l2 stream + elliptical": {"kernel": "elliptical", "block_residual": {"name": "l2_boosting", "gate": 0.5, "learned": True}},
    "twicing stream + alibi": {"positions": ["absolute", "alibi"], "block_residual": "twicing", "reg_tokens": 2},
    "relative table": {"positions": "relative_table", "class_token": False, "global_pool": "avg"},
    "rotary": {"kernel": "gaussian_range", "positions": "rotary", "reg_tokens": 2},
    "subspaces, tied": {"projection": {"name": "subspaces", "tied": True, "learned_step": True}, "mlp": "none"},
    "subspaces + ista": {"projection": {"name": "subspaces", "subspace_dim": 12}, "mlp": "ista"},
    "relu": {"filter": "relu", "residual": "twicing"},
    "threshold": {"filter": {"name": "threshold", "tau": 0.51}, "kernel": "gaussian_range"},
    "token statistics": {"projection": "subspaces", "filter": "token_statistics"},
    "representatives": {"projection": "subspaces", "filter": {"name": "representatives", "cells": 2}, "mlp": "ista"},
    "random features": {"kernel": "gaussian_range", "filter": {"name": "random_features", "num_features": 12}},
    "elu features": {"filter": "elu_features", "class_token": False, "global_pool": "avg"},
    "nystroem": {**BILATERAL, "filter": {"name": "nystroem", "num_landmarks": 5}, "residual": "twicing"},
    "sliding window": {**BILATERAL, "filter": {"name": "sliding_window", "window": 6}},
    "linformer": {"kernel": "gaussian_range", "filter": {"name": "linformer", "num_landmarks": 5}},
}

CARRIES = {"elliptical", "neutreno", "pid", "l2_boosting"}

CARRYING = [name for name, variant in VARIANTS.items() if CARRIES & set(str(variant).split("'"))]
