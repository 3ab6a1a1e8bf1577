"""Build the model of a recipe, and check it without memory before a run starts."""

import re
import tempfile
import warnings
from dataclasses import fields
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..core.components import Components
from ..data import Preprocessing
from ..models import FilterVisionTransformer
from ..models.checkpoints import WEIGHTS, config_beside, first_line
from ..recipe import Recipe
from ..tasks.base import task_of
from ..utils import plugins
from ..utils.io import UNFINISHED
from ..utils.suggestions import did_you_mean
from .checkpoints import save_weights
from .loop import build_optimizer, seed_everything
from .run_dir import BEST, LAST

__all__ = ["build_model", "check_round_trip", "checkpoint_of", "dry_run", "model_kwargs"]


def checkpoint_of(path: Path) -> Path:
    """Return the folder of a run's best weights, or of its last weights if there are no best ones.

    A path that is not the folder of a run is returned unchanged.

    Example:
        >>> checkpoint_of(Path("weights.safetensors")).name
        'weights.safetensors'
    """
    return next((path / name for name in (BEST, LAST) if (path / name / WEIGHTS).is_file()), path)


def model_kwargs(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments of the recipe's model, without those that select its initial weights."""
    options = recipe.model.model_dump(exclude={"name", "pretrained", "checkpoint"})
    if recipe.model.name.startswith("local-dir:"):  # The folder names the arguments of its model.
        options = {**config_beside(Path(recipe.model.name.removeprefix("local-dir:"))).get("model_args", {}), **options}
    return {**task_of(recipe).model_kwargs(recipe), **options}


def build_model(recipe: Recipe, **kwargs: Any) -> Any:
    """Build the recipe's model, initialized from the recipe's seed or with the trained weights that it names.

    Its ``pretrained_cfg`` holds the preprocessing of the recipe. If the recipe gives no mean or standard deviation, they are
    those of the run whose weights the model starts from.

    Args:
        recipe: Recipe of one model.
        **kwargs: Keyword arguments for ``timm.create_model`` that replace those of the recipe.

    Raises:
        ValueError: The mean or standard deviation of the recipe does not fit the number of channels.
    """
    seed_everything(recipe.run.seed)
    model: Any = timm.create_model(
        recipe.model.name, **{"pretrained": recipe.model.pretrained, **model_kwargs(recipe), **kwargs}
    )
    data = recipe.data
    given = data.model_dump(include=set(Preprocessing._fields), exclude_none=True)
    for name in ("mean", "std"):
        if len(given.get(name, [0])) not in (1, data.input_size[0]):
            raise ValueError(
                f"data.{name} must have 1 value or one per channel, {data.input_size[0]}, got {len(given[name])}. Correct it."
            )
    config = resolve_data_config({**_statistics_of(recipe), **given}, model=model)
    config = Preprocessing.for_channels(config, data.input_size[0])
    model.pretrained_cfg = {**model.pretrained_cfg, **config, "num_classes": data.num_classes or model.num_classes}
    name = recipe.model.name.partition(".")[0]  # The tag after the point names weights, not an architecture.
    if timm.is_model(name):  # Loading needs the registered name. A registered function may build a model of another name.
        model.pretrained_cfg["architecture"] = name
    return model


def check_round_trip(recipe: Recipe, model: nn.Module, folder: Path) -> None:
    """Save and reload a model once. The copy must equal the original, because it is what is evaluated later.

    Args:
        recipe: Recipe of the model.
        model: Result of `build_model`.
        folder: Folder for the temporary copy. It is created if it does not exist.

    Raises:
        ValueError: The copy cannot be loaded, or differs from the original.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as saved,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),  # Random draws of training must not depend on this check.
    ):
        warnings.simplefilter("ignore")  # The same warnings were shown when the model was built.
        save_weights(model.state_dict(), model, model_kwargs(recipe), None, Path(saved))
        try:
            copy = timm.create_model(f"local-dir:{saved}", pretrained=True)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            problem = f"an error ({first_line(error)})"
        else:
            problem = _difference(model, copy)
    if not problem:
        return
    raise ValueError(
        f"{recipe.model.name} must be the same after it is saved and loaded, got {problem}. In the function registered with "
        "timm, pass pretrained, pretrained_cfg and all other arguments to the model, and build the same model each time."
    )


def _difference(model: nn.Module, copy: nn.Module) -> str:
    """Return the first difference between two models in words, or an empty text if they are the same."""
    for ours, theirs in zip_longest(str(model).splitlines(), str(copy).splitlines(), fillvalue="nothing"):
        if ours != theirs:
            return f"{theirs.strip()} instead of {ours.strip()}"
    state, loaded = model.state_dict(), copy.state_dict()
    same = state.keys() == loaded.keys() and all(torch.equal(loaded[name], state[name].to(loaded[name])) for name in state)
    return "" if same else "other weights"


def _statistics_of(recipe: Recipe) -> dict[str, Any]:
    """Return mean and standard deviation from the configuration of the weights that the recipe's model starts from."""
    if not recipe.model.checkpoint:
        return {}
    known = config_beside(checkpoint_of(Path(recipe.model.checkpoint))).get("pretrained_cfg", {})
    return Preprocessing.for_channels({key: known[key] for key in ("mean", "std") if key in known}, recipe.data.input_size[0])


def dry_run(recipe: Recipe) -> None:
    """Build model and optimizer on the meta device and run one image through, to find mistakes before a long start.

    Raises:
        ValueError: The model or the optimizer cannot be built, or the model does not take the recipe's images.
    """
    try:
        output = _tried(recipe, "meta")
    except NotImplementedError:  # An operation has no meta implementation, so the model cannot be checked.
        return
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{recipe.model.name}: {error}{_hint(str(error), recipe)}") from error
    expected = [1, *task_of(recipe).output_shape(recipe)]
    if list(output.shape) != expected:
        raise ValueError(
            f"The output of {recipe.model.name} must have the shape {expected} for one sample, got {list(output.shape)}. Check "
            "data.num_classes and the task."
        )


def _tried(recipe: Recipe, device: str) -> Tensor:
    """Return the output for one image, after everything that asks for the model has been tried."""
    try:
        model = build_model(recipe, device=device, pretrained=False)
        _check_abilities(recipe, model)
        build_optimizer(model, recipe.optimizer)
        task = task_of(recipe)
        output = model.eval()(task.example_input(recipe, device))
        task.check_model(recipe, model, device)
        return output
    except RuntimeError as error:
        if device == "meta" and "meta" in str(error):  # Components of users may create tensors on the CPU.
            return _tried(recipe, "cpu")
        raise


def _check_abilities(recipe: Recipe, model: Any) -> None:
    """Check that the model supports what the recipe asks for. Not all models of timm do."""
    if recipe.optimizer.layer_decay is not None:
        try:
            model.group_matcher()
        except AttributeError as error:
            raise ValueError(
                "the model must have a group_matcher for layer decay, got none. Leave out optimizer.layer_decay."
            ) from error
    if recipe.run.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                "the model must support gradient checkpointing, got none. Leave out run.grad_checkpointing."
            ) from error
        model.set_grad_checkpointing(False)


def _hint(message: str, recipe: Recipe) -> str:
    """Return a remedy to append to an error of building a model: the nearest known names, or the size to build it for."""
    if re.search(r"was built for|doesn't match model", message):  # messages of this package and of timm's patch embeddings
        return f" Set model.img_size=[{','.join(map(str, recipe.data.input_size[1:]))}]: positions are resampled to it."
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unknown is not None:
        word, known = unknown[1], [p for cls in (VisionTransformer, FilterVisionTransformer) for p in signature(cls).parameters]
        if word in {component.name for component in fields(Components)}:
            return (
                ". Only models of this package have it. For a ViT of timm, use model.name=converted_vit "
                f"model.source={recipe.model.name}"
            )
    else:
        missing = re.search(r"Unknown model \((\S+)\)", message)  # the model of the recipe or its backbone
        word, known = (missing[1], timm.list_models()) if missing else ("", [])
    suggestion = did_you_mean(word, known)
    return f". {suggestion}" * bool(suggestion) + plugins.hint(message)
