"""The contrastive stage on transformers' Trainer: encoding, gathered candidates, a queue, exact resumption.

Shape suffixes: B queries of this process, N products of this process, C candidates of all processes and the queue,
D embedding width, M objectives.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from training.batches.negatives import Candidates, DriftProbe, NegativeQueue, QueryFacts
from training.contrastive.terms import Terms, hits, make_terms
from training.encoding.batch_encoding import BatchEncoder, BatchPart, encoded_rows, parts_of
from training.encoding.chunked_encoding import ChunkedEncoding, Vectors, number_of_rows, select_rows
from training.encoding.momentum_encoder import MomentumEncoder
from training.encoding.shared_pictures import vision_tower
from training.libraries.accelerate_library import sharding_backend, zero_stage
from training.libraries.fsdp import prepare_sharded_model, whole_parameters, with_original_class
from training.libraries.trainer import Step, prepare_inputs
from training.losses.dual_alignment import FORMS, DualAlignmentLoss
from training.losses.sample_filter import SampleFilter
from training.model.parameter_groups import group_by_rate
from training.parallel.distributed import gather_with_gradient, rank, touch_every_parameter, world_size
from training.parallel.sharding import EvenEncoder, even_parts, reach_all, use_fsdp
from training.recipe.loss import LossArguments
from training.runs.exact_resumption import ExactResumption, shortened_rows
from training.runs.finite_steps import FiniteSteps

MOMENTUM_FILE = "momentum_encoder.pt"
_DRIFT_ITEMS = 4
"""Items that are encoded again to measure the queue's drift, each time that it has renewed itself; checkpoints hold them."""
_ALWAYS = ("accuracy", "negatives", "masked_share")
_OF_FORMS = tuple(f"{name}_{form}" for form in FORMS for name in ("loss_inter", "omega"))
_OF_COLD_START = ("loss_contrastive", "loss_ce", "ce_accuracy", "reasoned_share")
_OF_TERMS = ("filtered_share", "queue_drift", *_OF_FORMS, "loss_intra", "loss_aux", "loss_sparsity")
_SHORTENED = "shortened_share"
_METERS = (*_ALWAYS, *_OF_TERMS, *_OF_COLD_START, _SHORTENED)  # a checkpoint has them in this order; new ones come last


class ContrastiveTrainer(ExactResumption, FiniteSteps, Trainer):
    """Trainer for batches of `training.batches.collate.PairCollator` and a model whose forward gives `.embeddings`.

    Candidates of a query: the positives and hard negatives of all processes (or of its own alone), with gradient, and those
    of the last w steps from the queue; false negatives are masked. Source: MOON, arXiv 2508.11999 §3.2, spatial and temporal
    negatives.

    Args:
        loss: `DualAlignmentLoss`, or a contrastive loss (`InfoNCELoss`, `MatryoshkaLoss`) on the queries as they come.
        queue: the candidates of past steps.
        options: the recipe's keys of the loss.
        sample_filter: weights of triplets; None: all count alike.
        learning_rates: pattern of parameter names → learning rate; see `training.model.parameter_groups.group_by_rate`.
        save_records: called with each checkpoint folder, to put the recipe and provenance beside the weights.
        save_processor: called with each checkpoint folder, to save what encodes the inputs.
        **kwargs: Trainer's own; `processing_class` is not used, because Trainer would change the model's token ids.

    Raises:
        NonFiniteLossError: the loss or its gradient is NaN or infinite; the weights have not taken the step.
        DiskFullError: a file could not be written; raised in every process, with the last good checkpoint untouched.
        ResumeError: a checkpoint lacks weights of this model, or was written by another number of processes.

    Relations:
        Writes `metrics.jsonl` (each logged step; `shortened_share` is that of the queries and products over the token
        budget), `skipped.jsonl` (each unreadable item, once) and `shortened.jsonl` (each that was cut, once) in output_dir.
    """

    state_name = "contrastive_state"

    def __init__(
        self,
        *,
        loss: nn.Module,
        queue: NegativeQueue,
        options: LossArguments | None = None,
        sample_filter: SampleFilter | None = None,
        learning_rates: Mapping[str, float] | None = None,
        save_records: Callable[[Path], None] | None = None,
        save_processor: Callable[[Path], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = getattr(kwargs["model"], "config", None)
        use_cache = dict(vars(config)).get("use_cache") if config is not None else None
        super().__init__(**kwargs)
        if config is not None:  # Trainer sets it; the saved model shall keep its own
            config.use_cache = use_cache
            if use_cache is None:
                del config.use_cache
        self.options = options or LossArguments()
        self.sample_filter, self.learning_rates = sample_filter, learning_rates
        self._bare: tuple[nn.Module, nn.Module] | None = None
        self.sharded = sharding_backend() == "fsdp"
        if self.sharded and self.options.queue_momentum is not None:
            raise ValueError("queue_momentum: found with FSDP, whose weights lie in parts; expected None, or DDP")
        self.objective = loss if isinstance(loss, DualAlignmentLoss) else DualAlignmentLoss(loss)
        self.queue = queue
        # The first process watches for all; of weights in parts each forward pass is one of all processes.
        watches = rank() == 0 or self.sharded or zero_stage() == 3
        self.drift = DriftProbe(queue.max_steps if watches else 0, _DRIFT_ITEMS)
        momentum = self.options.queue_momentum
        self.momentum = None if momentum is None else MomentumEncoder(self._bare_model(), momentum)
        self.save_records = save_records
        self.save_processor = save_processor
        self.model_accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it by the accumulation steps
        self._meters = _Meters()
        self._encoded_items = 0
        self.items_of_step: list[list[str]] = []
        self._timed_since = time.perf_counter()
        self.start_resumption()
        self.add_callback(_UpdateMomentum(self))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As Trainer's, with the learning rates of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.learning_rates:
            group_by_rate(optimizer, model or self.model, self.learning_rates)
        return optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's; with FSDP, also what accelerate leaves open."""
        super().create_accelerator_and_postprocess()
        if sharding_backend() == "fsdp":
            use_fsdp(self.accelerator, self.model)
            self.is_fsdp_enabled = True

    def after_preparation(self) -> None:
        """Finish a model in parts."""
        if self.sharded:
            prepare_sharded_model(self.model)

    # A step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As Trainer's; with chunks, the loss's gradient reaches the vectors first and the model chunk by chunk."""
        if self.options.encode_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        inputs = prepare_inputs(self, inputs)
        # Without an exchange after each chunk, a sharded model would keep whole gradients.
        without_sync = contextlib.nullcontext if self.sharded else functools.partial(self.accelerator.no_sync, model)
        encoding = ChunkedEncoding(self._encoder(model), self._even(self._parts(inputs)), without_sync)
        vectors = encoding.vectors()
        loss = self._loss(vectors, inputs) / self.current_gradient_accumulation_steps
        if self.sharded:
            loss = loss + reach_all(vectors)
        with without_sync():
            self.accelerator.backward(loss)
        loss = loss.detach()  # the graph would keep the vectors
        touches = world_size() > 1 and not self.sharded
        encoding.backward(functools.partial(touch_every_parameter, model) if touches else None)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Vectors]:
        """Return the mean loss of this process's queries; with `return_outputs` also all vectors by name."""
        encode = self._encoder(model)
        parts = [encode(part) for part in self._even(self._parts(inputs))]
        vectors = {name: torch.cat([part[name] for part in parts if name in part]) for part in parts for name in part}
        loss = self._loss(vectors, inputs)
        if self.sharded:
            loss = loss + reach_all(vectors)
        elif world_size() > 1:
            loss = loss + touch_every_parameter(model)
        return (loss, vectors) if return_outputs else loss

    def _bare_model(self) -> nn.Module:
        if self._bare is None or self._bare[0] is not self.model:
            self._bare = (self.model, self.accelerator.unwrap_model(self.model))
        return self._bare[1]

    def _parts(self, inputs: Mapping[str, Any]) -> list[BatchPart]:
        return parts_of(inputs, self.options.encode_chunk_size, self.options.dual_alignment)

    def _even(self, parts: list[BatchPart]) -> Sequence[BatchPart]:
        return even_parts(parts, self.args.device) if self.sharded else parts

    def _encoder(self, model: nn.Module) -> BatchEncoder:
        bare = self._bare_model()
        routing = getattr(getattr(bare, "config", None), "expert_routing", None)
        gates = self.options.dual_alignment and self.objective.weights is None and routing == "modality"
        tower = vision_tower(bare) if self.options.dual_alignment else None
        kind = EvenEncoder if self.sharded else BatchEncoder
        return kind(model, tower, self.objective.router_weight > 0, gates)

    def _loss(self, vectors: Vectors, inputs: Mapping[str, Any]) -> Tensor:
        """The objective of a batch; fills the queue and the meters on the way."""
        self.note_skipped(inputs["skipped"])
        self.note_shortened(inputs["shortened"])
        warm = self.state.global_step >= self._queue_warmup()
        queued = self.queue.items() if warm else None
        terms = make_terms(vectors, inputs, queued, self.options, self._progress(), self.sample_filter)
        omega = None if terms.gates is None else self._omega(*terms.gates)
        router_loss = None
        if "router" in vectors:
            router_loss = vectors["router"].sum() / encoded_rows(vectors)
        with whole_parameters(self._bare_model(), "preference"):
            sparsity = self._bare_model().preference_entropy() if self.objective.sparsity_weight else None
        parts = self._whole_objective(self.objective(terms.inter, terms.intra, omega, router_loss, sparsity), vectors)
        if self._bare_model().training:
            self.items_of_step += inputs["items"]
        if not torch.isfinite(parts["loss"]):
            self.stop_not_finite("loss", parts["loss"].item(), inputs["items"])
        with torch.no_grad():
            weights = {f"omega_{form}": weight for form, weight in (omega or {}).items() if form in terms.inter}
            self._measure(vectors, inputs, terms, parts | weights)
            if self._bare_model().training:
                self._fill_queue(vectors, inputs, terms.batch)
        return parts["loss"]

    def _whole_objective(self, parts: dict[str, Tensor], vectors: Vectors) -> dict[str, Tensor]:
        """The objective's parts, "loss" being the total: what else a stage learns is added here."""
        return parts

    def _omega(self, gates_RLE: Tensor, form_R: Tensor) -> dict[str, Tensor]:
        """ω of each form, from the queries of all processes."""
        model = self._bare_model()
        names = list(model.config.objectives)
        place = torch.tensor([names.index(form) for form in FORMS], device=form_R.device)
        with whole_parameters(model, "preference"):
            omega_M = model.objective_weights(gates_RLE, place[form_R])
        return {form: omega_M[names.index(form)] for form in FORMS}

    # The queue

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

    def _queue_warmup(self) -> float:
        steps = self.options.queue_warmup_steps
        return steps * self.state.max_steps if steps < 1 else steps

    def _fill_queue(self, vectors: Vectors, inputs: Mapping[str, Any], batch: Candidates) -> None:
        """Push the step's products, and measure how far those of w steps before have drifted."""
        own_ND = vectors["products"].detach()
        if self.momentum is not None and self.queue.max_steps:
            own_ND = torch.cat(
                [self._encode_for_queue(part.inputs) for part in self._parts(inputs) if part.side == "products"]
            )
            spatial = self.options.spatial_negatives
            batch = replace(batch, vector_CD=gather_with_gradient(own_ND) if spatial else own_ND)

        def take(count: int) -> tuple[dict[str, Tensor], Tensor]:
            rows = torch.arange(min(count, number_of_rows(inputs["products"])), device=own_ND.device)
            return select_rows(inputs["products"], rows), own_ND[rows]

        drift = self.drift.step(take, self._encode_for_queue)
        if drift is not None and rank() == 0:
            self._meters.add("queue_drift", drift)
        self.queue.push(batch)

    def _encode_for_queue(self, inputs: dict[str, Tensor]) -> Tensor:
        """Vectors as the queue receives them, without gradient."""
        with torch.no_grad():
            model = self._bare_model()
            return model(**inputs).embeddings if self.momentum is None else self.momentum.encode(inputs)

    def _measure(self, vectors: Vectors, inputs: Mapping[str, Any], terms: Terms, parts: Mapping[str, Tensor]) -> None:
        """Add to the meters: hits among the batch's candidates, negatives per query, masked share, the loss's parts."""
        facts = QueryFacts(
            inputs["product"][inputs["target"]], inputs["query_group"], inputs["other"], inputs["negative"]
        )
        hit_B = hits(vectors["queries"].detach(), terms.batch, facts, terms.target_B)
        self._meters.add("accuracy", hit_B.double().mean())
        excluded = torch.stack([one.excluded() for one in terms.exclusions.values()]).sum()
        queries = sum(len(one) for one in terms.exclusions.values())
        candidates = len(next(iter(terms.exclusions.values())).product_C)
        self._meters.add("masked_share", excluded, queries * candidates)
        self._meters.add("negatives", queries * (candidates - 1) - excluded, queries)
        short = torch.tensor(float(shortened_rows(inputs["shortened"])), device=hit_B.device)
        self._meters.add(_SHORTENED, short, len(vectors["queries"]) + len(vectors["products"]))
        for name, value in terms.measures.items():
            self._meters.add(name, *value)
        for name, value in parts.items():
            if name in _METERS:
                self._meters.add(name, value.detach())
        self._encoded_items += encoded_rows(vectors)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our meters to a training step's log, and write the step to `metrics.jsonl`."""
        if "train_loss" in logs:  # of all steps; after a resumption Trainer divides it by those since
            logs["train_loss"] = self.mean_loss()
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        averages = self._meters.averages(self.accelerator.reduce)
        elapsed = time.perf_counter() - self._timed_since
        logs |= averages | {"temperature": self.objective.temperature}
        if self.sample_filter is not None:
            logs["filter_margin"] = self.sample_filter.margin_at(self._progress())
        logs["items_per_second"] = self._encoded_items / max(elapsed, 1e-9)
        self._meters = _Meters()
        self._encoded_items, self._timed_since = 0, time.perf_counter()
        super().log(logs, start_time)
        self.log_step(logs)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Return 0: Trainer's estimate counts tokens of one forward and does not fit two."""
        return 0

    # Checkpoints

    def own_state(self) -> dict[str, Any]:
        """The queue, what watches it, and the meters."""
        return {
            "queue": self.queue.state_dict(),
            "drift": self.drift.state_dict(),
            "meters": self._meters.values.tolist(),
        }

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Take over what `own_state` returned, and the momentum encoder beside it."""
        self.queue.load_state_dict(state["queue"], self.args.device)
        self.drift.load_state_dict(state["drift"], self.args.device)
        self._meters = _Meters(state["meters"])
        if self.momentum is not None:
            averages = torch.load(checkpoint / MOMENTUM_FILE, map_location="cpu", weights_only=True)
            self.momentum.load_state_dict(averages)

    def save_more(self, folder: Path) -> None:
        """The momentum encoder."""
        if self.momentum is not None and self.args.should_save:
            torch.save(self.momentum.state_dict(), folder / MOMENTUM_FILE)

    def save_weights(self, save: Step, folder: Path) -> None:
        """As `ExactResumption`; also of a model in parts its own class is saved."""
        with with_original_class(self.model):
            super().save_weights(save, folder)

    def continue_exactly(self) -> None:
        """As `ExactResumption`; the clock of items per second begins."""
        super().continue_exactly()
        self._encoded_items, self._timed_since = 0, time.perf_counter()


class _UpdateMomentum(TrainerCallback):
    """Moves the momentum encoder after each step."""

    def __init__(self, trainer: ContrastiveTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.trainer.momentum is not None:
            self.trainer.momentum.update()


class _Meters:
    """Sums and counts of what is logged, by name."""

    def __init__(self, values: list[list[float]] | None = None) -> None:
        self.values = torch.zeros(len(_METERS), 2, dtype=torch.float64)
        if values is not None:
            self.values[: len(values)] = torch.tensor(values, dtype=torch.float64)

    def add(self, name: str, value: Tensor, count: Tensor | float = 1.0) -> None:
        self.values = self.values.to(value.device)
        self.values[_METERS.index(name)] += torch.stack([value.double(), torch.as_tensor(count).to(value.device)])

    def averages(self, reduce: Callable[..., Tensor]) -> dict[str, float]:
        """Averages over all processes of what was counted."""
        sums = reduce(self.values.clone(), "sum").tolist()
        return {name: total / count for name, (total, count) in zip(_METERS, sums, strict=True) if count}
