"""What images, labels, logits and statistics must be, for everything that takes them: attacks, corruptions, evaluations."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import seeding
import torch
from digits import convolutions, tensors
from test_evaluation import photograph
from torch import nn

from imgproc_attn.evaluation import (
    APGDCE,
    FGSM,
    PGD,
    SPSA,
    GaussianBlur,
    GaussianNoise,
    NormalizedModel,
    Square,
    WorstOf,
    evaluate,
    sanity_checks,
)
from imgproc_attn.evaluation.contract import check_images
from imgproc_attn.evaluation.imagenet_c import ImageNetC
from imgproc_attn.evaluation.imagenet_subsets import RestrictedModel
from imgproc_attn.evaluation.normalization import InPrecision
from imgproc_attn.evaluation.samples import Samples
from imgproc_attn.tasks import ClassificationTask

STATISTICS = {
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "Inception": ([0.5] * 3, [0.5] * 3),
    "CLIP": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}
NOT_IMAGES = {
    "8 bits": (lambda x: (x * 255).byte(), "Divide 8-bit images by 255"),
    "0 to 255": (lambda x: x * 255, "Divide images of 0 to 255 by 255"),
    "normalized": (lambda x: (x - 0.45) / 0.23, "Leave normalization to NormalizedModel"),
    "-1 to 1": (lambda x: 2 * x - 1, "Leave normalization to NormalizedModel"),
    "overshoot": (lambda x: x * 1.2 - 0.1, "Clamp values outside the range"),
    "NaN": (lambda x: x.where(x < x.max(), torch.nan), "must be finite, got values from nan to nan"),
    "an array": (lambda x: x.numpy(), "got ndarray"),
    "one image": (lambda x: x[0], r"must be floats \[batch, channels, height, width\]"),
}


@pytest.fixture(scope="module")
def model():
    seeding.seed()
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()


@pytest.fixture(scope="module")
def images():
    return photograph(16)[:6]


TAKERS = {
    "evaluate": lambda model, x, y: evaluate(model, x, y),
    "FGSM": lambda model, x, y: FGSM(0.1)(model, x, y),
    "an ensemble": lambda model, x, y: WorstOf({"PGD": PGD(0.1, 2)})(model, x, y),
    "sanity checks": lambda model, x, y: sanity_checks(model, x, y, None),
    "noise": lambda model, x, y: GaussianNoise(0.1)(x),
    "blur": lambda model, x, y: GaussianBlur(1.0)(x),
    "fog": lambda model, x, y: ImageNetC("fog", 1)(x),
}


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize(("change", "message"), NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_what_are_no_images_is_refused_by_all(model, images, take, change, message):
    take(model, images, torch.arange(6) % 4)
    with pytest.raises((ValueError, TypeError), match=message):
        take(model, change(images), torch.arange(6) % 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mean", "std"), STATISTICS.values(), ids=STATISTICS)
def test_rounding_of_normalization_is_no_offence(mean, std, dtype):
    """Every gray level, brought back in two ways; what leaves [0, 1] by that is clamped, what leaves by more is refused."""
    levels = (torch.arange(256, dtype=torch.float64) / 255).to(dtype).expand(1, 3, 1, 256)
    m, s = (torch.tensor(values, dtype=dtype)[:, None, None] for values in (mean, std))
    normalized = (levels - m) / s
    for back in (normalized * s + m, (normalized + m / s) * s):
        found = check_images(back)
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found - back).abs().max() <= 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    inside = levels.clone()
    assert check_images(inside) is inside
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
        check_images(levels - 10 * max(torch.finfo(dtype).eps, 1e-6))


def test_what_rounding_left_outside_is_attacked_inside(model):
    images = torch.full((1, 3, 16, 16), -2.98e-08)
    label = 1 - model(images).argmax(1).clamp_max(1)
    result = WorstOf({"FGSM": FGSM(0.1)})(model, images, label)
    assert result.adversarial.min() >= 0
    assert result.by.tolist() == [-1], "wrong before: fooled by none"
    assert evaluate(model, images, label, {"PGD": PGD(0.1, 2)}).accuracies == {"clean": 0.0, "PGD": 0.0}


class Wrapped(nn.Module):
    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dictionary with attributes."""

    logits = property(lambda self: self["logits"])


Pair = namedtuple("Pair", "head distilled")
OUTPUTS = {
    "a dictionary": (lambda y: {"logits": y}, r"got a dict with 'logits'. Wrap it .* returns model\(x\)\['logits'\]"),
    "torchvision's": (lambda y: OrderedDict(out=y, aux=y), r"OrderedDict with 'out', 'aux'.*model\(x\)\['out'\]"),
    "a ModelOutput": (lambda y: ModelOutput(loss=None, logits=y), r"ModelOutput with 'loss', 'logits'.*\['logits'\]"),
    "a tuple": (lambda y: (y, None), r"got a tuple of 2. .*model\(x\)\[0\]"),
    "a named tuple": (lambda y: Pair(y, y), r"got a Pair of 2. .*model\(x\)\[0\]"),
    "an object": (lambda y: SimpleNamespace(logits=y), r"got a SimpleNamespace. .*model\(x\).logits"),
    "one row": (lambda y: y[:1], "one row of logits per image, got 1 for 6 images"),
    "too many rows": (lambda y: y.repeat(2, 1), "one row of logits per image, got 12 for 6"),
    "classes": (lambda y: y.argmax(1, keepdim=True), "floating-point logits, got torch.int64"),
    "a vector": (lambda y: y[:, 0], r"must return logits \[batch, classes\], got shape"),
    "pixels": (lambda y: y[..., None, None], r"must return logits \[batch, classes\], got shape"),
}
ASKERS = {
    "evaluate": lambda model, x, y: evaluate(model, x, y),
    "PGD": lambda model, x, y: PGD(0.1, 2)(model, x, y),
    "APGD": lambda model, x, y: APGDCE(0.1, 2)(model, x, y),
    "Square": lambda model, x, y: Square(0.1, 2)(model, x, y),
    "SPSA": lambda model, x, y: SPSA(0.1, 1, 2)(model, x, y),
    "sanity checks": lambda model, x, y: sanity_checks(model, x, y, None),
    "the command": lambda model, x, y: ClassificationTask(4).clean(model, x, y, torch.arange(len(x))),
    "autocast": lambda model, x, y: evaluate(InPrecision(model, torch.no_grad), x, y),
    "some classes": lambda model, x, y: evaluate(RestrictedModel(model, [0, 1, 2, 3]), x, y),
}


@pytest.mark.parametrize("ask", ASKERS.values(), ids=ASKERS)
@pytest.mark.parametrize(("wrap", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_what_are_no_logits_is_refused_by_all(model, images, ask, wrap, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ask(Wrapped(model, wrap).eval(), images, torch.arange(6) % 4)


def test_labels_are_tensors_of_whole_numbers(model, images):
    for labels in ([0] * 6, np.zeros(6, dtype=np.int64)):
        with pytest.raises(TypeError, match=r"tensor \[batch\] of class indices, got .*Give torch.tensor\(labels\)"):
            evaluate(model, images, labels)


CORRUPTIONS = {
    "one for all": (lambda x, i: x[:1], r"must stay torch.float32 of shape \[6, 3, 16, 16\], got .* \[1, 3, 16, 16\]"),
    "smaller": (lambda x, i: x[..., ::2], r"got torch.float32 of shape \[6, 3, 16, 8\]"),
    "another type": (lambda x, i: x.double(), "must stay torch.float32.*got torch.float64"),
    "8 bits": (lambda x, i: (x * 255).byte(), "must stay torch.float32.*got torch.uint8"),
    "0 to 255": (lambda x, i: x * 255, "Divide images of 0 to 255 by 255"),
    "too bright": (lambda x, i: x + 0.2, r"must be in \[0, 1\], got values from"),
    "infinite": (lambda x, i: x / 0, "must be finite"),
    "NaN": (lambda x, i: x * torch.nan, "must be finite"),
    "an array": (lambda x, i: x.numpy(), "got ndarray"),
    "nothing": (lambda x, i: None, "got NoneType"),
}


@pytest.mark.parametrize(("corruption", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_corruptions_that_break_the_contract_are_named(model, images, corruption, message):
    labels = torch.arange(6) % 4
    with pytest.raises((ValueError, TypeError), match=f"Images of corruption 'mine' .*{message}"):
        evaluate(model, images, labels, None, {"kept": lambda x, i: x, "mine": corruption})


def test_corrupted_pixels_that_break_the_contract_are_named():
    class Bright:
        def corrupt(self, pixels, sample_id):
            return pixels * 1.1

    class Halved(Bright):
        def corrupt(self, pixels, sample_id):
            return pixels[..., ::2]

    source = type("Source", (), {"indices": range(1), "__len__": lambda s: 1, "__getitem__": lambda s, i: (PIXELS, 0)})()
    for corruption in (Bright(), Halved()):
        name = type(corruption).__name__
        with pytest.raises(ValueError, match=rf"Pixels of corruption '{name}' must stay uint8 of shape \[3, 4, 4\], got"):
            Samples(source, corruption)[0]
    assert Samples(source, ImageNetC("brightness", 1))[0][0].shape == (3, 4, 4)


PIXELS = np.full((3, 4, 4), 100, dtype=np.uint8)


@pytest.mark.parametrize(
    "pixels", [PIXELS / 255, PIXELS.astype(int), PIXELS[:2], PIXELS[0], np.concatenate([PIXELS, PIXELS[:1]])]
)
def test_imagenet_c_corrupts_8_bits_of_1_or_3_channels(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[channels, height, width\] of 1 or 3 channels, got"):
        ImageNetC("fog", 1).corrupt(pixels, 0)


@pytest.mark.parametrize(
    ("attacks", "corruptions", "message"),
    [
        ({"n": GaussianNoise(0.1)}, None, r"'n' must be an attack, got GaussianNoise.*Give corruptions as corruptions="),
        ({"n": lambda x, i: x}, None, "'n' must be an attack"),
        (None, {"p": PGD(0.1)}, r"'p' must be a corruption, got PGD.*Give attacks as attacks="),
        (None, {"p": 0.1}, "'p' must be a corruption, got 0.1"),
        (PGD(0.1), None, "attacks must be a mapping of names to attacks, got PGD"),
        ([PGD(0.1)], None, "attacks must be a mapping"),
        (None, GaussianNoise(0.1), "corruptions must be a mapping"),
    ],
)
def test_attacks_and_corruptions_are_told_apart(model, images, attacks, corruptions, message):
    with pytest.raises(TypeError, match=message):
        evaluate(model, images, torch.arange(6) % 4, attacks, corruptions)


GRAY = {
    "both in gray levels": ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)),
    "std in gray levels": ((0.485, 0.456, 0.406), (58.4, 57.1, 57.4)),
    "mean in gray levels": ((123.7, 116.3, 103.5), (0.229, 0.224, 0.225)),
    "a negative mean": ((-0.5,) * 3, (0.5,) * 3),
    "NaN": ((0.5,) * 3, (float("nan"),) * 3),
    "infinite": ((0.5,) * 3, (float("inf"),) * 3),
}


@pytest.mark.parametrize(("mean", "std"), GRAY.values(), ids=GRAY)
def test_statistics_in_gray_levels_are_refused(mean, std):
    for kind in (tuple, np.array, torch.tensor):
        with pytest.raises(ValueError, match="must be in .0, 1., as the images are, got .* in gray levels by 255"):
            NormalizedModel(nn.Flatten(), kind(mean), kind(std))


def test_statistics_may_be_arrays(images):
    mean, std = STATISTICS["ImageNet"]
    expected = NormalizedModel(nn.Identity(), mean, std)(images)
    for kind in (np.array, torch.tensor, lambda v: torch.tensor(v)[:, None, None], lambda v: np.array(v, np.float32)):
        assert torch.equal(NormalizedModel(nn.Identity(), kind(mean), kind(std))(images), expected)


def test_images_are_normalized_once():
    once = NormalizedModel(convolutions(), [0.5], [0.25])
    for model in (once, nn.Sequential(once, nn.Identity()), nn.Sequential(nn.Sequential(once))):
        with pytest.raises(ValueError, match="must take normalized images, got one that normalizes them itself"):
            NormalizedModel(model, [0.5], [0.25])


def test_a_normalized_model_takes_floats_of_its_channels(images):
    model = NormalizedModel(nn.Conv2d(3, 2, 3), *STATISTICS["ImageNet"])
    with pytest.raises(ValueError, match=r"images must be floating point in \[0, 1\], got torch.uint8"):
        model((images * 255).byte())
    for wrong in (images[:, :1], images[:, :2], images[0, 0]):
        with pytest.raises(ValueError, match=r"images must be \[batch, 3, height, width\], got"):
            model(wrong)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images), model(images))


def test_digits_are_images():
    """The check lets through what it should."""
    images, labels = tensors("test")
    assert check_images(images) is images
    assert evaluate(convolutions().eval(), images, labels, {}, {"noise": GaussianNoise(0.1)}).correct.keys() == {
        "clean",
        "noise",
    }
