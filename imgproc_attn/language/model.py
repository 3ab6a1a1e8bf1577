"""Causal language model whose attention is a filter: the blocks of the vision models on a line of tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..utils.checks import check_sizes, check_whole
from .cache import Cache
from .generation import check_sampling, continue_tokens, sample
from .output_layers import AdaptiveSoftmax, TiedLogits
from .transformer import TokenTransformer, check_ids

__all__ = ["FilterLanguageModel"]


class FilterLanguageModel(TokenTransformer):
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
        cutoffs: First token of each cluster of an adaptive softmax, for vocabularies of many words in the order of their
            frequency (`imgproc_attn.language.AdaptiveSoftmax`). The output is then log-probabilities. Default: one softmax
            over all tokens.
        **components: Components and further keywords of `TokenTransformer`.

    Raises:
        TypeError: A size is not a whole number, or a component has another type.
        ValueError: A size is less than 1, a rate is not in [0, 1), a component is unknown, or a filter is not causal.

    Example:
        >>> model = FilterLanguageModel(vocab_size=100, context=32, embed_dim=32, depth=2, num_heads=2, positions="alibi")
        >>> model(torch.randint(100, (2, 16))).shape
        torch.Size([2, 16, 100])
    """

    is_causal: ClassVar = True
    token_embed: nn.Embedding

    def __init__(
        self,
        vocab_size: int = 50257,
        context: int = 1024,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        *,
        cutoffs: Sequence[int] = (),
        device=None,
        dtype=None,
        **components: Any,
    ) -> None:
        check_sizes({"vocab_size": vocab_size, "embed_dim": embed_dim})
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(nn.Embedding(vocab_size, embed_dim, **dd), context, embed_dim, depth, num_heads, **components, **dd)
        self.vocab_size = vocab_size
        self.head = AdaptiveSoftmax(self.token_embed, cutoffs, **dd) if len(cutoffs) > 0 else TiedLogits(self.token_embed)

    def new_cache(self) -> Cache:
        """Return an empty cache for calls with new tokens only.

        Raises:
            ValueError: A layer cannot be cached, such as elliptical attention, or the model is in training mode.
        """
        return Cache(self._blocks())

    def forward(self, ids: Tensor, cache: Cache | None = None, targets: Tensor | None = None) -> Tensor:
        """Return the logits of the next token at each place, or the losses of given next tokens.

        Args:
            ids: Token indices ``[B, N]``, each from 0 to ``vocab_size - 1``.
            cache: Cache of the tokens before ``ids``, from `new_cache`. Default: ``ids`` is the beginning.
            targets: Next tokens ``[B, N]``. -100 marks those that do not count. Default: none.

        Returns:
            Logits ``[B, N, V]``; log-probabilities with ``cutoffs``. With ``targets``, their log-losses ``[B, N]`` in nats,
            which an adaptive softmax computes without scores of all tokens. Those at place i depend on the tokens 0 to i.

        Raises:
            TypeError: ``ids`` are not integers.
            ValueError: ``ids`` have another shape, are empty or longer than the context, or the cache has another batch size.
            RuntimeError: There is a cache, and gradients are on.
        """
        check_ids(ids)
        features = self.forward_features(ids, cache)
        return self.head(features) if targets is None else self.head.losses(features, targets)

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
            return self.head(self.forward_features(new, cache)[:, -1])

        draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        return continue_tokens(ids, max_new_tokens, next_logits, draw, stop)

    def _check_prompt(self, ids: Tensor, max_new_tokens: int, stop: int | None) -> None:
        check_ids(ids)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}. Give the number of tokens to append.")
        self.check_tokens(ids)
        if stop is not None:
            self.check_tokens(torch.tensor(check_whole("stop", stop)))
        length = ids.shape[1]
        if self.max_length is not None and length + max_new_tokens > self.max_length:
            raise ValueError(
                f"Prompt and new tokens must fit into the context of {self.max_length} tokens, got {length} + "
                f"{max_new_tokens}. Shorten the prompt, or lower max_new_tokens=."
            )
