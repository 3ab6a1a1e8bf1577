"""Transformer on a line of tokens, whose attention is a filter: the part that all models of sequences share."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.block import FilterBlock
from ..core.components import Components, Spec
from ..core.geometry import Geometry, line_geometry
from ..core.layer_state import LayerState
from ..core.positions import RelativeTable
from ..models.filter_vit import build_block
from ..utils.checks import check_number, check_sizes
from ..utils.named_tuples import changed
from .cache import Cache

__all__ = ["TokenTransformer"]

# Layers of GPT-2: the epsilon of its norms, and GELU in its tanh form.
GPT2_NORM = partial(nn.LayerNorm, eps=1e-5)
GPT2_ACTIVATION = partial(nn.GELU, approximate="tanh")


class TokenTransformer(nn.Module):
    """Base class of models of sequences: embedding, filter blocks of the vision models on a line, and a last norm.

    Blocks normalize their input. A component is a name, a dictionary with options and ``layers``, or your own factory (see
    `imgproc_attn.core.components`). The names are those of the vision models.

    Args:
        token_embed: Module that maps a sequence ``[B, N, …]`` to tokens ``[B, N, C]``, each on its own.
        context: Number of tokens that the model is made for. Models with a table of positions (``"absolute"``, ``"untied"``,
            ``"relative_table"``) take no longer input. Others do, ``"spatial_gaussian"`` up to 4,096 tokens.
        embed_dim: Width of the tokens, C.
        depth: Number of blocks.
        num_heads: Number of heads.
        kernel: Kernel on features. Default: dot product.
        positions: One or several members, or ``"none"``. Default: ``"absolute"``, a learned table added to the tokens.
        filter: Module that builds the operator. In causal models not ``"representatives"``, ``"nystroem"`` or
            ``"linformer"``.
        residual: Boosting of the filter. Default: plain.
        block_residual: Boosting of the attention branch of a block. Default: plain.
        projection: Input and output projection of attention. Default: queries, keys and values.
        mlp: Pointwise half of a block. Default: the MLP.
        mlp_ratio: Width of the MLP, in units of ``embed_dim``.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        proj_bias: Whether the output projection and the MLP have biases.
        drop_rate: Dropout probability of the embedding, the output projection and the MLP.
        attn_drop_rate: Dropout probability of the weights of the filter.
        norm_layer: Norm of the tokens. Default: layer norm with epsilon 1e-5.
        act_layer: Activation of the MLP. Default: GELU in its tanh form, as in GPT-2.

    Attributes:
        is_causal: Whether tokens see earlier tokens only. Subclasses set it.
        vocab_size: Number of tokens in the vocabulary, in models of token indices. Subclasses set it.
        max_length: Largest number of tokens that the model takes, or None if there is no limit.

    Raises:
        TypeError: A size is not a whole number, or a component has another type.
        ValueError: A size is less than 1, a rate is not in [0, 1), a component is unknown, or a causal model has a filter that
            is not causal.
    """

    is_causal: ClassVar[bool]
    max_length: int | None
    vocab_size: int

    def __init__(
        self,
        token_embed: nn.Module,
        context: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        kernel: Spec = "dot_product",
        positions: Spec | Iterable[Spec] | None = "absolute",
        filter: Spec = "softmax",
        residual: Spec = "plain",
        block_residual: Spec = "plain",
        projection: Spec = "qkv",
        mlp: Spec = "mlp",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        norm_layer: Callable[..., nn.Module] = GPT2_NORM,
        act_layer: Callable[..., nn.Module] = GPT2_ACTIVATION,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        check_sizes({"context": context, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads})
        _check_rates({"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate})
        components = Components.resolve(
            depth,
            projection=projection,
            kernel=kernel,
            positions=positions,
            filter=filter,
            residual=residual,
            block_residual=block_residual,
            mlp=mlp,
        )
        resolved, dd = components.positions, {"device": device, "dtype": dtype}
        self.context, self.embed_dim = context, embed_dim
        self.token_embed = token_embed
        self.pos_embed = nn.Parameter(torch.empty(1, context, embed_dim, **dd)) if resolved.table else None
        self.positions_are_added = resolved.added
        self.token_positions = nn.ModuleList(member(embed_dim) for member in resolved.embedded)
        self.embed_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            build_block(
                embed_dim,
                num_heads,
                depth=i,
                components=components,
                grid_size=(1, context),
                norm_layer=norm_layer,
                act_layer=act_layer,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                is_causal=self.is_causal,
                **dd,
            )
            for i in range(depth)
        )
        self.norm = norm_layer(embed_dim, **dd)
        self.needs_state = any(block.needs_state for block in self._blocks())
        self.max_length = context if resolved.table or any(map(_has_table, self._blocks())) else None
        for i, block in enumerate(self._blocks()):
            if self.is_causal:
                _check_causal(i, block)
        self.init_weights()

    def _blocks(self) -> list[FilterBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def check_tokens(self, ids: Tensor) -> None:
        """Fail for token indices outside the vocabulary. `forward` does not read their values.

        Args:
            ids: Token indices of any shape.

        Raises:
            ValueError: An index is negative, or not below the size of the vocabulary.
        """
        for token in [] if ids.numel() == 0 else [int(ids.min()), int(ids.max())]:
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"Tokens must be from 0 to {self.vocab_size - 1}, the vocabulary of the model, got {token}. Encode the "
                    "text with the tokenizer of the model."
                )

    def init_weights(self) -> None:
        """Draw the weights as GPT-2 does: normal with deviation 0.02, ``0.02 / sqrt(2 depth)`` before a residual sum."""
        deviation = 0.02
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=deviation)
        for block in self._blocks():
            for last in (block.attn.proj, getattr(block.mlp, "fc2", None)):
                if isinstance(last, nn.Linear):
                    nn.init.normal_(last.weight, std=deviation / math.sqrt(2 * len(self.blocks)))

    def forward_features(self, sequence: Tensor, cache: Cache | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Return the normalized tokens of the last block.

        Args:
            sequence: Input ``[B, N, …]`` of ``token_embed``, such as token indices ``[B, N]``.
            cache: Keys and values of earlier tokens, in causal models. Default: this is the whole sequence.
            attn_mask: Boolean mask (True: visible) or additive log-weights, broadcastable to ``[B, H, N, N]``. Default: none.

        Returns:
            ``[B, N, C]``.

        Raises:
            ValueError: There are more tokens than the model takes, or a filter cannot use the mask.
        """
        start = 0 if cache is None else cache.length
        length = start + sequence.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"A sequence must have at most {self.max_length} tokens, the context of the model, got {length}. Shorten it, "
                "or create the model with context=, or with positions that need no table, as positions='rotary'."
            )
        x, geometry = self.token_embed(sequence), self._geometry(sequence, start, length)
        if self.pos_embed is not None and self.positions_are_added:
            x = x + self.pos_embed[:, start:length]
        for positions in self.token_positions:
            x = positions.embed(x, geometry)  # type: ignore[operator]
        x = self.embed_drop(x)
        if cache is not None:
            cache.extend(sequence.shape[0], self._geometry(sequence, 0, length))
        state = LayerState() if self.needs_state else None
        for i, block in enumerate(self.blocks):
            x, state = block(x, geometry, attn_mask, self.is_causal, state, None if cache is None else cache.layers[i])
        features: Tensor = self.norm(x)
        return features

    def _geometry(self, like: Tensor, start: int, stop: int) -> Geometry:
        """Return the positions of the tokens from ``start`` to ``stop``."""
        geometry = line_geometry(stop - start, like, start, self.context)
        if self.pos_embed is None or self.positions_are_added:
            return geometry
        return changed(geometry, position_embeddings=self.pos_embed[:, start:stop])


def check_ids(ids: Tensor) -> None:
    """Fail for token indices of another type or shape. Their values are not read."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be integers, got {ids.dtype}. Give token indices, as torch.long.")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"ids must have the shape [batch, tokens], with at least one token, got {list(ids.shape)}. Give one.")


def _check_rates(rates: dict[str, Any]) -> None:
    for name, value in rates.items():
        if not 0 <= check_number(name, value) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}. Give a probability; 0 switches it off.")


def _has_table(block: FilterBlock) -> bool:
    """Return whether a block has a table of log-weights per offset, which is made for one length."""
    return any(isinstance(positions, RelativeTable) for positions in block.attn.positions)


def _check_causal(index: int, block: FilterBlock) -> None:
    if not getattr(block.attn.filter, "can_be_causal", True):
        raise ValueError(
            f"filter must be causal in a language model, got {type(block.attn.filter).__name__} in block {index}, which "
            "weights tokens by all others. Use filter='softmax'."
        )
