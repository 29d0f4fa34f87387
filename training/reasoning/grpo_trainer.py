"""The joint stage: GRPO of TRL on what the model writes, and InfoNCE over the vectors read behind it.

Shape suffixes: B pairs of this process, G rollouts of one side of a pair, L = 2 · B · G rollouts of this process in the order
pair, side (query first), rollout; N products without reasoning; D embedding width.
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
from training.batches.negatives import NegativeQueue
from training.encoding.chunked_encoding import number_of_rows, slice_rows
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
from training.parallel.distributed import touch_every_parameter, world_size
from training.reasoning.rollout_terms import RolloutVectors, queue_of, rollout_loss, rollout_similarities
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
from training.recipe.reasoning import ReasoningArguments
from training.rewards import reward_function
from training.rewards.retrieval import ranks
from training.runs.exact_resumption import ExactResumption, shortened_rows
from training.runs.finite_steps import FiniteSteps

_ENDING_TOKENS = 2


@dataclass
class _Pull:
    """The gradient of the InfoNCE with respect to the vectors of one forward pass of unreasoned records."""

    inputs: dict[str, Tensor]
    gradient_RD: Tensor


class MoonGRPOTrainer(ExactResumption, FiniteSteps, RolloutSteps):
    """TRL's GRPO on Moon: G reasonings of each query and each product, rewarded for the vectors read behind them.

    `L = w · L_GRPO + λ · L_InfoNCE`, see `training.reasoning.rollout_terms.rollout_loss` for the second. Source: MOON3.0, arXiv
    2604.00513, joint contrastive and reinforcement learning; weights as LREM's, arXiv 2510.14321; the rest is our design.

    A step generates all rollouts, reads their vectors without gradient for the rewards, takes the gradient of the InfoNCE
    with respect to these vectors, and then goes through the rollouts in chunks: one forward pass of a chunk gives both the
    log-probabilities of what was written and the vectors, to which the kept gradient is applied (GradCache, arXiv
    2101.06983). So the InfoNCE sees all rollouts of all processes whatever the chunk, and costs no pass of its own. With
    grpo_weight 1 and λ = 0 the loss is TRL's.

    Args:
        model: `MoonForConditionalGeneration`, or a PeftModel around one.
        args: from `grpo_arguments`.
        pairs: `training.batches.pairs.PairDataset`, or what is used like it; labels and titles for the rewards are taken from
            the pairs' `query_labels` and `product_labels`.
        processor: of the model, one that reasons.
        loss: `InfoNCELoss` or `MatryoshkaLoss`.
        queue: the products of past steps.
        rewards: names of rewards → weight; see `training.rewards`.
        reasoning, options: the recipe's keys of the stage, and those of the loss, of which negative_margin and
            queue_warmup_steps are read.
        allow_urls: fetch pictures from public addresses. Default False.
        known_values: attribute key → values in the training data, for the rewards.
        save_records: called with each checkpoint folder, to put recipe and provenance beside the weights.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ResumeError: a checkpoint of another number of processes, or without weights of this model.
        UnreadableBatchError: a pair that cannot be read, without a substitute.
        ValueError: weights in parts (FSDP, DeepSpeed), whose encoder cannot be called by itself; pictures with vLLM, which
            TRL gives ids alone.
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
        self.save_records: Callable[[Path], None] | None = settings.pop("save_records", None)
        self.save_processor = processor.save_pretrained
        reference = self._reference(model)
        policy = _writer(model)
        self._settings = (policy.config, copy.deepcopy(policy.config), copy.deepcopy(policy.generation_config))
        args = copy.copy(args)
        ahead = _take_workers(args)
        args.reward_weights = list(rewards.values())
        args.beta = 0.0  # TRL would read the reference from the hub by the model's name; ours is a copy
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
        self.processor, self.contrastive, self.queue = processor, loss, queue
        collator = PromptCollator(processor, pairs, args.num_generations, allow_urls)
        self.ahead = PromptsAhead(collator, args.generation_batch_size // (2 * args.num_generations), **ahead)
        self._prompts: Prompts | None = None
        self._gradient: RolloutVectors | None = None
        self._infonce = 0.0
        self._plain: list[list[_Pull]] = []
        self._facts: list[dict[str, Any]] = []
        self.items_of_step: list[list[str]] = []
        self.start_resumption()

    def _reference(self, model: nn.Module) -> nn.Module | None:
        """A frozen copy of the policy; with adapters the policy without them."""
        if not self.reasoning.kl_weight or isinstance(model, PeftModel):
            return None
        return copy.deepcopy(model).eval().requires_grad_(False)

    def _restore_settings(self) -> None:
        """Undo what TRL and Trainer set for themselves: a saved model keeps its own."""
        config, before, generation = self._settings
        for own, kept in ((config, before), (config.get_text_config(), before.get_text_config())):
            for name in ("eos_token_id", "bos_token_id", "pad_token_id", "use_cache"):
                if name in vars(kept):
                    setattr(own, name, vars(kept)[name])
                elif name in vars(own):
                    delattr(own, name)
        _writer(self.model).generation_config = copy.deepcopy(generation)

    def continue_exactly(self) -> None:
        """As `ExactResumption`; Trainer has just aligned the model's tokens with the tokenizer's."""
        self._restore_settings()
        super().continue_exactly()

    # Rollouts

    def roll_out(self, rows: Rows, generate: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, with the pictures, and with the gradient of the InfoNCE at each rollout's vector."""
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
        self._log_completions()
        self._prompts = self._gradient = None
        return output

    def tokenize(
        self, prompts: list, known: Callable[[list], tuple]
    ) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        """Ids and pictures of the step's prompts, which our processor has made."""
        assert self._prompts is not None
        pictures = self._prompts.pictures()
        pictures.pop("num_images", None)
        if pictures and self.use_vllm:
            names = sorted({one for pair in self._prompts.pairs for one in (item_name(pair, side) for side in SIDES)})
            raise ValueError(f"vllm: found pictures in a step of {names[:5]}; expected texts alone, or vllm: false")
        return self._prompts.ids, None, pictures

    def generation_context(self) -> AbstractContextManager:
        """The stage's precision: a PeftModel's `generate` goes past the autocast of its `forward`."""
        return self.accelerator.autocast()

    def reward_rows(self, rows: Rows, prompts: list, completion_ids: list[list[int]]) -> Rows:
        """What was written, known and near, which the rewards see (the columns in `training/rewards`)."""
        assert self._prompts is not None
        found = self._prompts
        vectors = self._vectors_of(completion_ids)
        warm = self.state.global_step >= self._queue_warmup()
        queued = self.queue.items() if warm else None
        self._take_gradient(vectors, queued)
        near = rollout_similarities(vectors, found.batch, queued)
        readings = self.processor.read_reasoning(completion_ids)
        sides = [(pair, side) for pair in found.pairs for side in SIDES for _ in range(found.rollouts)]
        columns: dict[str, Sequence[Any]] = {
            "reasonings": readings,
            "max_reasoning_tokens": [self.max_completion_length] * len(sides),
            "positive_similarities": near.positive,
            "negative_similarities": near.negative,
            "labels": [getattr(pair, f"{side}_labels", None) for pair, side in sides],
            "titles": [_title(pair, side) for pair, side in sides],
            "known_values": [self.known_values] * len(sides),
        }
        self._note_facts(sides, readings, near)
        self.queue.push(queue_of(vectors, found.batch))
        return [
            {"prompt": prompt, **dict(zip(columns, row, strict=True))}
            for prompt, row in zip(prompts, zip(*columns.values(), strict=True), strict=True)
        ]

    def _queue_warmup(self) -> float:
        steps = self.options.queue_warmup_steps
        return steps * self.state.max_steps if steps < 1 else steps

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Vectors without gradient, as they are at inference."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        finally:
            self.model.train(training)

    def _vectors_of(self, completion_ids: list[list[int]]) -> RolloutVectors:
        """The vectors behind what was written, and those without reasoning."""
        assert self._prompts is not None
        found, encoder = self._prompts, _writer(self._bare()).model
        chunk = self.args.per_device_train_batch_size
        ids, mask = sequences(found.ids, completion_ids, padding_token(self), encoder.config)
        ids, mask = ids.to(self.accelerator.device), mask.to(self.accelerator.device)
        with self._reading():
            reasoned = []
            for start in range(0, len(ids), chunk):
                part = slice(start, start + chunk)
                pictures = found.pictures(start, start + chunk)
                pictures.pop("num_images", None)
                reasoned.append(encoder(input_ids=ids[part], attention_mask=mask[part], **pictures).embeddings)
            plain = [
                torch.cat([encoder(**part).embeddings for part in _parts(found.batch[side], chunk)])
                for side in ("queries", "products")
            ]
        both = torch.cat(reasoned).view(len(found.pairs), 2, found.rollouts, -1)
        return RolloutVectors(both[:, 0].flatten(0, 1), both[:, 1].flatten(0, 1), *plain)

    def _take_gradient(self, vectors: RolloutVectors, queued: Any) -> None:
        """Keep the InfoNCE's gradient with respect to every vector, for the passes that learn."""
        assert self._prompts is not None
        reasoning, batch = self.reasoning, self._prompts.batch
        leaves = vectors.leaves()
        with torch.enable_grad():
            parts = rollout_loss(
                leaves, batch, queued, self.contrastive, reasoning.unreasoned_share, self.options.negative_margin
            )
            self._check_finite(parts["loss"])
            if reasoning.infonce_weight:
                parts["loss"].backward()
        for name, value in parts.items():
            self._metric(f"infonce{name.removeprefix('loss')}", value.detach())
        self._infonce, self._plain = parts["loss"].item(), []
        if not reasoning.infonce_weight:
            return
        gradients = {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in vars(leaves).items()
        }
        self._gradient = RolloutVectors(**gradients)
        steps = self.args.steps_per_generation
        self._plain = [[] for _ in range(steps)]
        for side, name in (("queries", "plain_query_BD"), ("products", "plain_product_ND")):
            rows = number_of_rows(batch[side])
            cuts = [rows * step // steps for step in range(steps + 1)]
            for step, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
                if stop > start:
                    inputs = slice_rows(batch[side], start, stop)
                    self._plain[step].append(_Pull(inputs, gradients[name][start:stop]))

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
        """As TRL's, of texts that go on to `<emb>`: the same pass then gives the vectors, too.

        The probabilities are those of the whole vocabulary at the stage's temperature; that some tokens are barred from being
        drawn, or top_p leaves some out, does not enter them, as in TRL's own.
        """
        ids, mask = with_ending(ids_LT, mask_LT, tokens, _writer(self._bare()).config)
        longer = tokens + _ENDING_TOKENS
        if self._prompts is None:
            parts = [score(model, ids, mask, longer, **_with_pictures(settings))]
        else:  # TRL does not know the pictures while it scores, nor chunks without any
            size = settings.pop("batch_size", None) or len(ids)
            starts = range(0, len(ids), size)
            of_parts = [(slice(start, start + size), self._prompts.pictures(start, start + size)) for start in starts]
            parts = [score(model, ids[part], mask[part], longer, **settings | seen) for part, seen in of_parts]
        logps, entropies, auxiliary = zip(*parts, strict=True)
        entropy = None if entropies[0] is None else torch.cat(entropies)[:, :tokens]
        return torch.cat(logps)[:, :tokens], entropy, auxiliary[0]

    def chunk_loss(self, policy_loss: Callable[[], Tensor], model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss of a chunk, and the chunk's part of the InfoNCE."""
        reasoning = self.reasoning
        encoder = _writer(self._bare()).model
        seen: list[Tensor] = []
        watch = encoder.register_forward_hook(lambda module, given, output: seen.append(output.embeddings))
        try:
            loss = reasoning.grpo_weight * policy_loss()
        finally:
            watch.remove()
        self._metric("grpo", loss.detach() * self.current_gradient_accumulation_steps)
        if "vector_gradient" in inputs:
            pull = (torch.cat(seen) * inputs["vector_gradient"]).sum()
            with self.accelerator.autocast():  # that of the wrapped model's forward, which is not called here
                for part in self._plain[chunks_seen(self) % self.args.steps_per_generation]:
                    pull = pull + (encoder(**part.inputs).embeddings * part.gradient_RD).sum()
            share = self._infonce / self.args.steps_per_generation
            loss = loss + reasoning.infonce_weight * (pull - pull.detach() + share)
        if world_size() > 1:
            loss = loss + touch_every_parameter(model)
        self._check_finite(loss)
        return loss

    def _bare(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            self.stop_not_finite("loss", loss.item(), self.items_of_step)

    # What is watched

    def _metric(self, name: str, value: Tensor | float) -> None:
        value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device).reshape(1)
        training_metrics(self)[name].append(self.accelerator.gather(value).mean().item())

    def _note_facts(self, sides: list, readings: Sequence[Any], near: Any) -> None:
        """What the completions log says of each rollout, and the means that are logged."""
        rank_L = ranks(near.positive, near.negative)
        plain_B = ranks([one.reshape(1) for one in near.plain_positive], near.plain_negative)
        per_pair = len(sides) // len(plain_B)
        self._facts = [
            {
                "item": item_name(pair, side),
                "side": side,
                "text": reading.text,
                "well_formed": reading.well_formed,
                "rank_without": float(plain_B[row // per_pair]),
                "rank": float(rank_L[row]),
                "candidates": 1 + len(near.negative[row]),
            }
            for row, ((pair, side), reading) in enumerate(zip(sides, readings, strict=True))
        ]
        self._metric("rank", sum(float(one) for one in rank_L) / len(rank_L))
        self._metric("rank_without_reasoning", sum(float(one) for one in plain_B) / len(plain_B))
        self._metric("candidates", sum(fact["candidates"] for fact in self._facts) / len(self._facts))

    def _measure_groups(self) -> None:
        """Count the groups that taught nothing, because all their rollouts had the same reward."""
        groups = self.args.generation_batch_size // self.num_generations
        metrics = training_metrics(self)
        metrics["degenerate_groups"].append(metrics["frac_reward_zero_std"][-1] * groups)

    def _log_completions(self) -> None:
        """Write the step's rollouts with their rewards and ranks as a parquet table."""
        step = self.state.global_step + 1
        if not self.reasoning.completions_steps or step % self.reasoning.completions_steps:
            return
        facts = gather_object(self._facts)
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
        """As TRL's, also into `metrics.jsonl`."""
        if "train_loss" in logs:
            logs["train_loss"] = self.mean_loss()
        super().log(logs, start_time)
        if "loss" in logs:
            self.log_step(logs)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a checkpoint carries its recipe and provenance instead of TRL's card."""

    def own_state(self) -> dict[str, Any]:
        """The queue, and the values that the next log averages."""
        return {"queue": self.queue.state_dict(), "metrics": dict(training_metrics(self))}

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Take over what `own_state` returned."""
        self.queue.load_state_dict(state["queue"], self.args.device)
        training_metrics(self).update({name: list(values) for name, values in state["metrics"].items()})


def grpo_arguments(training: Any, reasoning: Any, config: Any, tokenizer: Any) -> GRPOConfig:
    """Return TRL's settings of a recipe.

    Args:
        training: `MoonTrainingArguments`; its batch size counts pairs of a process and step.
        reasoning: `ReasoningArguments`.
        config: MoonConfig.
        tokenizer: the model's.

    Raises:
        ValueError: a chunk size that does not divide the rollouts.
    """
    rollouts = 2 * training.per_device_train_batch_size * reasoning.rollouts
    chunk = reasoning.rollout_chunk_size or rollouts
    if rollouts % chunk:
        raise ValueError(
            f"rollout_chunk_size: found {chunk}; expected a divisor of {rollouts}, the rollouts of a process and step"
        )
    given = {entry.name: getattr(training, entry.name) for entry in dataclasses.fields(TrainingArguments) if entry.init}
    own = generation_config(config, Thinking(), tokenizer)
    given |= {
        "per_device_train_batch_size": chunk,
        "gradient_accumulation_steps": rollouts // chunk,
        "remove_unused_columns": False,
        "num_generations": reasoning.rollouts,
        "max_completion_length": config.max_reasoning_tokens,
        "temperature": reasoning.rollout_temperature,
        "top_k": 0,
        "loss_type": "grpo",
        # The vectors that rewards and the InfoNCE's gradient see are those of the passes that learn.
        "disable_dropout": True,
        "shuffle_dataset": False,
        "use_vllm": reasoning.vllm,
        "vllm_mode": "colocate",
        "vllm_model_impl": "transformers",
        # By the rules of inference: what ends a reasoning, and what is never written.
        "generation_kwargs": _drawing(config.think_end_token_id, own.suppress_tokens, reasoning.vllm),
    }
    return GRPOConfig(**given)


def _drawing(close: int, barred: list[int], vllm: bool) -> dict[str, Any]:
    """Which token ends a rollout and which are never drawn, in the words of transformers or of vLLM."""
    if vllm:
        return {"stop_token_ids": [close], "logit_bias": dict.fromkeys(barred, -100.0)}
    return {"eos_token_id": [close], "suppress_tokens": barred}


def _take_workers(args: Any) -> dict[str, Any]:
    """Take the loader's workers from TRL, whose loader gives bare numbers; return them as `PromptsAhead` names them."""
    none: dict[str, Any] = {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None}
    found = {name: getattr(args, f"dataloader_{name}", value) for name, value in none.items()}
    for name, value in {**none, "persistent_workers": False}.items():
        if hasattr(args, f"dataloader_{name}"):
            setattr(args, f"dataloader_{name}", value)
    workers, prefetch, context = found.values()
    return {"workers": workers, "prefetch_factor": prefetch, "context": context}


def _writer(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _parts(inputs: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, number_of_rows(inputs), size):
        yield slice_rows(inputs, start, start + size)


def _in_order(vectors: RolloutVectors, rollouts: int) -> Tensor:
    """The rollouts' rows (L, D) in the order pair, side, rollout."""
    sides = [one.view(-1, rollouts, one.shape[1]) for one in (vectors.query_RD, vectors.product_RD)]
    return torch.stack(sides, dim=1).flatten(0, 2)


def _with_pictures(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without pictures, as a chunk of texts has none."""
    grid = kwargs.get("image_grid_thw")
    if grid is not None and not len(grid):
        return kwargs | {"pixel_values": None, "image_grid_thw": None, "num_images": None}
    return kwargs


def _title(pair: Any, side: str) -> str | None:
    """The text that a reasoning must not contradict: a query's own, or a product's title."""
    record = pair.query if side == "query" else pair.products[0]
    return record.get("text" if side == "query" else "title")
