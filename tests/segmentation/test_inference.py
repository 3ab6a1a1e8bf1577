"""Windows against their sum, scales and mirrors against theirs, classes against interpolated logits; memory."""

import subprocess
import sys
import weakref

import pytest
import seeding
import timm
import torch
import torch.nn.functional as F
from segmented import TINY, Pointwise
from torch import nn

from imgproc_attn.segmentation import SlidingWindowModel, segment, sliding_strips
from imgproc_attn.segmentation.inference import classes_of, window_starts


def test_a_window_of_the_whole_image_is_whole_image_inference(picture):
    model = timm.create_model("segmenter", backbone="nlm_vit_tiny", num_classes=7, **TINY).eval()
    whole = model(picture[None])[0]
    ((top, strip),) = sliding_strips(model, picture, 201, 201)
    assert top == 0
    assert torch.equal(strip, whole)
    assert torch.equal(segment(model, picture, 300), segment(model, picture))


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 40), (96, 17), (150, 50), (33, 1)])
def test_windows_are_averaged(picture, window, stride):
    picture = picture[:, :50, :60] if stride == 1 else picture  # hundreds of windows are enough
    model, (height, width) = Pointwise(), picture.shape[1:]
    total, times = torch.zeros(5, height, width), torch.zeros(height, width)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            where = (slice(None), slice(top, top + window), slice(left, left + window))
            with torch.no_grad():
                total[where] += model(picture[where][None])[0]
            times[where[1:]] += 1
    assert times.min() >= 1
    strips = list(sliding_strips(model, picture, window, stride, batch_size=3))
    found = torch.cat([strip for _, strip in strips], dim=1)
    torch.testing.assert_close(found, total / times)
    assert [top for top, _ in strips] == [sum(strip.shape[1] for _, strip in strips[:i]) for i in range(len(strips))]
    assert max(strip.shape[1] for _, strip in strips) <= min(window, 64)


def test_windows_refuse_gaps():
    with pytest.raises(ValueError, match="stride must be from 1 to the window, 64, got 65"):
        window_starts(100, 64, 65)


@pytest.mark.parametrize("size", [(150, 201), (300, 402), (97, 130)])
@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 48)])
def test_scales_and_mirror_images(picture, window, stride, size):
    """As the mean of all probabilities, held at once; bands of views come in different heights."""
    seeding.seed()
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 4, 3, padding=1)).eval()
    total = torch.zeros(4, *size)
    with torch.no_grad():
        for scale in (0.75, 1.0, 1.5):
            sides = [round(side * scale) for side in (150, 201)]
            scaled = nn.functional.interpolate(picture[None], size=sides, mode="bilinear", antialias=scale < 1)
            for mirrored in (False, True):
                logits = SlidingWindowModel(model, window, stride)(scaled.flip(-1) if mirrored else scaled)
                logits = nn.functional.interpolate(logits, size=size, mode="bilinear")[0].softmax(0)
                total += logits.flip(-1) if mirrored else logits
    found = segment(model, picture, window, stride, size=size, scales=(0.75, 1.0, 1.5), flip=True)
    assert found.shape == size
    assert (found == total.argmax(0)).double().mean() > 0.9999
    with pytest.raises(ValueError, match="one or more positive, finite factors"):
        segment(model, picture, scales=(0.0, 1.0))


LARGE = """
import resource, sys, timm, torch, imgproc_attn
from imgproc_attn.segmentation import segment
from skimage import data, transform
model = timm.create_model("segmenter", backbone="nlm_vit_small", num_classes=150, img_size=512).eval()
height, stride, flip = map(int, sys.argv[1:])
picture = torch.tensor(transform.resize(data.astronaut(), (height, 2048)), dtype=torch.float32).permute(2, 0, 1)
assert segment(model, picture, 512, stride, flip=bool(flip)).shape == (height, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
@pytest.mark.parametrize(("height", "stride", "flip"), [(1024, 512, 0), (1024, 341, 0), (640, 512, 0), (1024, 512, 1)])
def test_windows_bound_memory(height, stride, flip):
    """Side by side; overlapping; the second row of windows lies all but on the first; mirrored too."""
    arguments = [sys.executable, "-c", LARGE, str(height), str(stride), str(flip)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3e6


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_waiting_views_hold_no_logits(shape):
    """Those of windows are let go before the next are asked for, whichever view they are of."""
    given: list[weakref.ref] = []

    def model(images):
        assert not any(logits() is not None for logits in given)
        logits = images[:, :1].repeat(1, 5, 1, 1)
        given.append(weakref.ref(logits.untyped_storage()))
        return logits

    segment(model, torch.rand(3, *shape), 32, 20, scales=(0.75, 1.0, 1.25), flip=True)
    assert len(given) > 20


@pytest.mark.parametrize("size", [(150, 200), (37, 33), (75, 333), (41, 50), (300, 40)])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (13, 7), (64, 64)])
def test_classes_are_those_of_interpolation(size, window, stride):
    """Strip by strip as of the whole."""
    seeding.seed()
    logits = torch.randn(2, 6, 41, 50)
    large = F.interpolate(logits, size=size, mode="bilinear")
    first, second = large.topk(2, dim=1).values.unbind(1)
    sure = first - second > 1e-5
    assert (classes_of(logits, size) == large.argmax(1))[sure].all()
    found = segment(nn.Identity().eval(), logits[0], window, stride, size=size)
    assert (found == large[0].argmax(0))[sure[0]].all()
    assert found.shape == size


def test_gradients_pass_windows():
    seeding.seed()
    model, image = nn.Conv2d(3, 4, 3, padding=1), torch.rand(1, 3, 20, 17, requires_grad=True)
    weights = torch.rand(1, 4, 20, 17)
    (found,) = torch.autograd.grad((SlidingWindowModel(model, 8, 5)(image) * weights).sum(), image)
    total, times = torch.zeros(1, 4, 20, 17), torch.zeros(20, 17)
    for top in (0, 5, 10, 12):
        for left in (0, 5, 9):
            part = F.pad(model(image[..., top : top + 8, left : left + 8]), (left, 9 - left, top, 12 - top))
            total, times = total + part, times + F.pad(torch.ones(8, 8), (left, 9 - left, top, 12 - top))
    torch.testing.assert_close(SlidingWindowModel(model, 8, 5)(image), total / times)
    (expected,) = torch.autograd.grad((total / times * weights).sum(), image)
    torch.testing.assert_close(found, expected)
    whole = SlidingWindowModel(model, 64)(image)
    torch.testing.assert_close(whole, model(image))
    assert [top for top, _ in sliding_strips(model, image[0], 64, 64)] == [0]


def test_logits_must_be_finite():
    class Broken(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * float("nan")

    image = torch.rand(1, 3, 8, 8)
    for look in (
        lambda m: segment(m, image[0]),
        lambda m: segment(m, image[0], scales=(1.0, 2.0)),
        lambda m: SlidingWindowModel(m, 4)(image),
    ):
        with pytest.raises(FloatingPointError, match="must be finite"):
            look(Broken(3, 2, 1).eval())


def test_wide_images_are_those_turned():
    """Strips run across the shorter side; what each window sees is upright."""
    seeding.seed()
    model, image = Pointwise().eval(), torch.rand(3, 40, 90)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2:]))
    found = segment(model, image, 32, 20)
    assert set(seen) == {(32, 32)}
    assert torch.equal(found, SlidingWindowModel(model, 32, 20)(image[None])[0].argmax(0))
    assert segment(model, image, 32, 20, size=(80, 180), scales=(1.0, 1.5)).shape == (80, 180)
    assert seen[-1] == (32, 32)


REFUSED = {
    "training mode": (lambda m, x: segment(m.train(), x), "training mode"),
    "a part in training mode": (lambda m, x: segment(nn.Sequential(m, nn.Dropout().train()), x), "training mode"),
    "no window": (lambda m, x: segment(m, x, window=0), "The window must be at least 1, got 0"),
    "a negative window": (lambda m, x: SlidingWindowModel(m, -8), "The window must be at least 1, got -8"),
    "half a window": (lambda m, x: segment(m, x, window=8.5), "The window must be a whole number, got 8.5"),
    "no stride": (lambda m, x: segment(m, x, 16, 0), "The stride must be from 1 to the window, 16, got 0"),
    "a negative stride": (lambda m, x: SlidingWindowModel(m, 16, -1), "The stride must be from 1 to the window, 16, got -1"),
    "gaps": (lambda m, x: segment(m, x, 16, 17), "The stride must be from 1 to the window, 16, got 17"),
    "a stride alone": (lambda m, x: segment(m, x, stride=8), "The stride must be left out without a window, got 8"),
    "no scales": (lambda m, x: segment(m, x, scales=()), "must be one or more positive, finite factors"),
    "a scale of 0": (lambda m, x: segment(m, x, scales=(1.0, 0)), "must be one or more positive, finite factors"),
    "one scale": (lambda m, x: segment(m, x, scales=1.0), "The scales must be a sequence of numbers, got 1.0"),
    "a text": (lambda m, x: segment(m, x, scales="12"), "A scale must be one number, got '1'"),
    "a flip in words": (lambda m, x: segment(m, x, flip="no"), "flip must be True or False, got 'no'"),
    "no batch": (lambda m, x: segment(m, x, batch_size=0), "must be at least 1, got 0"),
    "no size": (lambda m, x: segment(m, x, size=(0, 8)), "must be at least 1, got 0"),
    "a batch": (lambda m, x: segment(m, x[None]), r"floating point \[channels, height, width\], got .* \[1, 3, 24, 40\]"),
    "8 bits": (lambda m, x: segment(m, x.byte()), "got torch.uint8"),
    "small logits": (lambda m, x: segment(lambda y: m(y)[..., ::4, ::4], x), "images' 24 x 40 pixels, got 6 x 10"),
    "small logits of windows": (lambda m, x: segment(lambda y: m(y)[..., 1:], x, 16), "16 x 16 pixels, got 16 x 15"),
    "a dictionary": (lambda m, x: segment(lambda y: {"out": m(y)}, x), r"got a dict with 'out'.*model\(x\)\['out'\]"),
    "a tuple of turned windows": (lambda m, x: segment(lambda y: (m(y),), x, 16), r"got a tuple of 1.*model\(x\)\[0\]"),
    "a tuple of mirror images": (lambda m, x: segment(lambda y: (m(y),), x, flip=True), "got a tuple of 1"),
    "labels": (lambda m, x: segment(lambda y: m(y).argmax(1), x), r"must return logits \[batch, classes, height, width\]"),
    "one row for two windows": (lambda m, x: segment(lambda y: m(y)[:1], x, 16), "one row of logits per image, got 1 for 2"),
}


@pytest.mark.parametrize(("look", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(look, message):
    with pytest.raises((ValueError, TypeError), match=message):
        look(Pointwise().eval(), torch.rand(3, 24, 40))
