"""Models by name, their parameters, and GPT-2's formula and weights."""

import math

import pytest
import torch
from causal_variants import FILTERED, VARIANTS, VOCABULARY, small
from safetensors.torch import save_file

from imgproc_attn.language import FilterLanguageModel, create_model, list_models, load_gpt2_weights
from imgproc_attn.language.gpt2_weights import translate_gpt2


def layer_norm(x, weights, name):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gpt2(ids, weights, depth, heads):
    """GPT-2 in plain code, from weights with the names and layouts of the transformers library."""

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    length = ids.shape[1]
    x = weights["wte.weight"][ids] + weights["wpe.weight"][:length]
    for i in range(depth):
        q, k, v = linear(layer_norm(x, weights, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, dim=-1)
        results = []
        for part_q, part_k, part_v in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v))):
            scores = part_q @ part_k.mT / math.sqrt(part_q.shape[-1])
            scores = scores.masked_fill(torch.ones(length, length).triu(1) > 0, -math.inf)
            results.append(scores.softmax(-1) @ part_v)
        x = x + linear(torch.cat(results, dim=-1), f"h.{i}.attn.c_proj")
        x = x + linear(gelu(linear(layer_norm(x, weights, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return layer_norm(x, weights, "ln_f") @ weights["wte.weight"].T


def gpt2_shapes(width, depth, vocabulary=50257, context=1024):
    """Names and shapes of GPT-2 in the transformers library."""
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    inner = {"ln_1": (width,), "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "ln_2": (width,)}
    inner |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    for layer, shape in [
        *((f"h.{i}.{name}", shape) for i in range(depth) for name, shape in inner.items()),
        ("ln_f", (width,)),
    ]:
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[-1:]}
    return shapes


TEST = {"width": 64, "depth": 3, "vocabulary": 256, "context": 64}


def random_gpt2(dtype, **shape):
    return {name: 0.1 * torch.randn(size, dtype=dtype) for name, size in gpt2_shapes(**{**TEST, **shape}).items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gpt2_is_its_formula(dtype, tolerance):
    weights = random_gpt2(dtype)
    model = create_model("test_gpt2_lm", dtype=dtype).eval()
    model.load_state_dict(translate_gpt2(weights))
    ids = torch.randint(256, (2, 64))
    expected = gpt2(ids, weights, 3, 2)
    assert (model(ids) - expected).abs().max() <= tolerance * expected.abs().max()


def test_gpt2_of_the_transformers_library():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=3, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    model = create_model("test_gpt2_lm", dtype=torch.float64).eval()
    model.load_state_dict(translate_gpt2(theirs.state_dict()))
    ids = torch.randint(256, (2, 64))
    torch.testing.assert_close(model(ids), theirs(ids).logits)


SIZES = {"base": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}


@pytest.mark.parametrize("size", SIZES)
def test_published_weights_fit_by_name_and_shape(size):
    published = {f"transformer.{name}": torch.empty(shape, device="meta") for name, shape in gpt2_shapes(*SIZES[size]).items()}
    published |= {"lm_head.weight": published["transformer.wte.weight"]}
    published |= {f"transformer.h.0.attn.{name}": torch.empty(1, device="meta") for name in ("bias", "masked_bias")}
    translated = translate_gpt2(published)
    own = create_model(f"gpt2_lm_{size}", device="meta").state_dict()
    assert {name: value.shape for name, value in translated.items()} == {name: value.shape for name, value in own.items()}


def test_load_gpt2_weights(tmp_path):
    """A plain model and one with bandwidths, which keep their values."""
    weights = random_gpt2(torch.float32)
    save_file(weights, tmp_path / "model.safetensors")
    plain, bilateral = create_model("test_gpt2_lm").eval(), create_model("test_bilateral_lm").eval()
    kept = bilateral.blocks[0].attn.kernel.range_bandwidth()
    for model in (plain, bilateral):
        load_gpt2_weights(model, tmp_path / "model.safetensors")
    ids = torch.randint(256, (1, 10))
    torch.testing.assert_close(plain(ids), gpt2(ids, weights, 3, 2), rtol=1e-4, atol=1e-4)
    assert torch.equal(bilateral.blocks[0].attn.kernel.range_bandwidth(), kept)
    assert torch.equal(bilateral.blocks[2].mlp.fc1.weight, weights["h.2.mlp.c_fc.weight"].T)


def test_weights_of_another_shape_or_model(tmp_path):
    save_file(random_gpt2(torch.float32, depth=2), tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"got nothing for blocks\.2\..* \(12 names differ\)\. Create the model of this size"):
        load_gpt2_weights(create_model("test_gpt2_lm"), tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"Names must be those of GPT-2 .*, got 'cls_token'"):
        translate_gpt2({"cls_token": torch.zeros(1)})


def parameters(name):
    return sum(p.numel() for p in create_model(name, device="meta").parameters())


# Millions of parameters, as published. Counts of attention-only models leave out the table of positions.
COUNTS = {"gpt2_lm_base": 124, "gpt2_lm_medium": 355, "gpt2_lm_large": 774, "gpt2_lm_xl": 1558}
AOT = {"aot_mssa_lm_base": 102, "aot_mssa_lm_medium": 182, "aot_mhsa_lm_base": 122}


@pytest.mark.parametrize(("name", "millions"), [*COUNTS.items(), *AOT.items()])
def test_published_numbers_of_parameters(name, millions):
    model = create_model(name, device="meta")
    count = parameters(name) - (model.pos_embed.numel() if name in AOT else 0)
    assert round(count / 1e6) == millions


def test_small_models_have_blocks_of_equal_size():
    sizes = [parameters(f"{name}_small") for name in ("gpt2_lm", "aot_mhsa_lm", "aot_mssa_lm")]
    assert max(sizes) < 1.01 * min(sizes)


def test_shapes_of_wikitext103():
    small, medium = (create_model(f"wikitext103_lm_{size}", device="meta") for size in ("small", "medium"))
    assert [len(model.blocks) for model in (small, medium)] == [16, 16]
    assert [model.blocks[0].mlp.fc1.out_features for model in (small, medium)] == [2048, 2048]
    assert [model.blocks[0].attn.qkv.head_dim for model in (small, medium)] == [16, 32]


@pytest.mark.parametrize("name", list_models("test_*"))
def test_models_by_name_train(name):
    model = create_model(name)
    ids = torch.randint(256, (4, 33))
    logits = model(ids[:, :-1])
    assert logits.shape == (4, 32, 256)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(256)) < 0.2
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_list_models():
    assert len(list_models()) > 30
    assert list_models("aot_*_base") == ["aot_mhsa_lm_base", "aot_mssa_lm_base"]


def test_unknown_models():
    with pytest.raises(ValueError, match=r"got 'gpt2_lm_bse'\. Did you mean 'gpt2_lm_base'\?"):
        create_model("gpt2_lm_bse")


def test_initial_weights_are_those_of_gpt2():
    model = create_model("gpt2_lm_small", vocab_size=2000)
    block = model.blocks[3]
    for weight, deviation in (
        (model.token_embed.weight, 0.02),
        (model.pos_embed, 0.02),
        (block.attn.qkv.weight, 0.02),
        (block.mlp.fc1.weight, 0.02),
        (block.attn.proj.weight, 0.02 / math.sqrt(12)),
        (block.mlp.fc2.weight, 0.02 / math.sqrt(12)),
    ):
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert block.mlp.fc1.bias.abs().max() == block.attn.qkv.bias.abs().max() == 0


@pytest.mark.parametrize("name", ["plain", "untied", "relative table"])
def test_input_longer_than_the_context_is_refused(name):
    model = small(**VARIANTS[name])
    with pytest.raises(ValueError, match=r"at most 32 tokens, the context of the model, got 33\. Shorten it"):
        model(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize("name", ["no positions", "sincos", "spatial gaussian", "alibi", "relative buckets", "rotary"])
@torch.no_grad()
def test_models_without_a_table_take_longer_input(name):
    model, ids = small(**VARIANTS[name]), torch.randint(VOCABULARY, (1, 70))
    torch.testing.assert_close(model(ids)[:, :32], model(ids[:, :32]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), ValueError, r"at least one token, got \[1, 0\]"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"shape \[batch, tokens\], .* got \[3\]"),
        (torch.zeros(1, 3), TypeError, r"ids must be integers, got torch\.float32"),
    ],
)
def test_bad_ids(ids, error, message):
    with pytest.raises(error, match=message):
        small()(ids)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"context": 1.5}, TypeError, "context must be a whole number, got 1.5"),
        ({"drop_rate": 1.0}, ValueError, r"drop_rate must lie in \[0, 1\), got 1.0"),
        ({"kernel": "gaussian"}, ValueError, "Did you mean 'gaussian_range'"),
        ({"num_heads": 5}, ValueError, "dim must be divisible by num_heads=5, got 24"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        small(**options)


@pytest.mark.parametrize(
    "name", ["bilateral, softmax", "several positions, softmax", "pid, softmax", "random features, random_features"]
)
def test_models_export(name):
    model, ids = small(torch.float32, **FILTERED[name]), torch.randint(VOCABULARY, (2, 20))
    program = torch.export.export(model, (ids,))
    torch.testing.assert_close(program.module()(ids), model(ids), rtol=1e-4, atol=1e-4)


def test_dropout_in_training_only():
    model = FilterLanguageModel(VOCABULARY, 32, 24, 2, 3, drop_rate=0.5, attn_drop_rate=0.5)
    ids = torch.randint(VOCABULARY, (2, 20))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
