"""The kernels against image filters nobody here wrote, on photographs that ship with scikit-image."""

import kornia.filters
import torch
from skimage import data

from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import GaussianRange
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.terms import product


def test_bilateral_is_kornias():
    """h = sqrt(2) sigma in both kernels. Ours has no window: compared where kornia's holds all the weight."""
    image = torch.tensor(data.astronaut()[40:76, 180:216] / 255).permute(2, 0, 1)[None]
    sigma_color, sigma_space, radius = 0.15, 1.2, 8
    theirs = kornia.filters.bilateral_blur(
        image, (2 * radius + 1, 2 * radius + 1), sigma_color, (sigma_space, sigma_space), color_distance_type="l2"
    )
    height, width = image.shape[-2:]
    geometry = grid_geometry(height, width, 0, image)
    pixels = image.flatten(2).mT[:, None]
    kernel = GaussianRange(1, 3, 2**0.5 * sigma_color, dtype=torch.float64)
    positions = SpatialGaussian(1, (height, width), 2**0.5 * sigma_space, dtype=torch.float64)
    terms = product(positions(geometry, geometry, pixels), kernel(pixels, pixels))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        filter = SoftmaxFilter()
        if dtype == torch.float32:
            pixels, kernel, positions = pixels.float(), kernel.float(), positions.float()
            terms = product(positions(geometry, geometry, pixels), kernel(pixels, pixels))
        ours = filter(terms).apply(pixels)[:, 0].mT.reshape(image.shape)
        inner = (..., slice(radius, -radius), slice(radius, -radius))
        torch.testing.assert_close(ours.double()[inner], theirs[inner], rtol=0, atol=tolerance)
