"""Read a recipe from YAML and the command line, and check it before training starts.

A recipe is a YAML file of flat keys. Each key belongs to one of the groups in `GROUPS`, which are classes in separate
files; the last one extends transformers' TrainingArguments. `training.recipe.files` reads the files,
`training.recipe.command_line` the keys that replace theirs, and the resulting mapping is checked group by group.
"""

import dataclasses
import json
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from modeling_moon.configuration_moon import PRESETS, MoonConfig
from retrieval.vectors.vector_files import is_vector_folder
from training.errors import RecipeError
from training.model.quantization import check_quantization
from training.parallel.launching import check_launch
from training.recipe.candidates import check_candidates, check_sample_filter
from training.recipe.checking import NOT_FOR_RECIPES, check_keys, make_group
from training.recipe.command_line import with_arguments
from training.recipe.data import DataArguments
from training.recipe.files import read_recipe_file, refuse_nested_replace
from training.recipe.loss import AUTO, LossArguments
from training.recipe.model import ModelArguments
from training.recipe.old_names import with_new_names
from training.recipe.pairs import PairArguments
from training.recipe.reasoning import ReasoningArguments, check_reasoning
from training.recipe.training import (
    MoonTrainingArguments,
    check_training,
    make_training,
    optimizer_of,
    training_defaults,
)
from training.recipe.usage import usage_of

__all__ = ["AUTO", "GROUPS", "Recipe", "RecipeError", "make_recipe", "parse_recipe", "usage"]
GROUPS = {
    "model": ModelArguments,
    "pairs": PairArguments,
    "data": DataArguments,
    "loss": LossArguments,
    "reasoning": ReasoningArguments,
    "training": MoonTrainingArguments,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe, which does not change after it has been read.

    Args:
        path: the YAML file.
        model, pairs, data, loss, reasoning, training: the keys by group; see the classes in `GROUPS`. transformers uses
            `training` as its arguments and writes to it.
        resolved: every key that defines the run and its value. Written as YAML, it is a recipe of the same run.
    """

    path: Path
    model: ModelArguments
    pairs: PairArguments
    data: DataArguments
    loss: LossArguments
    reasoning: ReasoningArguments
    training: MoonTrainingArguments
    resolved: dict[str, Any]


def usage() -> str:
    """Return the text of `--help`: the command, the recipes of the project, and the keys of a recipe."""
    return usage_of(GROUPS.values(), default_values())


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """Read `RECIPE.yaml --key value …` into a checked recipe.

    Args:
        arguments: the command line without the program's name.

    Raises:
        RecipeError: the recipe file is missing, a key does not exist (the message names the nearest key), a value has
            the wrong type, or a path, split or combination of keys cannot work.
    """
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("recipe: found none; expected RECIPE.yaml [--key value …], see training/recipes")
    path = Path(arguments[0])
    return make_recipe(path, read_recipe_file(path), arguments[1:])


def make_recipe(path: Path, values: dict[str, Any], arguments: Sequence[str]) -> Recipe:
    """Check the keys of a recipe and return the recipe.

    Args:
        path: the name of the recipe; the file is not read.
        values: the keys.
        arguments: `--key value …`.

    Raises:
        RecipeError: see `parse_recipe`.
    """
    hints = known_keys()
    values = with_new_names(values, str(path))
    check_keys(values, hints, where=str(path))
    values = {"output_dir": str(Path("runs") / path.stem)} | with_arguments(values, arguments, hints, default_values())
    refuse_nested_replace(values)
    groups: dict[str, Any] = {}
    messages: list[str] = []
    for name, group in GROUPS.items():
        group_values = {key: values[key] for key in keys_of(group) if key in values}
        try:
            groups[name] = make_training(group_values) if name == "training" else make_group(group, group_values)
        except RecipeError as error:
            messages.append(str(error))
    if messages:
        raise RecipeError("\n".join(messages))
    recipe = Recipe(path, **groups, resolved=_resolved(values, list(groups.values())[:-1]))
    _check_recipe(recipe)
    return recipe


def keys_of(group: Any) -> list[str]:
    """Return the names of the keys of a group, given its class or an instance."""
    return [entry.name for entry in dataclasses.fields(group) if entry.init]


def known_keys() -> dict[str, Any]:
    """Return every recipe key with its type."""
    hints = [typing.get_type_hints(group, include_extras=True) for group in GROUPS.values()]
    return {key: types[key] for group, types in zip(GROUPS.values(), hints, strict=True) for key in keys_of(group)}


def default_values() -> dict[str, Any]:
    """Return every recipe key with its default."""
    return _values_of(group() for name, group in GROUPS.items() if name != "training") | training_defaults(
        MoonTrainingArguments
    )


def _values_of(groups: Iterable[Any]) -> dict[str, Any]:
    return {key: getattr(group, key) for group in groups for key in keys_of(group)}


def _resolved(values: dict[str, Any], groups: Iterable[Any]) -> dict[str, Any]:
    """Return every key of the project, and the keys of TrainingArguments that differ from their default."""
    resolved, library = _values_of(groups), training_defaults(TrainingArguments)
    for key, default in training_defaults(MoonTrainingArguments).items():
        value = values.get(key, default)
        always = key in ("seed", "max_steps", "learning_rate") or key not in library
        if key not in NOT_FOR_RECIPES and key not in ("overwrite", "hub_token") and (always or value != library[key]):
            resolved[key] = value
    return resolved


def _check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for combinations of keys that do not work, before data or a model is loaded."""
    _check_start(recipe.model)
    _check_place("compatible_with", recipe.loss.compatible_with)
    _check_teachers(recipe.loss)
    _check_start_reasons(recipe)
    _check_streaming(recipe)
    if recipe.loss.encode_chunk_size is not None:
        _check_chunks(recipe.training)
    check_training(recipe.training)
    try:
        check_quantization(recipe.model)
        check_launch(recipe)
        check_reasoning(recipe.reasoning, vars(recipe))
        check_candidates(recipe.pairs, recipe.loss, recipe.training, recipe.reasoning.infonce_weight)
        check_sample_filter(recipe.pairs, recipe.loss)
        check_keys(recipe.reasoning.cold_start or {}, known_keys(), where="cold_start")
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _check_start(model: ModelArguments) -> None:
    if (model.base is None) == (model.small_base is None):
        found = "neither is" if model.base is None else "both are"
        raise RecipeError(f"base and small_base: {found} set; expected exactly one of them")
    _check_place("base", model.base)


def _check_place(key: str, name: str | None) -> None:
    """Raise RecipeError for a checkpoint that is neither a folder nor a hub id."""
    if name is None or Path(name).is_dir():
        return
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:  # not a hub id
        raise RecipeError(f"{key}: found no folder {Path(name).resolve()}; expected a checkpoint or a hub id")


def _check_teachers(loss: LossArguments) -> None:
    """Raise RecipeError for a teacher's folder that `moon3 embed` did not write."""
    for number, teacher in enumerate(loss.teachers):
        folders = teacher.get("vectors", [])
        for folder in folders if isinstance(folders, list) else [folders]:
            if not is_vector_folder(folder):
                raise RecipeError(
                    f"teachers[{number}]: vectors: found no vectors in {Path(folder).resolve()}; expected a folder that "
                    "moon3 embed wrote"
                )


def _check_start_reasons(recipe: Recipe) -> None:
    """Raise RecipeError for a stage with reasoning that starts from a local checkpoint or a preset without reasoning."""
    base = recipe.model.base
    if base is not None and not Path(base).is_dir():  # a hub id is checked when its configuration is downloaded
        return
    path = Path(base or "") / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if base is not None and path.is_file() else {}
    check_model_reasons(recipe, config if config.get("model_type") == MoonConfig.model_type else None)


def check_model_reasons(recipe: Recipe, config: dict[str, Any] | None) -> None:
    """Raise RecipeError for a stage with reasoning whose model does not reason.

    Args:
        recipe: the recipe, with the stage and, for a base that is not a Moon checkpoint, the preset.
        config: the configuration of the Moon checkpoint from which the stage starts. None: `preset` and `moon` decide.

    Raises:
        RecipeError: the model does not reason; the message names the keys.
    """
    model, stage = recipe.model, recipe.reasoning.stage
    if stage == "contrastive":
        return
    if config is not None:
        budget, where = config.get("max_reasoning_tokens"), f"base: found the Moon checkpoint {model.base}"
        accepted = "a Moon checkpoint with max_reasoning_tokens, such as one of preset moon3"
    else:
        tokens = dict.fromkeys((name for name in MoonConfig.__annotations__ if name.endswith("_token_id")), 0)
        preset = PRESETS[model.preset](**tokens).max_reasoning_tokens
        budget = (model.moon or {}).get("max_reasoning_tokens", preset)
        where = f"preset, moon.max_reasoning_tokens: found {model.preset}"
        accepted = "preset: moon3, or moon.max_reasoning_tokens with moon.readout: emb"
    if budget is None:
        raise RecipeError(
            f"stage: found {stage!r} for a model without reasoning ({where} and max_reasoning_tokens: None); "
            f"expected {accepted}; or stage: contrastive"
        )


def _check_streaming(recipe: Recipe) -> None:
    """Raise RecipeError for keys that need whole tables: evaluations, several products of a query, and interactions."""
    data, pairs, training = recipe.data, recipe.pairs, recipe.training
    if data.streaming and any("encoder" in teacher for teacher in recipe.loss.teachers):
        raise RecipeError("teachers: an encoder does not work with streaming; expected vectors")
    if data.streaming and (training.evaluate_before or training.evaluate_after):
        raise RecipeError(
            "evaluate_before, evaluate_after: do not work with streaming, whose tables do not have a gallery; "
            "set both to false, and evaluate the trained model with moon3 evaluate"
        )
    for key in ("hard_negatives", "positives_per_query"):
        if data.streaming and getattr(pairs, key) > 1:
            found = getattr(pairs, key)
            raise RecipeError(
                f"{key}: {found} does not work with streaming; expected at most 1, because a row contains one"
            )
    if data.streaming and data.interaction_half_life_days is not None:
        found = data.interaction_half_life_days
        raise RecipeError(f"interaction_half_life_days: {found:g} does not work with streaming; expected null")


def _check_chunks(training: MoonTrainingArguments) -> None:
    """Raise RecipeError for keys that do not work with encode_chunk_size."""
    if training.torch_empty_cache_steps is not None:
        raise RecipeError("torch_empty_cache_steps: does not work with encode_chunk_size; expected only one of them")
    optimizer = optimizer_of(training)
    if "lomo" in optimizer:
        raise RecipeError(
            f"optim: {optimizer} does not work with encode_chunk_size; expected an optimizer that updates after "
            "the whole batch"
        )
