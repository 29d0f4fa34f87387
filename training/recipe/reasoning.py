"""The recipe's keys of the stages in which a model learns to reason, and what each stage reads of the others."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, NotNegative, Positive, Share
from training.rewards import reward_weights

COLD_START, GRPO = "cold_start", "grpo"
DEFAULT_REWARDS = {
    "format": 0.5,
    "length": 0.2,
    "retrieval": 1.0,
    "margin": 0.5,
    "attributes": 0.5,
    "contradiction": 0.5,
}
# Weights of the InfoNCE beside the cross-entropy (cold start) and beside GRPO.
_CONTRASTIVE_WEIGHT = {COLD_START: 1.0, GRPO: 0.1}
_READ_BY_COLD_START = ("stage", "contrastive_weight", "unreasoned_share", "evaluate_reasoning", "ce_weight")
# What a recipe says of its cold start itself.
_NOT_OF_COLD_START = ("stage", "cold_start", "output_dir", "overwrite")
# What the other groups hold that a stage does not read.
_UNREAD_LOSS = ("dual_alignment", "sample_filter")
_UNREAD_BY_ROLLOUTS: tuple[str, ...] = ("queue_momentum", "several_positives", "spatial_negatives", "encode_chunk_size")
_UNREAD_BY_ROLLOUTS += ("router_loss_weight", "sparsity_weight")


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ReasoningArguments:
    """Which stage is trained, and how a model learns to write attributes before it embeds.

    Args:
        stage: "contrastive": vectors alone. "cold_start": the model also learns to write the attributes that are known of a
            product. "grpo": it tries attributes of its own and is rewarded for vectors that retrieve (GRPO beside InfoNCE).
        cold_start: the keys in which the cold start differs from this recipe, {max_steps: 1000, learning_rate: 1.0e-5, …};
            it is trained first, in output_dir/cold_start, and its model is where the stage grpo begins. None: that stage
            begins with `base` as it is.
        ce_weight: α of the cross-entropy of the cold start. 0.1 is LREM's.
        contrastive_weight: weight of the InfoNCE: β of the cold start, λ of the stage grpo; None: 1.0 and 0.1, LREM's.
        grpo_weight: weight of the GRPO loss; 0: rollouts are compared and nothing is rewarded.
        unreasoned_share: share of queries and of products that are embedded without reasoning, so that both kinds stay in
            one space (our design).
        rollouts: G, the number of reasonings that are tried for each query and for each product.
        rollout_chunk_size: rollouts of one forward pass; None: all of a process.
        rollout_temperature: of the draw; the loss is taken at the same temperature.
        rewards: weight of each reward, {format: 0.5, …}; see training/rewards. Those not named are not computed.
        kl_weight: β of the divergence from the policy that the stage started with. The papers give none; 0.04 is that of
            GRPO's own (arXiv 2402.03300).
        vllm: generate with vLLM in the same processes. Needs a GPU; nobody has run it with Moon yet.
        completions_steps: write what was tried, with its rewards, to output_dir/completions every so many steps; 0: never.
        evaluate_reasoning: how both sides are embedded in the evaluations before and after, some of none and generate.
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
    kl_weight: NotNegative = 0.04
    vllm: bool = False
    completions_steps: Annotated[int, Field(ge=0)] = 10
    evaluate_reasoning: list[Literal["none", "generate"]] = Field(default_factory=lambda: ["none", "generate"])  # type: ignore[arg-type]

    @property
    def infonce_weight(self) -> float:
        """The weight of the InfoNCE, with the stage's default where the recipe names none."""
        given = self.contrastive_weight
        return _CONTRASTIVE_WEIGHT.get(self.stage, 1.0) if given is None else given

    @field_validator("rewards")
    @classmethod
    def _check_rewards(cls, rewards: dict[str, Any]) -> dict[str, float]:
        return reward_weights(rewards)

    @field_validator("evaluate_reasoning")
    @classmethod
    def _check_ways(cls, ways: list[Any]) -> list[Any]:
        if not ways or len(set(ways)) < len(ways):
            raise ValueError(f"found {ways}; expected none, generate, or both")
        return ways


def cold_start_values(resolved: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """Return the keys of the cold start of a recipe: those of the recipe, but for what belongs to its stage grpo.

    Args:
        resolved: the recipe's keys; its `cold_start` names those that differ.
        output_dir: where the cold start is trained.

    Relations: as with `extends`, mappings are merged key by key.
    """
    own = ("contrastive_weight", "max_steps", "train_minutes", "evaluate_before", "evaluate_after")
    values = {key: value for key, value in resolved.items() if key not in (*own, *_unread_keys(COLD_START))}
    for key, value in resolved["cold_start"].items():
        both_mappings = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both_mappings else value
    return values | {"stage": COLD_START, "output_dir": output_dir}


def check_reasoning(reasoning: ReasoningArguments, groups: Mapping[str, Any]) -> None:
    """Refuse what a stage does not read.

    Args:
        reasoning: the recipe's keys of the stages.
        groups: the recipe's other groups by name: "model", "pairs", "data", "loss" and "training".

    Raises:
        ValueError: names the key, what was found and what is expected.
    """
    _refuse_changed(reasoning, _unread_keys(reasoning.stage), f"with stage: {reasoning.stage}")
    if reasoning.stage == "contrastive":
        return
    where = f"without stage: {reasoning.stage}"
    _check_data(reasoning.stage, groups["data"])
    _refuse_changed(groups["loss"], _UNREAD_LOSS, where, only=True)
    if groups["model"].architecture != "moon":
        raise ValueError(f"architecture: found {groups['model'].architecture!r}; expected moon {where}")
    if reasoning.stage == GRPO:
        _refuse_changed(groups["loss"], _UNREAD_BY_ROLLOUTS, where, only=True)
        _refuse_changed(groups["pairs"], ("positives_per_query",), where, only=True)
        _check_model(groups["model"])
        _check_rollouts(reasoning, groups["training"])
        named = [key for key in _NOT_OF_COLD_START if key in (reasoning.cold_start or {})]
        if named:
            raise ValueError(f"cold_start: found {named[0]!r}, which the recipe itself sets; expected other keys")


def _check_data(stage: str, data: Any) -> None:
    """Streams are for the cold start alone, and only their batches are bucketed."""
    if data.streaming and stage == GRPO:
        raise ValueError(
            "streaming: found True with stage: grpo, whose trainer (TRL's GRPO) reads pairs by number from data of known "
            "length, in any order, and whose rewards know the values of all products; expected False; a cold start may be "
            "streamed, by a recipe of its own whose model is then the base, or as cold_start: {streaming: true, data: …}"
        )
    if not data.streaming:
        _refuse_changed(data, ("bucket_batches",), f"with streaming, or without stage: {stage}", only=True)


def _unread_keys(stage: str) -> list[str]:
    names = [entry.name for entry in dataclasses.fields(ReasoningArguments) if entry.name != "stage"]
    read = {"contrastive": (), COLD_START: _READ_BY_COLD_START, GRPO: {*names} - {"ce_weight"}}[stage]
    return [name for name in names if name not in read]


def _refuse_changed(group: Any, names: Any, where: str, only: bool = False) -> None:
    """Refuse keys that differ from their default; `where` says with what they were found, or without what they are read."""
    defaults = type(group)()
    for name in names:
        found, default = getattr(group, name), getattr(defaults, name)
        if found != default:
            said = f"; expected only {where}" if only else f" {where}, which does not read it; expected {default!r}"
            raise ValueError(f"{name}: found {found!r}{said}")


def _check_model(model: Any) -> None:
    """Refuse what the trainer of the stage grpo does not read of a model that learns."""
    if model.learning_rates:
        raise ValueError(
            f"learning_rates: found {model.learning_rates} with stage: grpo; expected learning_rate alone, and rates "
            "by name in cold_start"
        )
    dropout = (model.lora or {}).get("dropout", 0)
    if dropout:
        raise ValueError(
            f"lora.dropout: found {dropout} with stage: grpo, whose rewards and gradients are of the same vectors; "
            "expected 0, and more in cold_start, as {lora: {dropout: …}}"
        )


def _check_rollouts(reasoning: ReasoningArguments, training: Any) -> None:
    """What GRPO needs: something to learn from, and forward passes that share the rollouts evenly."""
    if not (reasoning.grpo_weight or reasoning.infonce_weight):
        raise ValueError("grpo_weight, contrastive_weight: found 0 for both; expected at least one above 0")
    if reasoning.vllm and not (torch.cuda.is_available() and importlib.util.find_spec("vllm")):
        raise ValueError("vllm: found true without a CUDA GPU or without the package vllm; expected false, or both")
    rollouts = 2 * training.per_device_train_batch_size * reasoning.rollouts
    chunk = reasoning.rollout_chunk_size
    if chunk is not None and rollouts % chunk:
        raise ValueError(
            f"rollout_chunk_size: found {chunk}; expected a divisor of {rollouts}, the rollouts of a process and step "
            "(2 sides × per_device_train_batch_size × rollouts)"
        )
    if training.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps: found {training.gradient_accumulation_steps} with stage: grpo; "
            "expected 1, and rollout_chunk_size for less memory"
        )
