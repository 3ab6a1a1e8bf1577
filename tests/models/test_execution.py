"""Ways to run a model: checkpointed, compiled, exported, traced, in half precision, in several processes."""

import os
import socket
import warnings

import pytest
import seeding
import timm
import timm.layers
import timm.optim
import torch
from backbones import CARRYING, NAMES, VARIANTS, small
from reference import sharpened
from torch import nn

# In float64, another order of sums changes results far less than another formula.
ROUNDED = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_checkpointing_changes_neither_values_nor_gradients(variant):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    results = []
    for enabled in (False, True):
        seeding.seed()
        model = small(**variant).double()
        model.set_grad_checkpointing(enabled)
        out = model(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Saved:
    """Count the bytes that autograd saves within the context, each storage once."""

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
    # A block of shared subspaces without MLP has little to save besides its input, which checkpointing keeps.
    assert held[1] < (0.6 if name == "test_aot_mssa_vit" else 0.5) * held[0]


@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name):
    model = timm.create_model(name, depth=3).double().eval()
    x = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), **ROUNDED)
    model.train()
    compiled(x).square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    for gradient, parameter in zip(gradients, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, **ROUNDED)


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
    model = timm.create_model(name).double().eval()
    x = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), **ROUNDED)


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
    """The error of the logits is a small part of what tells one image from another: that has a size which any seed gives."""
    model = sharpened(timm.create_model(name))
    x = torch.randn(2, 3, 160, 160)
    expected = model(x)

    def size(difference):
        return difference.square().mean().sqrt()

    largest = {torch.float16: 0.2, torch.bfloat16: 0.6}[dtype] * size(model(torch.randn_like(x)) - expected)
    with torch.autocast("cpu", dtype):
        assert size(model(x).float() - expected) < largest
    model.to(dtype)
    assert size(model(x.to(dtype)).float() - expected) < largest
    assert model(x[:0].to(dtype)).shape == (0, 1000)


def test_saved_weights_load(tmp_path):
    model = timm.create_model("test_bilateral_untied_vit")
    path = tmp_path / "model.safetensors"
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    loaded = timm.create_model("test_bilateral_untied_vit", checkpoint_path=str(path)).eval()
    x = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(loaded(x), model.eval()(x))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_traces(variant):
    model = small(**variant).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", CARRYING)
def test_interleaved_forwards(name):
    """Two interleaved forward passes equal two separate ones, so modules hold no hidden state."""
    model = small(**VARIANTS[name]).double().eval()
    images = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    expected = [model.forward_features(x) for x in images]
    states = [(*model._embed(x), model._initial_state()) for x in images]
    for block in model.blocks:
        for i, (x, geometry, state) in enumerate(states):
            x, state = block(x, geometry, state=state)
            states[i] = (x, geometry, state)
    for (x, *_), y in zip(states, expected):
        assert torch.equal(model.norm(x), y)


LINEAR = [pytest.param(name, marks=pytest.mark.slow) for name in ("random features", "nystroem", "linformer", "sliding window")]


@pytest.mark.parametrize("name", [*CARRYING, *LINEAR])
def test_variants_compiled_and_exported(name):
    """Values and gradients agree."""
    model = small(**VARIANTS[name]).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), **ROUNDED)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for f in (model, compiled):
        model.zero_grad()
        y = f(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, **ROUNDED)


def _train_step(rank, port, path, name):
    """Run one process of two: half a batch, with gradients averaged by DDP."""
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
    """Two processes with checkpointing give the mean of the gradients of both halves and use all parameters."""
    # Average pooling uses every parameter of the last layer.
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
