"""Subspaces, ISTA, ReLU, threshold, token statistics, representatives: each against a plain reading of its formula."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

from imgproc_attn.core.components import Components, LayerSpec
from imgproc_attn.core.elementwise_filters import ReluFilter, ThresholdFilter
from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.linear_filters import Representatives, TokenStatistics
from imgproc_attn.core.pointwise import ISTA
from imgproc_attn.core.projections import SharedSubspaces, TiedOutput
from imgproc_attn.core.terms import TensorBias, Terms
from imgproc_attn.models.checkpoints import start_from

F64 = {"dtype": torch.float64}
DIM, HEADS, P, TOKENS = 12, 3, 4, 10


def close(a, b):
    """To 1e-12 of the largest value: both sides are float64."""
    assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max().item())


def resolved(**components):
    layer = LayerSpec(0, DIM, HEADS, P, (3, 3), dtype=torch.float64)
    defaults = {"kernel": "dot_product", "positions": None, "filter": "softmax", "residual": "plain", "block_residual": "plain"}
    return Components.resolve(1, **{**defaults, **components}), layer


@pytest.mark.parametrize("width", [None, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_mssa_is_its_formula(width, tied):
    """Z + eta sum_k U_k U_k^T Z softmax(Z^T U_k U_k^T Z / sqrt(p)), column by column (tied), or a free matrix on the heads."""
    spec = {"name": "subspaces", "subspace_dim": width, **({"tied": True, "step": 0.3} if tied else {})}
    components, layer = resolved(projection=spec)
    qkv, proj = components.projection(layer)
    assert qkv.head_dim == (width or P)
    x = torch.randn(2, TOKENS, DIM, **F64)
    q, k, v = qkv(x)
    u = SoftmaxFilter()(DotProduct(qkv.head_dim)(q, k)).apply(v)
    ours = proj(u.transpose(1, 2).flatten(2))
    for z, found in zip(x, ours):
        Z, heads = z.T, []
        for U_T in qkv.weight.split(qkv.head_dim):
            w = U_T @ Z
            heads.append(w @ torch.softmax(w.T @ w / math.sqrt(qkv.head_dim), dim=0))
        if tied:
            plain = 0.3 * sum(U_T.T @ h for U_T, h in zip(qkv.weight.split(qkv.head_dim), heads))
        else:
            plain = proj.weight @ torch.cat(heads) + proj.bias[:, None]
        close(found, plain.T)


def test_a_tied_output_has_one_weight_in_checkpoints_and_copies():
    model = timm.create_model("test_aot_mssa_vit", projection={"name": "subspaces", "tied": True, "learned_step": True})
    names = [name for name in model.state_dict() if name.startswith("blocks.0.attn.")]
    assert names == ["blocks.0.attn.qkv.weight", "blocks.0.attn.proj.step.strength"]
    other = copy.deepcopy(model).double()
    attn = other.blocks[0].attn
    assert attn.proj._subspaces[0] is attn.qkv
    assert attn.proj(torch.randn(1, 2, 64, **F64)).dtype == torch.float64


def test_ista_is_its_formula():
    module = ISTA(DIM, step=0.2, threshold=0.3, **F64)
    z = torch.randn(2, TOKENS, DIM, **F64)
    D = module.weight
    plain = torch.stack([torch.stack([torch.relu(t + 0.2 * D.T @ (t - D @ t) - 0.2 * 0.3) for t in image]) for image in z])
    close(module(z), plain)
    assert torch.autograd.gradcheck(module, (torch.rand(2, DIM, **F64, requires_grad=True) + 1,))


def columns(count=TOKENS):
    return torch.randn(2, HEADS, count, P, **F64)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("divide", [False, True])
def test_relu_is_its_formula(is_causal, divide):
    q, k, v = columns(), columns(), columns()
    bias = torch.randn(1, HEADS, TOKENS, TOKENS, **F64)
    mask = torch.rand(TOKENS, TOKENS) > 0.3
    terms = Terms([q], [k], biases=[TensorBias(bias)], scale=1.0)
    operator = ReluFilter(divide=divide)(terms, mask, is_causal)
    plain = torch.zeros(2, HEADS, TOKENS, TOKENS, **F64)
    for i in range(TOKENS):
        seen = [j for j in range(TOKENS) if mask[i, j] and (j <= i or not is_causal)]
        for j in seen:
            score = (q[:, :, i] * k[:, :, j]).sum(-1) + bias[:, :, i, j]
            plain[:, :, i, j] = score.clamp(min=0) / (len(seen) if divide else 1)
    close(operator.dense(), plain)
    close(operator.apply(v), plain @ v)


def test_relu_refuses_distances():
    q = columns()
    with pytest.raises(ValueError, match=r"filter='relu': kernels must be inner products, got a distance.* Use"):
        ReluFilter()(GaussianRange(HEADS, P, **F64)(q, q))


@pytest.mark.parametrize("kernel", [DotProduct(P), GaussianRange(HEADS, P, 4.0, **F64)])
def test_threshold_is_its_formula(kernel):
    q, k = columns(), columns()
    softmax = SoftmaxFilter()(kernel(4 * q, 4 * k)).dense()
    weights = ThresholdFilter(tau=0.6)(kernel(4 * q, 4 * k)).dense()
    assert 0 < (softmax > 0.6).sum() < softmax[..., 0].numel()
    assert torch.equal(weights, 0.6 * (softmax > 0.6).double())


def test_token_statistics_is_its_formula():
    """The membership of a token, and the second moment of a channel, one by one."""
    module = TokenStatistics(HEADS, **F64)
    nn.init.uniform_(module.temperature, 0.5, 2)
    w, v = columns(), columns()
    found = module(Terms([w], [w])).apply(v)
    energy = torch.zeros(2, HEADS, TOKENS, **F64)
    for c in range(P):
        for i in range(TOKENS):
            energy[:, :, i] += w[:, :, i, c] ** 2 / (w[:, :, :, c] ** 2).sum(-1)
    membership = (module.temperature * energy).exp()
    membership = membership / membership.sum(1, keepdim=True)
    for c in range(P):
        moment = (membership * w[..., c] ** 2).sum(-1) / (membership.sum(-1) + 1e-8)
        close(found[..., c], -membership * v[..., c] / (1 + moment[..., None]))


def test_representatives_are_their_formula():
    """One head and image at a time; the class token is not pooled."""
    module = Representatives(HEADS, cells=2, **F64)
    w = columns(1 + 24)
    operator = module(Terms([w], [w], scale=0.5), geometry=grid_geometry(4, 6, 1, like=w))
    for b in range(2):
        for h in range(HEADS):
            x = w[b, h]
            grid = x[1:].reshape(4, 6, P)
            r = torch.stack([grid[y : y + 2, z : z + 3].mean((0, 1)) for y in (0, 2) for z in (0, 3)])
            a = torch.softmax(r @ x.T * 0.5, -1)
            r = r + module.step_representatives[h] * (a @ x)
            u = module.step_x[h] * (a.T @ (torch.softmax(r @ r.T * 0.5, -1) @ r))
            close(operator.apply(w)[b, h], u)
    close(operator.dense() @ w, operator.apply(w))


@pytest.mark.parametrize("make", [lambda: TokenStatistics(HEADS, **F64), lambda: Representatives(HEADS, 2, **F64)])
def test_an_operator_is_linear_with_frozen_weights(make):
    w, v, module = columns(), columns(), make()
    place = {"geometry": grid_geometry(3, 3, 1, like=w)} if isinstance(module, Representatives) else {}
    operator = module(Terms([w], [w]), **place)
    close(operator.apply(2 * v + w), 2 * operator.apply(v) + operator.apply(w))


def test_blocks_without_norms():
    """The layer of the theory, Z + eta sum_k U_k A_k U_k^T Z, with the norm after the last block."""
    options = {"embed_dim": DIM, "num_heads": HEADS, "depth": 2, "img_size": 32, "patch_size": 8}
    projection = {"name": "subspaces", "tied": True, "step": 0.1}
    model = timm.create_model("aot_mssa_vit_tiny", norm_layer="none", projection=projection, **options).double().eval()
    assert not any(isinstance(module, nn.LayerNorm) for module in model.blocks.modules())
    assert isinstance(model.norm, nn.LayerNorm)
    x, _ = model._embed(torch.rand(1, 3, 32, 32, dtype=torch.float64))
    z = x[0]
    for block in model.blocks:
        heads = [z @ u.T for u in block.attn.qkv.weight.split(P)]
        smoothed = [torch.softmax(w @ w.T / math.sqrt(P), dim=1) @ w for w in heads]
        z = z + 0.1 * torch.cat(smoothed, dim=1) @ block.attn.qkv.weight
        x, _ = block(x, grid_geometry(4, 4, 1, x))
    close(x[0], z)
    whole = timm.create_model("plain_vit_tiny", norm_layer="none", qk_norm=True, **options)
    assert isinstance(whole.blocks[0].attn.q_norm, nn.LayerNorm), "norms of queries are another choice"
    assert isinstance(whole.blocks[0].norm2, nn.Identity)


@pytest.mark.parametrize("name", ["token_statistics", "representatives"])
def test_linear_filters_refuse_by_name(name):
    components, layer = resolved(filter=name)
    module, w = components.filter(layer), columns()
    with pytest.raises(ValueError, match=rf"filter='{name}': mask must be None"):
        module(Terms([w], [w]), torch.ones(TOKENS, TOKENS, dtype=torch.bool))
    for terms in (Terms([w], [w.clone()]), GaussianRange(HEADS, P, **F64)(w, w), Terms([w, w], [w, w])):
        with pytest.raises(ValueError, match=rf"filter='{name}': queries and keys must be one set of features"):
            module(terms)


def test_causal_token_statistics_are_those_of_a_prefix():
    """Token i has the result of the last token of the sequence that ends with it."""
    module = TokenStatistics(HEADS, **F64)
    nn.init.uniform_(module.temperature, 0.5, 2)
    w, v = columns(), columns()
    found = module(Terms([w], [w]), is_causal=True).apply(v)
    shares = w.square() / w.square().cumsum(2)
    membership = (module.temperature * shares.sum(-1)).softmax(1)
    for i in range(TOKENS):
        past = membership[:, :, : i + 1, None]
        moment = (past * w[:, :, : i + 1].square()).sum(2) / (past.sum(2) + 1e-8)
        close(found[:, :, i], -past[:, :, i] * v[:, :, i] / (1 + moment))


def test_representatives_refuse_causality():
    w = columns()
    with pytest.raises(ValueError, match="filter='representatives': is_causal must be False"):
        Representatives(HEADS, **F64)(Terms([w], [w]), is_causal=True)


def test_other_tokens_and_dense_weights_are_refused():
    w, module = columns(8), Representatives(HEADS, 2, **F64)
    for size, prefix in ((3, 0), (2, 1)):
        with pytest.raises(
            ValueError, match=r"tokens must be . prefix tokens and all patches of .*, got 8 tokens\. Set patch_drop"
        ):
            module(Terms([w], [w]), geometry=grid_geometry(size, size, prefix, like=w))
    with pytest.raises(ValueError, match="geometry must be that of the tokens, got None"):
        module(Terms([w], [w]))
    operator = TokenStatistics(HEADS, **F64)(Terms([w], [w]))
    with pytest.raises(ValueError, match="must not be asked for dense weights"):
        operator.dense()


@pytest.mark.parametrize(
    ("component", "error", "message"),
    [
        ({"projection": {"name": "subspaces", "subspace_dim": 13}}, ValueError, "subspace_dim must be from 1 to .* 12, got 13"),
        ({"projection": {"name": "subspaces", "subspace_dim": 0}}, ValueError, "subspace_dim must be from 1 to"),
        ({"projection": {"name": "subspaces", "subspace_dim": 2.5}}, TypeError, "subspace_dim"),
        ({"projection": {"name": "subspaces", "step": 0.5}}, ValueError, "step must be left out with a free output projection"),
        ({"projection": {"name": "subspaces", "tied": "yes"}}, TypeError, "tied"),
        ({"projection": {"name": "subspaces", "tied": True, "step": math.nan}}, ValueError, "must be a finite number, got nan"),
        ({"filter": {"name": "threshold", "tau": 1.5}}, ValueError, r"tau must be in \(0, 1\), got 1.5"),
        ({"filter": {"name": "relu", "divide": 1}}, TypeError, "divide"),
        ({"filter": {"name": "representatives", "cells": 0}}, ValueError, "cells must be at least 1, got 0"),
        ({"mlp": {"name": "ista", "step": 0.0}}, ValueError, "step must be positive and finite, got 0.0"),
        ({"mlp": {"name": "ista", "threshold": -1.0}}, ValueError, "threshold must be at least 0 and finite, got -1.0"),
    ],
)
def test_bad_options(component, error, message):
    components, layer = resolved(**component)
    parts = (components.projection, components.filter, components.mlp)
    with pytest.raises(error, match=message):
        [part(layer) for part in parts]


def test_out_of_the_range_of_the_theorem_warns():
    with pytest.warns(UserWarning, match=r"tau must be above 0\.5 for the theorem of AoT, got 0\.4"):
        ThresholdFilter(tau=0.4)
    with pytest.warns(UserWarning, match=r"step must be positive for the signal-to-noise ratio to grow, got -1"):
        TiedOutput(SharedSubspaces(DIM, HEADS), step=-1.0)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"dim must be divisible by num_heads=5, got 12\. Give subspace_dim="):
        SharedSubspaces(DIM, 5)
    assert SharedSubspaces(DIM, 5, subspace_dim=4).weight.shape == (20, DIM)


class AuthorsAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x):
        w = rearrange(self.qkv(x), "b n (h d) -> b h n d", h=self.heads)
        out = (w @ w.transpose(-1, -2) * self.scale).softmax(dim=-1) @ w
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class AuthorsISTA(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(dim, dim))

    def forward(self, x):
        reconstructed = F.linear(x, self.weight)
        gradient = F.linear(reconstructed, self.weight.t()) - F.linear(x, self.weight.t())
        return F.relu(x - 0.1 * gradient - 0.1 * 0.1)


class AuthorsPreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class AuthorsTransformer(nn.Module):
    def __init__(self, dim, depth, heads):
        super().__init__()
        parts = (
            [AuthorsPreNorm(dim, AuthorsAttention(dim, heads)), AuthorsPreNorm(dim, AuthorsISTA(dim))] for _ in range(depth)
        )
        self.layers = nn.ModuleList(map(nn.ModuleList, parts))

    def forward(self, x):
        for attention, ista in self.layers:
            x = ista(attention(x) + x)
        return x


class AuthorsCRATE(nn.Module):
    """Plain reading of the authors' model, with their parameter names."""

    def __init__(self, size, patch, dim, depth, heads, classes):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch),
            nn.LayerNorm(3 * patch**2),
            nn.Linear(3 * patch**2, dim),
            nn.LayerNorm(dim),
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = AuthorsTransformer(dim, depth, heads)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images):
        x = self.to_patch_embedding(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding
        return self.mlp_head(self.transformer(x)[:, 0])


@pytest.fixture
def authors():
    """The authors' CRATE in float64, with no parameter at a special value."""
    model = AuthorsCRATE(32, 8, 24, 2, 3, 5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def small_crate(**kwargs):
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return timm.create_model("test_crate", **{**shape, **kwargs})


@pytest.mark.parametrize("way", ["load_state_dict", "module.", "encoder.", "checkpoint_path", "start_from"])
def test_weights_of_the_authors_crate_load(authors, way, tmp_path):
    weights, path, model = authors.state_dict(), tmp_path / "crate.pt", small_crate().double()
    torch.save(weights, path)
    if way == "checkpoint_path":
        model = small_crate(checkpoint_path=str(path), dtype=torch.float64)
    elif way == "start_from":
        assert start_from(model, path).left_out == []
    elif way == "encoder.":
        nn.ModuleDict({"encoder": model}).load_state_dict({f"encoder.{name}": value for name, value in weights.items()})
    else:
        model.load_state_dict({("module." if way == "module." else "") + name: value for name, value in weights.items()})
    images = torch.randn(2, 3, 32, 32, **F64)
    close(model.eval()(images), authors(images))
    assert list(weights) == list(authors.state_dict())


def test_weights_of_another_crate_are_refused(authors):
    with pytest.raises(RuntimeError, match="size mismatch for patch_embed.proj.weight"):
        small_crate(patch_size=4).load_state_dict(authors.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for head.weight"):
        small_crate(num_classes=7).load_state_dict(authors.state_dict())
    with pytest.raises(ValueError, match=r"patch_size must stay \(8, 8\) for normalized patches, got 4\. Leave it out"):
        small_crate().set_input_size(patch_size=4)
