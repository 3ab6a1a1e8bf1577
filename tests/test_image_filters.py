"""Image filters against brute force and three other libraries, on photographs."""

import math
import subprocess
import sys

import kornia
import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_bilateral, denoise_nl_means
from torch import nn

from imgproc_attn import bilateral_filter, non_local_means
from imgproc_attn.core import FilterAttention
from imgproc_attn.core.filters import SoftmaxFilter, WindowedFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.residuals import Plain

ROOT2 = math.sqrt(2)


def photograph(height=24, width=28, channels=3, dtype=torch.float64):
    """Return a crop of a photograph of a cat's face, [1, C, H, W] in [0, 1]."""
    image = torch.from_numpy(skimage.data.chelsea()[100 : 100 + height, 120 : 120 + width]).permute(2, 0, 1) / 255.0
    return image[None, :channels].to(dtype)


def brute_force(image, features, log_space, window):
    """Filter pair by pair of pixels, with ``features`` [C, H, W] and ``log_space(dy, dx)``."""
    _, height, width = image.shape
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            total, weights = torch.zeros_like(image[:, 0, 0]), 0.0
            for dy in range(-(window // 2), window // 2 + 1):
                for dx in range(-(window // 2), window // 2 + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        squared = ((features[:, y, x] - features[:, y + dy, x + dx]) ** 2).sum().item()
                        weight = math.exp(-squared + log_space(dy, dx))
                        total += weight * image[:, y + dy, x + dx]
                        weights += weight
            out[:, y, x] = total / weights
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_bilateral_is_brute_force(channels):
    """Results agree also at the border, where windows are cut off."""
    image = photograph(13, 11, channels)
    h_r, h_s = 0.2, 2.5
    expected = brute_force(image[0], image[0] / h_r, lambda dy, dx: -(dy**2 + dx**2) / h_s**2, 5)
    torch.testing.assert_close(bilateral_filter(image, h_r, h_s, 5)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("patch_size", [1, 3])
def test_non_local_means_is_brute_force(patch_size):
    image = photograph(11, 12)
    radius, h_r = patch_size // 2, 0.3 * patch_size
    padded = np.pad(image[0].numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    patches = np.stack([padded[:, i : i + 11, j : j + 12] for i in range(patch_size) for j in range(patch_size)])
    features = torch.from_numpy(patches).flatten(0, 1)
    expected = brute_force(image[0], features / h_r, lambda dy, dx: 0.0, 7)
    torch.testing.assert_close(non_local_means(image, h_r, patch_size, 7)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_image_is_the_largest_window(dtype):
    """The fused filter over all pixels in tiles equals windows that reach everywhere."""
    image = photograph(40, 40, dtype=dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for whole, windowed in (
        (bilateral_filter(image, 0.15, 4.0), bilateral_filter(image, 0.15, 4.0, 79)),
        (bilateral_filter(image, 0.15, 0.9), bilateral_filter(image, 0.15, 0.9, 79)),
        (non_local_means(image, 0.8, 3), non_local_means(image, 0.8, 3, 79)),
    ):
        torch.testing.assert_close(whole, windowed, rtol=bound, atol=bound)


def test_bands_and_tiles_leave_no_seams():
    """A tall image needs several bands, and gives the same numbers as its rows alone."""
    image = photograph(200, 60)
    result = bilateral_filter(image, 0.15, 3.0, 9)
    part = bilateral_filter(image[:, :, 50:120], 0.15, 3.0, 9)
    torch.testing.assert_close(result[:, :, 54:116], part[:, :, 4:66], rtol=1e-12, atol=1e-12)
    wide = image.repeat(1, 1, 1, 40)  # so wide that a band has the smallest number of rows
    torch.testing.assert_close(bilateral_filter(wide, 0.15, 3.0, 9)[..., 4:56], result[..., 4:56], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sigma_color", "sigma_space", "size"), [(0.1, 3.0, 11), (0.05, 1.0, 5), (0.5, 2.0, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_kornias_bilateral_blur(dtype, sigma_color, sigma_space, size):
    """Results agree in the interior. At the border, kornia reflects the image."""
    image, inside = photograph(60, 70, dtype=dtype), slice(size // 2, -(size // 2))
    theirs = kornia.filters.bilateral_blur(image, (size, size), sigma_color, (sigma_space,) * 2, color_distance_type="l2")
    ours = bilateral_filter(image, ROOT2 * sigma_color, ROOT2 * sigma_space, size)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours[..., inside, inside], theirs[..., inside, inside], rtol=bound, atol=bound)


def model_of_skimages_bilateral(image, sigma_color, sigma_space, size, quirks):
    """Return the interior of scikit-image's result, [H, W, C], with or without its quirks.

    Color weights come from a table of 10,000 bins. Its index is the floor of the distance over the number of channels. The
    table of positions has size + 1 points per row, but is read with rows of `size`, which shears it.
    """
    bins, radius, (height, width, channels) = 10000, size // 2, image.shape
    largest = image.max()
    colors = np.exp(-((np.linspace(0, largest, bins, endpoint=False) / sigma_color) ** 2) / 2)
    points = np.arange(-size // 2, size // 2 + 1)
    places = np.exp(-(points[:, None] ** 2 + points**2) / (2 * sigma_space**2)).ravel()
    center = image[radius : height - radius, radius : width - radius]
    total, weights = np.zeros_like(center), np.zeros(center.shape[:2])
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            other = image[radius + dy : height - radius + dy, radius + dx : width - radius + dx]
            distance = np.sqrt(((center - other) ** 2).sum(-1))
            if quirks:
                color = colors[np.minimum((distance * (bins // channels / largest)).astype(int), bins - 1)]
                weight = color * places[(dy + radius) * size + dx + radius]
            else:
                weight = np.exp(-((distance / sigma_color) ** 2) / 2 - (dy**2 + dx**2) / (2 * sigma_space**2))
            total += weight[..., None] * other
            weights += weight
    return total / weights[..., None]


@pytest.mark.parametrize("channels", [1, 3])
def test_scikit_image_bilateral_but_for_its_quirks(channels):
    image, (sigma_color, sigma_space, size) = photograph(50, 60, channels), (0.1, 2.0, 9)
    array = image[0].permute(1, 2, 0).contiguous().numpy()
    axis = {"channel_axis": -1} if channels > 1 else {}
    theirs = denoise_bilateral(array if channels > 1 else array[..., 0], size, sigma_color, sigma_space, **axis)
    theirs = theirs.reshape(array.shape)[4:-4, 4:-4]
    np.testing.assert_allclose(
        theirs, model_of_skimages_bilateral(array, sigma_color, sigma_space, size, True), rtol=0, atol=1e-6
    )
    ours = bilateral_filter(image, ROOT2 * sigma_color, ROOT2 * sigma_space, size)[0].permute(1, 2, 0).numpy()[4:-4, 4:-4]
    np.testing.assert_allclose(
        ours, model_of_skimages_bilateral(array, sigma_color, sigma_space, size, False), rtol=0, atol=1e-10
    )


def fast_exp(y):
    """Return Schraudolph's approximation: the high word of a double is a straight line in y."""
    high = np.int64(int(1512775.3951951856938 * y) + 1072632447)
    return np.array(high << 32, dtype=np.int64).view(np.float64).item()


def model_of_skimages_nl_means(image, patch, distance, h, quirks):
    """Return the result of scikit-image's slow mode, [H, W, C], with or without its quirks.

    Patches are weighted by a Gaussian, and the exponential is approximate. A pair is dropped if its distance exceeds 5 before
    the last row of the patch.
    """
    radius, (height, width, channels) = patch // 2, image.shape
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    offset = np.arange(-radius, radius + 1)
    inside = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * ((patch - 1) / 4) ** 2)) if quirks else np.ones((patch, patch))
    inside /= channels * inside.sum() * h * h
    total, weights = np.zeros_like(image), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            for i in range(max(0, y - distance), min(height, y + distance + 1)):
                for j in range(max(0, x - distance), min(width, x + distance + 1)):
                    difference = padded[y : y + patch, x : x + patch] - padded[i : i + patch, j : j + patch]
                    rows = (inside[..., None] * difference**2).sum((1, 2))
                    if quirks:
                        weight = 0.0 if (rows.cumsum()[:-1] > 5).any() else fast_exp(-rows.sum())
                    else:
                        weight = math.exp(-rows.sum())
                    total[y, x] += weight * image[i, j]
                    weights[y, x] += weight
    return total / weights[..., None]


def test_scikit_image_non_local_means_but_for_its_quirks():
    image, (patch, distance, h) = photograph(20, 22), (5, 4, 0.06)
    array = image[0].permute(1, 2, 0).contiguous().numpy()
    theirs = denoise_nl_means(array, patch, distance, h, fast_mode=False, channel_axis=-1)
    np.testing.assert_allclose(theirs, model_of_skimages_nl_means(array, patch, distance, h, True), rtol=0, atol=1e-6)
    ours = non_local_means(image, h * math.sqrt(patch**2 * 3), patch, 2 * distance + 1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, model_of_skimages_nl_means(array, patch, distance, h, False), rtol=0, atol=1e-10)


def decibels(clean, result):
    if isinstance(result, torch.Tensor):
        result = result[0].permute(1, 2, 0).numpy()
    return peak_signal_noise_ratio(clean[0].permute(1, 2, 0).numpy(), result, data_range=1)


def test_denoises_as_well_as_scikit_image():
    """Results agree within 0.1 dB on a color photograph with noise of 0.1, if bandwidths account for the quirks."""
    clean = photograph(96, 96)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=clean.dtype)).clamp(0, 1)
    array = noisy[0].permute(1, 2, 0).contiguous().numpy()
    for sigma_color in (
        0.05,
        0.1,
    ):  # A flat kernel in space cannot be sheared. Distances are divided by the number of channels.
        theirs = decibels(clean, denoise_bilateral(array, 9, sigma_color, 50.0, mode="symmetric", channel_axis=-1))
        ours = decibels(clean, bilateral_filter(noisy, ROOT2 * 3 * sigma_color, ROOT2 * 50.0, 9))
        assert abs(ours - theirs) < 0.1
        assert ours > decibels(clean, noisy) + 5
    for patch, h in ((7, 0.07), (9, 0.1)):  # its fast mode sums (s - 1)^2 pixels and divides by s^2
        theirs = decibels(clean, denoise_nl_means(array, patch, 5, h, fast_mode=True, channel_axis=-1))
        ours = decibels(clean, non_local_means(noisy, h * patch**2 / (patch - 1) * math.sqrt(3), patch, 11))
        assert abs(ours - theirs) < 0.1
        assert ours > decibels(clean, noisy) + 5


def test_locality_by_changing_inputs():
    """A pixel inside the window changes the result. A pixel outside does not."""
    image = photograph(20, 20)
    changed = image.clone()
    changed[0, :, 10, 10] = 1 - changed[0, :, 10, 10]
    reach = [(bilateral_filter, {"spatial_bandwidth": 5.0}, 2), (non_local_means, {"patch_size": 3}, 3)]
    for function, options, radius in reach:
        difference = function(changed, 0.5, window_size=5, **options) - function(image, 0.5, window_size=5, **options)
        rows, columns = torch.nonzero(difference[0].abs().sum(0), as_tuple=True)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10 - radius, 10 + radius, 10 - radius, 10 + radius)


def test_limits_of_the_bandwidths():
    image = photograph(16, 16)
    torch.testing.assert_close(bilateral_filter(image, 1e4, 1e4), image.mean((2, 3), keepdim=True).expand_as(image))
    torch.testing.assert_close(bilateral_filter(image, 1.0, 1e-3), image)
    constant = torch.full((1, 3, 12, 12), 0.3)
    torch.testing.assert_close(non_local_means(constant, 0.1, 3, 5), constant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window_size", [5, None])
def test_half_precision_is_computed_in_float32(dtype, window_size):
    image = photograph(12, 12, dtype=dtype)
    for function in (
        lambda x: bilateral_filter(x, 0.2, 2.0, window_size),
        lambda x: non_local_means(x, 0.4, 3, window_size),
    ):
        result = function(image)
        assert result.dtype == dtype
        torch.testing.assert_close(result, function(image.float()).to(dtype))  # at most one step of half precision


def test_batches_and_single_pictures():
    batch = torch.cat([photograph(20, 20), photograph(20, 20).flip(3)])
    for function in (
        lambda x: bilateral_filter(x, 0.2, 2.0, 5),
        lambda x: bilateral_filter(x, 0.2, 2.0),
        lambda x: non_local_means(x, 0.4, 3, 5),
        lambda x: non_local_means(x, 0.4, 3),
    ):
        torch.testing.assert_close(function(batch)[1], function(batch[1]))
        torch.testing.assert_close(function(batch)[0].flip(2), function(batch)[1])


def test_differentiable_across_tiles():
    """Images larger than a tile of 32 x 32 on both sides agree with windows that reach everywhere."""
    gradients = []
    for window_size in (None, 79):
        image = photograph(35, 40, 1).requires_grad_()
        bilateral_filter(image, 0.3, 4.0, window_size).square().sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_autocast_leaves_pictures_alone():
    image = photograph(36, 34, dtype=torch.float32)
    calls = (
        lambda: bilateral_filter(image, 0.03, 3.0),
        lambda: bilateral_filter(image, 0.03, 3.0, 11),
        lambda: non_local_means(image, 0.3, 3),
        lambda: non_local_means(image, 0.3, 3, 5),
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(call(), expected, rtol=0, atol=0)


def test_windows_may_exceed_the_shorter_side():
    image = photograph(1, 28)
    torch.testing.assert_close(bilateral_filter(image, 0.2, 3.0, 55), bilateral_filter(image, 0.2, 3.0))
    assert bilateral_filter(photograph(1, 1), 0.2, 3.0, 1).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("window_size", [5, None])
def test_differentiable(window_size):
    image = photograph(7, 6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bilateral_filter(x, 0.5, 2.0, window_size), image)
    assert torch.autograd.gradcheck(lambda x: non_local_means(x, 0.9, 3, window_size), image)


BAD = [
    (lambda x: bilateral_filter((x * 255).byte(), 0.1, 2.0), TypeError, r"must be floating point.*, got torch.uint8.*/ 255"),
    (lambda x: bilateral_filter(x / 0, 0.1, 2.0), ValueError, "must be finite, got .* values that are NaN or infinite"),
    (lambda x: non_local_means(x.sqrt().log() * float("nan"), 0.1, 3), ValueError, "NaN"),
    (lambda x: bilateral_filter(x, -0.1, 2.0), ValueError, r"range_bandwidth must be positive and finite.*, got -0\.1"),
    (lambda x: bilateral_filter(x, 0.1, math.nan), ValueError, "spatial_bandwidth must be .*, got nan"),
    (lambda x: bilateral_filter(x, 0.1, 2.0, 4), ValueError, "window_size must be an odd whole number.*, got 4. Try 5"),
    (lambda x: bilateral_filter(x, 0.1, 2.0, 57), ValueError, "window_size must be at most 55 .* 24 x 28, got 57. Give None"),
    (
        lambda x: bilateral_filter(x.float(), 1e-20, 2.0),
        ValueError,
        "range_bandwidth must be .* at least 5e-14 in torch.float32, got 1e-20",
    ),
    (lambda x: bilateral_filter(x, torch.tensor(0.1), 2.0), TypeError, "range_bandwidth must be a number, got tensor"),
    (lambda x: non_local_means(x, 0.1, 2, 5), ValueError, "patch_size must be an odd whole number.*, got 2"),
    (lambda x: non_local_means(x, 0.1, 49, 5), ValueError, "patch_size must be at most 47 .*, got 49"),
    (lambda x: non_local_means(x[0, 0], 0.1, 3), ValueError, r"shape \[C, H, W\] .*, got \[24, 28\]"),
    (lambda x: bilateral_filter(x[..., :0], 0.1, 1.0), ValueError, "not empty, got"),
    (lambda x: bilateral_filter(x.numpy(), 0.1, 1.0), TypeError, r"must be a tensor .*, got ndarray.*movedim\(-1, 0\)"),
    (lambda x: bilateral_filter(x, 0.1, 1.0, (5, 5)), TypeError, r"window_size must be one odd whole number.*, got \(5, 5\)"),
    (lambda x: bilateral_filter(x, 0.1, 1.0, True), TypeError, "window_size must be one odd .*, got True"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(photograph())


def test_windowed_filter_refuses_what_it_cannot_do():
    q, k = torch.randn(2, 1, 1, 9, 3)
    filter = WindowedFilter(torch.zeros(1, 3, 3), (3, 3))
    with pytest.raises(ValueError, match="one distance of features only"):
        filter(DotProduct(3)(q, q))
    with pytest.raises(ValueError, match="must be one tensor, got two"):
        filter(GaussianRange(1, 3)(q, k))
    with pytest.raises(ValueError, match="Use SoftmaxFilter for masks"):
        filter(GaussianRange(1, 3)(q, q), is_causal=True)


def test_windowed_filter_is_an_operator():
    """The operator is linear, its rows sum to 1, and it is 0 outside the window."""
    q, v = torch.randn(2, 1, 1, 20, 3, dtype=torch.float64)
    operator = WindowedFilter(torch.zeros(1, 3, 3), (4, 5))(GaussianRange(1, 3, dtype=torch.float64)(q, q))
    torch.testing.assert_close(operator.apply(v), operator.dense() @ v)
    torch.testing.assert_close(operator.dense().sum(-1), torch.ones(1, 1, 20, dtype=torch.float64))
    assert operator.dense()[0, 0, 0].count_nonzero() == 4  # the corner sees a quarter of the window


def test_is_the_attention_layer_with_identity_projections():
    """The filter of the whole image equals `FilterAttention` on pixels."""

    class Raw(nn.Module):
        def forward(self, x):
            return (x[:, None],) * 3

    image = photograph(8, 9)
    layer = FilterAttention(
        Raw(), GaussianRange(1, 3, 0.3), [SpatialGaussian(1, (8, 9), 2.0)], SoftmaxFilter(), Plain(), nn.Identity()
    ).double()
    tokens = image.flatten(2).transpose(1, 2)
    result, _ = layer(tokens, grid_geometry(8, 9, 0, tokens))
    expected = bilateral_filter(image, 0.3, 2.0).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of a process from /proc")
def test_memory_is_bounded():
    """The peak is measured in a separate process, on a 512 x 512 color photograph with an 11 x 11 window."""
    code = (
        "import torch, skimage.data, imgproc_attn\n"
        "def peak():  # of this program; ru_maxrss begins with that of the process that started it\n"
        "    return int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        "image = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1) / 255\n"
        "before = peak()\n"
        "imgproc_attn.bilateral_filter(image, 0.15, 4.0, 11)\n"
        "imgproc_attn.non_local_means(image, 0.8, 5, 11)\n"
        "imgproc_attn.bilateral_filter(image[:, :110, :110], 0.15, 30.0, 201)\n"
        "print(peak() - before)\n"
    )
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(added.stdout) * 1024 < 0.5e9


LARGE = [(torch.float32, 1e10), (torch.float32, 1e20), (torch.float32, 3.4e38), (torch.bfloat16, 1e20), (torch.bfloat16, 3e38)]
FILTERS = {
    "bilateral, window": lambda x, h: bilateral_filter(x, h, 2.0, 5),
    "bilateral, whole": lambda x, h: bilateral_filter(x, h, 2.0),
    "non-local means, window": lambda x, h: non_local_means(x, 3 * h, 3, 5),
    "non-local means, whole": lambda x, h: non_local_means(x, 3 * h, 3),
}


@pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize(("dtype", "largest"), [*LARGE, (torch.float16, 65504.0), (torch.float64, 1e300)])
def test_large_values_do_not_overflow(filter, dtype, largest):
    """Filters depend only on ratios, so results equal those of the same image in [0, 1], in float64."""
    picture = torch.tensor(skimage.data.astronaut()[100:112, 200:214] / 255).permute(2, 0, 1)
    image = (picture / picture.max() * largest).to(dtype)
    found = filter(image, 0.3 * largest).double() / largest
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    atol = max(torch.finfo(dtype).eps, 100 * torch.finfo(computed_in).eps)
    torch.testing.assert_close(found, filter(image.double() / largest, 0.3), rtol=0, atol=atol)
    flat = torch.full_like(image, torch.finfo(dtype).max)
    assert filter(flat, 0.3 * torch.finfo(dtype).max).isfinite().all()


@pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)
def test_gradients_of_large_values(filter):
    image = torch.rand(1, 8, 8, dtype=torch.float64)
    gradients = []
    for scale in (1.0, 1e100):
        points = (image * scale).requires_grad_()
        gradients += torch.autograd.grad(filter(points, 0.3 * scale).square().sum() / scale, points)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)
def test_bandwidths_that_vanish_beside_the_values_are_refused(filter):
    """The log-weights of such bandwidths would overflow."""
    for largest, h in ((4e9, 6e-14), (1e20, 1e-3)):
        with pytest.raises(ValueError, match="range_bandwidth must be .* at least .* in torch.float32 for values up to"):
            filter(torch.full((1, 8, 8), largest), h)
