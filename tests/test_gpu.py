"""What only a GPU can show: its fused kernels sum in their own order."""

import csv
import json

import pytest
import timm
import torch
from reference import errors, filter_values, sharpened, spatial_log_weights, squared_distances

from imgproc_attn.cli import main
from imgproc_attn.core.filters import SoftmaxFilter
from imgproc_attn.core.geometry import grid_geometry, line_geometry
from imgproc_attn.core.kernels import DotProduct, GaussianRange
from imgproc_attn.core.positions import SpatialGaussian
from imgproc_attn.core.terms import product
from imgproc_attn.data import SINGLE_PROCESS
from imgproc_attn.models import FAMILIES
from imgproc_attn.models.checkpoints import load_weights
from imgproc_attn.recipe import load_recipe
from imgproc_attn.segmentation import segment
from imgproc_attn.training import train
from imgproc_attn.training.run import Run
from imgproc_attn.utils.environment import without_tf32

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Filters that matter tell TF32's ten bits from the CPU's 24."""
    with without_tf32():
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", [0, 1])
@torch.no_grad()
def test_error_rule(dtype, prefix):
    for grid in [(14, 14), (28, 20)]:
        for h in (0.5, 1.5, 10.0):
            geometry = grid_geometry(*grid, prefix, torch.empty(0, device="cuda"))
            q, k, v = torch.randn(3, 1, 2, geometry.is_patch.shape[0], 64, device="cuda").to(dtype)
            kernel, positions = GaussianRange(2, 64, device="cuda"), SpatialGaussian(2, grid, h, device="cuda")

            def log_weights(to, q=q, k=k, geometry=geometry, kernel=kernel, positions=positions):
                h_range, h_space = kernel.range_bandwidth().to(to), positions.spatial_bandwidths["spatial_bandwidth"]()
                distances = squared_distances(q.to(to), k.to(to)) / h_range.square()[:, None, None]
                return spatial_log_weights(geometry, h_space[:, None], to) - distances

            exact = filter_values(log_weights(torch.float64), v.double())
            plain = filter_values(log_weights(torch.float32), v)
            fused = SoftmaxFilter()
            result = fused(product(positions(geometry, geometry, v), kernel(q, k))).apply(v)
            assert errors(result, exact)[1] <= 2 * errors(plain, exact)[1], (grid, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("h", [0.5, 1.5, 10.0, 1000.0])
@torch.no_grad()
def test_error_rule_on_a_line(dtype, h):
    """Columns of 4,096 causal tokens are exact if the products of float32 columns are summed in order."""
    line = line_geometry(4096, torch.empty(0, device="cuda"))
    q, k, v = torch.randn(3, 1, 1, 4096, 64, device="cuda").to(dtype)
    kernel, positions = DotProduct(64), SpatialGaussian(1, (1, 4096), h, device="cuda")
    p = torch.arange(4096, device="cuda")

    def log_weights(to):
        apart = (p[:, None] - p).to(to) / positions.spatial_bandwidths["spatial_bandwidth"]().to(to)
        return (q.to(to) @ k.to(to).mT / 8 - apart.square()).masked_fill(p[:, None] < p, -torch.inf)

    exact, plain = filter_values(log_weights(torch.float64), v.double()), filter_values(log_weights(torch.float32), v)
    result = SoftmaxFilter()(product(positions(line, line, v), kernel(q, k, True)), is_causal=True).apply(v)
    assert errors(result, exact)[1] <= 2 * errors(plain, exact)[1]


@pytest.mark.parametrize("name", [f"test_{family}" for family in FAMILIES])
def test_models_agree_with_the_cpu(name):
    """Logits and gradients, of models whose filters matter: without them logits are four standard deviations off."""
    model = sharpened(timm.create_model(name))
    images = torch.randn(2, 3, 160, 160)
    expected = model(images)
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    found = model(images.cuda())
    found.square().sum().backward()
    assert (found.cpu() - expected).abs().max() < 0.02 * expected.std()
    for name, parameter in model.named_parameters():
        assert (parameter.grad.cpu() - gradients[name]).norm() <= 0.02 * gradients[name].norm() + 1e-6, name
    with torch.autocast("cuda", torch.bfloat16):
        assert (model(images.cuda()).float().cpu() - expected).abs().max() < 2 * expected.std()


@torch.no_grad()
def test_segmenters_agree_with_the_cpu():
    """In windows, at several scales."""
    model = timm.create_model(
        "segmenter", backbone="test_bilateral_vit", decoder={"name": "mask", "residual": "twicing"}, num_classes=7, img_size=64
    ).eval()
    image = torch.randn(3, 100, 150)
    here, there = (
        segment(model.to(device), image.to(device), 64, 48, scales=(0.75, 1.0), flip=True) for device in ("cpu", "cuda")
    )
    assert (here == there.cpu()).double().mean() > 0.99


@pytest.mark.parametrize(
    "overrides", [["run.amp=float16"], ["run.amp=bfloat16", "run.channels_last=true"], ["run.compile=true"]]
)
def test_training(overrides, tmp_path):
    """A recipe learns on the GPU in each precision, resumes, and leaves weights the CPU evaluates alike."""
    recipe = load_recipe("quickstart", ["schedule.epochs=12", "data.validation_images=200", *overrides])
    single = recipe.variant("bilateral + twicing", 0)
    result = train(single, tmp_path, "cuda")
    assert result["test"]["accuracy"] > 80
    assert train(single, tmp_path, "cuda", resume=True) == result
    on_cpu = Run(single, tmp_path, torch.device("cpu"), SINGLE_PROCESS)
    load_weights(on_cpu.model, tmp_path / "best")
    assert on_cpu.evaluate(on_cpu.splits.test)["accuracy"] == pytest.approx(result["test"]["accuracy"], abs=1.0)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(load_recipe("quickstart", ["schedule.epochs=12"]).variant("bilateral + twicing", 0), folder, "cpu")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "attack --attacks fgsm pgd apgd-ce apgd-t --eps 0.05 --checks 16",
        "attack --attacks pgd --norm L2 --eps 0.5 --restarts 2 --checks 16",
        "attack --attacks square spsa --queries 200 --steps 2 --eps 0.05 --checks 16",
        "attack --attacks fgsm pgd --space normalized --eps 0.2 --checks 16",
        "corrupt --corruptions gaussian_noise fog --severities 1 3",
    ],
)
def test_evaluations_agree_with_the_cpu(words, digits_run, tmp_path):
    """The same draws, the same results but for rounding; and the same findings."""
    command, *rest = words.split()
    correct, findings = {}, {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        main([command, str(digits_run), *rest, *f"--limit 100 --workers 0 --device {device} --output {out}".split()])
        found = json.loads((out / "result.json").read_text())
        findings[device] = {finding["check"] for finding in found["findings"]}
        assert found["environment"]["device"].startswith(device)
        table = list(csv.reader((out / "per_sample.csv").open()))
        correct[device] = torch.tensor([[int(value) for value in row[-len(found["conditions"]) :]] for row in table[1:]])
    assert (correct["cpu"] == correct["cuda"]).double().mean(0).min() >= 0.98
    assert findings["cpu"] == findings["cuda"]
