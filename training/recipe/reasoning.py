"""Recipe keys of the stages in which a model learns to reason, and the keys that each stage does not read."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, NotNegative, Positive, Share
from training.rewards import reward_weights
from training.rewards.length import default_target

COLD_START, GRPO = "cold_start", "grpo"
DEFAULT_REWARDS = {
    "format": 0.5,
    "length": 0.2,
    "retrieval": 1.0,
    "margin": 0.5,
    "attributes": 0.5,
    "contradiction": 0.5,
}
# Weights of the InfoNCE in the two stages.
_CONTRASTIVE_WEIGHT = {COLD_START: 1.0, GRPO: 0.1}
_READ_BY_COLD_START = ("stage", "contrastive_weight", "unreasoned_share", "evaluate_reasoning", "ce_weight")
# Keys that `cold_start` cannot contain, because they follow from the recipe.
_NOT_OF_COLD_START = ("stage", "cold_start", "output_dir", "overwrite")
# Keys of other groups that GRPO does not read, and why.
_UNREAD_BY_ROLLOUTS = {
    "queue_momentum": "ranks compare a rollout with vectors of the model that wrote it",
    "several_positives": "a rollout is ranked by a single positive",
    "positives_per_query": "a rollout is ranked by a single positive",
    "spatial_negatives": "a rollout is ranked among the products of all processes",
    "encode_chunk_size": "rollout_chunk_size sets the size of a forward pass",
    "router_loss_weight": "TRL's forward passes do not return router statistics",
    "sparsity_weight": "the preferences of experts are for objectives, and TRL's loss has none",
    "teachers": "the passes of rollouts return vectors, not the states that teachers pull",
}


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ReasoningArguments:
    """Reasoning: the stage of training, and how a model learns to write attributes before it embeds.

    Args:
        stage: "contrastive": train vectors only. "cold_start": also train the model to write the known attributes of a
            product. "grpo": let the model generate attributes and reward those whose vectors retrieve well (GRPO and
            InfoNCE).
        cold_start: the keys in which a cold start before GRPO differs from this recipe, such as {max_steps: 1000,
            learning_rate: 1e-5}. It is trained in output_dir/cold_start, and GRPO starts from its model. null: GRPO
            starts from `base`. Only with stage "grpo".
        ce_weight: α, the weight of the cross-entropy in the stage "cold_start". LREM's is 0.1.
        contrastive_weight: the weight of the InfoNCE: β in the stage "cold_start", λ in the stage "grpo". null: 1.0 and
            0.1, as in LREM.
        grpo_weight: the weight of the GRPO loss. 0: rollouts are generated and embedded, but rewards are not used.
        unreasoned_share: the share of queries and of products that are embedded without reasoning, so that vectors with
            and without reasoning stay comparable (our design).
        rollouts: G, the number of reasoning texts that are generated for each query and for each product.
        rollout_chunk_size: the number of rollouts in a forward pass. null: all rollouts of a process.
        rollout_temperature: the sampling temperature of rollouts, at which the loss is computed, too.
        rewards: the weight of each reward, such as {format: 0.5}; see training/rewards. Other rewards are not computed.
        target_tokens: the lengths that the length reward prefers, such as [16, 24] tokens, at most max_reasoning_tokens.
            null: from a half to three quarters of max_reasoning_tokens, so that the target ends before generation stops.
        kl_weight: β, the weight of the divergence from the initial policy. The papers do not publish it; the default is
            that of the GRPO paper (arXiv 2402.03300).
        vllm: generate with vLLM in the training processes. Requires a CUDA GPU. We have not tested it with Moon yet.
        completions_steps: the number of steps between writes of rollouts and their rewards to output_dir/completions.
            0: never.
        evaluate_reasoning: how queries and products are embedded in the evaluations before and after training: "none",
            "generate", or both.
    """

    stage: Literal["contrastive", "cold_start", "grpo"] = "contrastive"
    cold_start: dict[str, Any] | None = None
    ce_weight: NotNegative = 0.1
    contrastive_weight: NotNegative | None = None
    grpo_weight: NotNegative = 1.0
    unreasoned_share: Share = 0.5
    rollouts: Annotated[int, Field(ge=2)] = 8
    rollout_chunk_size: Count | None = None
    rollout_temperature: Positive = 1.0
    rewards: dict[str, Any] = Field(default_factory=lambda: dict(DEFAULT_REWARDS))
    target_tokens: list[Count] | None = None
    kl_weight: NotNegative = 0.04
    vllm: bool = False
    completions_steps: Annotated[int, Field(ge=0)] = 10
    evaluate_reasoning: list[Literal["none", "generate"]] = Field(default_factory=lambda: ["none", "generate"])  # type: ignore[arg-type]

    @property
    def infonce_weight(self) -> float:
        """Return the weight of the InfoNCE: `contrastive_weight`, or the default of the stage."""
        weight = self.contrastive_weight
        return _CONTRASTIVE_WEIGHT.get(self.stage, 1.0) if weight is None else weight

    @field_validator("rewards")
    @classmethod
    def _check_rewards(cls, rewards: dict[str, Any]) -> dict[str, float]:
        return reward_weights(rewards)

    @field_validator("target_tokens")
    @classmethod
    def _check_target(cls, target: list[int] | None) -> list[int] | None:
        if target is not None and (len(target) != 2 or target[0] > target[1]):
            raise ValueError(f"found {target}; expected null, or two numbers in order, such as [16, 24]")
        return target

    @field_validator("evaluate_reasoning")
    @classmethod
    def _check_ways(cls, ways: list[Any]) -> list[Any]:
        if not ways or len(set(ways)) < len(ways):
            raise ValueError(f"found {ways}; expected none, generate, or both")
        return ways


def target_of(reasoning: ReasoningArguments, max_reasoning_tokens: int) -> tuple[int, int]:
    """Return the lengths that the length reward prefers.

    Args:
        reasoning: the recipe's keys of the stage.
        max_reasoning_tokens: the limit of the model.

    Raises:
        ValueError: the target exceeds the limit.
    """
    if reasoning.target_tokens is None:
        return default_target(max_reasoning_tokens)
    low, high = reasoning.target_tokens
    if high > max_reasoning_tokens:
        raise ValueError(
            f"target_tokens: found {[low, high]}; expected at most {max_reasoning_tokens}, the model's max_reasoning_tokens"
        )
    return low, high


def cold_start_values(resolved: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """Return the keys of a recipe's cold start: the keys of the recipe that are not specific to GRPO.

    The keys in `cold_start` replace those of the recipe. As with `extends`, mappings are merged key by key.

    Args:
        resolved: the recipe's keys.
        output_dir: the folder in which the cold start is trained.
    """
    own = ("contrastive_weight", "max_steps", "train_minutes", "evaluate_before", "evaluate_after")
    values = {key: value for key, value in resolved.items() if key not in (*own, *_unread_keys(COLD_START))}
    for key, value in resolved["cold_start"].items():
        both_mappings = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both_mappings else value
    return values | {"stage": COLD_START, "output_dir": output_dir}


def check_reasoning(reasoning: ReasoningArguments, groups: Mapping[str, Any]) -> None:
    """Raise ValueError for keys that the recipe sets and its stage does not read.

    Args:
        reasoning: the recipe's keys of the stages.
        groups: the recipe's other groups by name: "model", "pairs", "data", "loss" and "training".

    Raises:
        ValueError: the stage does not read a key, or does not work with its value.
    """
    _refuse_changed(reasoning, _unread_keys(reasoning.stage), f"with stage: {reasoning.stage}")
    if reasoning.stage == "contrastive":
        return
    where = f"without stage: {reasoning.stage}"
    _check_data(reasoning.stage, groups["data"])
    if groups["model"].architecture != "moon":
        raise ValueError(f"architecture: found {groups['model'].architecture!r}; expected moon {where}")
    if reasoning.stage == GRPO:
        for name, reason in _UNREAD_BY_ROLLOUTS.items():
            group = groups["pairs" if name == "positives_per_query" else "loss"]
            _refuse_changed(group, (name,), f"{where}: {reason}", only=True)
        _check_model(groups["model"])
        _check_rollouts(reasoning, groups["training"])
        forbidden = [key for key in _NOT_OF_COLD_START if key in (reasoning.cold_start or {})]
        if forbidden:
            raise ValueError(f"cold_start: found {forbidden[0]!r}, which the recipe itself sets; expected other keys")


def _check_data(stage: str, data: Any) -> None:
    """Raise ValueError for a stream in GRPO, and for bucketed batches without a stream."""
    if data.streaming and stage == GRPO:
        raise ValueError(
            "streaming: True does not work with stage: grpo, whose trainer (TRL's GRPO) reads pairs by index, in any "
            "order, and whose rewards use the attribute values of all products; expected False. A cold start can be streamed, "
            "in a separate recipe whose model becomes the base, or with cold_start: {streaming: true, data: …}"
        )
    if not data.streaming:
        _refuse_changed(data, ("bucket_batches",), f"with streaming, or without stage: {stage}", only=True)


def _unread_keys(stage: str) -> list[str]:
    """Return the keys of `ReasoningArguments` that a stage does not read."""
    names = [entry.name for entry in dataclasses.fields(ReasoningArguments) if entry.name != "stage"]
    read = {"contrastive": (), COLD_START: _READ_BY_COLD_START, GRPO: {*names} - {"ce_weight"}}[stage]
    return [name for name in names if name not in read]


def _refuse_changed(group: Any, names: Any, where: str, only: bool = False) -> None:
    """Raise ValueError for keys that differ from their default.

    `where` names the setting that does not read them ("with stage: x"), or with `only` the setting without which they
    are read ("without stage: x").
    """
    defaults = type(group)()
    for name in names:
        found, default = getattr(group, name), getattr(defaults, name)
        if found != default:
            rest = f"; expected only {where}" if only else f" {where}, which does not read it; expected {default!r}"
            raise ValueError(f"{name}: found {found!r}{rest}")


def _check_model(model: Any) -> None:
    """Raise ValueError for keys of the model that do not work with GRPO."""
    if model.learning_rates:
        raise ValueError(
            f"learning_rates: {model.learning_rates} does not work with stage: grpo; expected only learning_rate, or "
            "learning_rates in cold_start"
        )
    dropout = (model.lora or {}).get("dropout", 0)
    if dropout:
        raise ValueError(
            f"lora.dropout: {dropout} does not work with stage: grpo, whose rewards and gradients use the same vectors; "
            "expected 0, or dropout only in cold_start: {lora: {dropout: …}}"
        )


def _check_rollouts(reasoning: ReasoningArguments, training: Any) -> None:
    """Raise ValueError unless GRPO has a loss, and its forward passes divide the rollouts evenly."""
    if not (reasoning.grpo_weight or reasoning.infonce_weight):
        raise ValueError("grpo_weight, contrastive_weight: found 0 for both; expected at least one above 0")
    if reasoning.vllm and not (torch.cuda.is_available() and importlib.util.find_spec("vllm")):
        raise ValueError(
            "vllm: found true without a CUDA GPU or the package vllm; expected both of them, or vllm: false"
        )
    rollouts = 2 * training.per_device_train_batch_size * reasoning.rollouts
    chunk = reasoning.rollout_chunk_size
    if chunk is not None and rollouts % chunk:
        raise ValueError(
            f"rollout_chunk_size: found {chunk}; expected a divisor of {rollouts}, the rollouts of a process in a step "
            "(2 sides × per_device_train_batch_size × rollouts)"
        )
    if training.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps: {training.gradient_accumulation_steps} does not work with stage: grpo; "
            "expected 1; to save memory, set rollout_chunk_size"
        )
