"""The contrastive stage on transformers' Trainer: two forwards, gathered candidates, a queue, exact resumption.

Shape suffixes: B queries of this process, N products of this process, C candidates of all processes and the queue,
D embedding width.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from training.distributed import first_row, gather_ids, gather_with_gradient, rank, world_size
from training.negatives import Candidates, NegativeQueue, QueryFacts, false_negative_mask
from training.resume import append_line, cut_lines_after, mark_complete, prune, read_lines

METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.jsonl"
_METERS = ("micro_steps", "accuracy", "negatives", "masked_share")


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the file that lists the batch's items."""


class ResumeError(RuntimeError):
    """A checkpoint that this run cannot continue from."""


class ContrastiveTrainer(Trainer):
    """Trainer for batches of `training.data.collate.PairCollator` and a model whose forward gives `.embeddings`.

    Candidates of a query: the positives and hard negatives of all processes, with gradient, and those of the last w
    steps from the queue; false negatives are masked. Source: MOON, arXiv 2508.11999, spatial and temporal negatives.

    Args:
        loss: called as loss(query_BD, candidate_CD, target_B, excluded_BC), with an attribute `temperature`.
        queue: the candidates of past steps.
        save_records: called with each checkpoint folder, to put the recipe and provenance beside the weights.
        save_processor: called with each checkpoint folder, to save what encodes the inputs.
        **kwargs: Trainer's own; `processing_class` is not used, because Trainer would change the model's token ids.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ResumeError: a checkpoint lacks weights of this model, or was written by another number of processes.

    Relations:
        Writes `metrics.jsonl` (each logged step) and `skipped.jsonl` (each unreadable item, once) in output_dir.
    """

    def __init__(
        self,
        *,
        loss: nn.Module,
        queue: NegativeQueue,
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
        self.contrastive_loss = loss
        self.queue = queue
        self.save_records = save_records
        self.save_processor = save_processor
        self.model_accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it by the accumulation steps
        self._meters = torch.zeros(len(_METERS), dtype=torch.float64)
        self._encoded_items = 0
        self._timed_since = time.perf_counter()
        self._resumed: dict[str, Any] | None = None
        self._noted: set[tuple[str, str]] = set()
        self.add_callback(_ContinueExactly(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of this process's queries; with `return_outputs` also both sets of vectors."""
        self._note_skipped(inputs["skipped"])
        query_BD = model(**inputs["queries"]).embeddings
        product_ND = model(**inputs["products"]).embeddings
        target_B = inputs["target"]
        queries = QueryFacts(inputs["product"][target_B], inputs["query_group"], inputs["other"], inputs["negative"])
        batch = Candidates(gather_with_gradient(product_ND), gather_ids(inputs["product"]), gather_ids(inputs["group"]))
        target_B = target_B + first_row(len(product_ND), product_ND.device)
        candidates = _joined(batch, self.queue.items())
        excluded_BC = false_negative_mask(queries, candidates.product_C, candidates.group_C, target_B)
        loss = self.contrastive_loss(query_BD, candidates.vector_CD, target_B, excluded_BC)
        self._check_finite(loss, inputs["items"])
        self._measure(query_BD.detach(), batch, target_B, excluded_BC)
        if model.training:
            self.queue.push(batch)
        if world_size() > 1 and "pixel_values" not in {**inputs["queries"], **inputs["products"]}:
            loss = loss + _touch_every_parameter(model)
        return (loss, {"queries": query_BD, "products": product_ND}) if return_outputs else loss

    def _check_finite(self, loss: Tensor, items: list[list[str]]) -> None:
        if torch.isfinite(loss):
            return
        path = Path(self.args.output_dir) / f"nonfinite_batch_{rank()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"step": self.state.global_step, "loss": str(loss.item()), "items": items}
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        raise NonFiniteLossError(
            f"the loss is {loss.item()} at step {self.state.global_step}; the batch's queries and positives are "
            f"listed in {path}; a lower learning_rate or max_grad_norm, or bf16 instead of fp16, usually helps"
        )

    def _measure(self, query_BD: Tensor, batch: Candidates, target_B: Tensor, excluded_BC: Tensor) -> None:
        """Add to the meters: hits among the batch's candidates, negatives per query, masked share."""
        in_batch_BC = query_BD.float() @ batch.vector_CD.detach().float().T
        in_batch_BC = in_batch_BC.masked_fill(excluded_BC[:, : len(batch)], -math.inf)
        accuracy = (in_batch_BC.argmax(dim=1) == target_B).double().mean()
        negatives = (~excluded_BC).sum(dim=1).double().mean() - 1
        values = torch.stack([torch.ones_like(accuracy), accuracy, negatives, excluded_BC.double().mean()])
        self._meters = self._meters.to(values.device) + values
        self._encoded_items += len(query_BD) + len(batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our meters to a training step's log, and write the step to `metrics.jsonl`."""
        if "train_loss" in logs:  # of all steps; after a resumption Trainer divides it by those since
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        meters = self.accelerator.reduce(self._meters.clone(), "sum").tolist()
        averages = dict(zip(_METERS[1:], (value / max(meters[0], 1.0) for value in meters[1:]), strict=True))
        elapsed = time.perf_counter() - self._timed_since
        logs |= averages | {"temperature": float(self.contrastive_loss.temperature)}
        logs["items_per_second"] = self._encoded_items / max(elapsed, 1e-9)
        self._meters = torch.zeros_like(self._meters)
        self._encoded_items, self._timed_since = 0, time.perf_counter()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            append_line(Path(self.args.output_dir) / METRICS_FILE, {"step": self.state.global_step, **logs})

    def _note_skipped(self, skipped: list[dict[str, str]]) -> None:
        """Write each unreadable item to `skipped.jsonl`, once."""
        for skip in skipped:
            if (skip["item"], skip["field"]) not in self._noted:
                self._noted.add((skip["item"], skip["field"]))
                append_line(Path(self.args.output_dir) / SKIPPED_FILE, skip)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Return 0: Trainer's estimate counts tokens of one forward and does not fit two."""
        return 0

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, then the queue and the meters of each process, then the marker that makes it count."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        with _without_save_limit(self.args):  # Trainer's own pruning does not know which checkpoints are whole
            super()._save_checkpoint(model, trial)
        torch.save(self._own_state(), folder / _state_file())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.save_records is not None:
                self.save_records(folder)
            mark_complete(folder)
            prune(folder.parent, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.save_processor is not None:
            self.save_processor(Path(output_dir or self.args.output_dir))

    def _own_state(self) -> dict[str, Any]:
        return {
            "world_size": world_size(),
            "queue": self.queue.state_dict(),
            "meters": self._meters.tolist(),
            "running_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / _state_file()
        state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        if state.get("world_size") != world_size():
            raise ResumeError(
                f"{checkpoint}: found a run of {state.get('world_size', 'fewer')} processes; "
                f"accepted: {world_size()}, because each process resumes its own queue"
            )
        self.queue.load_state_dict(state["queue"], self.args.device)
        self._resumed = state

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint without some of the weights; tied weights are saved once."""
        parameters = dict(self.model.state_dict())
        loaded = {value.data_ptr() for name, value in parameters.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if parameters[name].data_ptr() not in loaded]
        if missing or load_result.unexpected_keys:
            raise ResumeError(
                f"checkpoint: found no weights for {missing[:5]} and unknown weights {load_result.unexpected_keys[:5]}; "
                "accepted: a checkpoint of this very model"
            )

    def continue_exactly(self) -> None:
        """Called when training begins: put back what Trainer's loop has just set to its initial values."""
        output_dir = Path(self.args.output_dir)
        if self.is_world_process_zero():
            cut_lines_after(output_dir / METRICS_FILE, self.state.global_step)
        self._noted = {(line["item"], line["field"]) for line in read_lines(output_dir / SKIPPED_FILE)}
        self._encoded_items, self._timed_since = 0, time.perf_counter()
        if self._resumed is None:
            return
        self.state.compute_steps(self.args, self.state.max_steps)
        self._meters = torch.tensor(self._resumed["meters"], dtype=torch.float64)
        self._tr_loss = torch.tensor(self._resumed["running_loss"], device=self.args.device)
        self._total_loss_scalar = self._resumed["total_loss"]
        self._globalstep_last_logged = self._resumed["last_logged"]
        self._resumed = None


class _ContinueExactly(TrainerCallback):
    """Reaches the one moment after Trainer has reset its counters and before the first step."""

    def __init__(self, trainer: ContrastiveTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.continue_exactly()


def _state_file() -> str:
    return f"contrastive_state_{rank()}.pt"


def _joined(batch: Candidates, queued: Candidates | None) -> Candidates:
    """The batch's candidates, then the queue's."""
    if queued is None:
        return batch
    vectors = torch.cat([batch.vector_CD.float(), queued.vector_CD.to(batch.vector_CD.device).float()])
    products = torch.cat([batch.product_C, queued.product_C.to(batch.product_C.device)])
    return Candidates(vectors, products, torch.cat([batch.group_C, queued.group_C.to(batch.group_C.device)]))


def _touch_every_parameter(model: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for every parameter: DDP waits for the vision tower even in a batch of texts."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(parameter.reshape(-1)[0].float() for parameter in parameters) * 0.0


@contextlib.contextmanager
def _without_save_limit(args: Any) -> Any:
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
