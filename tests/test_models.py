"""The backbones: seams by keyword, timm's contract beyond its own tests, and what a user may do wrong."""

import os
import socket
import warnings

import pytest
import timm
import timm.layers
import timm.optim
import torch
from reference import sharpened
from torch import nn

import imgproc_attn
from imgproc_attn.bandwidths import Bandwidth
from imgproc_attn.filters import SoftmaxFilter, log_weights
from imgproc_attn.kernels import DotProduct, Elliptical, GaussianRange
from imgproc_attn.models import FAMILIES, FilterVisionTransformer, LayerSpec
from imgproc_attn.positions import SpatialGaussian, UntiedPositions
from imgproc_attn.residuals import PID, SOS, L2Boosting, NeuTRENO, Plain, Residual, Twicing
from imgproc_attn.terms import Distance, Terms
from imgproc_attn.training.loop import build_optimiser
from imgproc_attn.training.recipe import Optimiser

NAMES = [f"test_{family}" for family in FAMILIES]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def small(**kwargs):
    return FilterVisionTransformer(**{**SMALL, **kwargs})


BILATERAL = {"kernel": "gaussian_range", "positions": ("absolute", "spatial_gaussian")}
VARIANTS = {
    "plain": {},
    "nlm": {"kernel": "gaussian_range"},
    "bilateral": BILATERAL,
    "bilateral, pooled": {**BILATERAL, "class_token": False, "global_pool": "avg"},
    "per axis + twicing": {
        "kernel": "gaussian_range",
        "positions": ["absolute", {"name": "spatial_gaussian", "per_axis": True}],
        "residual": {"name": "twicing", "steps": 2, "learned": True},
    },
    "untied + registers": {"positions": "untied", "reg_tokens": 3},
    "untied + spatial": {"positions": ["untied", "spatial_gaussian"], "class_token": False, "global_pool": "avg"},
    "none": {"positions": "none"},
    "elliptical": {"kernel": "elliptical", "reg_tokens": 1},
    "elliptical + bilateral": {
        "kernel": {"name": "elliptical", "scaling": "mean"},
        "positions": ["sincos", "spatial_gaussian"],
        "class_token": False,
        "global_pool": "avg",
    },
    "neutreno": {"residual": {"name": "neutreno", "learned": True}},
    "pid, last layers": {"kernel": "gaussian_range", "residual": {"name": "pid", "layers": [1, 2]}},
    "sos + bregman stream": {"residual": "sos", "stream": {"name": "bregman", "steps": 2, "layers": [0, 2]}},
    "sos stream": {**BILATERAL, "stream": {"name": "sos", "learned": True}},
    "l2 stream + elliptical": {"kernel": "elliptical", "stream": {"name": "l2_boosting", "gate": 0.5, "learned": True}},
    "twicing stream + alibi": {"positions": ["absolute", "alibi"], "stream": "twicing", "reg_tokens": 2},
    "relative table": {"positions": "relative_table", "class_token": False, "global_pool": "avg"},
    "rotary": {"kernel": "gaussian_range", "positions": "rotary", "reg_tokens": 2},
}
CARRIES = {"elliptical", "neutreno", "pid", "l2_boosting"}
CARRYING = [name for name, variant in VARIANTS.items() if CARRIES & set(str(variant).split("'"))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_registered_at_deit_shapes(family, size):
    name = f"{family}_{size}"
    assert name in timm.list_models()
    model = timm.create_model(name, device="meta")
    assert (model.embed_dim, len(model.blocks)) == ({"tiny": 192, "small": 384, "base": 768}[size], 12)
    assert model.blocks[0].attn.qkv.head_dim == 64
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


def test_what_the_families_are():
    for family, kernel, positions, residual, stream in (
        ("plain", DotProduct, [], Plain, Plain),
        ("nlm", GaussianRange, [], Plain, Plain),
        ("bilateral", GaussianRange, [SpatialGaussian], Plain, Plain),
        ("bilateral_untied", DotProduct, [UntiedPositions], Plain, Plain),
        ("elliptical", Elliptical, [], Plain, Plain),
        ("twicing", DotProduct, [], Twicing, Plain),
        ("sos", DotProduct, [], SOS, Plain),
        ("neutreno", DotProduct, [], NeuTRENO, Plain),
        ("pid", DotProduct, [], PID, Plain),
        ("sos_stream", DotProduct, [], Plain, SOS),
        ("bilateral_sos_stream", GaussianRange, [SpatialGaussian], Plain, SOS),
    ):
        model = timm.create_model(f"test_{family}_vit")
        for i, block in enumerate(model.blocks):
            assert type(block.attn.kernel) is (DotProduct if kernel is Elliptical and i == 0 else kernel)
            assert [type(p) for p in block.attn.positions] == positions
            assert type(block.attn.residual) is (Plain if i == 0 and model.carries else residual)
            assert type(block.stream) is stream
        assert model.carries == (family in ("elliptical", "neutreno", "pid"))
    assert timm.create_model("test_bilateral_untied_vit").pos_embed.shape[1] == 100
    assert timm.create_model("test_neutreno_vit").blocks[3].attn.residual.gate.initial == 0.6
    assert not timm.create_model("test_elliptical_vit").blocks[3].attn.kernel.mean_scale


@pytest.mark.parametrize("family", ["nlm_vit", "bilateral_vit"])
def test_large(family):
    model = timm.create_model(f"{family}_large", device="meta")
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.qkv.num_heads) == (1024, 24, 16)


def test_the_two_by_two_differs_in_kernel_and_stream_alone():
    """{plain, bilateral} x {plain, boosted stream}: same pooling, tokens and widths."""
    corners = ("plain_vit", "bilateral_vit", "sos_stream_vit", "bilateral_sos_stream_vit")
    models = [timm.create_model(f"test_{name}") for name in corners]
    assert {(m.global_pool, m.num_prefix_tokens, m.embed_dim) for m in models} == {("avg", 0, 64)}
    plain = set(models[0].state_dict())
    assert set(models[2].state_dict()) == plain
    assert set(models[1].state_dict()) == set(models[3].state_dict()) >= plain


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_fused_equals_dense(variant):
    models = [small(**variant, fused_attn=fused).double().eval() for fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-9, atol=1e-9)


def test_dot_product_absolute_is_timms_vit():
    """Same names, same initial draws, same numbers."""
    torch.manual_seed(1)
    theirs = timm.models.VisionTransformer(**SMALL).eval()
    torch.manual_seed(1)
    ours = small().eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_gate_zero_is_the_plain_model():
    plain = small().double().eval()
    gated = small(residual={"name": "twicing", "gate": 0.0}).double().eval()
    gated.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(plain(x), gated(x))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_gets_a_gradient_that_counts(variant):
    model = small(**variant)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    last = f"blocks.{len(model.blocks) - 1}."
    for name, parameter in model.named_parameters():
        # with class-token pooling the last block's only row that counts is one without a place
        spatial = "spatial_bandwidth" in name or ".positions." in name
        boosted = "twicing" in str(variant) or "bregman" in str(variant)
        if model.global_pool == "token" and spatial and name.startswith(last) and not boosted:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_layers_choose_where_a_member_acts():
    model = small(
        kernel={"name": "gaussian_range", "layers": [0, -1], "range_bandwidth": 3.0},
        positions=["absolute", {"name": "spatial_gaussian", "layers": [1]}],
        residual={"name": "twicing", "steps": 2, "layers": [2]},
    )
    assert [type(b.attn.kernel) for b in model.blocks] == [GaussianRange, DotProduct, GaussianRange]
    assert [len(b.attn.positions) for b in model.blocks] == [0, 1, 0]
    assert [b.attn.residual.steps for b in model.blocks] == [0, 0, 2]


def test_fixed_bandwidths_are_no_parameters():
    model = small(
        kernel={"name": "gaussian_range", "range_bandwidth": [2.0, 5.0], "learned": False},
        positions={"name": "spatial_gaussian", "spatial_bandwidth": 1.5, "learned": False},
    )
    assert not [n for n, _ in model.named_parameters() if "bandwidth" in n]
    for module in model.modules():
        if isinstance(module, Bandwidth):
            assert module().tolist() in ([pytest.approx(2.0), pytest.approx(5.0)], [pytest.approx(1.5)] * 2)


def test_own_members_without_touching_the_package():
    class Cosine(nn.Module):
        def __init__(self, temperature):
            super().__init__()
            self.temperature = temperature

        def forward(self, q, k, is_causal=False):
            normalize = nn.functional.normalize
            return Terms([normalize(q, dim=-1) / self.temperature], [normalize(k, dim=-1)])

    class Rows(nn.Module):
        """Sees its own row of patches only."""

        def forward(self, geometry, like):
            y = geometry.coordinates[0, :, 0]
            same = (y[:, None] == y[None, :]) | (geometry.is_patch[:, None] * geometry.is_patch == 0)
            return Terms([], [], bias=torch.zeros_like(same, dtype=like.dtype).masked_fill(~same, float("-inf"))[None, None])

    class Sharpen(Residual):
        def __init__(self, amount):
            super().__init__(steps=1)
            self.amount = amount

        def operand(self, u, v, last):
            return u

        def update(self, u, smoothed):
            return u + self.amount * (u - smoothed)

    seen = []

    def kernel(layer: LayerSpec):
        seen.append(layer.depth)
        return Cosine(0.1)

    model = timm.create_model(
        "test_nlm_vit", kernel=kernel, positions=["absolute", lambda layer: Rows()], residual=lambda layer: Sharpen(0.5)
    ).eval()
    assert seen == list(range(6))
    assert model(torch.randn(1, 3, 160, 160)).isfinite().all()
    weights = model.attention_weights(torch.randn(1, 3, 160, 160), [0])[0]
    assert weights[0, 0, 1, 11:].abs().max() == 0  # first row of 10 patches, behind the class token


BAD = [
    ({"kernel": "gausian_range"}, ValueError, "kernel: unknown member 'gausian_range'; .* Did you mean 'gaussian_range'"),
    ({"residual": "twiceing"}, ValueError, "Did you mean 'twicing'"),
    ({"positions": "absolut"}, ValueError, "Did you mean 'absolute'"),
    ({"residual": {"name": "twicing", "step": 2}}, ValueError, "unknown option 'step'; .* Did you mean 'steps'"),
    ({"residual": {"name": "twicing", "layers": [3]}}, ValueError, "layer 3 does not exist in a model of depth 3; give 0 to 2"),
    ({"residual": {"name": "twicing", "steps": 0}}, ValueError, "steps is 0, but must be a whole number, at least 1"),
    ({"residual": {"name": "twicing", "gate": float("nan")}}, ValueError, "gate is nan"),
    ({"positions": 5}, TypeError, "5 is neither a name"),
    ({"positions": "untied", "no_embed_class": False}, ValueError, "no_embed_class=False"),
    ({"residual": 3}, TypeError, "3 is neither a name"),
    ({"positions": ["absolute", "untied"]}, ValueError, "exclude each other"),
    ({"positions": ["none", "absolute"]}, ValueError, "'none' excludes"),
    ({"positions": ["spatial_gaussian", "spatial_gaussian"]}, ValueError, "given twice"),
    ({"positions": [{"name": "absolute", "layers": [0]}]}, ValueError, "takes no options"),
    ({"kernel": {"name": "gaussian_range", "range_bandwidth": -1.0}}, ValueError, r"range_bandwidth is -1\.0"),
    ({"kernel": {"name": "gaussian_range", "range_bandwidth": float("nan")}}, ValueError, "range_bandwidth is nan"),
    ({"kernel": {"name": "gaussian_range", "range_bandwidth": [1.0] * 3}}, ValueError, "3 values given for 2 heads"),
    ({"positions": {"name": "spatial_gaussian", "spatial_bandwidth": float("inf")}}, ValueError, "spatial_bandwidth is inf"),
    ({"pos_embed": "learn"}, ValueError, "use positions="),
    ({"block_fn": nn.Identity}, ValueError, "use kernel="),
    ({"img_size": 30}, ValueError, "30 x 30 is not divisible by patch_size 8 x 8; use 24 x 24"),
    ({"embed_dim": 33}, ValueError, "33 is not divisible by 2 heads"),
    ({"not_an_argument": 1}, TypeError, "not_an_argument"),
    ({"kernel": {"name": "elliptical", "layers": [0, 1]}}, ValueError, "layer 0 has no layer in front"),
    ({"kernel": {"name": "elliptical", "scaling": "median"}}, ValueError, "scaling is 'median', but must be 'max' or 'mean'"),
    ({"residual": {"name": "sos", "tau": 2.5}}, ValueError, r"tau is 2\.5, but must lie in \(0, 2\)"),
    ({"residual": "l2_boosting"}, ValueError, "residual: unknown member 'l2_boosting'"),
    ({"stream": "neutreno"}, ValueError, "stream: unknown member 'neutreno'"),
    ({"positions": ["sincos", "absolute"]}, ValueError, "'absolute' and 'sincos' exclude each other"),
    ({"positions": {"name": "sincos", "temprature": 1.0}}, ValueError, "Did you mean 'temperature'"),
    ({"kernel": DotProduct(16)}, TypeError, "kernel: got DotProduct itself; give a factory"),
    ({"residual": Twicing}, TypeError, "residual: got Twicing itself; give a factory"),
    ({"positions": ["absolute", SpatialGaussian(2, (4, 4))]}, TypeError, "positions: got SpatialGaussian itself"),
    ({"residual": {"name": "twicing", "gate": [1.0, 0.0]}}, ValueError, "gate is .*, but must be a finite number"),
    ({"residual": {"name": "twicing", "layers": "last"}}, TypeError, "layers has 'last', but takes whole numbers"),
    ({"stream": lambda layer: NeuTRENO(1)}, ValueError, "stream: NeuTRENO feeds earlier values back"),
    ({"residual": lambda layer: L2Boosting()}, ValueError, "residual: L2Boosting changes what is filtered first"),
    ({"positions": "rotary", "embed_dim": 36}, ValueError, "width 18 is not divisible by 4"),
    ({"positions": {"name": "alibi", "spatial_bandwidth": [1.0]}}, ValueError, "1 values given for 2 heads"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD)
def test_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        small(**kwargs)


@pytest.mark.parametrize(
    ("shape", "kwargs", "message"),
    [
        ((1, 4, 32, 32), {}, r"\[1, 4, 32, 32\] given, but the model takes \[batch, 3, height, width\].*in_chans="),
        ((3, 32, 32), {}, r"\[3, 32, 32\] given"),
        ((1, 3, 40, 32), {}, "40 x 32 given, but the model was built for 32 x 32.*dynamic_img_size=True"),
        ((1, 3, 36, 32), {"dynamic_img_size": True}, "36 x 32 given, but both must be divisible by the patch, 8 x 8"),
    ],
)
def test_refuses_images(shape, kwargs, message):
    model = small(**kwargs)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(torch.zeros(shape))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_dynamic_size_equals_a_model_of_that_size(variant):
    """Non-square, larger and smaller: the same as setting the size, up to how the position table is resampled."""
    model = small(**variant, dynamic_img_size=True).eval()
    fixed = small(**variant).eval()
    fixed.load_state_dict(model.state_dict())
    for size in [(24, 40), (48, 16)]:
        fixed.set_input_size(size)
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(model(x), fixed(x), rtol=1e-4, atol=1e-4)
        fixed.set_input_size((32, 32))
        fixed.load_state_dict(model.state_dict())


def test_padding_to_the_patch():
    model = small(**BILATERAL, dynamic_img_size=True, dynamic_img_pad=True).eval()
    assert model(torch.randn(1, 3, 30, 43)).shape == (1, 5)
    features = model.forward_intermediates(torch.randn(1, 3, 30, 43), intermediates_only=True)
    assert features[0].shape == (1, 32, 4, 6)


MASKABLE = {name: variant for name, variant in VARIANTS.items() if "elliptical" not in name}


@pytest.mark.parametrize("variant", MASKABLE.values(), ids=MASKABLE)
def test_patch_dropout_filters_with_the_places_that_are_left(variant):
    """Dropping patches equals a mask that hides them."""
    model = small(**variant, patch_drop_rate=0.5).double().train()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    kept = {}
    drop = model.patch_drop.forward

    def spy(tokens):
        kept["tokens"], kept["keep"] = drop(tokens)
        return kept["tokens"], kept["keep"]

    model.patch_drop.forward = spy
    result = model.forward_features(x)
    prefix, keep = model.num_prefix_tokens, kept["keep"]
    assert keep.shape == (2, 8)
    model.eval()
    model.patch_drop.forward = drop
    seen = torch.zeros(2, prefix + 16, dtype=torch.bool)
    seen[:, :prefix] = True
    seen.scatter_(1, keep + prefix, True)
    masked = model.forward_features(x, attn_mask=seen[:, None, None, :])
    index = torch.cat([torch.arange(prefix).expand(2, -1), keep + prefix], 1)
    expected = masked.gather(1, index[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_patch_dropout_and_feature_maps():
    model = small(patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match="needs all 16 patches, but patch dropout kept 8; use output_fmt='NLC'"):
        model.forward_intermediates(torch.randn(1, 3, 32, 32))
    tokens = model.forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC", intermediates_only=True)
    assert tokens[0].shape == (1, 8, 32)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_checkpointing_changes_neither_values_nor_gradients(variant):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = small(**variant).double()
        model.set_grad_checkpointing(enabled)
        out = model(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Saved:
    """Bytes autograd saves within the context, each storage once."""

    def __enter__(self):
        self.storages = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __exit__(self, *arguments):
        self.hooks.__exit__(*arguments)

    @property
    def bytes(self):
        return sum(self.storages.values())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_saves_memory(name):
    model = timm.create_model(name)
    x = torch.randn(4, 3, 160, 160)
    held = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        with Saved() as saved:
            out = model(x)
        held.append(saved.bytes)
        del out
    assert held[1] < 0.5 * held[0]


@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 160, 160)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    model.train()
    compiled(x).square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    for gradient, parameter in zip(gradients, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inductor_keeps_the_arithmetic(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        exact = timm.create_model(name).double().eval()
        exact.load_state_dict(model.state_dict())
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x).double(), exact(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_exports(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 160, 160)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_meta_device_then_initialised(name):
    model = timm.create_model(name, device="meta")
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model = model.to_empty(device="cpu")
    model.init_weights()
    reference = timm.create_model(name)
    for (key, value), expected in zip(model.state_dict().items(), reference.state_dict().values()):
        assert value.isfinite().all(), key
        if "bandwidth" in key:
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_empty_batches_simply_work(name, dtype):
    """Of models whose logits depend on their filters: without them they are four standard deviations off."""
    model = sharpened(timm.create_model(name))
    x = torch.randn(2, 3, 160, 160)
    expected = model(x)
    largest = {torch.float16: 0.5, torch.bfloat16: 2.0}[dtype] * expected.std()
    with torch.autocast("cpu", dtype):
        assert (model(x).float() - expected).abs().max() < largest
    model.to(dtype)
    assert (model(x.to(dtype)).float() - expected).abs().max() < largest
    assert model(x[:0].to(dtype)).shape == (0, 1000)


def test_one_patch():
    model = small(**BILATERAL, class_token=False, global_pool="avg")
    model.set_input_size((8, 8))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_optimiser_groups():
    model = timm.create_model("test_bilateral_vit")
    decayed, *_ = [
        {id(p) for p in group["params"]}
        for group in timm.optim.param_groups_weight_decay(model, 0.1, model.no_weight_decay())
        if group["weight_decay"] > 0
    ]
    for name, parameter in model.named_parameters():
        if "bandwidth" in name:
            assert parameter.ndim == 1
            assert id(parameter) not in decayed
    layered = timm.optim.param_groups_layer_decay(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in layered for p in group["params"]}
    first, last = (model.blocks[i].attn for i in (0, 5))
    assert scale[id(first.qkv.weight)] == 0.5**5 * scale[id(last.qkv.weight)]
    for attn in (first, last):
        assert scale[id(attn.kernel.range_bandwidth.log_excess)] == scale[id(last.qkv.weight)]
    converted = imgproc_attn.from_timm(timm.create_model("test_vit"), positions="spatial_gaussian", residual="twicing")
    layered = timm.optim.param_groups_layer_decay(converted, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in layered for p in group["params"]}
    gates = [p for name, p in converted.named_parameters() if "gate" in name]
    assert len(gates) == 12
    assert {scale[id(p)] for p in gates} == {scale[id(converted.blocks[5].attn.qkv.weight)]}


def test_muon_leaves_tables_alone():
    model = small(positions=["absolute", "relative_table"], num_heads=4)
    optimiser = build_optimiser(model, Optimiser(name="muon", lr=1e-3))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimiser.step()
    muon = {name for name, parameter in model.named_parameters() if optimiser.state[parameter]["use_muon"]}
    assert "blocks.0.attn.qkv.weight" in muon
    assert not [name for name in muon if name.endswith(".table") or name in ("pos_embed", "cls_token")]


@pytest.mark.parametrize("member", ["spatial_gaussian", "alibi", "untied"])
def test_positions_start_at_the_scale_of_content(member):
    """A kernel much flatter than content's would hardly learn. (Closed gates and relative tables start at 0 by design.)"""
    model = small(positions=member, embed_dim=192, num_heads=3, img_size=112)
    found = {}

    def look(name):
        def hook(module, _, terms):
            log = log_weights(terms) if terms.bias is None else terms.bias
            found[name] = log[..., 1:, 1:].double().std(dim=-1).mean(dim=(0, 2))

        return hook

    attn = model.blocks[1].attn
    attn.kernel.register_forward_hook(look("content"))
    attn.positions[0].register_forward_hook(look("position"))
    model(torch.randn(2, 3, 112, 112))
    assert (found["position"] > 0.1 * found["content"]).all(), found


def test_attention_weights_of_a_fused_model():
    model = small(**BILATERAL).eval()
    x = torch.randn(2, 3, 32, 32)
    maps = model.attention_weights(x)
    assert list(maps) == [0, 1, 2]
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(2, 2, 17))
    assert list(model.attention_weights(x, [-1])) == [2]


def test_timms_attention_hook():
    timm.layers.set_fused_attn(False)
    try:
        model = timm.create_model("test_bilateral_vit").eval()
    finally:
        timm.layers.set_fused_attn(True)
    assert not any(m.fused for m in model.modules() if isinstance(m, SoftmaxFilter))
    x = torch.randn(1, 3, 160, 160)
    hooked = timm.utils.AttentionExtract(model, method="hook")(x)
    assert len(hooked) == 6
    for weights, expected in zip(hooked.values(), model.attention_weights(x).values()):
        torch.testing.assert_close(weights, expected)


def test_is_causal_and_masks_reach_the_filters():
    model = small(**BILATERAL).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    causal = model.forward_features(x, is_causal=True)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    torch.testing.assert_close(causal, model.forward_features(x, attn_mask=mask))
    assert not torch.allclose(causal, model.forward_features(x))


def test_saved_weights_load(tmp_path):
    model = timm.create_model("test_bilateral_untied_vit")
    path = tmp_path / "model.safetensors"
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    loaded = timm.create_model("test_bilateral_untied_vit", checkpoint_path=str(path)).eval()
    x = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(loaded(x), model.eval()(x))


def test_untied_positions_are_not_in_the_tokens():
    model = small(positions="untied").eval()
    x = torch.randn(1, 3, 32, 32)
    before, _ = model._embed(x)
    with torch.no_grad():
        model.pos_embed.add_(1.0)
    after, geometry = model._embed(x)
    assert torch.equal(before, after)
    assert torch.equal(geometry.stream[:, 1:], model.pos_embed)


def test_distance_is_public_for_own_kernels():
    assert Distance._fields == ("q", "k", "scale", "is_causal")
    assert imgproc_attn.LayerSpec is LayerSpec


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_traces(variant):
    model = small(**variant).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def perturbed(x):
    """The lower half of the pictures changed: the later half of the patches in row-major order."""
    y = x.clone()
    y[:, :, 16:] += torch.randn_like(y[:, :, 16:])
    return y


CAUSAL = {k: v for k, v in VARIANTS.items() if "token" not in str(v.get("global_pool"))}


@pytest.mark.parametrize("variant", CAUSAL.values(), ids=CAUSAL)
def test_causality_by_changing_inputs(variant):
    """Gradients would not show what a detached metric lets through."""
    model = small(**variant).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before, after = (model.forward_features(image, is_causal=True) for image in (x, perturbed(x)))
    seen = model.num_prefix_tokens + 8
    torch.testing.assert_close(before[:, :seen], after[:, :seen], rtol=1e-10, atol=1e-10)
    assert (before[:, seen:] - after[:, seen:]).abs().max() > 1e-3


def test_locality_by_changing_inputs():
    """Narrow spatial bandwidths: a change far away does not arrive; a metric over all tokens carries it everywhere."""
    narrow = {"name": "spatial_gaussian", "spatial_bandwidth": 0.3}
    for kernel, local in (("gaussian_range", True), ("dot_product", True), ("elliptical", False)):
        torch.manual_seed(0)
        model = small(kernel=kernel, positions=["sincos", narrow], class_token=False, global_pool="avg").double().eval()
        x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
        change = (model.forward_features(x) - model.forward_features(perturbed(x)))[0, :4].abs().max()
        assert (change < 1e-12) == local, (kernel, change)


@pytest.mark.parametrize("name", CARRYING)
def test_interleaved_forwards(name):
    """Two forwards, block by block in turn, are the two forwards one after the other: no state hides in a module."""
    model = small(**VARIANTS[name]).double().eval()
    images = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    expected = [model.forward_features(x) for x in images]
    states = [(*model._embed(x), model._nothing_yet()) for x in images]
    for block in model.blocks:
        for i, (x, geometry, carried) in enumerate(states):
            x, carried = block(x, geometry, carried=carried)
            states[i] = (x, geometry, carried)
    for (x, *_), y in zip(states, expected):
        assert torch.equal(model.norm(x), y)


@pytest.mark.parametrize("name", CARRYING)
def test_carried_state_compiled_and_exported(name):
    """Values and gradients."""
    model = small(**VARIANTS[name]).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for f in (model, compiled):
        model.zero_grad()
        y = f(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def _train_step(rank, port, path, name):
    """One process of two: half a batch, gradients averaged by DDP."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, x = torch.load(path, weights_only=False)
    model.set_grad_checkpointing(True)
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(x[rank::2]).square().sum().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], f"{path}.{name}.grads")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["neutreno", "l2 stream + elliptical"])
def test_carried_state_under_ddp(name, tmp_path):
    """Two processes with checkpointing: the mean of the halves' gradients, all parameters used."""
    # average pooling, so that the last layer's every parameter counts
    variant = {**VARIANTS[name], "class_token": False, "global_pool": "avg"}
    model, x = small(**variant).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    path = str(tmp_path / "model.pt")
    torch.save((model, x), path)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_train_step, (port, path, "x"), nprocs=2)
    (model(x).square().sum() / 2).backward()
    for gradient, parameter in zip(torch.load(f"{path}.x.grads"), model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)
