"""Causal model that predicts the next value of a function from examples of it."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..language import TokenTransformer
from ..utils.checks import check_sizes

__all__ = ["InContextRegressor"]


class InContextRegressor(TokenTransformer):
    """Predict y at each x of a sequence x1, y1, x2, y2, … from what stands before it (Garg et al., arXiv 2208.01066).

    A linear map reads the vectors of the sequence in, and one reads the predictions out of the tokens of x. Both begin as
    torch's linear layers do, all else as in GPT-2. The default sizes are the published ones.

    Args:
        dimensions: Number of coordinates of x.
        points: Largest number of examples per sequence. A sequence has a token per x and per y, without the last y.
        embed_dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Number of heads.
        **components: Components and further keywords of `imgproc_attn.language.TokenTransformer`.

    Raises:
        TypeError: As `imgproc_attn.language.TokenTransformer`.
        ValueError: As `imgproc_attn.language.TokenTransformer`.

    Example:
        >>> from imgproc_attn.in_context import interleave
        >>> model = InContextRegressor(dimensions=5, points=11, embed_dim=32, depth=2, num_heads=2, projection="subspaces")
        >>> model(interleave(torch.randn(4, 11, 5), torch.randn(4, 11))).shape
        torch.Size([4, 11])
    """

    is_causal: ClassVar = True

    def __init__(
        self,
        dimensions: int = 20,
        points: int = 41,
        embed_dim: int = 256,
        depth: int = 12,
        num_heads: int = 8,
        *,
        device=None,
        dtype=None,
        **components: Any,
    ) -> None:
        check_sizes({"dimensions": dimensions, "points": points, "embed_dim": embed_dim})
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        read_in = nn.Linear(dimensions, embed_dim, **dd)
        super().__init__(read_in, 2 * points - 1, embed_dim, depth, num_heads, **components, **dd)
        read_in.reset_parameters()
        self.dimensions, self.points = dimensions, points
        self.read_out = nn.Linear(embed_dim, 1, **dd)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return the predictions at the tokens of x.

        Args:
            sequence: ``[B, 2 n - 1, d]``, as `imgproc_attn.in_context.interleave` returns it.

        Returns:
            Predictions ``[B, n]``. The one at place i depends on the first i values of y.

        Raises:
            TypeError: The sequence is not floating point.
            ValueError: It has another number of coordinates, or is longer than the context.
        """
        if not torch.is_floating_point(sequence):
            raise TypeError(f"A sequence must be floating point, got {sequence.dtype}. Give torch.float32.")
        if sequence.ndim != 3 or sequence.shape[-1] != self.dimensions:
            raise ValueError(
                f"A sequence must have the shape [batch, tokens, {self.dimensions}], got {list(sequence.shape)}. Give x of "
                f"{self.dimensions} dimensions, or create the model with dimensions=."
            )
        return self.read_out(self.forward_features(sequence)[:, ::2])[..., 0]
