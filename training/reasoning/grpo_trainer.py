"""Train GRPO with TRL: reward the reasoning that the model generates, together with InfoNCE over its vectors.

Shape suffixes: B pairs of this process, G rollouts of one side of a pair, L = 2 · B · G rollouts of this process in the
order pair, side (query first), rollout; N products without reasoning; D embedding width.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments
from trl import GRPOConfig

from modeling_moon.thinking_moon import Thinking, generation_config
from processing_moon import MoonProcessor
from training.batches.negatives import NegativeQueue, QueryFacts
from training.contrastive.terms import triplet_weights
from training.encoding.batch_encoding import SIDES as SIDES_OF_BATCH
from training.encoding.batch_encoding import SINGLE_FORMS
from training.encoding.chunked_encoding import number_of_rows, slice_rows
from training.encoding.earlier_model import EarlierModel
from training.libraries.trl_library import (
    RolloutSteps,
    Rows,
    Scores,
    chunks_seen,
    give_fused_output_layer,
    padding_token,
    rollout_logs,
    training_metrics,
)
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.sample_filter import SampleFilter
from training.parallel.distributed import touch_every_parameter, world_size
from training.reasoning.reward_correlation import reward_correlations
from training.reasoning.rollout_terms import RolloutVectors, aligned_loss, queue_of, rollout_loss, rollout_similarities
from training.reasoning.rollouts import (
    SIDES,
    PromptCollator,
    Prompts,
    PromptsAhead,
    item_name,
    rollout_dataset,
    sequences,
    with_ending,
)
from training.recipe.loss import LossArguments
from training.recipe.reasoning import ReasoningArguments, target_of
from training.rewards import reward_function
from training.rewards.retrieval import ranks
from training.runs.exact_resumption import ExactResumption, shortened_rows
from training.runs.finite_steps import FiniteSteps

_ENDING_TOKENS = 2


@dataclass
class _VectorGradient:
    """The gradient of the InfoNCE for the vectors of one forward pass over records without reasoning."""

    inputs: dict[str, Tensor]
    gradient_RD: Tensor


class MoonGRPOTrainer(ExactResumption, FiniteSteps, RolloutSteps):
    """Train Moon with TRL's GRPO: G reasoning texts for each query and product, rewarded by the vectors after them.

    `L = w · L_GRPO + λ · L_InfoNCE`; see `rollout_loss` and, for dual alignment and an earlier model, `aligned_loss` of
    `training.reasoning.rollout_terms` for the second term. Source:
    MOON3.0, arXiv 2604.00513, joint contrastive and reinforcement learning; weights of LREM, arXiv 2510.14321; the rest
    is our design.

    A step generates all rollouts, computes their vectors without gradient for the rewards, and computes the gradient of
    the InfoNCE with respect to these vectors. It then processes the rollouts in chunks. The forward pass of a chunk
    returns both the log-probabilities of the completions and the vectors, to which the stored gradient is applied
    (GradCache, arXiv 2101.06983). The InfoNCE thus uses all rollouts of all processes for any chunk size, without
    additional passes. With grpo_weight 1 and λ = 0, the loss is TRL's.

    Args:
        model: `MoonForConditionalGeneration`, or a PeftModel around one.
        args: the arguments from `grpo_arguments`.
        pairs: `training.batches.pairs.PairDataset`, or a data set with the same methods. The rewards use `query_labels`
            and `product_labels` of its pairs.
        processor: the processor of the model, which supports reasoning.
        loss: `DualAlignmentLoss`, or a contrastive loss (`InfoNCELoss`, `MatryoshkaLoss`).
        queue: the products of past steps.
        rewards: name of a reward → weight; see `training.rewards`.
        reasoning, options: the recipe's keys of the stage, and its keys of the loss, of which negative_margin,
            queue_warmup_steps, dual_alignment and intra_weight are read.
        allow_urls: download pictures from public URLs. Default: False.
        known_values: attribute key → values in the training data, for the rewards.
        earlier: an earlier model whose product vectors the queries without reasoning must be able to search. Default: None.
        sample_filter: the filter that weighs the pairs in the InfoNCE. Default: None, all have the same weight.
        save_records: called with each checkpoint folder, to write the recipe and the provenance.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ResumeError: a checkpoint was written by a different number of processes, or lacks weights of this model.
        UnreadableBatchError: a pair cannot be read and does not have a readable substitute.
        ValueError: the weights are sharded (FSDP, DeepSpeed), so the encoder cannot be called by itself; or vLLM, to
            which TRL passes only ids, is used with pictures; or target_tokens exceed max_reasoning_tokens.

    Relations:
        Beside TRL's values it logs `reward_correlation/<name>`, see `training.reasoning.reward_correlation`.
    """

    state_name = "reasoning_state"

    def __init__(
        self,
        *,
        model: nn.Module,
        args: GRPOConfig,
        pairs: Any,
        processor: MoonProcessor,
        loss: nn.Module,
        queue: NegativeQueue,
        rewards: Mapping[str, float],
        **settings: Any,
    ) -> None:
        self.reasoning: ReasoningArguments = settings.pop("reasoning")
        self.options: LossArguments = settings.pop("options", None) or LossArguments()
        allow_urls: bool = settings.pop("allow_urls", False)
        self.known_values: Mapping[str, frozenset[str]] = settings.pop("known_values", None) or {}
        self.earlier: EarlierModel | None = settings.pop("earlier", None)
        self.sample_filter: SampleFilter | None = settings.pop("sample_filter", None)
        self.save_records: Callable[[Path], None] | None = settings.pop("save_records", None)
        self.save_processor = processor.save_pretrained
        reference = self._reference(model)
        policy = _writer(model)
        self._settings = (policy.config, copy.deepcopy(policy.config), copy.deepcopy(policy.generation_config))
        self.target_tokens = target_of(self.reasoning, policy.config.max_reasoning_tokens)
        args = copy.copy(args)
        ahead = _take_workers(args)
        args.reward_weights = list(rewards.values())
        args.beta = 0.0  # TRL would load the reference from the Hub; ours is a copy of the policy
        functions = [reward_function(name) for name in rewards]
        super().__init__(
            model=model,
            args=args,
            reward_funcs=functions,
            train_dataset=rollout_dataset(len(pairs)),
            processing_class=processor.tokenizer,
            **settings,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("stage: grpo: found FSDP or DeepSpeed; expected one process, or several with DDP")
        self._restore_settings()
        self.eos_token_ids = [policy.config.think_end_token_id]
        self.beta = self.reasoning.kl_weight
        self.ref_model = reference
        if reference is not None:
            give_fused_output_layer(reference, self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.processor, self.queue = processor, queue
        self.objective = loss if isinstance(loss, DualAlignmentLoss) else DualAlignmentLoss(loss)
        earlier = None if self.earlier is None else self.earlier.processor
        forms = self.options.dual_alignment
        collator = PromptCollator(processor, pairs, args.num_generations, allow_urls, forms, earlier)
        self.ahead = PromptsAhead(collator, args.generation_batch_size // (2 * args.num_generations), **ahead)
        self._prompts: Prompts | None = None
        self._gradient: RolloutVectors | None = None
        self._infonce = 0.0
        self._unreasoned: list[list[_VectorGradient]] = []
        self._facts: list[dict[str, Any]] = []
        self.items_of_step: list[list[str]] = []
        self.start_resumption()

    def _reference(self, model: nn.Module) -> nn.Module | None:
        """Return a frozen copy of the policy, or None for adapters, whose reference is the policy without them."""
        if not self.reasoning.kl_weight or isinstance(model, PeftModel):
            return None
        return copy.deepcopy(model).eval().requires_grad_(False)

    def _restore_settings(self) -> None:
        """Restore the settings of the model that TRL and Trainer have changed, so that they are saved unchanged."""
        config, before, generation = self._settings
        for own, kept in ((config, before), (config.get_text_config(), before.get_text_config())):
            for name in ("eos_token_id", "bos_token_id", "pad_token_id", "use_cache"):
                if name in vars(kept):
                    setattr(own, name, vars(kept)[name])
                elif name in vars(own):
                    delattr(own, name)
        _writer(self.model).generation_config = copy.deepcopy(generation)

    def continue_exactly(self) -> None:
        """Restore the settings of the model, whose token ids Trainer has changed, and the values of `ExactResumption`."""
        self._restore_settings()
        super().continue_exactly()

    # Rollouts

    def roll_out(self, rows: Rows, generate: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's tensors with the pictures and the gradient of the InfoNCE at each rollout's vector."""
        self._prompts = self.ahead.prompts(rows).to(self.accelerator.device)
        batch = self._prompts.batch
        self.note_skipped(batch["skipped"])
        self.note_shortened(batch["shortened"])
        records = number_of_rows(batch["queries"]) + number_of_rows(batch["products"])
        self._metric("shortened_share", shortened_rows(batch["shortened"]) / records)
        self.items_of_step = batch["items"]
        output = generate(rows)
        output |= self._prompts.pictures()
        if self._gradient is not None:
            output["vector_gradient"] = _in_order(self._gradient, self._prompts.rollouts)
        self._measure_groups()
        facts = gather_object(self._facts)
        self._log_correlations(facts)
        self._log_completions(facts)
        self._prompts = self._gradient = None
        return output

    def tokenize(
        self, prompts: list, tokenize: Callable[[list], tuple]
    ) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        """Return the token ids and pictures of the step's prompts from Moon's processor."""
        assert self._prompts is not None
        pictures = self._prompts.pictures()
        pictures.pop("num_images", None)
        if pictures and self.use_vllm:
            names = sorted({item_name(pair, side) for pair in self._prompts.pairs for side in SIDES})
            raise ValueError(f"vllm: found pictures in the prompts of {names[:5]}; expected only texts, or vllm: false")
        return self._prompts.ids, None, pictures

    def generation_context(self) -> AbstractContextManager:
        """Return autocast, because `generate` of a PeftModel bypasses the autocast of its `forward`."""
        return self.accelerator.autocast()

    def reward_rows(self, rows: Rows, prompts: list, completion_ids: list[list[int]]) -> Rows:
        """Return the columns that the rewards read: parsed reasoning, labels, titles and similarities."""
        assert self._prompts is not None
        step = self._prompts
        vectors = self._vectors_of(completion_ids)
        warm = self.state.global_step >= self._queue_warmup()
        queued = self.queue.items() if warm else None
        self._take_gradient(vectors, queued)
        similarities = rollout_similarities(vectors, step.batch, queued)
        readings = self.processor.read_reasoning(completion_ids)
        sides = [(pair, side) for pair in step.pairs for side in SIDES for _ in range(step.rollouts)]
        columns: dict[str, Sequence[Any]] = {
            "reasonings": readings,
            "target_tokens": [self.target_tokens] * len(sides),
            "positive_similarities": similarities.positive,
            "negative_similarities": similarities.negative,
            "labels": [getattr(pair, f"{side}_labels", None) for pair, side in sides],
            "titles": [_title(pair, side) for pair, side in sides],
            "known_values": [self.known_values] * len(sides),
        }
        self._note_facts(sides, readings, similarities)
        self.queue.push(queue_of(vectors, step.batch))
        return [
            {"prompt": prompt, **dict(zip(columns, row, strict=True))}
            for prompt, row in zip(prompts, zip(*columns.values(), strict=True), strict=True)
        ]

    def _queue_warmup(self) -> float:
        steps = self.options.queue_warmup_steps
        return steps * self.state.max_steps if steps < 1 else steps

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Disable dropout and gradients in a context, as in inference."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        finally:
            self.model.train(training)

    def _vectors_of(self, completion_ids: list[list[int]]) -> RolloutVectors:
        """Return the vectors after the completions, and those without reasoning."""
        assert self._prompts is not None
        step, encoder = self._prompts, _writer(self._bare()).model
        chunk = self.args.per_device_train_batch_size
        ids, mask = sequences(step.ids, completion_ids, padding_token(self), encoder.config)
        ids, mask = ids.to(self.accelerator.device), mask.to(self.accelerator.device)
        with self._reading():
            reasoned = []
            for start in range(0, len(ids), chunk):
                part = slice(start, start + chunk)
                pictures = step.pictures(start, start + chunk)
                pictures.pop("num_images", None)
                reasoned.append(encoder(input_ids=ids[part], attention_mask=mask[part], **pictures).embeddings)
            plain = {
                name: torch.cat([encoder(**part).embeddings for part in _parts(inputs, chunk)])
                for name, inputs in _plain_inputs(step.batch, self.options.dual_alignment).items()
            }
        both = torch.cat(reasoned).view(len(step.pairs), 2, step.rollouts, -1)
        whole = (both[:, 0].flatten(0, 1), both[:, 1].flatten(0, 1), plain.pop("queries"), plain.pop("products"))
        return RolloutVectors(*whole, plain)

    def _take_gradient(self, vectors: RolloutVectors, queued: Any) -> None:
        """Store the gradient of the InfoNCE with respect to every vector, for the passes with gradient."""
        assert self._prompts is not None
        reasoning, batch = self.reasoning, self._prompts.batch
        leaves = vectors.leaves()
        earlier_ND = None if self.earlier is None else self.earlier.encode(batch["earlier_products"], None)
        triplet_B = self._triplet_weights(vectors)
        with torch.enable_grad():
            share, margin = reasoning.unreasoned_share, self.options.negative_margin
            parts = rollout_loss(leaves, batch, queued, self.objective.contrastive, share, margin, triplet_B)
            aligned = aligned_loss(leaves, batch, queued, self.objective, self.options, earlier_ND)
            parts = {**aligned, **parts, "loss": parts["loss"] + aligned.get("loss", 0.0)}
            self._check_finite(parts["loss"])
            if reasoning.infonce_weight:
                parts["loss"].backward()
        for name, value in parts.items():
            self._metric(f"infonce{name.removeprefix('loss')}", value.detach())
        self._infonce, self._unreasoned = parts["loss"].item(), []
        if not reasoning.infonce_weight:
            return
        self._gradient = leaves.each(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        steps, gradients = self.args.steps_per_generation, self._gradient.plain()
        self._unreasoned = [[] for _ in range(steps)]
        for name, inputs in _plain_inputs(batch, self.options.dual_alignment).items():
            rows = number_of_rows(inputs)
            cuts = [rows * step // steps for step in range(steps + 1)]
            for step, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
                if stop > start:
                    part = slice_rows(inputs, start, stop)
                    self._unreasoned[step].append(_VectorGradient(part, gradients[name][start:stop]))

    def _triplet_weights(self, vectors: RolloutVectors) -> Tensor | None:
        """Return the weight (B,) of each pair by the sample filter, from the vectors without reasoning."""
        if self.sample_filter is None:
            return None
        assert self._prompts is not None
        batch = self._prompts.batch
        facts = QueryFacts(batch["product"][batch["target"]], batch["query_group"], batch["other"], batch["negative"])
        progress = self.state.global_step / max(self.state.max_steps, 1)
        weight_B, below_B, has_B = triplet_weights(vectors.plain(), batch, facts, self.sample_filter, progress)
        self._metric("filtered_share", (below_B & has_B).float().mean())
        return weight_B

    # The loss

    def score_tokens(
        self,
        score: Callable[..., Scores],
        model: nn.Module,
        ids_LT: Tensor,
        mask_LT: Tensor,
        tokens: int,
        **settings: Any,
    ) -> Scores:
        """Return TRL's scores for texts that are extended to `<emb>`, so that the same pass computes the vectors, too.

        Probabilities are over the whole vocabulary at the sampling temperature. As in TRL, tokens that are suppressed
        in generation or excluded by top_p are not removed.
        """
        ids, mask = with_ending(ids_LT, mask_LT, tokens, _writer(self._bare()).config)
        longer = tokens + _ENDING_TOKENS
        if self._prompts is None:
            parts = [score(model, ids, mask, longer, **_with_pictures(settings))]
        else:  # while TRL scores, it does not have the pictures, nor can it handle chunks without pictures
            size = settings.pop("batch_size", None) or len(ids)
            starts = range(0, len(ids), size)
            chunks = [(slice(start, start + size), self._prompts.pictures(start, start + size)) for start in starts]
            parts = [score(model, ids[part], mask[part], longer, **settings | pictures) for part, pictures in chunks]
        logps, entropies, auxiliary = zip(*parts, strict=True)
        entropy = None if entropies[0] is None else torch.cat(entropies)[:, :tokens]
        return torch.cat(logps)[:, :tokens], entropy, auxiliary[0]

    def chunk_loss(self, policy_loss: Callable[[], Tensor], model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return TRL's loss of a chunk plus the chunk's share of the InfoNCE."""
        reasoning = self.reasoning
        encoder = _writer(self._bare()).model
        vectors: list[Tensor] = []
        hook = encoder.register_forward_hook(lambda module, args, output: vectors.append(output.embeddings))
        try:
            loss = reasoning.grpo_weight * policy_loss()
        finally:
            hook.remove()
        self._metric("grpo", loss.detach() * self.current_gradient_accumulation_steps)
        if "vector_gradient" in inputs:
            term = (torch.cat(vectors) * inputs["vector_gradient"]).sum()
            with self.accelerator.autocast():  # the autocast of the wrapped model's forward, which is not called here
                for part in self._unreasoned[chunks_seen(self) % self.args.steps_per_generation]:
                    term = term + (encoder(**part.inputs).embeddings * part.gradient_RD).sum()
            share = self._infonce / self.args.steps_per_generation
            loss = loss + reasoning.infonce_weight * (term - term.detach() + share)
        if world_size() > 1:
            loss = loss + touch_every_parameter(model)
        self._check_finite(loss)
        return loss

    def _bare(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            self.stop_not_finite("loss", loss.item(), self.items_of_step)

    # Logs

    def _metric(self, name: str, value: Tensor | float) -> None:
        value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device).reshape(1)
        training_metrics(self)[name].append(self.accelerator.gather(value).mean().item())

    def _note_facts(self, sides: list, readings: Sequence[Any], similarities: Any) -> None:
        """Record the facts of each rollout for the table of completions, and log their means."""
        rank_L = ranks(similarities.positive, similarities.negative)
        plain_B = ranks([value.reshape(1) for value in similarities.plain_positive], similarities.plain_negative)
        per_pair = len(sides) // len(plain_B)
        self._facts = [
            {
                "item": item_name(pair, side),
                "side": side,
                "text": reading.text,
                "well_formed": reading.well_formed,
                "rank_without": float(plain_B[row // per_pair]),
                "rank": float(rank_L[row]),
                "candidates": 1 + len(similarities.negative[row]),
            }
            for row, ((pair, side), reading) in enumerate(zip(sides, readings, strict=True))
        ]
        self._metric("rank", sum(float(rank) for rank in rank_L) / len(rank_L))
        self._metric("rank_without_reasoning", sum(float(rank) for rank in plain_B) / len(plain_B))
        self._metric("candidates", sum(fact["candidates"] for fact in self._facts) / len(self._facts))

    def _measure_groups(self) -> None:
        """Count the groups that have no advantage because all their rollouts have the same reward."""
        groups = self.args.generation_batch_size // self.num_generations
        metrics = training_metrics(self)
        metrics["degenerate_groups"].append(metrics["frac_reward_zero_std"][-1] * groups)

    def _log_correlations(self, facts: list[dict[str, Any]]) -> None:
        """Log how each reward agrees with recall, from the facts of all processes."""
        rewards = {name: list(values) for name, values in rollout_logs(self)["rewards"].items()}
        for name, value in reward_correlations(rewards, facts).items():
            training_metrics(self)[f"reward_correlation/{name}"].append(value)

    def _log_completions(self, facts: list[dict[str, Any]]) -> None:
        """Write the rollouts of a step, with their rewards and ranks, to a parquet table."""
        step = self.state.global_step + 1
        if not self.reasoning.completions_steps or step % self.reasoning.completions_steps:
            return
        if not self.accelerator.is_main_process:
            return
        logs = rollout_logs(self)
        rewards = {name: list(values) for name, values in logs["rewards"].items()}
        advantages = list(logs["advantages"])
        for row, fact in enumerate(facts):
            fact |= {name: values[row] for name, values in rewards.items()} | {"advantage": advantages[row]}
        path = self.run_folder.completions_of(step)
        with self.disk.keeping():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist([{"step": step, **fact} for fact in facts])
            pyarrow.parquet.write_table(table, path)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log like TRL, and write the log to `metrics.jsonl`."""
        if "train_loss" in logs:
            logs["train_loss"] = self.mean_loss()
        super().log(logs, start_time)
        if "loss" in logs:
            self.log_step(logs)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because a checkpoint contains its recipe and provenance instead of TRL's card."""

    def own_state(self) -> dict[str, Any]:
        """Return the state of the queue, and the values that the next log averages."""
        return {"queue": self.queue.state_dict(), "metrics": dict(training_metrics(self))}

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Restore the state from `own_state`."""
        self.queue.load_state_dict(state["queue"], self.args.device)
        training_metrics(self).update({name: list(values) for name, values in state["metrics"].items()})


def grpo_arguments(training: Any, reasoning: Any, config: Any, tokenizer: Any) -> GRPOConfig:
    """Return TRL's arguments for a recipe.

    Args:
        training: `MoonTrainingArguments`, whose batch size is the number of pairs of a process and step.
        reasoning: `ReasoningArguments`.
        config: the `MoonConfig`.
        tokenizer: the tokenizer of the model.

    Raises:
        ValueError: the chunk size does not divide the number of rollouts.
    """
    rollouts = 2 * training.per_device_train_batch_size * reasoning.rollouts
    chunk = reasoning.rollout_chunk_size or rollouts
    if rollouts % chunk:
        raise ValueError(
            f"rollout_chunk_size: found {chunk}; expected a divisor of {rollouts}, the rollouts of a process in a step"
        )
    values = {
        entry.name: getattr(training, entry.name) for entry in dataclasses.fields(TrainingArguments) if entry.init
    }
    generation = generation_config(config, Thinking(), tokenizer)
    values |= {
        "per_device_train_batch_size": chunk,
        "gradient_accumulation_steps": rollouts // chunk,
        "remove_unused_columns": False,
        "num_generations": reasoning.rollouts,
        "max_completion_length": config.max_reasoning_tokens,
        "temperature": reasoning.rollout_temperature,
        "top_k": 0,
        "loss_type": "grpo",
        # The vectors for rewards and the gradient of the InfoNCE equal those of the passes with gradient.
        "disable_dropout": True,
        "shuffle_dataset": False,
        "use_vllm": reasoning.vllm,
        "vllm_mode": "colocate",
        "vllm_model_impl": "transformers",
        # As in inference: the token that ends the reasoning, and the suppressed tokens.
        "generation_kwargs": _generation_options(config.think_end_token_id, generation.suppress_tokens, reasoning.vllm),
    }
    return GRPOConfig(**values)


def _generation_options(close: int, suppressed: list[int], vllm: bool) -> dict[str, Any]:
    """Return the options of transformers or vLLM for the token that ends a rollout and for suppressed tokens."""
    if vllm:
        return {"stop_token_ids": [close], "logit_bias": dict.fromkeys(suppressed, -100.0)}
    return {"eos_token_id": [close], "suppress_tokens": suppressed}


def _take_workers(args: Any) -> dict[str, Any]:
    """Disable the workers of TRL's loader, which yields only indices, and return their options for `PromptsAhead`."""
    disabled: dict[str, Any] = {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None}
    options = {name: getattr(args, f"dataloader_{name}", value) for name, value in disabled.items()}
    for name, value in {**disabled, "persistent_workers": False}.items():
        if hasattr(args, f"dataloader_{name}"):
            setattr(args, f"dataloader_{name}", value)
    workers, prefetch, context = options.values()
    return {"workers": workers, "prefetch_factor": prefetch, "context": context}


def _writer(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _parts(inputs: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, number_of_rows(inputs), size):
        yield slice_rows(inputs, start, start + size)


def _plain_inputs(batch: Mapping[str, Any], forms: bool) -> dict[str, dict[str, Tensor]]:
    """Return the inputs without reasoning by the names of `BatchEncoder`: both sides, and with forms their single forms."""
    named = {side: batch[side] for side in SIDES_OF_BATCH}
    if forms:
        for side, key in zip(SIDES_OF_BATCH, ("query_forms", "product_forms"), strict=True):
            of_side = {f"{side}/{form}": batch[key][form]["inputs"] for form in SINGLE_FORMS}
            named |= {name: inputs for name, inputs in of_side.items() if inputs is not None}
    return named


def _in_order(vectors: RolloutVectors, rollouts: int) -> Tensor:
    """Return the rows (L, D) of the rollouts in the order pair, side, rollout."""
    sides = [side_RD.view(-1, rollouts, side_RD.shape[1]) for side_RD in (vectors.query_RD, vectors.product_RD)]
    return torch.stack(sides, dim=1).flatten(0, 2)


def _with_pictures(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without empty pictures, for a chunk of texts."""
    grid = kwargs.get("image_grid_thw")
    if grid is not None and not len(grid):
        return kwargs | {"pixel_values": None, "image_grid_thw": None, "num_images": None}
    return kwargs


def _title(pair: Any, side: str) -> str | None:
    """Return the text that the reasoning must not contradict: the text of a query, or the title of a product."""
    record = pair.rolled[SIDES.index(side)]
    return record.get("text" if side == "query" else "title")
