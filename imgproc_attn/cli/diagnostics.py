"""Command that runs the denoising theorem of attention-only transformers."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter, at_least, number, seed

__all__ = ["add_commands"]

COLUMNS = (
    "noise",
    "layer",
    "ratio, first",
    "ratio, last",
    "factor per layer",
    "off geometric / %",
    "off arithmetic / %",
    "law",
)
THEOREM_MARK = "imgproc-attn theorem"  # value of written_by, by which a file of results is recognized


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    p = commands.add_parser(
        "theorem",
        help="run the denoising theorem of attention-only transformers, and show where it holds",
        description="Draw tokens from a mixture of noisy low-rank Gaussians, pass them through attention-only layers, and "
        "compare the signal-to-noise ratio per layer with the factor 1 + step * tau of the theorem (arXiv 2506.03790).",
        formatter_class=HelpFormatter,
    )
    p.add_argument("--layers", type=at_least(2), default=12, help="number of layers")
    p.add_argument("--noise", nargs="+", type=number, default=[0.2, 0.5], help="standard deviations of the noise")
    p.add_argument("--step", type=number, default=0.1, help="step size eta of a layer")
    p.add_argument("--tau", type=number, default=0.55, help="threshold of the softmax; the theorem needs more than 0.5")
    p.add_argument("--subspaces", type=at_least(2), default=4, help="number of subspaces")
    p.add_argument("--dim", type=at_least(1), default=64, help="dimension of a subspace")
    p.add_argument("--tokens", type=at_least(1), default=64, help="tokens per subspace")
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument(
        "--output", type=Path, default=Path("runs/theorem.json"), help="file of the ratios; the figure stands beside it"
    )
    p.set_defaults(function=_theorem)


def _theorem(args: argparse.Namespace) -> None:
    from functools import partial

    import torch

    from .. import diagnostics as d
    from ..utils.io import check_output_file, write_atomically, write_json
    from ..utils.markdown import markdown_table

    check_output_file(args.output, THEOREM_MARK)
    factor = 1 + args.step * args.tau
    by_noise: dict[float, dict[str, list[float]]] = {}
    for noise in args.noise:
        generator = torch.Generator().manual_seed(args.seed)
        mixture = d.low_rank_mixture(args.subspaces, args.dim, args.tokens, noise, generator=generator)
        by_noise[noise] = {
            name: d.denoise(mixture, args.layers, case, args.step, args.tau).mean(dim=1).tolist()
            for name, case in d.THEOREM_CASES.items()
        }
    rows = []
    published = {noise: {"published figure": list(ratios)} for noise, ratios in d.PUBLISHED_RATIOS.items()}
    for source in (by_noise, published):
        for noise, cases in source.items():
            rows += [_row(noise, name, ratios, d.growth(ratios)) for name, ratios in cases.items()]
    print(f"The theorem's factor per layer is 1 + step * tau = {factor:g}.\n")
    print(markdown_table(COLUMNS, rows))
    settings = {k: getattr(args, k) for k in ("layers", "step", "tau", "subspaces", "dim", "tokens", "seed")}
    ratios = [{"noise": noise, "ratios": cases} for noise, cases in by_noise.items()]
    write_json(args.output, {"written_by": THEOREM_MARK, "settings": settings, "factor": factor, "results": ratios})
    figure, _ = d.draw_denoising(by_noise, factor)
    image = args.output.with_suffix(".png")
    write_atomically(image, partial(figure.savefig, dpi=120))
    print(f"\nWritten: {args.output}, {image}")


def _row(noise: float, name: str, ratios: list[float], growth: Any) -> list[str]:
    """Return one row of the table."""
    factors = f"{growth.smallest:.3f} to {growth.largest:.3f}"
    away = (f"{100 * value:.1f}" for value in (growth.geometric, growth.arithmetic))
    return [f"{noise:g}", name, f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}", factors, *away, growth.law]
