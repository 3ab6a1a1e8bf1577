"""Causal language model whose attention is a filter: the blocks of the vision models on a line of tokens."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.block import FilterBlock
from ..core.components import Components, Spec
from ..core.geometry import Geometry, line_geometry
from ..core.layer_state import LayerState
from ..core.positions import RelativeTable
from ..models.filter_vit import build_block
from ..utils.checks import check_number, check_whole
from .cache import Cache
from .generation import check_sampling, continue_tokens, sample

__all__ = ["FilterLanguageModel"]

# Layers of GPT-2: the epsilon of its norms, and GELU in its tanh form.
GPT2_NORM = partial(nn.LayerNorm, eps=1e-5)
GPT2_ACTIVATION = partial(nn.GELU, approximate="tanh")


class FilterLanguageModel(nn.Module):
    """Decoder in the shape of GPT-2 (Radford et al. 2019) with filters as attention.

    Blocks normalize their input, a last norm follows, and the output layer has the weights of the token embedding. A component
    is a name, a dictionary with options and ``layers``, or your own factory (see `imgproc_attn.core.components`). The names
    are those of the vision models.

    Args:
        vocab_size: Number of tokens in the vocabulary, V.
        context: Number of tokens that the model is made for. Models with a table of positions (``"absolute"``, ``"untied"``,
            ``"relative_table"``) take no longer input. Others do, ``"spatial_gaussian"`` up to 4,096 tokens.
        embed_dim: Width of the tokens, C.
        depth: Number of blocks.
        num_heads: Number of heads.
        kernel: Kernel on features. Default: dot product.
        positions: One or several members, or ``"none"``. Default: ``"absolute"``, a learned table added to the tokens.
        filter: Module that builds the operator. It must be causal: not ``"representatives"``.
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
        max_length: Largest number of tokens that the model takes, or None if there is no limit.

    Raises:
        TypeError: A size is not a whole number, or a component has another type.
        ValueError: A size is less than 1, a rate is not in [0, 1), a component is unknown, or a filter is not causal.

    Example:
        >>> model = FilterLanguageModel(vocab_size=100, context=32, embed_dim=32, depth=2, num_heads=2, positions="alibi")
        >>> model(torch.randint(100, (2, 16))).shape
        torch.Size([2, 16, 100])
    """

    def __init__(
        self,
        vocab_size: int = 50257,
        context: int = 1024,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
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
        sizes = {"vocab_size": vocab_size, "context": context, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        _check_sizes(sizes)
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
        self.vocab_size, self.context, self.embed_dim = vocab_size, context, embed_dim
        self.token_embed = nn.Embedding(vocab_size, embed_dim, **dd)
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
                is_causal=True,
                **dd,
            )
            for i in range(depth)
        )
        self.norm = norm_layer(embed_dim, **dd)
        self.needs_state = any(block.needs_state for block in self._blocks())
        self.max_length = context if resolved.table or any(map(_has_table, self._blocks())) else None
        for i, block in enumerate(self._blocks()):
            _check_causal(i, block)
        self.init_weights()

    def _blocks(self) -> list[FilterBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

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

    def new_cache(self) -> Cache:
        """Return an empty cache for calls with new tokens only.

        Raises:
            ValueError: A layer cannot be cached, such as elliptical attention, or the model is in training mode.
        """
        return Cache(self._blocks())

    def forward_features(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the normalized tokens of the last block, ``[B, N, C]``. Arguments are those of `forward`."""
        _check_ids(ids)
        start = 0 if cache is None else cache.length
        length = start + ids.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"ids must have at most {self.max_length} tokens, the context of the model, got {length}. Shorten them, or "
                "create the model with context=, or with positions that need no table, as positions='rotary'."
            )
        x, geometry = self.token_embed(ids), self._geometry(ids, start, length)
        if self.pos_embed is not None and self.positions_are_added:
            x = x + self.pos_embed[:, start:length]
        for positions in self.token_positions:
            x = positions.embed(x, geometry)  # type: ignore[operator]
        x = self.embed_drop(x)
        if cache is not None:
            cache.extend(ids.shape[0], self._geometry(ids, 0, length))
        state = LayerState() if self.needs_state else None
        for i, block in enumerate(self.blocks):
            x, state = block(x, geometry, None, True, state, None if cache is None else cache.layers[i])
        features: Tensor = self.norm(x)
        return features

    def _geometry(self, ids: Tensor, start: int, stop: int) -> Geometry:
        """Return the positions of the tokens from ``start`` to ``stop``."""
        geometry = line_geometry(stop - start, ids, start, self.context)
        if self.pos_embed is None or self.positions_are_added:
            return geometry
        return geometry._replace(position_embeddings=self.pos_embed[:, start:stop])

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the logits of the next token at each place.

        Args:
            ids: Token indices ``[B, N]``, each from 0 to ``vocab_size - 1``.
            cache: Cache of the tokens before ``ids``, from `new_cache`. Default: ``ids`` is the beginning.

        Returns:
            Logits ``[B, N, V]``. Those at place i depend on the tokens 0 to i.

        Raises:
            TypeError: ``ids`` are not integers.
            ValueError: ``ids`` have another shape, are empty or longer than the context, or the cache has another batch size.
            RuntimeError: There is a cache, and gradients are on.
        """
        return F.linear(self.forward_features(ids, cache), self.token_embed.weight)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        stop: int | None = None,
    ) -> Tensor:
        """Continue token sequences.

        Args:
            ids: Prompts ``[B, N]``, all of one length.
            max_new_tokens: Largest number of tokens to append.
            temperature: Divisor of the logits. 0 takes the most likely token.
            top_k: Draw from the ``top_k`` most likely tokens only. Default: all.
            top_p: Draw from the smallest set of tokens with at least this probability. Default: all.
            generator: Source of random numbers. Default: torch's.
            use_cache: Compute new tokens only, from keys and values of earlier ones. The result is the same up to rounding.
            stop: Token that ends a sequence. The rest of a row that ends early is filled with it. Default: none.

        Returns:
            Prompts and new tokens, ``[B, N + new]``.

        Raises:
            TypeError: An argument has another type.
            ValueError: A prompt is empty, holds a token outside the vocabulary or does not leave room for the new tokens in
                the context; a layer cannot be cached; or an argument of the sampling is out of range.

        Example:
            >>> from imgproc_attn.language import create_model
            >>> model = create_model("test_gpt2_lm").eval()
            >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, temperature=0).shape
            torch.Size([1, 8])
        """
        check_sampling(temperature, top_k, top_p)
        self._check_prompt(ids, check_whole("max_new_tokens", max_new_tokens), stop)
        cache = self.new_cache() if use_cache else None

        def next_logits(ids: Tensor) -> Tensor:
            new = ids if cache is None else ids[:, cache.length :]
            return F.linear(self.forward_features(new, cache)[:, -1], self.token_embed.weight)

        draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        return continue_tokens(ids, max_new_tokens, next_logits, draw, stop)

    def _check_prompt(self, ids: Tensor, max_new_tokens: int, stop: int | None) -> None:
        _check_ids(ids)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}. Give the number of tokens to append.")
        tokens = [*([] if ids.numel() == 0 else [int(ids.min()), int(ids.max())]), *([] if stop is None else [stop])]
        for token in tokens:
            if not 0 <= check_whole("stop", token) < self.vocab_size:
                raise ValueError(
                    f"Tokens must be from 0 to {self.vocab_size - 1}, the vocabulary of the model, got {token}. Encode the "
                    "text with the tokenizer of the model."
                )
        length = ids.shape[1]
        if self.max_length is not None and length + max_new_tokens > self.max_length:
            raise ValueError(
                f"Prompt and new tokens must fit into the context of {self.max_length} tokens, got {length} + "
                f"{max_new_tokens}. Shorten the prompt, or lower max_new_tokens=."
            )


def _check_ids(ids: Tensor) -> None:
    """Fail for token indices of another type or shape. Their values are not read."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be integers, got {ids.dtype}. Give token indices, as torch.long.")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"ids must have the shape [batch, tokens], with at least one token, got {list(ids.shape)}. Give one.")


def _check_sizes(sizes: dict[str, Any]) -> None:
    for name, value in sizes.items():
        if check_whole(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}. Give a larger number.")


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
