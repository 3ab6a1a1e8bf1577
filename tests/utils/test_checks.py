"""Settings of the Python API: wrong types and values out of range are refused everywhere."""

import math

import numpy as np
import pytest
import timm
import torch
from digits import SMALL
from torch import nn

from imgproc_attn import bilateral_filter, from_timm
from imgproc_attn.core.gates import Gate
from imgproc_attn.core.kernels import Elliptical, GaussianRange
from imgproc_attn.core.positions import Alibi, Rotary, SinCos, SpatialGaussian
from imgproc_attn.core.residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Twicing
from imgproc_attn.data import Digits, Images
from imgproc_attn.evaluation import (
    APGDCE,
    FGSM,
    MIFGSM,
    PGD,
    SPSA,
    GaussianBlur,
    GaussianNoise,
    Square,
    TargetedAPGD,
    ThreatModel,
    evaluate,
)
from imgproc_attn.evaluation.imagenet_c import ImageNetC
from imgproc_attn.evaluation.specs import DatasetSpec, ModelSpec

NO_FLAGS = ["false", "no", "", 0, 1, None, np.bool_(True)]
FLAGS = {
    "gaussian_range learned": lambda v: GaussianRange(2, 8, learned=v),
    "elliptical mean_scale": lambda v: Elliptical(8, mean_scale=v),
    "elliptical detach": lambda v: Elliptical(8, detach=v),
    "spatial_gaussian per_axis": lambda v: SpatialGaussian(2, (4, 4), per_axis=v),
    "spatial_gaussian learned": lambda v: SpatialGaussian(2, (4, 4), learned=v),
    "spatial_gaussian learned_gate": lambda v: SpatialGaussian(2, (4, 4), learned_gate=v),
    "alibi learned": lambda v: Alibi(2, learned=v),
    "alibi learned_gate": lambda v: Alibi(2, learned_gate=v),
    "gate": lambda v: Gate(2, learned=v),
    "twicing": lambda v: Twicing(2, learned=v),
    "neutreno": lambda v: NeuTRENO(2, learned=v),
    "l2_boosting": lambda v: L2Boosting(learned=v),
    "targeted": lambda v: ThreatModel(0.1, targeted=v),
    "start_at_random": lambda v: PGD(0.1, start_at_random=v),
    "pretrained": lambda v: ModelSpec("plain_vit_tiny", pretrained=v),
    "skip_broken": lambda v: DatasetSpec("digits", "", skip_broken=v),
}


@pytest.mark.parametrize("make", FLAGS.values(), ids=FLAGS)
def test_flags_are_bools(make):
    make(True)
    make(False)
    for value in NO_FLAGS:
        with pytest.raises(TypeError, match="must be True or False, got"):
            make(value)


def model(**options):
    return timm.create_model("bilateral_vit_tiny", **{**SMALL, **options})


BY_KEYWORD = [
    ({"kernel": {"name": "gaussian_range", "learned": "false"}}, "range_bandwidth: learned must be True or False"),
    ({"kernel": {"name": "elliptical", "detach": "no"}}, "elliptical: detach must be True or False, got 'no'"),
    ({"positions": {"name": "alibi", "learned": "off"}}, "learned must be True or False, got 'off'"),
    ({"residual": {"name": "sos", "learned": "False"}}, "sos: learned must be True or False"),
    ({"residual": {"name": "twicing", "steps": True}}, "steps must be a whole number of at least 1, got True"),
    ({"kernel": {"name": "gaussian_range", "layers": []}}, r"layers must name at least one layer, got \[\]"),
    ({"residual": {"name": "pid", "layers": ()}}, "layers must name at least one layer"),
    ({"residual": {"name": "twicing", "layers": True}}, "block indices must be whole numbers, got True"),
    ({"class_token": "false"}, "class_token must be True or False, got 'false'"),
    ({"qkv_bias": "no"}, "qkv_bias must be True or False"),
    ({"dynamic_img_size": "false"}, "dynamic_img_size must be True or False"),
    ({"fc_norm": "false"}, "fc_norm must be True or False"),
    ({"pretrained": "false"}, "pretrained must be True or False"),
    ({"drop_path_rate": 2.0}, r"drop_path_rate must lie in \[0, 1\), got 2.0"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
    ({"drop_rate": -0.1}, r"drop_rate must lie in \[0, 1\), got -0.1"),
    ({"proj_drop_rate": math.nan}, r"proj_drop_rate must lie in \[0, 1\), got nan"),
    ({"patch_drop_rate": "0.1"}, "patch_drop_rate must be one number, got '0.1'"),
    ({"attn_drop_rate": True}, "attn_drop_rate must be one number, got True"),
    ({"mlp_ratio": "4"}, "mlp_ratio must be one number, got '4'"),
    ({"init_values": math.inf}, "init_values must be finite, got inf"),
    ({"depth": 2.0}, "depth must be a whole number, got 2.0"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"num_heads": -1}, "num_heads must be at least 1, got -1"),
    ({"reg_tokens": -1}, "reg_tokens must be at least 0, got -1"),
]


@pytest.mark.parametrize(("options", "message"), BY_KEYWORD, ids=lambda o: str(o)[:40])
def test_keywords_of_models(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model(**options)


def test_keywords_that_are_right_still_build():
    built = model(class_token=True, global_pool="token", fc_norm=None, drop_path_rate=0.1, init_values=1e-5, reg_tokens=2)
    assert built.num_prefix_tokens == 3
    assert model(num_classes=0, drop_rate=0.0, filter="dense")(torch.rand(1, 1, 8, 8)).shape == (1, 32)


def test_keywords_of_conversions():
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(TypeError, match="must be True or False, got 'false'"):
        from_timm(source, residual={"name": "twicing", "learned": "false"})


def test_keywords_of_segmenters():
    common = {"backbone": "bilateral_vit_tiny", "img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    for options, message in (
        ({"drop_path_rate": 2.0}, "drop_path_rate must lie in"),
        ({"pretrained": "no"}, "pretrained must be True or False"),
        ({"num_classes": 3.0}, "num_classes must be a whole number"),
        ({"decoder": {"name": "mask", "depth": 0}}, "depth must be at least 1, got 0"),
        ({"decoder": {"name": "mask", "drop_path": 1.5}}, r"drop_path must lie in \[0, 1\), got 1.5"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            timm.create_model("segmenter", **{**common, **options})


NO_NUMBERS = ["0.5", "abc", True, None, [0.5, 0.5], np.array([0.5, 0.5]), torch.tensor([0.5, 0.5])]
NUMBERS = {
    "eps": FGSM,
    "step_size": lambda v: PGD(0.1, step_size="None" if v is None else v),
    "decay": lambda v: MIFGSM(0.1, decay=v),
    "share": lambda v: Square(0.1, share=v),
    "delta": lambda v: SPSA(0.1, delta=v),
    "lr": lambda v: SPSA(0.1, lr=v),
    "std": GaussianNoise,
    "sigma": GaussianBlur,
    "rho": lambda v: SOS(2, rho=v),
    "integral": lambda v: PID(2, integral=v),
    "floor": lambda v: GaussianRange(2, 8, floor=v),
    "range_bandwidth of pictures": lambda v: bilateral_filter(torch.rand(1, 8, 8), v, 2.0),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_numbers(make):
    for value in (0.5, np.float32(0.5), np.float64(0.5)):
        make(value)
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match="must be (one|a) number"):
            make(value)


def test_bandwidths_are_numbers():
    for value in ("0.5", ["0.5", "0.5"], True, [True, 1.0], {"a": 1}):
        with pytest.raises(TypeError, match="range_bandwidth must be one number, got"):
            GaussianRange(2, 8, value)
    assert GaussianRange(2, 8, torch.tensor([1.0, 2.0])).range_bandwidth.initial == (1.0, 2.0)


def test_temperatures_are_numbers():
    for make in (Rotary, SinCos):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got True"):
            make(8, True)


COUNTS = {
    "PGD steps": lambda v: PGD(0.1, steps=v),
    "PGD restarts": lambda v: PGD(0.1, restarts=v),
    "APGD steps": lambda v: APGDCE(0.1, v),
    "targets": lambda v: TargetedAPGD(0.1, targets=v),
    "queries": lambda v: Square(0.1, v),
    "samples": lambda v: SPSA(0.1, samples=v),
    "batch": lambda v: SPSA(0.1, batch=v),
    "seed": lambda v: PGD(0.1, seed=v),
    "noise seed": lambda v: GaussianNoise(0.1, v),
    "severity": lambda v: ImageNetC("fog", v),
    "corruption seed": lambda v: ImageNetC("fog", 1, v),
    "limit": lambda v: DatasetSpec("digits", "", limit=v),
}


@pytest.mark.parametrize("make", COUNTS.values(), ids=COUNTS)
def test_counts_are_whole_numbers(make):
    for value in (1, np.int64(3)):
        make(value)
    for value in (2.5, 2.0, "2", True, [2]):
        with pytest.raises(TypeError, match="must be a whole number, got"):
            make(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThreatModel(0.1, bounds=(1.0, 0.0)), r"bounds must be a range \(low, high\), got \(1.0, 0.0\)"),
        (lambda: ThreatModel(0.1, bounds=(0.0, math.nan)), "bounds must be a range"),
        (lambda: FGSM(np.array([0.1, 0.2])), "FGSM: eps must be one number"),
        (lambda: DatasetSpec("digits", "", limit=0), "limit must be at least 1, got 0"),
        (lambda: Images(Digits("test"), 10, channels=1, on_unreadable="skip"), "on_unreadable must be 'stop', 'replace' or"),
        (lambda: Bregman(2, steps=True), "steps must be a whole number of at least 1, got True"),
        (
            lambda: evaluate(nn.Flatten().eval(), torch.rand(1, 1, 2, 2), torch.zeros(1).long(), batch_size=0),
            "batch_size must be",
        ),
    ],
)
def test_what_is_out_of_range(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
