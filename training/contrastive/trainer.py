"""Train the contrastive stage with transformers' Trainer: encoding, gathered candidates, a queue, exact resumption.

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
from training.contrastive.distiller import Distiller, FrozenModels
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
_DRIFT_PRODUCTS = 4
"""Products that are encoded again to measure the queue's drift. Checkpoints contain their inputs."""
_ALWAYS = ("accuracy", "negatives", "masked_share")
_FORM_METERS = tuple(f"{name}_{form}" for form in FORMS for name in ("loss_inter", "omega"))
_COLD_START_METERS = ("loss_contrastive", "loss_ce", "ce_accuracy", "reasoned_share")
_TERM_METERS = ("filtered_share", "queue_drift", *_FORM_METERS, "loss_intra", "loss_aux", "loss_sparsity")
_SHORTENED = "shortened_share"
_COMPATIBLE = "loss_compatible"
_TEACHERS = "loss_teachers"
_METERS = (
    *_ALWAYS,
    *_TERM_METERS,
    *_COLD_START_METERS,
    _SHORTENED,
    _COMPATIBLE,
    _TEACHERS,
)  # the order in checkpoints; append new ones


class ContrastiveTrainer(ExactResumption, FiniteSteps, Trainer):
    """Trainer for batches of `training.batches.collate.PairCollator` and a model whose forward returns `.embeddings`.

    The candidates of a query are the positives and hard negatives of all processes (or only of its own), with gradient,
    and those of the last w steps from the queue. False negatives are masked. Source: MOON, arXiv 2508.11999 §3.2,
    spatial and temporal negatives.

    Args:
        loss: `DualAlignmentLoss`, or a contrastive loss (`InfoNCELoss`, `MatryoshkaLoss`) for queries in their drawn
            form.
        queue: the candidates of past steps.
        options: the recipe's keys of the loss.
        sample_filter: the filter that weighs triplets. None: all have the same weight.
        frozen: an earlier model whose product vectors the queries must be able to search, too, and teachers whose vectors
            pull the model's states; the collator then prepares the products for them. Default: neither.
        learning_rates: pattern of parameter names → learning rate; see `training.model.parameter_groups.group_by_rate`.
        save_records: called with each checkpoint folder, to write the recipe and the provenance.
        save_processor: called with each checkpoint folder, to save the processor.
        **kwargs: arguments of Trainer. `processing_class` is not used, because Trainer would change the model's token
            ids.

    Raises:
        NonFiniteLossError: the loss or its gradient is NaN or infinite; the weights have not been updated.
        DiskFullError: a file could not be written; raised in every process, with the last complete checkpoint
            unchanged.
        ResumeError: a checkpoint lacks weights of this model, or was written by a different number of processes.

    Relations:
        It writes `metrics.jsonl` (each logged step; `shortened_share` is the share of queries and products over the
        token budget), `skipped.jsonl` (each unreadable query or product, once) and `shortened.jsonl` (each shortened
        query or product, once) in output_dir.
    """

    state_name = "contrastive_state"

    def __init__(
        self,
        *,
        loss: nn.Module,
        queue: NegativeQueue,
        options: LossArguments | None = None,
        sample_filter: SampleFilter | None = None,
        frozen: FrozenModels | None = None,
        learning_rates: Mapping[str, float] | None = None,
        save_records: Callable[[Path], None] | None = None,
        save_processor: Callable[[Path], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = getattr(kwargs["model"], "config", None)
        use_cache = dict(vars(config)).get("use_cache") if config is not None else None
        super().__init__(**kwargs)
        if config is not None:  # Trainer changes it; the saved model keeps its value
            config.use_cache = use_cache
            if use_cache is None:
                del config.use_cache
        self.options = options or LossArguments()
        self.sample_filter, self.learning_rates = sample_filter, learning_rates
        frozen = frozen or FrozenModels()
        self.earlier, self.distiller = frozen.earlier, frozen.distiller(self.model)
        self._bare: tuple[nn.Module, nn.Module] | None = None
        self.sharded = sharding_backend() == "fsdp"
        if self.sharded and self.options.queue_momentum is not None:
            raise ValueError("queue_momentum: does not work with FSDP, which shards the weights; expected None, or DDP")
        self.objective = loss if isinstance(loss, DualAlignmentLoss) else DualAlignmentLoss(loss)
        self.queue = queue
        # The first process measures the drift; with sharded weights, all processes must run each forward pass.
        measures = rank() == 0 or self.sharded or zero_stage() == 3
        self.drift = DriftProbe(queue.max_steps if measures else 0, _DRIFT_PRODUCTS)
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
        if self.distiller is not None:
            self.distiller.to(self.args.device)
            self.add_callback(_LearnMaps(self.distiller))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create Trainer's optimizer, with the learning rates by parameter name."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.learning_rates:
            group_by_rate(optimizer, model or self.model, self.learning_rates)
        maps = [] if self.distiller is None else list(self.distiller.parameters())
        if is_new and maps:
            optimizer.add_param_group({"params": maps})
        return optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """Create Trainer's accelerator, and configure FSDP."""
        super().create_accelerator_and_postprocess()
        if sharding_backend() == "fsdp":
            use_fsdp(self.accelerator, self.model)
            self.is_fsdp_enabled = True

    def after_preparation(self) -> None:
        """Prepare a sharded model."""
        if self.sharded:
            prepare_sharded_model(self.model)

    # A step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run Trainer's step. With chunks, compute the gradient of the vectors first, then that of the model in chunks."""
        if self.options.encode_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        inputs = prepare_inputs(self, inputs)
        # Without synchronization after each chunk, a sharded model would hold unsharded gradients.
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
        """Return the mean loss of this process's queries, and with `return_outputs` all vectors by name."""
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
        states = () if self.distiller is None else self.distiller.states
        return kind(model, tower, self.objective.router_weight > 0, gates, states)

    def _loss(self, vectors: Vectors, inputs: Mapping[str, Any]) -> Tensor:
        """Return the objective of a batch, and update the queue and the meters."""
        self.note_skipped(inputs["skipped"])
        self.note_shortened(inputs["shortened"])
        warm = self.state.global_step >= self._queue_warmup()
        queued = self.queue.items() if warm else None
        earlier_ND = None
        if self.earlier is not None:
            earlier_ND = self.earlier.encode(inputs["earlier_products"], self.options.encode_chunk_size)
        terms = make_terms(vectors, inputs, queued, self.options, self._progress(), self.sample_filter, earlier_ND)
        omega = None if terms.gates is None else self._omega(*terms.gates)
        router_loss = None
        if "router" in vectors:
            router_loss = vectors["router"].sum() / encoded_rows(vectors)
        with whole_parameters(self._bare_model(), "preference"):
            sparsity = self._bare_model().preference_entropy() if self.objective.sparsity_weight else None
        parts = self.objective(terms.inter, terms.intra, omega, router_loss, sparsity, terms.compatible)
        parts = self._whole_objective(self._taught(parts, vectors, inputs), vectors)
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

    def _taught(self, parts: dict[str, Tensor], vectors: Vectors, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the parts with the term of the teachers, which is alone in the first `teachers_alone_steps`."""
        if self.distiller is None:
            return parts
        term = self.distiller(vectors, inputs["teachers"])
        alone = self.options.teachers_alone_steps
        alone = alone * self.state.max_steps if alone < 1 else alone
        share = 0.0 if self.state.global_step < alone else 1.0
        return parts | {"loss": share * parts["loss"] + term, _TEACHERS: term}

    def _whole_objective(self, parts: dict[str, Tensor], vectors: Vectors) -> dict[str, Tensor]:
        """Return the parts of the objective with the total "loss". Stages with further terms add them here."""
        return parts

    def _omega(self, gates_RLE: Tensor, form_R: Tensor) -> dict[str, Tensor]:
        """Return ω of each form, from the queries of all processes."""
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
        """Add the step's products to the queue, and measure the drift of the products from w steps ago."""
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
        """Return vectors for the queue, without gradient."""
        with torch.no_grad():
            model = self._bare_model()
            return model(**inputs).embeddings if self.momentum is None else self.momentum.encode(inputs)

    def _measure(self, vectors: Vectors, inputs: Mapping[str, Any], terms: Terms, parts: Mapping[str, Tensor]) -> None:
        """Update the meters: accuracy within the batch, negatives per query, masked share, and the parts of the loss."""
        facts = QueryFacts(
            inputs["product"][inputs["target"]], inputs["query_group"], inputs["other"], inputs["negative"]
        )
        hit_B = hits(vectors["queries"].detach(), terms.batch, facts, terms.target_B)
        self._meters.add("accuracy", hit_B.double().mean())
        excluded = torch.stack([mask.excluded() for mask in terms.exclusions.values()]).sum()
        queries = sum(len(mask) for mask in terms.exclusions.values())
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
        """Add the meters to the log of a training step, and write it to `metrics.jsonl`."""
        if "train_loss" in logs:  # Trainer would divide by the steps since the run resumed
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
        """Return 0, because Trainer's estimate is for a single forward pass."""
        return 0

    # Checkpoints

    def own_state(self) -> dict[str, Any]:
        """Return the state of the queue, its drift probe and the meters."""
        return {
            "queue": self.queue.state_dict(),
            "drift": self.drift.state_dict(),
            "meters": self._meters.values.tolist(),
            "teachers": None if self.distiller is None else self.distiller.state_dict(),
        }

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Restore the state from `own_state`, and the momentum encoder of the checkpoint."""
        self.queue.load_state_dict(state["queue"], self.args.device)
        self.drift.load_state_dict(state["drift"], self.args.device)
        self._meters = _Meters(state["meters"])
        if self.distiller is not None:
            self.distiller.load_state_dict(state["teachers"])
        if self.momentum is not None:
            averages = torch.load(checkpoint / MOMENTUM_FILE, map_location="cpu", weights_only=True)
            self.momentum.load_state_dict(averages)

    def save_more(self, folder: Path) -> None:
        """Save the momentum encoder."""
        if self.momentum is not None and self.args.should_save:
            torch.save(self.momentum.state_dict(), folder / MOMENTUM_FILE)

    def save_weights(self, save: Step, folder: Path) -> None:
        """Save the weights; for a sharded model, with its original class."""
        with with_original_class(self.model):
            super().save_weights(save, folder)

    def continue_exactly(self) -> None:
        """Restore the values of `ExactResumption`, and restart the measurement of items per second."""
        super().continue_exactly()
        self._encoded_items, self._timed_since = 0, time.perf_counter()


class _UpdateMomentum(TrainerCallback):
    """Update the momentum encoder after each step."""

    def __init__(self, trainer: ContrastiveTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.trainer.momentum is not None:
            self.trainer.momentum.update()


class _LearnMaps(TrainerCallback):
    """Average the gradients of the teachers' maps before each step and clear them after it, as Trainer does for the model's."""

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.distiller.average_gradients()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.distiller.zero_grad()


class _Meters:
    """The sums and counts of logged values, by name."""

    def __init__(self, values: list[list[float]] | None = None) -> None:
        self.values = torch.zeros(len(_METERS), 2, dtype=torch.float64)
        if values is not None:
            self.values[: len(values)] = torch.tensor(values, dtype=torch.float64)

    def add(self, name: str, value: Tensor, count: Tensor | float = 1.0) -> None:
        self.values = self.values.to(value.device)
        self.values[_METERS.index(name)] += torch.stack([value.double(), torch.as_tensor(count).to(value.device)])

    def averages(self, reduce: Callable[..., Tensor]) -> dict[str, float]:
        """Return the averages over all processes, by name."""
        sums = reduce(self.values.clone(), "sum").tolist()
        return {name: total / count for name, (total, count) in zip(_METERS, sums, strict=True) if count}
