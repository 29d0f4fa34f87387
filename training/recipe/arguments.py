"""Recipes: what a training run is, read from YAML and the command line, checked before anything starts.

A recipe is one YAML file of flat keys, which belong to the groups in `GROUPS`: each is a class in a file of its own, of which
the last is transformers' own TrainingArguments. `training.recipe.files` reads the files, `training.recipe.command_line` what
replaces their keys, and one mapping of all keys is then checked group by group.
"""

import dataclasses
import json
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from modeling_moon.configuration_moon import PRESETS, MoonConfig
from training.errors import RecipeError
from training.model.quantization import check_quantization
from training.parallel.launching import check_launch
from training.recipe.candidates import check_candidates
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
    """A checked recipe. Nothing of it changes after it was read.

    Args:
        path: the YAML file.
        model, pairs, data, loss, reasoning, training: its keys by topic; see the classes in `GROUPS`. transformers writes
            to `training`, which it also takes as its own.
        resolved: every key that defines the run with its value, ready to be written as YAML and run again.
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
    """Return what `--help` prints: how to call, the recipes there are, and the keys of a recipe."""
    return usage_of(GROUPS.values())


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """Read `RECIPE.yaml --key value …` into a checked recipe.

    Args:
        arguments: the command line without the program's name.

    Raises:
        RecipeError: no recipe file; a key that does not exist (with the nearest one that does); a value of the wrong
            type; a path, split or combination that cannot work.
    """
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("recipe: found none; expected RECIPE.yaml [--key value …], see training/recipes")
    path = Path(arguments[0])
    return make_recipe(path, read_recipe_file(path), arguments[1:])


def make_recipe(path: Path, values: dict[str, Any], arguments: Sequence[str]) -> Recipe:
    """Return keys as a checked recipe.

    Args:
        path: what the recipe is called; nothing is read from it.
        values: the keys.
        arguments: `--key value …`.

    Raises:
        RecipeError: as `parse_recipe`.
    """
    hints = known_keys()
    values = with_new_names(values, str(path))
    check_keys(values, hints, where=str(path))
    values = {"output_dir": str(Path("runs") / path.stem)} | with_arguments(values, arguments, hints, default_values())
    refuse_nested_replace(values)
    made: dict[str, Any] = {}
    refused: list[str] = []
    for name, group in GROUPS.items():
        given = {key: values[key] for key in keys_of(group) if key in values}
        try:
            made[name] = make_training(given) if name == "training" else make_group(group, given)
        except RecipeError as error:
            refused.append(str(error))
    if refused:
        raise RecipeError("\n".join(refused))
    recipe = Recipe(path, **made, resolved=_resolved(values, list(made.values())[:-1]))
    _check_recipe(recipe)
    return recipe


def keys_of(group: Any) -> list[str]:
    """Return the names of a group's keys, of its class or of one that was made."""
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


def _resolved(values: dict[str, Any], ours: Iterable[Any]) -> dict[str, Any]:
    """Return every key of our groups, and those of TrainingArguments that differ from the library's default."""
    resolved, library = _values_of(ours), training_defaults(TrainingArguments)
    for key, default in training_defaults(MoonTrainingArguments).items():
        value = values.get(key, default)
        always = key in ("seed", "max_steps", "learning_rate") or key not in library
        if key not in NOT_FOR_RECIPES and key not in ("overwrite", "hub_token") and (always or value != library[key]):
            resolved[key] = value
    return resolved


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what groups cannot see by themselves, before anything is read or built."""
    _check_start(recipe.model)
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
        check_keys(recipe.reasoning.cold_start or {}, known_keys(), where="cold_start")
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _check_start(model: ModelArguments) -> None:
    if (model.base is None) == (model.small_base is None):
        found = "neither" if model.base is None else "both"
        raise RecipeError(f"base and small_base: found {found}; expected exactly one of them")
    if model.base is not None and _looks_local(model.base) and not Path(model.base).is_dir():
        raise RecipeError(f"base: found no folder {Path(model.base).resolve()}; expected a checkpoint or a hub id")


def _looks_local(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1


def _check_start_reasons(recipe: Recipe) -> None:
    """Refuse a stage of reasoning that begins with a model without reasoning, where files on this machine say so."""
    base = recipe.model.base
    if base is not None and not Path(base).is_dir():  # of the hub: what it is shows when its configuration is there
        return
    config = Path(base or "") / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if base is not None and config.is_file() else {}
    check_reasons(recipe, found if found.get("model_type") == MoonConfig.model_type else None)


def check_reasons(recipe: Recipe, config: dict[str, Any] | None) -> None:
    """Refuse a stage of reasoning for a model that does not reason.

    Args:
        recipe: whose stage it is, and whose preset where the base is none of Moon.
        config: the configuration of a Moon checkpoint that the stage begins with; None: preset and `moon` say what it is.

    Raises:
        RecipeError: names the keys.
    """
    model, stage = recipe.model, recipe.reasoning.stage
    if stage == "contrastive":
        return
    if config is not None:
        budget, where = config.get("max_reasoning_tokens"), f"base: found the Moon checkpoint {model.base}"
        accepted = "a Moon checkpoint with max_reasoning_tokens, as of preset moon3"
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
    """Refuse what only whole tables have: a gallery, and rows with more than one product, one hard negative and no log."""
    data, pairs, training = recipe.data, recipe.pairs, recipe.training
    if data.streaming and (training.evaluate_before or training.evaluate_after):
        raise RecipeError(
            "evaluate_before, evaluate_after: found with streaming, whose tables have no gallery; "
            "expected moon3 evaluate on the trained model"
        )
    for key in ("hard_negatives", "positives_per_query"):
        if data.streaming and getattr(pairs, key) > 1:
            found = getattr(pairs, key)
            raise RecipeError(f"{key}: found {found} with streaming; expected up to 1, which is what a row holds")
    if data.streaming and data.interaction_half_life_days is not None:
        found = data.interaction_half_life_days
        raise RecipeError(f"interaction_half_life_days: found {found:g} with streaming; expected leaving it out")


def _check_chunks(training: MoonTrainingArguments) -> None:
    """Refuse what a step in chunks does not do."""
    if training.torch_empty_cache_steps is not None:
        raise RecipeError("torch_empty_cache_steps: found with encode_chunk_size; expected one of them")
    optimizer = optimizer_of(training)
    if "lomo" in optimizer:
        raise RecipeError(
            f"optim: found {optimizer} with encode_chunk_size; expected an optimizer that steps after the whole batch"
        )
