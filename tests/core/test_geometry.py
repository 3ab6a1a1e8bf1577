import torch

from imgproc_attn.core.geometry import Geometry, grid_geometry, keep_patches


def test_grid():
    geometry = grid_geometry(2, 3, 1, torch.empty(0))
    expected = [[0, 0], [-0.5, -1], [-0.5, 0], [-0.5, 1], [0.5, -1], [0.5, 0], [0.5, 1]]
    assert geometry.coordinates[0].tolist() == expected
    assert geometry.is_patch.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert geometry.grid_size == (2, 3)


def test_coordinates_are_exact_in_bfloat16_up_to_256():
    c = grid_geometry(256, 255, 0, torch.empty(0)).coordinates
    assert torch.equal(c.bfloat16().float(), c)


def test_keep_patches():
    geometry = grid_geometry(3, 3, 2, torch.empty(0))
    stream = torch.randn(1, 11, 4)
    geometry = Geometry(geometry.coordinates, geometry.is_patch, 2, geometry.grid_size, stream)
    keep = torch.tensor([[0, 5, 8], [3, 2, 1]])
    kept = keep_patches(geometry, keep)
    assert kept.coordinates.shape == (2, 5, 2)
    assert torch.equal(kept.coordinates[:, :2], torch.zeros(2, 2, 2))
    for b in range(2):
        assert torch.equal(kept.coordinates[b, 2:], geometry.coordinates[0, 2 + keep[b]])
        assert torch.equal(kept.position_embeddings[b, 2:], stream[0, 2 + keep[b]])
    assert kept.is_patch.tolist() == [0, 0, 1, 1, 1]
