"""Sequence classifiers: padding changes nothing, the formula in plain code, components by keyword, bad input."""

import math

import pytest
import timm
import torch

from imgproc_attn.sequences import SequenceClassifier, create_classifier, list_classifiers

SMALL = {"vocab_size": 17, "context": 24, "num_classes": 5, "padding": 0}
VARIANTS = {
    **{name: {"name": name} for name in list_classifiers() if "elliptical" not in name},
    "dense": {"filter": "dense"},
    "relu": {"filter": {"name": "relu", "divide": True}},
    "random features": {"filter": "random_features", "kernel": "gaussian_range"},
    "elu features": {"filter": "elu_features"},
    "nystroem": {"filter": {"name": "nystroem", "num_landmarks": 12}, "positions": ["absolute", "spatial_gaussian"]},
    "linformer": {"filter": {"name": "linformer", "num_landmarks": 6}},
    "sliding window": {"filter": {"name": "sliding_window", "window": 4}, "positions": ["absolute", "spatial_gaussian"]},
    "alibi": {"positions": ["absolute", "alibi"]},
    "rotary": {"positions": "rotary"},
    "buckets": {"positions": "relative_buckets"},
    "table": {"positions": "relative_table"},
    "sincos": {"positions": "sincos"},
    "nlm alibi": {"kernel": "gaussian_range", "positions": "alibi"},
    "bregman": {"residual": {"name": "bregman", "steps": 2}},
    "pid": {"residual": "pid"},
    "block twicing": {"block_residual": "twicing"},
    "ista": {"mlp": "ista"},
}


def padded(ids, length):
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_padding_changes_nothing(variant):
    """Neither logits nor gradients, whatever the length that a batch is padded to."""
    model = create_classifier(**{"name": "lra_plain", **SMALL, "dtype": torch.float64, **variant}).eval()
    ids = torch.randint(1, 17, (2, 9))
    alone = model(ids)
    together = model(torch.cat([padded(ids, 24), torch.randint(1, 17, (1, 24))]))[:2]
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    assert (model(ids.flip(1)) - alone).abs().max() > 1e-9 or model.pos_embed is None


def test_the_plain_model_is_its_formula():
    """In float64, with padding at the end."""
    model = create_classifier("lra_plain", **SMALL, drop_rate=0.5, dtype=torch.float64).eval()
    weights, ids, width, heads = model.state_dict(), torch.randint(1, 17, (9,)), 64, 2

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["token_embed.weight"][ids] + weights["pos_embed"][0, :9]
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        parts = []
        for part in range(heads):
            columns = slice(part * width // heads, (part + 1) * width // heads)
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(width / heads)
            parts.append(scores.softmax(-1) @ v[:, columns])
        x = x + linear(torch.cat(parts, dim=-1), f"{block}.attn.proj")
        h = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"{block}.mlp.fc2")
    expected = linear(linear(norm(x, "norm").mean(0), "head.0").relu(), "head.2")
    torch.testing.assert_close(model(padded(ids[None], 20))[0], expected, rtol=1e-12, atol=1e-13)


def test_tokens_see_later_ones():
    model = create_classifier("lra_plain", **SMALL).eval()
    ids = torch.randint(1, 17, (1, 9))
    changed = ids.clone()
    changed[0, -1] = 1 + ids[0, -1] % 16
    assert (model.forward_features(ids)[0, 0] - model.forward_features(changed)[0, 0]).abs().max() > 1e-6


def test_pairs():
    """The head gets [a, b, a b, a - b], so exchanging the texts exchanges these."""
    model = create_classifier("lra_plain", **SMALL, pairs=True, dtype=torch.float64).eval()
    ids = padded(torch.randint(1, 17, (6, 9)), 12).view(3, 2, 12)
    a, b = model.summarize(ids[:, 0]), model.summarize(ids[:, 1])
    expected = model.head(torch.cat([a, b, a * b, a - b], dim=1))
    torch.testing.assert_close(model(ids), expected)


def test_equal_parameters_in_blocks():
    """Compare plain, twicing and attention-only models, to one percent."""
    counts = {
        name: sum(p.numel() for p in create_classifier(f"lra_{name}", device="meta").blocks.parameters())
        for name in ("plain", "twicing", "aot_mhsa", "aot_mssa")
    }
    assert counts["plain"] == counts["twicing"]
    assert max(counts.values()) <= 1.02 * min(counts.values()), counts


def test_timm_creates_and_exports_it():
    model = timm.create_model("lra_twicing", **SMALL).eval()
    assert isinstance(model, SequenceClassifier)
    assert model.pretrained_cfg["input_size"] == (1, 1, 24)
    ids = padded(torch.randint(1, 17, (2, 9)), 24)
    program = torch.export.export(model, (ids,))
    torch.testing.assert_close(program.module()(ids), model(ids))
    with pytest.raises(ValueError, match="lra_twicing has no published weights"):
        timm.create_model("lra_twicing", pretrained=True)


BAD = [
    (
        lambda: create_classifier("lra_plane"),
        "name must be that of a sequence classifier, got 'lra_plane'. Did you mean 'lra_plain'",
    ),
    (lambda: create_classifier("lra_plain", padding=256), "padding must be a token of the vocabulary, 0 to 255, got 256"),
    (lambda: create_classifier("lra_plain", num_classes=0), "num_classes must be at least 1, got 0"),
    (lambda: create_classifier("lra_plain", context=0), "context must be at least 1, got 0"),
    (
        lambda: create_classifier("lra_elliptical", padding=0),
        "must have filters and kernels that take a mask, got Elliptical in block 1, which cannot hide padding",
    ),
    (
        lambda: create_classifier("lra_aot_mssa", filter="token_statistics", padding=0),
        "take a mask, got TokenStatistics in block 0",
    ),
    (
        lambda: create_classifier("lra_plain", **SMALL)(torch.ones(1, 25, dtype=torch.int64)),
        "A sequence must have at most 24 tokens, the context of the model, got 25",
    ),
    (lambda: create_classifier("lra_plain", **SMALL)(torch.ones(1, 0, dtype=torch.int64)), "with at least one token"),
    (lambda: create_classifier("lra_plain", **SMALL).check_tokens(torch.tensor([[3, 17]])), "from 0 to 16, .*got 17"),
    (lambda: create_classifier("lra_plain", **SMALL).check_tokens(torch.tensor([[-1, 3]])), "from 0 to 16, .*got -1"),
    (lambda: create_classifier("lra_plain", **SMALL, pairs=True)(torch.ones(1, 9, dtype=torch.int64)), r"\[batch, 2, tokens\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "components", [{"kernel": "elliptical"}, {"projection": "subspaces", "filter": "token_statistics"}], ids=str
)
def test_without_padding_all_filters_work(components):
    model = create_classifier("lra_plain", vocab_size=17, context=24, num_classes=5, **components)
    assert model(torch.randint(17, (2, 24))).shape == (2, 5)
