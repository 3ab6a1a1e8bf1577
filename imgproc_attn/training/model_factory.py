"""The model of a recipe: built, and tried without memory before anything starts."""

import difflib
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
from .checkpoints import save_weights
from .loop import build_optimizer, seed_everything
from .run_dir import BEST, LAST


def checkpoint_of(path: Path) -> Path:
    """The weights of a run's folder, the best before the last; any other path as it is."""
    return next((path / name for name in (BEST, LAST) if (path / name / WEIGHTS).is_file()), path)


def model_kwargs(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the recipe's model, without those that say which weights it starts from."""
    options = recipe.model.model_dump(exclude={"name", "pretrained", "checkpoint"})
    if recipe.model.name.startswith("local-dir:"):  # what the model there is made with
        options = {**config_beside(Path(recipe.model.name.removeprefix("local-dir:"))).get("model_args", {}), **options}
    if recipe.segmentation is not None:  # positions are made for the crops of training
        options = {"img_size": recipe.data.input_size[1:], **options}
    return {"num_classes": recipe.data.num_classes, "in_chans": recipe.data.input_size[0], **options}


def build_model(recipe: Recipe, **kwargs: Any) -> Any:
    """The recipe's model, freshly initialized from its seed, or with the trained weights it names.

    Its ``pretrained_cfg`` says how the recipe prepares images; where that is silent, mean and standard deviation are those of
    the run whose weights it starts from.
    """
    seed_everything(recipe.run.seed)
    model: Any = timm.create_model(
        recipe.model.name, **{"pretrained": recipe.model.pretrained, **model_kwargs(recipe), **kwargs}
    )
    data = recipe.data
    given = data.model_dump(include=set(Preprocessing._fields), exclude_none=True)
    for name in ("mean", "std"):
        if len(given.get(name, [0])) not in (1, data.input_size[0]):
            raise ValueError(f"data.{name} has {len(given[name])} values for {data.input_size[0]} channels.")
    config = resolve_data_config({**_statistics_of(recipe), **given}, model=model)
    config = Preprocessing.for_channels(config, data.input_size[0])
    model.pretrained_cfg = {**model.pretrained_cfg, **config, "num_classes": data.num_classes}
    name = recipe.model.name.partition(".")[0]  # timm's tags are of weights
    if timm.is_model(name):  # under which the weights are found again; one of one's own may build another one's
        model.pretrained_cfg["architecture"] = name
    return model


def check_round_trip(recipe: Recipe, model: nn.Module, folder: Path) -> None:
    """Keep a model for a moment, and load it as everybody will: what is measured later must be what was trained.

    Args:
        recipe: Of the model.
        model: As `build_model` made it.
        folder: Where there is room; made if need be.

    Raises:
        ValueError: It is not the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as place,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),  # no draw of training depends on this
    ):
        warnings.simplefilter("ignore")  # told when the model was made
        save_weights(model.state_dict(), model, model_kwargs(recipe), None, Path(place))
        try:
            again = timm.create_model(f"local-dir:{place}", pretrained=True)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            problem = f"it would not come back from its folder ({first_line(error)})"
        else:
            problem = _difference(model, again)
    if not problem:
        return
    raise ValueError(
        f"{recipe.model.name}: {problem}. A function that is registered with timm passes pretrained, pretrained_cfg and all "
        "else to the model that it builds, and builds the same one each time."
    )


def _difference(model: nn.Module, again: nn.Module) -> str:
    """Nothing, if they are the same."""
    for ours, theirs in zip_longest(str(model).splitlines(), str(again).splitlines(), fillvalue="nothing"):
        if ours != theirs:
            return f"it would come back from its folder with {theirs.strip()} in the place of {ours.strip()}"
    known, found = model.state_dict(), again.state_dict()
    same = known.keys() == found.keys() and all(torch.equal(found[name], known[name].to(found[name])) for name in known)
    return "" if same else "it would come back from its folder with other weights"


def _statistics_of(recipe: Recipe) -> dict[str, Any]:
    """Mean and standard deviation in the configuration beside the weights that the recipe's model starts from."""
    if not recipe.model.checkpoint:
        return {}
    known = config_beside(checkpoint_of(Path(recipe.model.checkpoint))).get("pretrained_cfg", {})
    return Preprocessing.for_channels({key: known[key] for key in ("mean", "std") if key in known}, recipe.data.input_size[0])


def dry_run(recipe: Recipe) -> None:
    """Build model and optimizer once without memory, and push an image through, so that no mistake waits behind a long start.

    Raises:
        ValueError: A model or an optimizer that cannot be built, or a model that does not take the recipe's images.
    """
    try:
        output = _tried(recipe, "meta")
    except NotImplementedError:  # an operation without a meta form: nothing can be said
        return
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{recipe.model.name}: {error}{_hint(str(error), recipe)}") from error
    expected = [1, *task_of(recipe).output_shape(recipe)]
    if list(output.shape) != expected:
        raise ValueError(
            f"The output of {recipe.model.name} must be {expected} for one image, got {list(output.shape)}: one logit per "
            "class of data.num_classes, or what the task asks for."
        )


def _tried(recipe: Recipe, device: str) -> Tensor:
    """Return the output for one image, after everything that asks for the model has been tried."""
    try:
        model = build_model(recipe, device=device, pretrained=False)
        _check_abilities(recipe, model)
        build_optimizer(model, recipe.optimizer)
        output = model.eval()(torch.empty(1, *recipe.data.input_size, device=device))
        task_of(recipe).check_model(recipe, model, device)
        return output
    except RuntimeError as error:
        if device == "meta" and "meta" in str(error):  # members of one's own make their parameters where they like
            return _tried(recipe, "cpu")
        raise


def _check_abilities(recipe: Recipe, model: Any) -> None:
    """That not all of timm's models have."""
    if recipe.optimizer.layer_decay is not None:
        try:
            model.group_matcher()
        except AttributeError as error:
            raise ValueError("it does not tell its layers (no group_matcher); leave out optimizer.layer_decay.") from error
    if recipe.run.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError("it cannot recompute its blocks; leave out run.grad_checkpointing.") from error
        model.set_grad_checkpointing(False)


def _hint(message: str, recipe: Recipe) -> str:
    """The nearest names, where a model or a keyword of it is not known; or the size to build it for."""
    if re.search(r"was built for|doesn't match model", message):  # ours, and that of timm's patch embeddings
        return f" Set model.img_size=[{','.join(map(str, recipe.data.input_size[1:]))}]: positions are resampled to it."
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unknown is not None:
        word, known = unknown[1], [p for cls in (VisionTransformer, FilterVisionTransformer) for p in signature(cls).parameters]
        if word in {component.name for component in fields(Components)}:
            return f"; only models of this package have it; of a ViT: model.name=converted_vit model.source={recipe.model.name}"
    else:
        missing = re.search(r"Unknown model \((\S+)\)", message)  # the recipe's, or its backbone
        word, known = (missing[1], timm.list_models()) if missing else ("", [])
    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=3)
    found = f"; near it: {', '.join(near)}" if near else ""
    return found + plugins.hint(message)
