"""Sampling and generation."""

import pytest
import torch
from causal_variants import VARIANTS, VOCABULARY, small

from imgproc_attn.language import sample


@torch.no_grad()
def greedy(model, ids, count):
    """One token at a time from the whole text, written down."""
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["plain", "bilateral", "twicing", "untied", "alibi"])
def test_temperature_zero_is_greedy(name, use_cache):
    model, ids = small(**VARIANTS[name]), torch.randint(VOCABULARY, (3, 5))
    found = model.generate(ids, 12, temperature=0, use_cache=use_cache)
    assert torch.equal(found, greedy(model, ids, 12))


def test_elliptical_generates_without_a_cache():
    model, ids = small(kernel="elliptical"), torch.randint(VOCABULARY, (1, 5))
    assert torch.equal(model.generate(ids, 4, temperature=0, use_cache=False), greedy(model, ids, 4))
    with pytest.raises(ValueError, match=r"Generate with use_cache=False"):
        model.generate(ids, 4)


def test_the_same_random_numbers_give_the_same_text():
    model, ids = small(), torch.randint(VOCABULARY, (2, 5))
    texts = [
        model.generate(ids, 15, top_k=20, top_p=0.9, generator=torch.Generator().manual_seed(seed), use_cache=cached)
        for seed, cached in ((3, True), (3, False), (4, True))
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert torch.equal(texts[0][:, :5], ids)


def frequencies(**options):
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    drawn = sample(p.log().expand(20000, -1), generator=torch.Generator().manual_seed(0), **options)
    return torch.bincount(drawn, minlength=4) / 20000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.4}, [1.0, 0, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.85}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 3, "top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
    ],
)
def test_frequencies_of_drawn_tokens(options, expected):
    """20,000 draws from 0.5, 0.25, 0.15, 0.1: the standard deviation of a frequency is at most 0.0036."""
    found = frequencies(**options)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.018)
    assert ((found == 0) == (torch.tensor(expected) == 0)).all()


def test_stop_ends_rows_and_fills_them():
    model, ids = small(), torch.randint(VOCABULARY, (2, 5))
    full = greedy(model, ids, 20)
    stop = int(full[0, 9])
    first = [int((row[5:] == stop).nonzero()[0]) + 5 if (row[5:] == stop).any() else 24 for row in full]
    found = model.generate(ids, 20, temperature=0, stop=stop)
    assert found.shape[1] == max(first) + 1
    for row, expected, end in zip(found, full, first):
        assert torch.equal(row[: end + 1], expected[: end + 1])
        assert (row[end + 1 :] == stop).all()


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([[]], {}, ValueError, r"ids must have .* at least one token, got \[1, 0\]"),
        ([[1] * 40], {}, ValueError, r"must fit into the context of 32 tokens, got 40 \+ 5\. Shorten the prompt"),
        ([[1] * 30], {}, ValueError, r"must fit into the context of 32 tokens, got 30 \+ 5"),
        ([[1, 50]], {}, ValueError, r"Tokens must be from 0 to 49, the vocabulary of the model, got 50"),
        ([[1, -1]], {}, ValueError, r"Tokens must be from 0 to 49, .* got -1"),
        ([[1]], {"stop": 99}, ValueError, r"Tokens must be from 0 to 49, .* got 99"),
        ([[1]], {"temperature": -1.0}, ValueError, r"temperature must be at least 0 and finite, got -1\.0"),
        ([[1]], {"top_k": 0}, ValueError, r"top_k must be at least 1, got 0"),
        ([[1]], {"top_p": 1.5}, ValueError, r"top_p must be in \(0, 1\], got 1\.5"),
        ([[1]], {"top_k": "3"}, TypeError, r"top_k must be a whole number, got '3'"),
        ([[1]], {"max_new_tokens": -1}, ValueError, r"max_new_tokens must be at least 0, got -1"),
    ],
)
def test_bad_requests(ids, options, error, message):
    with pytest.raises(error, match=message):
        small().generate(torch.tensor(ids, dtype=torch.long), **{"max_new_tokens": 5, **options})
