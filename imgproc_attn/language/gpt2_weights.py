"""GPT-2's published weights under the names of this package."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..models.checkpoints import component_names, read_weights
from .model import FilterLanguageModel

__all__ = ["load_gpt2_weights", "translate_gpt2"]

_OUTSIDE = {
    "wte.weight": "token_embed.weight",
    "wpe.weight": "pos_embed",
    "ln_f.weight": "norm.weight",
    "ln_f.bias": "norm.bias",
}
_IN_BLOCK = {"ln_1": "norm1", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "ln_2": "norm2"}
_IN_BLOCK |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_GPT2_BLOCK = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
# The output layer has the weights of the embedding, and the causal masks are not weights.
_LEFT_OUT = re.compile(r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias")


def translate_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of GPT-2, named as in the ``transformers`` library, under the names of `FilterLanguageModel`.

    ``transformers`` stores matrices as ``[in, out]``, so they are transposed.

    Raises:
        ValueError: A name is not one of GPT-2.

    Example:
        >>> import torch
        >>> translated = translate_gpt2({"transformer.h.0.mlp.c_fc.weight": torch.empty(8, 32)})
        >>> {name: tuple(value.shape) for name, value in translated.items()}
        {'blocks.0.mlp.fc1.weight': (32, 8)}
    """
    translated = {}
    for full_name, value in weights.items():
        name = full_name.removeprefix("transformer.")
        match = _GPT2_BLOCK.fullmatch(name)
        if _LEFT_OUT.fullmatch(name):
            continue
        if name in _OUTSIDE:
            translated[_OUTSIDE[name]] = value[None] if name == "wpe.weight" else value
        elif match and match[2] in _IN_BLOCK:
            translated[f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"] = value.t() if value.dim() == 2 else value
        else:
            raise ValueError(f"Names must be those of GPT-2 in the transformers library, got {full_name!r}. Give its weights.")
    return translated


def load_gpt2_weights(model: FilterLanguageModel, path: Path | str) -> None:
    """Load GPT-2's published weights, ``model.safetensors`` of the ``transformers`` library.

    Parameters that GPT-2 does not have, such as bandwidths, keep their values. The model must have the shape of the weights,
    such as ``gpt2_lm_base`` for ``gpt2`` and ``gpt2_lm_medium`` for ``gpt2-medium``.

    Args:
        model: Model to load into.
        path: File of weights, or a folder with one. No code in it is executed.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not complete, or its names or shapes are not those of the model.

    Example:
        >>> from imgproc_attn.language import create_model
        >>> load_gpt2_weights(create_model("gpt2_lm_base"), "gpt2/model.safetensors")  # doctest: +SKIP
    """
    weights = translate_gpt2(read_weights(Path(path)))
    own = model.state_dict()
    weights.update({name: own[name] for name in component_names(model) if name not in weights})
    shapes, wanted = ({name: tuple(value.shape) for name, value in state.items()} for state in (weights, own))
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{path}: weights must have the names and shapes of the model, got {shapes.get(name, 'nothing')} for {name}, where "
            f"the model has {wanted.get(name, 'nothing')} ({len(differ)} names differ). Create the model of this size, as "
            "gpt2_lm_base for gpt2."
        )
    model.load_state_dict(weights)
