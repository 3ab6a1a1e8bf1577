"""Contract of all members in a causal model: later tokens change nothing, and a cache changes nothing."""

import pytest
import torch
from causal_variants import FILTERED, VARIANTS, VOCABULARY, small

from imgproc_attn.core import UntiedPositions
from imgproc_attn.language import FilterLanguageModel


def tokens(batch=2, length=20):
    return torch.randint(VOCABULARY, (batch, length))


@pytest.mark.parametrize("components", FILTERED.values(), ids=FILTERED)
@torch.no_grad()
def test_later_tokens_change_nothing(components):
    model, ids = small(**components), tokens()
    logits = model(ids)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % VOCABULARY
    others = model(changed)
    torch.testing.assert_close(others[:, :12], logits[:, :12], rtol=1e-9, atol=1e-9)
    assert (others[:, 12:] - logits[:, 12:]).abs().amax(dim=-1).min() > 1e-3, "they change their own results"
    torch.testing.assert_close(model(ids[:, :12]), logits[:, :12], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(ids[:, :1]), logits[:, :1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "spatial gaussian", "alibi", "bilateral", "twicing"])
@torch.no_grad()
def test_later_tokens_change_nothing_in_float32(name):
    """The lift subtracts a common key. It must be one that all tokens see."""
    model, ids = FilterLanguageModel(VOCABULARY, 512, 48, 2, 3, **VARIANTS[name]).eval(), tokens(1, 512)
    changed = torch.cat([ids[:, :300], tokens(1, 212)], dim=1)
    torch.testing.assert_close(model(changed)[:, :300], model(ids)[:, :300], rtol=1e-6, atol=1e-6)


CACHED = {name: components for name, components in FILTERED.items() if not name.startswith(("elliptical", "token statistics"))}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("components", CACHED.values(), ids=CACHED)
@torch.no_grad()
def test_a_cache_changes_nothing(components, dtype):
    """Tokens come in pieces: several, then one at a time, then several again."""
    model, ids = small(dtype, **components), tokens()
    cache, pieces = model.new_cache(), [5, 1, 1, 1, 8, 1, 3]
    found = torch.cat([model(piece, cache) for piece in ids.split(pieces, dim=1)], dim=1)
    assert cache.length == 20
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    expected = model(ids)
    assert (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@torch.no_grad()
def test_a_cache_projects_each_position_once(monkeypatch):
    counts, project = [], UntiedPositions._projected

    def counted(self, geometry, *args):
        counts.append(geometry.coordinates.shape[1])
        return project(self, geometry, *args)

    monkeypatch.setattr(UntiedPositions, "_projected", counted)
    model, pieces = small(**VARIANTS["untied"]), [15, 1, 4]
    cache = model.new_cache()
    for piece in tokens().split(pieces, dim=1):
        model(piece, cache)
    assert counts == [count for count in pieces for _ in model.blocks]


@torch.no_grad()
def test_a_cache_of_far_tokens_in_float32():
    """A narrow spatial kernel at 1,500 tokens: its columns are small near the last token."""
    positions = {"name": "spatial_gaussian", "spatial_bandwidth": 1.5}
    model = FilterLanguageModel(VOCABULARY, 32, 48, 2, 3, kernel="gaussian_range", positions=positions).eval()
    ids, cache = tokens(1, 1500), model.new_cache()
    model(ids[:, :1490], cache)
    found = torch.cat([model(ids[:, i : i + 1], cache) for i in range(1490, 1500)], dim=1)
    torch.testing.assert_close(found, model(ids)[:, 1490:], rtol=1e-5, atol=1e-5)


def test_layers_that_cannot_be_cached():
    with pytest.raises(ValueError, match=r"got Elliptical in block 1, .* Generate with use_cache=False"):
        small(kernel="elliptical").new_cache()
    with pytest.raises(ValueError, match=r"got TokenStatistics in block 0, .* Generate with use_cache=False"):
        small(**VARIANTS["token statistics"]).new_cache()
    with pytest.raises(ValueError, match=r"evaluation mode for a cache, .* Call model\.eval\(\)"):
        small().train().new_cache()


def test_a_cache_of_another_batch_size():
    model = small()
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens(2, 3), cache)
        with pytest.raises(ValueError, match=r"batch size of the cache, 2, got 3\. Make a new cache"):
            model(tokens(3, 1), cache)


def test_a_cache_has_no_gradients():
    model = small()
    with pytest.raises(RuntimeError, match=r"Gradients must be off with a cache, .* Use torch\.no_grad\(\)"):
        model(tokens(), model.new_cache())


def test_filters_that_look_ahead_are_refused():
    for filter in ("representatives", "nystroem", "linformer"):
        with pytest.raises(ValueError, match=r"filter must be causal .* in block 0, .* Use filter='softmax'"):
            small(filter=filter, projection="subspaces", positions="none")
