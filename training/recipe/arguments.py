"""Recipes: what a training run is, read from YAML and the command line, checked before anything starts.

A recipe is one YAML file of flat keys. `--key value` on the command line replaces a key, `--key.part value` one part of
a mapping, a list is written `--key a b` or `--key [a, b]`, and `--key null` is YAML's null; the names are those of the
dataclasses in `GROUPS`, of which the last is transformers' own TrainingArguments. `training.recipe.files` reads the files.
"""

import dataclasses
import difflib
import enum
import inspect
import json
import math
import os
import re
import textwrap
import typing
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_flash_attn_2_available

from model_cards.facts import CardError
from model_cards.licences import check_data_licence
from modeling_moon.configuration_moon import PRESETS, MoonConfig
from processing_moon.processing_moon import DEFAULT_INSTRUCTIONS
from product_data.catalogue.making import make_catalogue
from product_data.interactions import ACTION_WEIGHTS, InteractionOptions
from product_data.reading import READING_KEYS, ReadingOptions
from training.batches.negatives import AUTO
from training.losses.dual_alignment import FORMS as ALIGNMENT_FORMS
from training.losses.sample_filter import SampleFilter
from training.model.quantization import check_quantization
from training.model.small_base import SmallBaseConfig
from training.parallel.launching import check_launch
from training.places import RECIPES
from training.recipe.candidates import check_candidates
from training.recipe.command_line import steps_or_auto, take_nulls
from training.recipe.files import RecipeError, read_recipe_file, refuse_nested_replace
from training.recipe.reasoning import ReasoningArguments, check_reasoning
from training.recipe.values import alternatives, check_value, kind_name

FORMS = ("image", "text", "both")
MOON_KEYS = (
    "markers",
    "title_markers",
    *(
        name
        for name in MoonConfig.__annotations__
        if not name.endswith(("_token_id", "_ids", "_end_id", "_config", "_configs"))
    ),
)
LORA_KEYS = ("r", "alpha", "dropout", "target_modules", "target_parameters", "modules_to_save")
# Settings of TrainingArguments that mean nothing here, each with what to use instead.
NOT_FOR_RECIPES = {
    "num_train_epochs": "training pairs are drawn without epochs; set max_steps or train_minutes",
    "resume_from_checkpoint": "run the same command again and it resumes from the last good checkpoint in output_dir",
    "ignore_data_skip": "a resumed run continues exactly where the data stopped",
    "data_seed": "seed decides which pairs are drawn",
    "train_sampling_strategy": "pairs are drawn by query_mix, one pure function of (seed, position)",
    "remove_unused_columns": "the collator makes the model's columns",
    "auto_find_batch_size": "the batch size decides which pairs are drawn; set per_device_train_batch_size",
    "load_best_model_at_end": "nothing is evaluated during training; evaluate the checkpoints with moon3 evaluate",
    "eval_strategy": "use evaluate_before and evaluate_after, or moon3 evaluate on a checkpoint",
    "save_only_model": "a checkpoint without its optimizer cannot be resumed from",
    "label_smoothing_factor": "InfoNCE has no labels to smooth",
} | dict.fromkeys(
    ("do_train", "do_eval", "do_predict", "eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model")
    + ("greater_is_better", "prediction_loss_only"),
    "a recipe always trains, and nothing is evaluated on the way; use evaluate_before and evaluate_after",
)
_SHARDED = "the launcher spreads a model over GPUs: accelerate launch --config_file training/launch/fsdp2.yaml"
NOT_FOR_RECIPES |= dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _SHARDED)
NOT_FOR_RECIPES["accelerator_config"] = "how batches are spread over processes decides which pairs each of them draws"
# What other programs call a key.
SHORT_NAMES = {
    "lr": "learning_rate",
    "bs": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "epochs": "max_steps",
    "steps": "max_steps",
    "wd": "weight_decay",
}
# Optimizers that are made with the model: before it is loaded, only whether their library is there can be said.
_OPTIMIZERS_OF_A_MODEL = ("galore", "apollo", "lomo")


@dataclass
class ModelArguments:
    """Which model is trained, and how much of it.

    Args:
        architecture: "moon", or "dual_tower", the baseline without a joint transformer.
        base: a Moon checkpoint, or a Qwen3-VL / Qwen2.5-VL checkpoint that is upcycled first: a folder or a hub id.
        small_base: sizes of a small base with random weights instead, the arguments of
            `training.model.small_base.make_base`; its tokenizer is trained on the texts of the training split.
        preset: the MoonConfig preset for upcycling.
        moon: MoonConfig arguments that replace those of the preset.
        lora: train adapters only: {r, alpha, dropout, target_modules, target_parameters, modules_to_save}, peft's
            words. The 3-D expert weights are target_parameters ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"].
        freeze: shell patterns of parameter names that stay as they are ("*visual*").
        learning_rates: shell patterns of parameter names with a learning rate of their own, {"*visual*": 1e-6}; the first
            pattern that fits a name counts, and the others learn by `learning_rate`.
        quantization: "4bit" or "8bit" keeps the linear layers of the text model so under the adapters of `lora` (QLoRA); see
            `training.model.quantization`. Needs a CUDA GPU and bitsandbytes.
        attn_implementation: "auto" is "flash_attention_2" on a GPU where that is installed, otherwise "sdpa".
    """

    architecture: Literal["moon", "dual_tower"] = "moon"
    base: str | None = None
    small_base: dict | str | None = None
    preset: str = "moon1"
    moon: dict | str | None = None
    lora: dict | str | None = None
    freeze: list[str] = field(default_factory=list)
    learning_rates: dict | str | None = None
    quantization: Literal["none", "8bit", "4bit"] = "none"
    attn_implementation: str = "auto"


@dataclass
class DataArguments:
    """Which pairs are drawn, and how an item becomes tensors.

    Args:
        data: "catalogue" or paths of data sets; an entry may also be a mapping {path: …, or products:, queries:,
            query_images:, interactions:, images:; name:, weight:, mask_groups:, licence:}, weight in draws relative to the
            other data sets, licence for the card of what is trained (docs/model_cards.md).
        catalogue: options of the embedded catalogue, {products: 600, …}.
        split: the split that is trained on. A data set that names no splits is split by us: a fifth of its products,
            variants together, becomes "test", the rest "train"; "all" trains on everything.
        query_mix: relative frequency of image-only, text-only and image+text queries; 12 : 3 : 2 is the paper's.
        target_mix: relative frequency of targets with both, image only, text only. The paper's targets always have
            both; the other forms are our design, because image-only galleries are reported.
        hard_negatives: products of the same category encoded beside each positive; with streaming one at most, the row's own.
        positives_per_query: the largest number of a query's known positives that are encoded with it; with streaming 1.
        action_weights: relevance of an action in an interactions table, above 0 and at most 1.
        interaction_half_life_days: an interaction counts half for every so many days that it is older than the newest
            of its table; None: age does not matter.
        derived_queries: where a data set has fewer queries of a form than products, also draw queries made from the
            products themselves (an altered view of the picture, the title, an attribute phrase).
        augment_queries: probability that the picture of a real query is altered, against overfitting few photos.
        mask_groups: variants of a query's answer are no negatives for it.
        core_crop: append the crop of the core product as a second picture where a box is known.
        instructions: replaces the processor's system message by task, {product: …, query: …}; a small model with few
            tokens per item learns faster with short ones.
        bucket_batches: batches of one query form and like length of text are formed within windows of so many batches;
            0: pairs stay in the order in which they are drawn.
        streaming: read `data` row by row, for tables larger than memory. Every entry is then a table of triplets: parquet
            files (a path or pattern), a data set of the hub (owner/name), or a mapping {parquet: …, or hub:, config:,
            split:, revision:; columns:, images:, name:, weight:, mask_groups:}, columns {query.title: NAME, …} replacing
            what is found by pattern. Of a table with a column "split" the rows of `split` and "all" are read.
        shuffle_rows: with streaming, rows that are read ahead and shuffled among each other.
        allow_urls: fetch pictures that are given as http(s) addresses, from public hosts only.
        max_tokens: token budget of an item, pictures and prompt included; "auto": what 99 % of the products and queries need,
            measured once (`training.assembly.token_budget`); None leaves the processor's own limit.
        max_image_tokens: largest number of image tokens per picture; None leaves the processor's own limit.
    """

    data: list[str] = field(default_factory=lambda: ["catalogue"])
    catalogue: dict | str | None = None
    split: str = "train"
    query_mix: dict | str | None = field(default_factory=lambda: {"image": 12, "text": 3, "both": 2})
    target_mix: dict | str | None = field(default_factory=lambda: {"both": 1})
    hard_negatives: int = 1
    positives_per_query: int = 1
    action_weights: dict | str | None = field(default_factory=lambda: dict(ACTION_WEIGHTS))
    interaction_half_life_days: float | None = None
    derived_queries: bool = True
    augment_queries: float = 0.0
    mask_groups: bool = True
    core_crop: bool = True
    instructions: dict | str | None = None
    bucket_batches: int = 0
    streaming: bool = False
    shuffle_rows: int = 1024
    allow_urls: bool = False
    max_tokens: int | str | None = None
    max_image_tokens: int | None = None


@dataclass
class LossArguments:
    """The loss, its negatives, and how a batch is encoded for it.

    Args:
        temperature: τ of InfoNCE, no unit. The paper gives none; 0.05 is our choice.
        queue_steps: w, the number of past steps whose candidates stay negatives (temporal negatives); 0: none. "auto": w follows
            from the number P of processes, so that P · (w + 1) is as near to MOON's 200 as can be: 2 with 64 processes, 199
            with one; see `training.batches.negatives.queue_length`.
        spatial_negatives: candidates of the other processes, and their past ones, are negatives too; false: each process
            compares its queries with its own products alone.
        queue_warmup_steps: steps during which the queue is filled and not yet compared with; below 1 a share of all steps.
        queue_momentum: m of a momentum encoder (MoCo) that fills the queue, such as 0.999; None: the model itself does.
        negative_margin: negatives that are nearer than the positive by more than this cosine similarity are left out, such
            as 0.1; None: only known positives and variants are.
        several_positives: known positives of a query among the items of all processes are positives, each by its weight;
            otherwise they are only no negatives. Those encoded for the query (positives_per_query) always are positives.
        loss_block_size: candidates compared at a time, for a loss whose memory does not grow with their number; None: all.
        matryoshka_dims: further widths at which each contrastive term is taken, beside the full one.
        matryoshka_weights: the weight of each of these widths, where the full one has 1; empty: all 1.
        sample_filter: triplets that the model does not trust count less; see `training.losses.sample_filter`.
        filter_threshold: φ below which a triplet counts less. The paper's is 0.6.
        filter_kappa: κ, the steepness of φ.
        filter_margin_start: m̄ at the first step, cosine similarity.
        filter_margin_end: m̄ at the last step.
        filter_schedule: how m̄ decays.
        filter_weight: a constant weight of triplets below the threshold, 0 to drop them; None: φ / threshold.
        dual_alignment: queries and products are encoded as text, as image and as both; see
            `training.losses.dual_alignment`.
        alignment_weights: constant ω of the forms, {t: 1, i: 1, mm: 1}; None: those of the model (moon2), or 1.
        intra_weight: weight of the alignment of each product's image with its text.
        symmetric_intra: texts also look for their images.
        router_loss_weight: ρ of the load-balancing loss L_aux, balanced within each forward pass of each process; 0 leaves
            it out.
        sparsity_weight: ς of the entropy L_sparsity of moon2's preference matrix; 0 leaves it out.
        encode_chunk_size: the largest number of queries, or of products, encoded with one graph (GradCache): for big
            batches in little memory, at the price of a second forward; None: all at once.
    """

    temperature: float = 0.05
    queue_steps: int | str = 8
    spatial_negatives: bool = True
    queue_warmup_steps: float = 0.0
    queue_momentum: float | None = None
    negative_margin: float | None = None
    several_positives: bool = False
    loss_block_size: int | None = None
    matryoshka_dims: list[int] = field(default_factory=list)
    matryoshka_weights: list[float] = field(default_factory=list)
    sample_filter: bool = False
    filter_threshold: float = 0.6
    filter_kappa: float = 20.0
    filter_margin_start: float = 0.1
    filter_margin_end: float = 0.0
    filter_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    filter_weight: float | None = None
    dual_alignment: bool = False
    alignment_weights: dict | str | None = None
    intra_weight: float = 1.0
    symmetric_intra: bool = False
    router_loss_weight: float = 0.0
    sparsity_weight: float = 0.0
    encode_chunk_size: int | None = None


@dataclass
class MoonTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with our defaults and these further keys.

    Args:
        train_minutes: a time budget in minutes: the step rate is measured on throwaway steps, and max_steps set from
            it once, before the first real step, so that the learning-rate schedule ends with the budget.
        evaluate_before: evaluate the model before training, into results_before.json.
        evaluate_after: evaluate the trained model, into results_after.json.
        evaluate_split: the split that these evaluations use.
        evaluate_products: evaluate on this many products of that split; None: on all.
        overwrite: start anew in an output_dir that holds a run.
    """

    warmup_steps: float = 0.05
    lr_scheduler_type: str = "cosine"
    save_total_limit: int | None = 2
    bf16: bool | None = None  # type: ignore[assignment]
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    train_sampling_strategy: str = "sequential"
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False
    train_minutes: float | None = None
    evaluate_before: bool = False
    evaluate_after: bool = False
    evaluate_split: str = "test"
    evaluate_products: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and on_gpu and torch.cuda.is_bf16_supported()
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        super().__post_init__()


GROUPS = (ModelArguments, DataArguments, LossArguments, ReasoningArguments, MoonTrainingArguments)


@dataclass
class Recipe:
    """A checked recipe.

    Args:
        path: the YAML file.
        model: see ModelArguments.
        data: see DataArguments.
        loss: see LossArguments.
        reasoning: see `training.recipe.reasoning.ReasoningArguments`.
        training: see MoonTrainingArguments.
        resolved: every key that defines the run with its value, ready to be written as YAML and run again.
        facts: what is found out about the data before training, for the provenance and the results.
        said: what has been printed once, and is not printed again after the step rate was measured.
    """

    path: Path
    model: ModelArguments
    data: DataArguments
    loss: LossArguments
    reasoning: ReasoningArguments
    training: MoonTrainingArguments
    resolved: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)


def usage() -> str:
    """Return what `--help` prints: how to call, the recipes there are, and the keys of a recipe."""
    folder = RECIPES
    recipes = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    topics = [inspect.cleandoc(group.__doc__ or "").replace("\nArgs:", "") for group in GROUPS]
    topics = [re.sub(r"^    (?=\w+: )", "    --", topic, flags=re.MULTILINE) for topic in topics]
    known = (entry.name for entry in dataclasses.fields(TrainingArguments) if entry.name not in NOT_FOR_RECIPES)
    theirs = textwrap.fill(" ".join(f"--{name}" for name in known), 120, break_on_hyphens=False)
    lines = [
        "usage: python training/train.py RECIPE.yaml [--key value …]",
        "       accelerate launch training/train.py RECIPE.yaml [--key value …]",
        f"Recipes in training/recipes: {recipes}",
        "A part of a mapping is replaced by --key.part value, a mapping whole by --key '{part: value}', a list by --key a b or "
        "--key '[a, b]'; --key null is YAML's null. Every key, by topic:",
    ]
    return "\n\n".join(["\n".join(lines), *topics, f"Those of TrainingArguments:\n{theirs}"])


def parse_recipe(arguments: list[str]) -> Recipe:
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


def make_recipe(path: Path, values: dict[str, Any], arguments: list[str]) -> Recipe:
    """Return keys as a checked recipe.

    Args:
        path: what the recipe is called; nothing is read from it.
        values: the keys; those that a dotted argument changes are changed in it.
        arguments: `--key value …`.

    Raises:
        RecipeError: as `parse_recipe`.
    """
    hints = known_keys()
    check_keys(values, hints, where=str(path))
    refuse_nested_replace(values)
    arguments = _merge_lists(_merge_dotted(arguments, values, hints), values, hints)
    arguments = take_nulls(arguments, values, hints)
    checked = {key: check_value(key, value, hints[key]) for key, value in values.items()}
    parser = _parser(GROUPS)
    _check_command_line(arguments, hints, parser)
    parser.set_defaults(**{"output_dir": str(Path("runs") / path.stem), **checked})
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise RecipeError(f"command line: found {unknown[0]!r} without its --key; expected --key value")
    for key in _mapping_keys(hints):
        setattr(namespace, key, _mapping(key, getattr(namespace, key)))
    model, data, loss, reasoning, training = (_build(group, namespace) for group in GROUPS)
    recipe = Recipe(path, model, data, loss, reasoning, training, resolved=_resolved(namespace))
    check_recipe(recipe)
    return recipe


def _parser(groups: typing.Iterable[Any]) -> "_Parser":
    parser = _Parser(list(groups), allow_abbrev=False)
    for key in ("--queue_steps", "--max_tokens"):
        if key in parser._option_string_actions:
            parser._option_string_actions[key].type = steps_or_auto
    return parser


def default_values(groups: typing.Iterable[Any]) -> dict[str, Any]:
    """Return every key of some dataclasses of recipe keys with its default."""
    return vars(_parser(groups).parse_args([]))


def _check_command_line(arguments: list[str], hints: dict[str, Any], parser: "_Parser") -> None:
    """Refuse unknown keys; argparse also knows `--some-key` and, for what is true by default, `--no_key`."""
    keys = [entry.partition("=")[0][2:].replace("-", "_") for entry in arguments if entry.startswith("--")]
    check_keys([key[3:] if key[3:] in hints and key[:3] == "no_" else key for key in keys], hints, where="command line")
    for key in keys:
        if key not in hints and f"--{key}" not in parser._option_string_actions:
            raise RecipeError(f"command line: found --{key}; expected --{key[3:]} {_no(hints[key[3:]])}")


def _no(hint: Any) -> str:
    """Return what is written on the command line for a key that is switched off."""
    return "false" if bool in alternatives(hint) else "value"


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises RecipeError in place of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"command line: {message}")


def known_keys() -> dict[str, Any]:
    """Return every recipe key with its type."""
    keys: dict[str, Any] = {}
    for group in GROUPS:
        hints = typing.get_type_hints(group)
        keys |= {entry.name: hints[entry.name] for entry in dataclasses.fields(group) if entry.init}
    keys["data"] = list  # entries may be names, paths or mappings
    keys["max_tokens"] = int | Literal["auto"] | None  # argparse knows no such type
    keys["queue_steps"] = int | Literal["auto"]  # argparse knows no such type
    return keys


def check_keys(keys: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    """Refuse keys that do not exist, naming the nearest that does, and those that mean nothing in a recipe."""
    known = list(known)
    for key in keys:
        if key not in known:
            short = SHORT_NAMES.get(key)
            near = [short] if short in known else difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise RecipeError(f"{where}: unknown key {key!r}; the nearest known key is {near[0]!r}")
        if key in NOT_FOR_RECIPES:
            raise RecipeError(f"{where}: key {key!r} cannot be set; {NOT_FOR_RECIPES[key]}")


def _mapping_keys(hints: dict[str, Any]) -> list[str]:
    """Return our keys that hold a mapping (TrainingArguments reads its own)."""
    ours = {entry.name for group in GROUPS[:-1] for entry in dataclasses.fields(group)}
    return [key for key in hints if key in ours and dict in alternatives(hints[key])]


def _mapping(key: str, value: Any) -> dict | None:
    """Return a mapping that may have come as YAML text from the command line."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"{key}: found {value!r}; expected a mapping such as '{{a: 1, b: 2}}'") from error
    if value is not None and not isinstance(value, dict):
        raise RecipeError(f"{key}: found {value!r} ({kind_name(type(value))}); expected a mapping")
    return value


def _merge_dotted(arguments: list[str], values: dict[str, Any], hints: dict[str, Any]) -> list[str]:
    """Put every `--key.part value` into the recipe's mapping of that key, and return the other arguments."""
    defaults = default_values(GROUPS[:-1])
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        name, equals, inline = arguments[position].removeprefix("--").partition("=")
        if not arguments[position].startswith("--") or "." not in name:
            rest.append(arguments[position])
            position += 1
            continue
        key, _, part = name.partition(".")
        check_keys([key], hints, where="command line")
        if key not in _mapping_keys(hints):
            raise RecipeError(f"command line: {key} is no mapping; found --{name}; expected --{key} value")
        if not equals and position + 1 == len(arguments):
            raise RecipeError(f"command line: --{name} has no value")
        text = inline if equals else arguments[position + 1]
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"command line: --{name}: found {text!r}; expected a YAML value") from error
        values[key] = {**(_mapping(key, values.get(key, defaults[key])) or {}), part: value}
        position += 1 if equals else 2
    return rest


def _merge_lists(arguments: list[str], values: dict[str, Any], hints: dict[str, Any]) -> list[str]:
    """Put every `--key [a, b]` of a list into the recipe, and return the other arguments."""
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        name, equals, text = arguments[position].partition("=")
        key, used = name.removeprefix("--").replace("-", "_"), 1
        if not equals and position + 1 < len(arguments):
            text, used = arguments[position + 1], 2
        if name.startswith("--") and list in alternatives(hints.get(key)) and text.startswith("["):
            values[key] = _list(key, text)
            if arguments[position + used : position + used + 1] and not arguments[position + used].startswith("--"):
                raise RecipeError(f"command line: --{key}: found more after {text!r}; expected one list")
            position += used
        else:
            rest.append(arguments[position])
            position += 1
    return rest


def _list(key: str, text: str) -> list[Any]:
    """Return a list that came as YAML text from the command line."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"command line: --{key}: found {text!r}; expected a list such as '[a, b]'") from error
    if not isinstance(value, list):
        raise RecipeError(f"command line: --{key}: found {text!r}; expected a list such as '[a, b]'")
    return value


def _build(group: type, namespace: Namespace) -> Any:
    """Make one dataclass of the parsed values."""
    names = [entry.name for entry in dataclasses.fields(group) if entry.init]
    try:
        return group(**{name: getattr(namespace, name) for name in names})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"recipe: {error}") from error


def _resolved(namespace: Namespace) -> dict[str, Any]:
    """Return every key of ours, and those of TrainingArguments that differ from the library's default."""
    library = default_values([TrainingArguments])
    resolved: dict[str, Any] = {}
    for key, value in vars(namespace).items():
        if key in NOT_FOR_RECIPES or key in ("overwrite", "hub_token"):
            continue
        if key in ("seed", "max_steps", "learning_rate") or key not in library or value != library[key]:
            resolved[key] = value.value if isinstance(value, enum.Enum) else value
    return resolved


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot work, before anything is read or built."""
    model, data, loss, training = recipe.model, recipe.data, recipe.loss, recipe.training
    if (model.base is None) == (model.small_base is None):
        found = "neither" if model.base is None else "both"
        raise RecipeError(f"base and small_base: found {found}; expected exactly one of them")
    if model.base is not None and _looks_local(model.base) and not Path(model.base).is_dir():
        raise RecipeError(f"base: found no folder {Path(model.base).resolve()}; expected a checkpoint or a hub id")
    _check_model(model)
    _check_start_reasons(recipe)
    _check_instructions(data.instructions or {})
    _check_catalogue(data.catalogue or {})
    _check_data(data, training)
    _check_loss(loss)
    if loss.encode_chunk_size is not None:
        _check_chunks(training)
    _check_training(training)
    try:
        check_quantization(model)
        check_launch(recipe)
        check_reasoning(recipe.reasoning, vars(recipe))
        check_candidates(data, loss, training, recipe.reasoning.infonce_weight)
        check_keys(recipe.reasoning.cold_start or {}, known_keys(), where="cold_start")
    except ValueError as error:
        raise RecipeError(str(error)) from error


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
        budget = dict(model.moon or {}).get("max_reasoning_tokens", preset)  # type: ignore[arg-type]
        where = f"preset, moon.max_reasoning_tokens: found {model.preset}"
        accepted = "preset: moon3, or moon.max_reasoning_tokens with moon.readout: emb"
    if budget is None:
        raise RecipeError(
            f"stage: found {stage!r} for a model without reasoning ({where} and max_reasoning_tokens: None); "
            f"expected {accepted}; or stage: contrastive"
        )


def _check_catalogue(options: Any) -> None:
    hints = typing.get_type_hints(make_catalogue)
    check_keys(options, inspect.signature(make_catalogue).parameters, where="catalogue")
    for key, value in options.items():
        if hints[key] is int:
            check_value(f"catalogue.{key}", value, int)


def _check_data(data: DataArguments, training: MoonTrainingArguments) -> None:
    for entry in data.data:
        check_stream(entry) if data.streaming else check_source(entry)
    check_mix("query_mix", data.query_mix)
    check_mix("target_mix", data.target_mix)
    for key, low in (("hard_negatives", 0), ("positives_per_query", 1), ("augment_queries", 0), ("shuffle_rows", 1)):
        _check_number(key, getattr(data, key), low)
    interaction_options(data)
    if data.bucket_batches != 0:
        _check_number("bucket_batches", data.bucket_batches, 2)
    for key, low in (("max_tokens", 16), ("max_image_tokens", 1)):
        if getattr(data, key) is not None and (key, getattr(data, key)) != ("max_tokens", AUTO):
            _check_number(key, getattr(data, key), low)
    if data.streaming and (training.evaluate_before or training.evaluate_after):
        raise RecipeError(
            "evaluate_before, evaluate_after: found with streaming, whose tables have no gallery; "
            "expected moon3 evaluate on the trained model"
        )
    if data.streaming:
        _check_stream_keys(data)


def _check_stream_keys(data: DataArguments) -> None:
    """Refuse what only whole tables have: a row has one product, one hard negative, and no log behind it."""
    for key, most in (("hard_negatives", 1), ("positives_per_query", 1), ("interaction_half_life_days", None)):
        found = getattr(data, key)
        if found != most and (most is None or found > most):
            accepted = "leaving it out" if most is None else f"up to {most}, which is what a row holds"
            raise RecipeError(f"{key}: found {found} with streaming; expected {accepted}")


def _check_loss(loss: LossArguments) -> None:
    _check_number("temperature", loss.temperature, 0, above=True)
    for key in ("queue_steps", "queue_warmup_steps", "intra_weight", "router_loss_weight", "sparsity_weight"):
        if getattr(loss, key) != AUTO or key != "queue_steps":
            _check_number(key, getattr(loss, key), 0)
    for key, low in (
        ("queue_momentum", 0),
        ("negative_margin", 0),
        ("loss_block_size", 1),
        ("filter_weight", 0),
        ("encode_chunk_size", 1),
    ):
        if getattr(loss, key) is not None:
            _check_number(key, getattr(loss, key), low)
    _check_widths(loss.matryoshka_dims, loss.matryoshka_weights)
    _check_alignment(loss)
    try:
        SampleFilter(**filter_values(loss))
    except ValueError as error:
        raise RecipeError(f"sample_filter (filter_…): {error}") from error
    if loss.queue_momentum is not None and not loss.queue_momentum < 1:
        raise RecipeError(f"queue_momentum: found {loss.queue_momentum}; expected 0 to below 1")
    if not loss.queue_steps and (loss.queue_momentum is not None or loss.queue_warmup_steps):
        raise RecipeError("queue_momentum, queue_warmup_steps: found without a queue; expected queue_steps above 0")


def _check_chunks(training: MoonTrainingArguments) -> None:
    """Refuse what a step in chunks does not do."""
    if training.torch_empty_cache_steps is not None:
        raise RecipeError("torch_empty_cache_steps: found with encode_chunk_size; expected one of them")
    optimizer = getattr(training.optim, "value", training.optim)
    if "lomo" in optimizer:
        raise RecipeError(
            f"optim: found {optimizer} with encode_chunk_size; expected an optimizer that steps after the whole batch"
        )


def _check_widths(dims: list[int], weights: list[float]) -> None:
    if not all(isinstance(dim, int) and dim >= 1 for dim in dims) or len(set(dims)) < len(dims):
        raise RecipeError(f"matryoshka_dims: found {dims}; expected different whole numbers of at least 1")
    if weights and len(weights) != len(dims):
        raise RecipeError(f"matryoshka_weights: found {weights}; expected {len(dims)}, one for each of {dims}")
    for weight in weights:
        _check_number("matryoshka_weights", weight, 0, above=True)


def _check_alignment(loss: LossArguments) -> None:
    """Refuse what only dual alignment reads where it is off, and weights of forms that there are not."""
    if not loss.dual_alignment:
        for key, default in (("alignment_weights", None), ("symmetric_intra", False), ("intra_weight", 1.0)):
            if getattr(loss, key) != default:
                raise RecipeError(f"{key}: found {getattr(loss, key)!r}; expected only with dual_alignment: true")
    if loss.alignment_weights is not None:
        check_keys(loss.alignment_weights, ALIGNMENT_FORMS, where="alignment_weights")
        for form, weight in dict(loss.alignment_weights).items():  # type: ignore[arg-type]
            _check_number(f"alignment_weights.{form}", weight, 0)


def filter_values(loss: LossArguments) -> dict[str, Any]:
    """Return the recipe's arguments of `training.losses.sample_filter.SampleFilter`."""
    return {
        "threshold": loss.filter_threshold,
        "kappa": loss.filter_kappa,
        "start": loss.filter_margin_start,
        "end": loss.filter_margin_end,
        "schedule": loss.filter_schedule,
        "weight": loss.filter_weight,
    }


def _check_training(training: MoonTrainingArguments) -> None:
    if training.train_minutes is not None:
        _check_number("train_minutes", training.train_minutes, 0, above=True)
    elif training.max_steps < 1:
        raise RecipeError("max_steps and train_minutes: found neither; expected one of them, greater than 0")
    if training.evaluate_products is not None:
        _check_number("evaluate_products", training.evaluate_products, 1)
    for key in ("learning_rate", "weight_decay", "max_grad_norm"):
        _check_number(key, getattr(training, key), 0)
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        _check_number(key, getattr(training, key), 1)
    if not 0 <= training.seed < 2**32:
        raise RecipeError(f"seed: found {training.seed}; expected 0 to {2**32 - 1}")
    _check_optimizer(training)
    available = get_available_reporting_integrations()
    for name in list(training.report_to or []):
        if name not in available:
            raise RecipeError(
                f"report_to: found {name!r}, which is not installed; expected {', '.join(['none', *available])}"
            )
    if training.n_gpu > 1:
        raise RecipeError(f"found {training.n_gpu} GPUs in one process; expected accelerate launch training/train.py")


def _check_optimizer(training: MoonTrainingArguments) -> None:
    """Refuse an optimizer whose library is not there, as transformers itself finds it."""
    name = getattr(training.optim, "value", training.optim)
    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ImportError) or not any(part in name for part in _OPTIMIZERS_OF_A_MODEL):
            raise RecipeError(
                f"optim: found {name!r}: {error}; expected one whose library is installed, with its own optim_args"
            ) from error


def _check_model(model: ModelArguments) -> None:
    if model.preset not in PRESETS:
        raise RecipeError(f"preset: found {model.preset!r}; expected {', '.join(PRESETS)}")
    check_keys(model.moon or {}, MOON_KEYS, where="moon")
    check_keys(model.small_base or {}, [size.name for size in dataclasses.fields(SmallBaseConfig)], where="small_base")
    lora = model.lora if isinstance(model.lora, dict) else {}
    check_keys(lora, LORA_KEYS, where="lora")
    for key, low in (("r", 1), ("alpha", 0), ("dropout", 0)):
        if key in lora:
            _check_number(f"lora.{key}", lora[key], low)
    if not isinstance(lora.get("r", 1), int) or not lora.get("dropout", 0) < 1:
        raise RecipeError(f"lora: found {lora}; expected r as a whole number, dropout below 1")
    if not all(isinstance(pattern, str) for pattern in model.freeze):
        raise RecipeError(f"freeze: found {model.freeze}; expected a list of patterns such as '*visual*'")
    rates = dict(model.learning_rates or {})  # type: ignore[arg-type]
    model.learning_rates = {name: check_value(f"learning_rates.{name}", rate, float) for name, rate in rates.items()}
    for name, rate in model.learning_rates.items():
        _check_number(f"learning_rates.{name}", rate, 0)


def _check_instructions(instructions: Any) -> None:
    check_keys(instructions, DEFAULT_INSTRUCTIONS, where="instructions")
    for task, text in instructions.items():
        if not isinstance(text, str) or not text.strip():
            raise RecipeError(f"instructions.{task}: found {text!r}; expected text that is not empty")


def check_mix(key: str, mix: Any) -> None:
    """Refuse a mix of forms with unknown names, negative shares, or nothing in it."""
    if not isinstance(mix, dict):
        raise RecipeError(f"{key}: found {mix!r}; expected a mapping of image, text, both to numbers")
    check_keys(mix, FORMS, where=key)
    for form, share in mix.items():
        _check_number(f"{key}.{form}", share, 0)
    if not sum(mix.values()) > 0:
        raise RecipeError(f"{key}: found {mix}; expected at least one share greater than 0")


def _check_number(key: str, value: Any, low: float, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or (above and value == low):
        raise RecipeError(f"{key}: found {value!r}; expected a number {'above' if above else 'of at least'} {low}")


def _looks_local(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1


TABLE_KEYS = ("products", "queries", "query_images", "interactions", "images", "written_attributes")
SOURCE_KEYS = ("path", *TABLE_KEYS, "name", "weight", "mask_groups", "licence", *READING_KEYS)


def interaction_options(data: DataArguments) -> InteractionOptions:
    """Return how the recipe weighs interactions.

    Raises:
        RecipeError: a weight or a half-life that cannot be used.
    """
    try:
        return InteractionOptions(data.action_weights or {}, data.interaction_half_life_days)  # type: ignore[arg-type]
    except ValueError as error:
        raise RecipeError(str(error).replace("half_life_days", "interaction_half_life_days")) from error


def reading_of(entry: dict[str, Any], interactions: InteractionOptions | None = None) -> ReadingOptions:
    """Return how the cells of an entry of `data` are read.

    Raises:
        RecipeError: strip_html or category_separator that cannot be used.
    """
    try:
        return ReadingOptions.of(entry, interactions)
    except ValueError as error:
        raise RecipeError(f"data: {error}") from error


def check_source(entry: Any) -> None:
    """Refuse an entry of `data` that names nothing readable."""
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        raise RecipeError(f"data: found {entry!r}; expected catalogue, a path, or a mapping of {SOURCE_KEYS}")
    check_keys(entry, SOURCE_KEYS, where="data")
    reading_of(entry)
    _check_licence(entry)
    if ("path" in entry) == ("products" in entry):
        raise RecipeError(f"data: found {entry}; expected either a path or products (with queries and images)")
    for key in ("path", *TABLE_KEYS):
        place = entry.get(key)
        if place is not None and place != "catalogue" and not os.path.exists(place):
            raise RecipeError(f"data: {key}: found nothing at {Path(place).resolve()}; expected a file or folder")
    if "weight" in entry:
        _check_number("data: weight", entry["weight"], 0, above=True)
    if not isinstance(entry.get("mask_groups", True), bool):
        raise RecipeError(f"data: mask_groups: found {entry['mask_groups']!r}; expected true or false")


def _check_licence(entry: dict[str, Any]) -> None:
    """Refuse a licence that neither the hub nor a card knows; it decides whether trained weights may be published."""
    if "licence" in entry:
        try:
            check_data_licence(str(entry.get("name", "a data set")), entry["licence"])
        except CardError as error:
            raise RecipeError(f"data: {error}") from error


_STREAM_PLACES = ("parquet", "hub", "config", "split", "revision")
STREAM_KEYS = (*_STREAM_PLACES, "columns", "images", "name", "weight", "mask_groups", "licence", *READING_KEYS)


def check_stream(entry: Any) -> None:
    """Refuse an entry of `data` that cannot be streamed; whether a data set of the hub is there shows when it is opened."""
    if isinstance(entry, str) and entry != "catalogue":
        return
    if not isinstance(entry, dict):
        raise RecipeError(
            f"data: found {entry!r} with streaming; expected a path, owner/name, or a mapping of {STREAM_KEYS}"
        )
    check_keys(entry, STREAM_KEYS, where="data")
    reading_of(entry)
    _check_licence(entry)
    if ("parquet" in entry) == ("hub" in entry):
        raise RecipeError(f"data: found {entry}; expected either parquet or hub")
    for key, kinds, accepted in (
        ("parquet", (str, list), "a path, a pattern, or a list of these"),
        ("columns", (dict,), "a mapping such as {query.title: NAME}"),
        ("mask_groups", (bool,), "true or false"),
        *((key, (str,), "text") for key in ("hub", "config", "split", "revision", "images", "name")),
    ):
        if key in entry and not isinstance(entry[key], kinds):
            raise RecipeError(f"data: {key}: found {entry[key]!r}; expected {accepted}")
    unread = [key for key in ("config", "split", "revision") if key in entry and "parquet" in entry]
    if unread:
        raise RecipeError(f"data: {unread[0]}: found beside parquet; expected beside hub")
    if "weight" in entry:
        _check_number("data: weight", entry["weight"], 0, above=True)


def attention_of(name: str, on_gpu: bool) -> str:
    """Return the attention implementation that "auto" stands for; other names are returned as they are."""
    if name != "auto":
        return name
    return "flash_attention_2" if on_gpu and is_flash_attn_2_available() else "sdpa"
