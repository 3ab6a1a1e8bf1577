"""Speed and memory beside named peers: the operator beside plain attention, whole models beside timm's ViT.

Method: one process, the same work and inputs for all, runs interleaved (one of each, then again), medians with quartiles, the
lift included in the operator's time. Peak memory: on a CUDA device the allocator's; on a CPU the growth of the resident set in
a fresh process that does the step once.
"""

import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .bandwidths import at_least_float32
from .carried import Carried, hand_on
from .data import ALONE, Images, Preparation
from .evaluation import NormalizedModel
from .evaluation.conditions import Condition
from .evaluation.corruption_names import CORRUPTIONS
from .evaluation.evaluator import Evaluator
from .evaluation.imagenet_c import ImageNetC
from .evaluation.samples import Samples
from .evaluation.subject import ImageSource
from .filtering import bilateral_filter, non_local_means
from .filters import SoftmaxFilter
from .geometry import grid_geometry
from .kernels import DotProduct, Elliptical, GaussianRange
from .layers import FilterAttention
from .models import FAMILIES
from .positions import Alibi2D, RelativeTable, SpatialGaussian
from .progress import progress_bar
from .residuals import PID, SOS, NeuTRENO, Plain, Residual, Twicing
from .training import find_recipe, load_recipe
from .training.run import Run

HEADS, HEAD_DIM = 6, 64
MODELS = ("vit_small_patch16_224", *(f"{family}_small" for family in FAMILIES))

Step = Callable[[], Any]


def synchronizer(device: str) -> Step:
    """What waits for a device to finish."""
    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None


def measure(steps: dict[str, Step], runs: int, synchronize: Step, bar: Any = None) -> dict[str, list[float]]:
    """Seconds of each step, ``runs`` times, interleaved, after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(runs + 2):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
        if bar is not None:
            bar.update()
    return times


def summarise(times: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Median, quartiles and ratio of medians to the baseline's."""
    base = statistics.median(times[baseline])
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append({"name": name, "median_s": median, "quartiles_s": [low, high], "ratio": median / base})
    return rows


def operators(grid: tuple[int, int], device: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The operators compared: ``(q, k, v) -> [B, N, H d]``, as a layer needs them."""
    geometry = grid_geometry(*grid, 0, torch.empty(0, device=device))
    dot, gaussian = DotProduct(HEAD_DIM), GaussianRange(HEADS, HEAD_DIM, device=device)
    spatial = SpatialGaussian(HEADS, grid, device=device)

    def layer(kernel: nn.Module = dot, positions: Sequence[nn.Module] = (), residual: Residual | None = None):
        """The attention layer without its projections."""
        attn = FilterAttention(nn.Identity(), kernel, positions, SoftmaxFilter(), residual or Plain(), nn.Identity()).eval()

        def filtered(q, k, v):
            carried = hand_on(Carried(), k) if attn.carries else None  # any values will do for the layer before
            return attn((q, k, v), geometry, carried=carried)[0]

        return filtered

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def explicit(q, k, v):
        left, right = (at_least_float32(x).contiguous() for x in (q, k))  # cdist knows no half precision
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        log_weights = -(distances / gaussian.range_bandwidth()[:, None, None]).square()
        return (log_weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)

    return {
        "scaled_dot_product_attention": plain,
        "non-local means": layer(gaussian),
        "bilateral": layer(gaussian, [spatial]),
        "elliptical": layer(Elliptical(HEAD_DIM)),
        "twicing": layer(residual=Twicing(HEADS)),
        "bilateral + twicing": layer(gaussian, [spatial], Twicing(HEADS)),
        "sos": layer(residual=SOS(HEADS)),
        "neutreno": layer(residual=NeuTRENO(HEADS)),
        "pid": layer(residual=PID(HEADS)),
        "dot product, alibi (dense)": layer(positions=[Alibi2D(HEADS, device=device)]),
        "dot product, relative table (dense)": layer(positions=[RelativeTable(HEADS, grid, device=device)]),
        "explicit distances + softmax": explicit,
    }


def _operator_step(operator: Callable[..., Tensor], qkv: Tensor, train: bool) -> Step:
    """From the projection's output to the layer's, backwards too if ``train``."""

    def step():
        x = qkv.detach().requires_grad_(train)
        q, k, v = x.unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4).unbind(0)
        with torch.set_grad_enabled(train):
            result = operator(q, k, v)
            if train:
                result.backward(qkv[..., : HEADS * HEAD_DIM])

    return step


def benchmark_operators(
    tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32, batch_tokens: int = 3136
) -> list[dict[str, Any]]:
    """Time of the operators beside plain attention, inference and training, ``batch_tokens`` tokens a batch."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + 2), "rounds", "operators") as bar:
        for n in tokens:
            grid, batch = (math.isqrt(n), math.isqrt(n)), max(1, batch_tokens // n)
            qkv = torch.randn(batch, n, 3 * HEADS * HEAD_DIM, device=device, dtype=dtype)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                steps = {name: _operator_step(f, qkv, train) for name, f in operators(grid, device).items()}
                found = summarise(measure(steps, runs, synchronize, bar), "scaled_dot_product_attention")
                rows += [{"tokens": n, "batch": batch, "mode": "training" if train else "inference", **row} for row in found]
    return rows


def _model_step(name: str, n: int, batch: int, train: bool, device: str, dtype: torch.dtype) -> Step:
    size = (16 * math.isqrt(n), 16 * math.isqrt(n))
    model = timm.create_model(name, img_size=size, device=device, dtype=dtype).train(train)
    images = torch.randn(batch, 3, *size, device=device, dtype=dtype)
    optimiser = torch.optim.AdamW(model.parameters())

    def step():
        with torch.set_grad_enabled(train):
            logits = model(images)
            if train:
                F.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.long, device=device)).backward()
                optimiser.step()
                optimiser.zero_grad()

    return step


def benchmark_models(
    names: Sequence[str], tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Time of whole models beside the first of ``names``, inference and a training step with AdamW."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + 2), "rounds", "models") as bar:
        for n in tokens:
            batch = max(1, (784 if device == "cpu" else 25088) // n)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                steps = {name: _model_step(name, n, batch, train, device, dtype) for name in names}
                found = summarise(measure(steps, runs, synchronize, bar), names[0])
                rows += [
                    {
                        "tokens": n,
                        "batch": batch,
                        "mode": "training" if train else "inference",
                        **row,
                        "throughput": 1 / row["ratio"],
                    }
                    for row in found
                ]
    return rows


def _peak(name: str, n: int, device: str, dtype: torch.dtype, pipe: Any) -> None:
    """In a fresh process: bytes a training step adds at its peak, optimiser state and gradients included."""
    try:
        step = _model_step(name, n, 1, True, device, dtype)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            step()
            pipe.send(torch.cuda.max_memory_allocated(device))
            return
        step()
        _peak_so_far(pipe)
    except BaseException as error:
        pipe.send(repr(error))
        raise


def _peak_so_far(pipe: Any) -> None:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts from the parent's on Linux
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        pipe.send(1024 * int(line.split()[1]))
        return
    import resource  # not on every system

    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _in_fresh_process(function: Callable[..., None], *arguments: Any) -> int:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, send))
    process.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        answer = "the process ended without an answer; it may have run out of memory"
    process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"Measuring memory failed: {answer}")
    return answer


def benchmark_memory(
    names: Sequence[str], n: int = 3136, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Peak memory of one training step on one image of ``n`` patches, less that of the bare interpreter and libraries."""
    bare = 0 if device.startswith("cuda") else _in_fresh_process(_peak_so_far)
    peaks = {}
    with progress_bar(len(names), "models", "memory") as bar:
        for name in names:
            peaks[name] = _in_fresh_process(_peak, name, n, device, dtype) - bare
            bar.update()
    return [{"name": name, "tokens": n, "peak_bytes": peak, "ratio": peak / peaks[names[0]]} for name, peak in peaks.items()]


def _photograph(name: str) -> np.ndarray:
    """``china`` or ``flower``, ``[427, 640, 3]`` in 8 bits."""
    from sklearn.datasets import load_sample_image  # a second to import

    return load_sample_image(f"{name}.jpg")


def benchmark_filtering(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time of the filters on a 512 x 512 colour photograph, 11 x 11 window, beside kornia's and scikit-image's (if installed).

    Non-local means with patches of 5 x 5; scikit-image's fast mode takes patches of 4 x 4 pixels by an integral image.
    """
    picture = torch.tensor(_photograph("china")).permute(2, 0, 1)[None] / 255
    picture = F.interpolate(picture, (512, 512), mode="bilinear", antialias=True).to(device)
    array = picture[0].permute(1, 2, 0).contiguous().cpu().numpy()
    blur = partial(kornia.filters.bilateral_blur, color_distance_type="l2")
    steps: dict[str, Step] = {
        "kornia bilateral_blur": lambda: blur(picture, (11, 11), 0.1, (3.0, 3.0)),
        "bilateral_filter": lambda: bilateral_filter(picture, 0.1 * 2**0.5, 3.0 * 2**0.5, 11),
        "non_local_means": lambda: non_local_means(picture, 0.7, 5, 11),
    }
    try:
        from skimage.restoration import denoise_bilateral, denoise_nl_means
    except ImportError:
        pass
    else:
        nl_means = partial(denoise_nl_means, array, 5, 5, 0.08, channel_axis=-1)
        steps["scikit-image denoise_bilateral"] = lambda: denoise_bilateral(array, 11, 0.1, 3.0, channel_axis=-1)
        steps["scikit-image denoise_nl_means, fast"] = lambda: nl_means(fast_mode=True)
        steps["scikit-image denoise_nl_means, slow"] = lambda: nl_means(fast_mode=False)
    synchronize = synchronizer(device)
    with progress_bar(runs + 2, "rounds", "filtering") as bar:
        return summarise(measure(steps, runs, synchronize, bar), "kornia bilateral_blur")


def _loops(overrides: Sequence[str], folder: Path, device: str) -> dict[str, Step]:
    """An epoch of the library's loop, and of the least one could write, over equal models, losses, optimisers and loaders."""
    recipe = load_recipe(find_recipe("quickstart"), overrides).variant("plain", 0)
    ours, bare = (Run(recipe, folder / name, torch.device(device), ALONE).trainer for name in ("loop", "bare"))

    def bare_epoch() -> None:
        model, loss_function = bare.task.get_trainable_module(), nn.CrossEntropyLoss()
        assert model is not None
        model.train()
        for images, targets in bare.loader:
            loss = loss_function(model(images), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip_grad or math.inf)
            bare.optimiser.step()
            bare.optimiser.zero_grad()

    return {"bare loop": bare_epoch, "training loop": lambda: ours.train_epoch(0)}


def benchmark_training(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time of an epoch of the training loop beside a bare loop, on scikit-learn's digits, small and at 32 x 32."""
    sizes = {
        "8 x 8, 0.1 M parameters": [],
        "32 x 32, 1 M parameters": [
            *("data.input_size=[1,32,32]", "model.img_size=32", "model.patch_size=4", "model.embed_dim=128", "model.depth=5"),
            *("model.mlp_ratio=4.0", "data.train_images=512"),
        ],
    }
    rows = []
    with progress_bar(len(sizes) * (runs + 2), "rounds", "training") as bar:
        for size, overrides in sizes.items():
            with tempfile.TemporaryDirectory() as folder:
                steps = _loops(overrides, Path(folder), device)
                found = summarise(measure(steps, runs, synchronizer(device), bar), "bare loop")
            rows += [{**row, "name": f"{row['name']}, {size}", "throughput": 1 / row["ratio"]} for row in found]
    return rows


def benchmark_corruptions(runs: int) -> list[dict[str, Any]]:
    """Time of each corruption of ImageNet-C but frost, severity 3, one 224 x 224 photograph: what a reading process does."""
    picture = _photograph("china")[100:324, 200:424].transpose(2, 0, 1)
    steps: dict[str, Step] = {name: partial(ImageNetC(name, 3).corrupt, picture, 0) for name in CORRUPTIONS if name != "frost"}
    with progress_bar(runs + 2, "rounds", "corruptions") as bar:
        rows = summarise(measure(steps, runs, lambda: None, bar), "jpeg_compression")
    return [{**row, "images_per_second": 1 / row["median_s"]} for row in rows]


def _evaluations(folder: Path, device: str) -> dict[str, Step]:
    """Clean accuracy on crops of photographs, by a loop as timm's validation script has it, and by the evaluator."""
    for i in range(64):
        name, y, x = ("china", "flower")[i % 2], 3 * i, 5 * i
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(_photograph(name)[y : y + 224, x : x + 224]).save(folder / name / f"{i}.png")
    place = torch.device(device)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2).eval().to(place)
    config = timm.data.resolve_model_data_config(model)
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(folder)), config["input_size"], 32, num_workers=0, device=place,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"],
    )  # fmt: skip
    preparation = Preparation.of(config)
    normalized = NormalizedModel(model, preparation.mean, preparation.std).to(place).eval()
    images = ImageSource("folder", str(folder)).open(model, 3)
    assert isinstance(images, Images)
    samples = Samples(images)

    @torch.no_grad()
    def bare() -> float:
        right = sum((model(images).argmax(1) == labels).sum() for images, labels in loader)
        return float(right)

    def ours() -> Any:
        with tempfile.TemporaryDirectory() as flags:
            return Evaluator(normalized, preparation, Path(flags), {}, place, batch_size=32)([Condition("clean", samples)])

    return {"timm's loop": bare, "evaluator": ours}


def benchmark_evaluation(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time of a clean evaluation of ``vit_tiny_patch16_224`` on 64 pictures, reading included."""
    with tempfile.TemporaryDirectory() as folder, progress_bar(runs + 2, "rounds", "evaluation") as bar:
        steps = _evaluations(Path(folder), device)
        return summarise(measure(steps, runs, synchronizer(device), bar), "timm's loop")


def markdown(title: str, rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """Rows as a table."""
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


TIME_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens": lambda r: f"{r['tokens']}",
    "mode": lambda r: r["mode"],
    "name": lambda r: r["name"],
    "median / ms": lambda r: f"{1e3 * r['median_s']:.2f}",
    "quartiles / ms": lambda r: " to ".join(f"{1e3 * q:.2f}" for q in r["quartiles_s"]),
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
NAME_COLUMNS = {name: show for name, show in TIME_COLUMNS.items() if name not in ("tokens", "mode")}
CORRUPTION_COLUMNS = {**NAME_COLUMNS, "images a second": lambda r: f"{r['images_per_second']:.0f}"}
MEMORY_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens": lambda r: f"{r['tokens']}",
    "name": lambda r: r["name"],
    "peak / MB": lambda r: f"{r['peak_bytes'] / 1e6:.0f}",
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
