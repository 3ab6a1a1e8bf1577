"""Benchmark of speed and memory: operators compared with plain attention, models compared with timm's ViT, and more.

Method for speed: all cases run in one process, with the same work and inputs. Runs are interleaved (one of each, then again).
Results are medians with quartiles. The time of an operator includes the lift.

Method for peak memory: on a CUDA device, the peak of the allocator. On a CPU, the growth of the resident set in a fresh process
that does the step once.
"""

import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .core.attention import FilterAttention
from .core.bandwidths import at_least_float32
from .core.filters import SoftmaxFilter
from .core.geometry import grid_geometry
from .core.kernels import DotProduct, Elliptical, GaussianRange
from .core.layer_state import LayerState, next_state
from .core.positions import Alibi, RelativeTable, SpatialGaussian
from .core.residuals import PID, SOS, NeuTRENO, Plain, Residual, Twicing
from .data import SINGLE_PROCESS, Preprocessing
from .evaluation import NormalizedModel
from .evaluation.conditions import Condition
from .evaluation.corruption_names import CORRUPTIONS
from .evaluation.imagenet_c import ImageNetC
from .evaluation.samples import Samples
from .evaluation.scoring import find_task
from .evaluation.session import EvaluationSession, Runtime
from .evaluation.specs import DatasetSpec
from .image_filters import bilateral_filter, non_local_means
from .models import FAMILIES
from .recipe import find_recipe, load_recipe
from .training import Trainer
from .training.run import Run
from .utils.markdown import markdown_table
from .utils.progress import progress_bar

__all__ = [
    "CASES",
    "MODELS",
    "Case",
    "benchmark_corruptions",
    "benchmark_evaluation",
    "benchmark_filtering",
    "benchmark_memory",
    "benchmark_models",
    "benchmark_operators",
    "benchmark_training",
]

HEADS, HEAD_DIM = 6, 64

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One case of the benchmark, which is compared with the other cases of its section.

    Attributes:
        section: Part of the benchmark, as in `imgproc-attn benchmark --what`.
        name: Name in tables and results.
        make: Function that takes the work of the section, such as `OperatorWork`, and returns the function to time.
        baseline: Whether ratios of the section are relative to this case.
        package: Package that the case needs. If it is not installed, the case is left out.
    """

    section: str
    name: str
    make: Callable[[Any], Callable[..., Any]]
    baseline: bool = False
    package: str | None = None


# All cases, in the order of the tables. To add a case, add a line.
CASES = (
    Case("operators", "scaled_dot_product_attention", lambda work: work.plain, baseline=True),
    Case("operators", "non-local means", lambda work: work.layer(work.gaussian)),
    Case("operators", "bilateral", lambda work: work.layer(work.gaussian, [work.spatial])),
    Case("operators", "elliptical", lambda work: work.layer(Elliptical(HEAD_DIM))),
    Case("operators", "twicing", lambda work: work.layer(residual=Twicing(HEADS))),
    Case("operators", "bilateral + twicing", lambda work: work.layer(work.gaussian, [work.spatial], Twicing(HEADS))),
    Case("operators", "sos", lambda work: work.layer(residual=SOS(HEADS))),
    Case("operators", "neutreno", lambda work: work.layer(residual=NeuTRENO(HEADS))),
    Case("operators", "pid", lambda work: work.layer(residual=PID(HEADS))),
    Case("operators", "dot product, alibi (dense)", lambda work: work.layer(positions=[work.alibi])),
    Case("operators", "dot product, relative table (dense)", lambda work: work.layer(positions=[work.relative_table])),
    Case("operators", "explicit distances + softmax", lambda work: work.explicit),
    Case("models", "vit_small_patch16_224", methodcaller("step", "vit_small_patch16_224"), baseline=True),
    *(Case("models", f"{family}_small", methodcaller("step", f"{family}_small")) for family in FAMILIES),
    Case("filtering", "kornia bilateral_blur", lambda work: work.kornia_bilateral, baseline=True),
    Case("filtering", "bilateral_filter", lambda work: partial(bilateral_filter, work.image, 0.1 * 2**0.5, 3.0 * 2**0.5, 11)),
    Case("filtering", "non_local_means", lambda work: partial(non_local_means, work.image, 0.7, 5, 11)),
    Case("filtering", "scikit-image denoise_bilateral", lambda work: work.skimage_bilateral, package="skimage"),
    Case("filtering", "scikit-image denoise_nl_means, fast", lambda work: work.skimage_nl_means(True), package="skimage"),
    Case("filtering", "scikit-image denoise_nl_means, slow", lambda work: work.skimage_nl_means(False), package="skimage"),
    Case("training", "bare loop", lambda work: work.bare_loop(), baseline=True),
    Case("training", "training loop", lambda work: work.training_loop()),
    Case("evaluation", "timm's loop", lambda work: work.timm_loop, baseline=True),
    Case("evaluation", "evaluator", lambda work: work.evaluator),
    *(
        Case("corruptions", name, methodcaller("step", name), baseline=name == "jpeg_compression")
        for name in CORRUPTIONS
        if name != "frost"
    ),
)
MODELS = tuple(case.name for case in CASES if case.section == "models")
# Overrides of the quickstart recipe.
TRAINING_SIZES: dict[str, list[str]] = {
    "8 x 8, 0.1 M parameters": [],
    "32 x 32, 1 M parameters": [
        *("data.input_size=[1,32,32]", "model.img_size=32", "model.patch_size=4", "model.embed_dim=128", "model.depth=5"),
        *("model.mlp_ratio=4.0", "data.train_images=512"),
    ],
}


def build_cases(section: str, work: Any) -> dict[str, Callable[..., Any]]:
    """Return the functions to time in a section, by name. Cases whose package is not installed are left out."""
    cases = (case for case in CASES if case.section == section)
    return {case.name: case.make(work) for case in cases if case.package is None or find_spec(case.package)}


def baseline_of(section: str) -> str:
    """Return the name of the baseline of a section."""
    return next(case.name for case in CASES if case.section == section and case.baseline)


def synchronizer(device: str) -> Step:
    """Return a function that waits until a device has finished."""
    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None


def measure(steps: dict[str, Step], runs: int, synchronize: Step, bar: Any = None) -> dict[str, list[float]]:
    """Return the seconds of each step for ``runs`` interleaved rounds, after two warm-up rounds."""
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


def summarize(times: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Return the median, the quartiles and the ratio of the median to the baseline's, per case.

    Example:
        >>> summarize({"fast": [1.0, 1.0], "slow": [2.0, 2.0]}, baseline="fast")[1]
        {'name': 'slow', 'median_s': 2.0, 'quartiles_s': [2.0, 2.0], 'ratio': 2.0}
    """
    base = statistics.median(times[baseline])
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append({"name": name, "median_s": median, "quartiles_s": [low, high], "ratio": median / base})
    return rows


class OperatorWork:
    """Attention layers without their projections, ``(q, k, v) -> [B, N, H d]``.

    Args:
        grid: (height, width) of the grid of patches.
        device: Device of the parameters.
    """

    def __init__(self, grid: tuple[int, int], device: str) -> None:
        self.geometry = grid_geometry(*grid, 0, torch.empty(0, device=device))
        self.gaussian = GaussianRange(HEADS, HEAD_DIM, device=device)
        self.spatial = SpatialGaussian(HEADS, grid, device=device)
        self.alibi = Alibi(HEADS, device=device)
        self.relative_table = RelativeTable(HEADS, grid, device=device)

    def layer(
        self, kernel: nn.Module | None = None, positions: Sequence[nn.Module] = (), residual: Residual | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the layer of these components. Default: dot product, no positions and no boosting."""
        parts = (kernel or DotProduct(HEAD_DIM), positions, SoftmaxFilter(), residual or Plain())
        attn = FilterAttention(nn.Identity(), *parts, nn.Identity()).eval()

        def filtered(q, k, v):
            state = next_state(LayerState(), k) if attn.needs_state else None  # any values can stand for the previous layer
            return attn((q, k, v), self.geometry, state=state)[0]

        return filtered

    @staticmethod
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return torch's softmax attention."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def explicit(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return non-local means, computed with a matrix of distances."""
        left, right = (at_least_float32(x).contiguous() for x in (q, k))  # cdist does not support half precision
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        log_weights = -(distances / self.gaussian.range_bandwidth()[:, None, None]).square()
        return (log_weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _operator_step(operator: Callable[..., Tensor], qkv: Tensor, train: bool) -> Step:
    """Return a step from the output of the projection to that of the layer, with the backward pass if ``train``."""

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
    """Time the operators and plain attention, in inference and training, with ``batch_tokens`` tokens per batch."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + 2), "rounds", "operators") as bar:
        for n in tokens:
            grid, batch = (math.isqrt(n), math.isqrt(n)), max(1, batch_tokens // n)
            qkv = torch.randn(batch, n, 3 * HEADS * HEAD_DIM, device=device, dtype=dtype)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                operators = build_cases("operators", OperatorWork(grid, device))
                steps = {name: _operator_step(operator, qkv, train) for name, operator in operators.items()}
                summary = summarize(measure(steps, runs, synchronize, bar), baseline_of("operators"))
                rows += [{"tokens": n, "batch": batch, "mode": "training" if train else "inference", **row} for row in summary]
    return rows


@dataclass(frozen=True)
class ModelWork:
    """Whole models on a batch of random images.

    Attributes:
        tokens: Number of patches per image. It must be a square number.
        batch: Number of images.
        train: Whether a step is a training step with AdamW. Otherwise it is inference.
        device: Device of model and images.
        dtype: Dtype of model and images.
    """

    tokens: int
    batch: int
    train: bool
    device: str
    dtype: torch.dtype

    def step(self, name: str) -> Step:
        """Return one step of timm's model ``name``."""
        size = (16 * math.isqrt(self.tokens), 16 * math.isqrt(self.tokens))
        model = timm.create_model(name, img_size=size, device=self.device, dtype=self.dtype).train(self.train)
        images = torch.randn(self.batch, 3, *size, device=self.device, dtype=self.dtype)
        optimizer = torch.optim.AdamW(model.parameters())

        def step():
            with torch.set_grad_enabled(self.train):
                logits = model(images)
                if self.train:
                    labels = torch.zeros(self.batch, dtype=torch.long, device=self.device)
                    F.cross_entropy(logits.float(), labels).backward()
                    optimizer.step()
                    optimizer.zero_grad()

        return step


def benchmark_models(
    names: Sequence[str], tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Time inference and a training step with AdamW of whole models. The first of ``names`` is the baseline."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + 2), "rounds", "models") as bar:
        for n in tokens:
            batch = max(1, (784 if device == "cpu" else 25088) // n)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                work = ModelWork(n, batch, train, device, dtype)
                steps = {name: work.step(name) for name in names}
                summary = summarize(measure(steps, runs, synchronize, bar), names[0])
                rows += [
                    {
                        "tokens": n,
                        "batch": batch,
                        "mode": "training" if train else "inference",
                        **row,
                        "throughput": 1 / row["ratio"],
                    }
                    for row in summary
                ]
    return rows


def _peak(name: str, n: int, device: str, dtype: torch.dtype, pipe: Any) -> None:
    """Send the peak bytes of a training step, with optimizer state and gradients. Runs in a fresh process."""
    try:
        step = ModelWork(n, 1, True, device, dtype).step(name)
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
    """Send the largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux, ru_maxrss starts at the value of the parent process.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        pipe.send(1024 * int(line.split()[1]))
        return
    import resource  # not available on every system

    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _in_fresh_process(function: Callable[..., None], *arguments: Any) -> int:
    """Return the number that ``function`` sends from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, send))
    process.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        answer = "no answer"
    process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"The measuring process must return bytes, got {answer}. Give fewer tokens if memory ran out.")
    return answer


def benchmark_memory(
    names: Sequence[str], n: int = 3136, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Measure the peak memory of a training step on one image of ``n`` patches, minus that of interpreter and libraries."""
    bare = 0 if device.startswith("cuda") else _in_fresh_process(_peak_so_far)
    peaks = {}
    with progress_bar(len(names), "models", "memory") as bar:
        for name in names:
            peaks[name] = _in_fresh_process(_peak, name, n, device, dtype) - bare
            bar.update()
    return [{"name": name, "tokens": n, "peak_bytes": peak, "ratio": peak / peaks[names[0]]} for name, peak in peaks.items()]


def _photograph(name: str) -> np.ndarray:
    """Return the photograph ``china`` or ``flower``, ``[427, 640, 3]`` in 8 bits."""
    from sklearn.datasets import load_sample_image  # the import takes a second

    return load_sample_image(f"{name}.jpg")


class FilteringWork:
    """Filters on a 512 x 512 color photograph with an 11 x 11 window.

    Args:
        device: Device of the filters that run on tensors.
    """

    def __init__(self, device: str) -> None:
        photograph = torch.tensor(_photograph("china")).permute(2, 0, 1)[None] / 255
        self.image = F.interpolate(photograph, (512, 512), mode="bilinear", antialias=True).to(device)
        self.array = self.image[0].permute(1, 2, 0).contiguous().cpu().numpy()

    @cached_property
    def kornia_bilateral(self) -> Step:
        """Bilateral filter of kornia, with the color distance of this package."""
        blur = partial(kornia.filters.bilateral_blur, color_distance_type="l2")
        return partial(blur, self.image, (11, 11), 0.1, (3.0, 3.0))

    @cached_property
    def skimage_bilateral(self) -> Step:
        """Bilateral filter of scikit-image."""
        from skimage.restoration import denoise_bilateral

        return partial(denoise_bilateral, self.array, 11, 0.1, 3.0, channel_axis=-1)

    def skimage_nl_means(self, fast: bool) -> Step:
        """Return the non-local means of scikit-image, in fast mode if ``fast``."""
        from skimage.restoration import denoise_nl_means

        return partial(denoise_nl_means, self.array, 5, 5, 0.08, channel_axis=-1, fast_mode=fast)


def benchmark_filtering(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time the filters, kornia's and (if installed) scikit-image's on a 512 x 512 color photograph with an 11 x 11 window.

    Non-local means has patches of 5 x 5 pixels. scikit-image's fast mode uses 4 x 4 pixels and an integral image.
    """
    steps = build_cases("filtering", FilteringWork(device))
    with progress_bar(runs + 2, "rounds", "filtering") as bar:
        return summarize(measure(steps, runs, synchronizer(device), bar), baseline_of("filtering"))


class TrainingWork:
    """Epochs of training with equal models, losses, optimizers and loaders.

    Args:
        overrides: Overrides of the quickstart recipe.
        folder: Folder of the runs.
        device: Device of the training.
    """

    def __init__(self, overrides: Sequence[str], folder: Path, device: str) -> None:
        self.recipe = load_recipe(find_recipe("quickstart"), overrides).variant("plain", 0)
        self._folder, self._device = folder, torch.device(device)

    def _trainer(self, name: str) -> Trainer:
        return Run(self.recipe, self._folder / name, self._device, SINGLE_PROCESS).trainer

    def bare_loop(self) -> Step:
        """Return an epoch of a minimal training loop."""
        trainer, clip_grad = self._trainer("bare"), self.recipe.optimizer.clip_grad or math.inf

        def epoch() -> None:
            model, loss_function = trainer.task.get_trainable_module(), nn.CrossEntropyLoss()
            assert model is not None
            model.train()
            for images, targets in trainer.loader:
                loss = loss_function(model(images), targets)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()

        return epoch

    def training_loop(self) -> Step:
        """Return an epoch of the training loop of this package."""
        trainer = self._trainer("loop")
        return lambda: trainer.train_epoch(0)


def benchmark_training(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time an epoch of the training loop and of a bare loop, on scikit-learn's digits at 8 x 8 and at 32 x 32."""
    rows = []
    with progress_bar(len(TRAINING_SIZES) * (runs + 2), "rounds", "training") as bar:
        for size, overrides in TRAINING_SIZES.items():
            with tempfile.TemporaryDirectory() as folder:
                steps = build_cases("training", TrainingWork(overrides, Path(folder), device))
                summary = summarize(measure(steps, runs, synchronizer(device), bar), baseline_of("training"))
            rows += [{**row, "name": f"{row['name']}, {size}", "throughput": 1 / row["ratio"]} for row in summary]
    return rows


class CorruptionWork:
    """Corruptions of severity 3 on a 224 x 224 photograph."""

    def __init__(self) -> None:
        self.image = _photograph("china")[100:324, 200:424].transpose(2, 0, 1)

    def step(self, name: str) -> Step:
        """Return the work of a data loading process for one image."""
        return partial(ImageNetC(name, 3).corrupt, self.image, 0)


def benchmark_corruptions(runs: int) -> list[dict[str, Any]]:
    """Time each corruption of ImageNet-C except frost, at severity 3, on one 224 x 224 photograph."""
    steps = build_cases("corruptions", CorruptionWork())
    with progress_bar(runs + 2, "rounds", "corruptions") as bar:
        rows = summarize(measure(steps, runs, lambda: None, bar), baseline_of("corruptions"))
    return [{**row, "images_per_second": 1 / row["median_s"]} for row in rows]


class EvaluationWork:
    """Clean accuracy of ``vit_tiny_patch16_224`` on 64 crops of photographs.

    Args:
        folder: Folder to which the crops are written.
        device: Device of the model.
    """

    def __init__(self, folder: Path, device: str) -> None:
        for i in range(64):
            name, y, x = ("china", "flower")[i % 2], 3 * i, 5 * i
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(_photograph(name)[y : y + 224, x : x + 224]).save(folder / name / f"{i}.png")
        self.device = torch.device(device)
        self.model = timm.create_model("vit_tiny_patch16_224", num_classes=2).eval().to(self.device)
        config = timm.data.resolve_model_data_config(self.model)
        self.loader = timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder)), config["input_size"], 32, num_workers=0, device=self.device,
            interpolation=config["interpolation"], mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"],
        )  # fmt: skip
        self.preprocessing = Preprocessing.of(config)
        normalized = NormalizedModel(self.model, self.preprocessing.mean, self.preprocessing.std)
        self.normalized = normalized.to(self.device).eval()
        self.task = find_task("classification")(self.model.num_classes)
        images = self.task.open_dataset(DatasetSpec("folder", str(folder)), self.model, 3)
        self.samples = Samples(images)

    @torch.no_grad()
    def timm_loop(self) -> float:
        """Return the number of correct images, counted as in timm's validation script."""
        correct = sum((self.model(images).argmax(1) == labels).sum() for images, labels in self.loader)
        return float(correct)

    def evaluator(self) -> Any:
        """Return the result of the condition ``clean``."""
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(self.device, batch_size=32, output=Path(folder))
            session = EvaluationSession(
                self.normalized, self.task, self.preprocessing, runtime, progress=lambda name, samples: None
            )
            return session.run([Condition("clean", self.samples, self.task.clean)])


def benchmark_evaluation(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time a clean evaluation of ``vit_tiny_patch16_224`` on 64 images, including the reading of files."""
    with tempfile.TemporaryDirectory() as folder, progress_bar(runs + 2, "rounds", "evaluation") as bar:
        steps = build_cases("evaluation", EvaluationWork(Path(folder), device))
        return summarize(measure(steps, runs, synchronizer(device), bar), baseline_of("evaluation"))


def markdown(title: str, rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """Return rows as a Markdown table below a title."""
    table = markdown_table(list(columns), ([show(row) for show in columns.values()] for row in rows))
    return f"### {title}\n\n{table}"


TIME_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens": lambda r: f"{r['tokens']}",
    "mode": lambda r: r["mode"],
    "name": lambda r: r["name"],
    "median / ms": lambda r: f"{1e3 * r['median_s']:.2f}",
    "quartiles / ms": lambda r: " to ".join(f"{1e3 * q:.2f}" for q in r["quartiles_s"]),
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
NAME_COLUMNS = {name: show for name, show in TIME_COLUMNS.items() if name not in ("tokens", "mode")}
CORRUPTION_COLUMNS = {**NAME_COLUMNS, "images per second": lambda r: f"{r['images_per_second']:.0f}"}
MEMORY_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens": lambda r: f"{r['tokens']}",
    "name": lambda r: r["name"],
    "peak / MB": lambda r: f"{r['peak_bytes'] / 1e6:.0f}",
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
