"""Peak memory of a training step."""

import pytest
import timm

from imgproc_attn.benchmark import benchmark_memory


@pytest.mark.slow
def test_memory_of_a_model():
    """Check only facts with a wide margin: the resident set is too coarse and depends on the machine."""
    names = ["vit_tiny_patch16_224", "bilateral_vit_tiny"]
    few, many = benchmark_memory(names, 196), benchmark_memory(names, 784)
    trained = 4 * 4 * sum(p.numel() for p in timm.create_model(names[0]).parameters())  # weight, gradient, Adam's two moments
    for small, large in zip(few, many):
        assert small["peak_bytes"] > 0.9 * trained
        assert large["peak_bytes"] > 1.2 * small["peak_bytes"]
    assert few[0]["ratio"] == 1
    assert few[1]["ratio"] == few[1]["peak_bytes"] / few[0]["peak_bytes"]
