"""Measure time and peak memory of a training step, side by side with an alternative that computes the same.

    moon3 bench train --output training_speed.json [--only NAME …] [--repeats N] [--model DIR]

The two sides alternate in one process, so their ratio is reliable even on a shared machine. On a CPU, processor time is
measured, which other programs do not increase; on a GPU, wall-clock time. The file states for each ratio its target and
whether it is met.

Shape suffixes: B queries, C candidates, D embedding width.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import AutoProcessor, TrainingArguments

from evaluation.provenance import provenance
from modeling_moon import MoonModel
from modeling_moon.sentence_transformer_moon import MoonTransformer
from processing_moon import MoonProcessor
from product_data.catalogue.making import make_catalogue
from product_data.errors import OptionError
from training.batches.collate import PairCollator
from training.batches.negatives import NO_ID, Candidates, FalseNegatives, NegativeQueue, QueryFacts, stable_id
from training.batches.pairs import Pair
from training.contrastive.trainer import ContrastiveTrainer
from training.losses.info_nce import InfoNCELoss
from training.model.small_base import make_base
from training.model.upcycle import upcycle
from training.recipe.loss import LossArguments

_TEMPERATURE = 0.05
_LEARNING_RATE = 1e-5
_BLOCK = 4096
_SAME = 1e-4
_BATCH_FILE, _MODEL_FOLDER = "batch.pt", "moon"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a measurement.

    Args:
        batch_size: B, pairs of a step: a text query and a product with text and picture. Without hard negatives the chunks
            of both sides hold the same rows in the same order, so both pad equally.
        chunk_size: rows that are encoded with one graph, on both sides.
        hidden_size: width of the small random model; unused with `model`.
        num_layers: decoder layers of the small random model; unused with `model`.
        image_tokens: maximum size of a picture, in tokens.
        queue_steps: number of past steps in the queue, with B candidates each.
        loss_queries: queries of the loss whose memory is measured.
        candidates: numbers of candidates at which the memory is measured, ascending; two candidates for each query have
            gradients, the others come from a queue of at least the same size.
        model: a Moon checkpoint. Default: the small random model.
    """

    batch_size: int = 48
    chunk_size: int = 8
    hidden_size: int = 256
    num_layers: int = 2
    image_tokens: int = 4
    queue_steps: int = 200
    loss_queries: int = 256
    candidates: tuple[int, ...] = (1024, 4096, 16384, 65536)
    model: str | None = None

    def __post_init__(self) -> None:
        least = {"queue_steps": 1, "batch_size": 2, "chunk_size": 1, "loss_queries": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise OptionError(f"{name}: found {getattr(self, name)}; expected {smallest} or more")
        if len(self.candidates) < 2 or min(self.candidates) < self.loss_queries * 4:
            raise OptionError(
                f"candidates: found {self.candidates}; expected two numbers or more, each at least "
                f"{4 * self.loss_queries}, four for each of the loss_queries"
            )


# The two sides of a step


class OurStep:
    """A training step of `ContrastiveTrainer` (with its masks, metrics and queue) and AdamW.

    Args:
        folder: the folder that `prepare` wrote.
        chunk_size: chunk size of the encoding; None: all rows at once.
        queue_steps: number of past steps in the queue, which is full from the start.
    """

    def __init__(self, folder: Path, chunk_size: int | None, queue_steps: int = 0) -> None:
        model = MoonModel.from_pretrained(folder / _MODEL_FOLDER)
        arguments = TrainingArguments(
            output_dir=str(folder / "run"),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        self.trainer = ContrastiveTrainer(
            model=model,
            args=arguments,
            loss=InfoNCELoss(_TEMPERATURE, _BLOCK),
            queue=NegativeQueue(queue_steps),
            options=LossArguments(encode_chunk_size=chunk_size),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # Trainer's loop sets this, but does not run here
        self.model = self.trainer.model
        self.batch = _on_device(torch.load(folder / _BATCH_FILE, weights_only=True))
        for number in range(queue_steps):
            self.trainer.queue.push(self._past_step(number, model.config.vector_size))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE)

    def _past_step(self, number: int, width: int) -> Candidates:
        """Return random candidates of a past step, which are not products of the batch."""
        ids_C = self.batch["product"]
        generator = torch.Generator().manual_seed(number)
        vector_CD = functional.normalize(torch.randn(len(ids_C), width, generator=generator), dim=1).to(ids_C.device)
        place = torch.arange(len(ids_C), device=ids_C.device) + len(ids_C) * number
        return Candidates(vector_CD, place, torch.full_like(place, NO_ID))

    def gradient(self) -> Tensor:
        """Compute the gradient of every parameter, and return the loss."""
        return self.trainer.training_step(self.model, self.batch)

    def __call__(self) -> None:
        self.gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()


class TheirStep:
    """A training step of sentence-transformers' cached loss on `MoonTransformer` and AdamW, without the library's
    trainer.

    Args:
        folder: the folder that `prepare` wrote.
        chunk_size: mini-batch size of the loss.
    """

    def __init__(self, folder: Path, chunk_size: int) -> None:
        self.model = MoonModel.from_pretrained(folder / _MODEL_FOLDER)
        processor = AutoProcessor.from_pretrained(folder / _MODEL_FOLDER)
        encoder = SentenceTransformer(modules=[MoonTransformer(self.model, processor)])
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").train()
        batch = _on_device(torch.load(folder / _BATCH_FILE, weights_only=True))
        self.columns = [batch["queries"], batch["products"]]
        self.loss = CachedMultipleNegativesRankingLoss(encoder, scale=1 / _TEMPERATURE, mini_batch_size=chunk_size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE)

    def gradient(self) -> Tensor:
        """Compute the gradient of every parameter, and return the loss."""
        loss = self.loss(self.columns, None)
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        self.gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()


SIDES: dict[str, Callable[[Path, int], OurStep | TheirStep]] = {"ours": OurStep, "other": TheirStep}


def prepare(folder: Path, sizes: Sizes) -> None:
    """Write the model and the batch that both sides use.

    The batch contains no false negatives, so that both sides compare with the same candidates. Padding is on the right, where
    sentence-transformers removes it from a mini-batch.
    """
    count = max(sizes.batch_size, 60)  # the minimum size of a catalogue
    products, _ = make_catalogue(products=count, queries_per_product=0, image_size=128, progress=False)
    model = folder / _MODEL_FOLDER
    if sizes.model is None:
        shape = {
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
            "max_image_tokens": sizes.image_tokens,
            "vocab_size": 1000,
            "vision_hidden_size": 64,
        }
        base = make_base(folder / "base", texts=[row["title"] for row in products] * 4, **shape)
        upcycle(base, model, preset="moon1", embedding_dim=sizes.hidden_size)
    else:
        model.symlink_to(Path(sizes.model).resolve(), target_is_directory=True)
    processor = MoonProcessor.from_pretrained(model)
    processor.max_image_tokens = sizes.image_tokens
    processor.tokenizer.padding_side = "right"
    processor.instructions = {"product": "product", "query": "query"}
    pairs = [_pair(row, place) for place, row in enumerate(products[: sizes.batch_size])]
    batch = PairCollator(processor)(pairs)
    torch.save(batch, folder / _BATCH_FILE)


def _pair(row: dict[str, Any], position: int) -> Pair:
    name = row["product_id"]
    query = {"text": row["title"].lower(), "id": f"query {position}"}
    record = {"title": row["title"], "images": row["images"], "category": row["category_path"], "id": name}
    return Pair(query, [record], [name], [stable_id(name)], [NO_ID], NO_ID, [], [], position)


def _on_device(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_device(part) for name, part in value.items()}
    return value.cuda() if isinstance(value, Tensor) and torch.cuda.is_available() else value


# Time and memory


def take_turns(ours: Callable[[], Any], other: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Time two functions alternately, after one untimed call of each.

    Args:
        ours, other: the functions to time.
        repeats: number of timed calls of each; the order of the two alternates.

    Returns:
        ours_seconds and other_seconds (medians), ratio (median of ours / other within a repeat), ratio_range, repeats, and
        the clock: "processor" (of all threads of this process) on a CPU, "wall" on a GPU; wall_ratio always uses the wall
        clock.

    Raises:
        OptionError: `repeats` is below 1.
    """
    if repeats < 1:
        raise OptionError(f"repeats: found {repeats}; expected 1 or more")
    ours()
    other()
    gpu = torch.cuda.is_available()
    found: dict[Callable[[], Any], list[tuple[float, float]]] = {ours: [], other: []}
    for repeat in range(repeats):
        for side in (ours, other) if repeat % 2 == 0 else (other, ours):
            wall, processor = time.perf_counter(), time.process_time()
            side()
            if gpu:
                torch.cuda.synchronize()
            found[side].append((time.perf_counter() - wall, time.process_time() - processor))
    clock = 0 if gpu else 1
    ratios, walls = (
        [first[which] / second[which] for first, second in zip(found[ours], found[other], strict=True)]
        for which in (clock, 0)
    )
    return {
        "ours_seconds": statistics.median(times[clock] for times in found[ours]),
        "other_seconds": statistics.median(times[clock] for times in found[other]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "wall_ratio": statistics.median(walls),
        "clock": ("wall", "processor")[clock],
        "repeats": repeats,
    }


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak memory of a function in tensors, in bytes above the memory before the call.

    On a GPU, PyTorch's allocator counts it; on a CPU, it follows from the allocations that PyTorch's profiler records with
    their sizes. It is exact and the same in every repeat, unlike the resident memory of a process, which includes memory that
    the C library keeps for later.

    Args:
        run: the function to measure.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]"]
    held, peak = 0, 0
    for event in sorted(found, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _resident_peak(run: Callable[[], Any]) -> int | None:
    """Return the peak resident memory of this process while a function runs, in bytes; None if it is not Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    run()
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def cost_of_step(side: str, folder: Path, chunk_size: int, threads: int) -> dict[str, int | None]:
    """Return the peak memory and the matrix products of a step of one side, after its first step; call it in a new process.

    Args:
        side: a key of `SIDES`.
        folder: the folder that `prepare` wrote.
        chunk_size: rows that are encoded with one graph.
        threads: number of threads of PyTorch.
    """
    torch.set_num_threads(threads)
    step = SIDES[side](folder, chunk_size)
    step()
    found = {"tensor_bytes": peak_bytes(step), "process_bytes": _resident_peak(step)}
    with FlopCounterMode(display=False) as counted:
        step()
    return found | {"matrix_flops": counted.get_total_flops()}


def _in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


# What is compared


def cached_loss(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Compare a chunked step with the streamed loss to sentence-transformers' `CachedMultipleNegativesRankingLoss`.

    Args:
        sizes: batch, chunks and model.
        repeats: timed steps of each side.

    Raises:
        AssertionError: the loss or the gradient differs between the two sides.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, sizes)
        cost = {
            side: _in_own_process(cost_of_step, side, folder, sizes.chunk_size, torch.get_num_threads())
            for side in SIDES
        }
        ours, other = OurStep(folder, sizes.chunk_size), TheirStep(folder, sizes.chunk_size)
        same = _agreement(ours, other)
        times = take_turns(ours, other, repeats)
    items = len(ours.batch["target"]) + len(ours.batch["product"])
    speed = 1 / times["ratio"]
    tensor_ratio = cost["ours"]["tensor_bytes"] / cost["other"]["tensor_bytes"]
    return {
        "about": f"a training step on {sizes.batch_size} pairs in chunks of {sizes.chunk_size}, same weights, tensors, "
        "candidates and optimizer: ContrastiveTrainer.training_step with the streamed loss / sentence-transformers' "
        "CachedMultipleNegativesRankingLoss on MoonTransformer, without its trainer",
        "same": same,
        "items_per_second": {
            "ours": items / times["ours_seconds"],
            "other": items / times["other_seconds"],
            "ratio": speed,
            "ratio_range": sorted(1 / ratio for ratio in times["ratio_range"]),
            "wall_ratio": 1 / times["wall_ratio"],
            "clock": times["clock"],
            "about": f"{items} queries and products in a step",
            "wanted": "at least 1.0",
            "met": speed >= 1.0,
        },
        "peak_memory": {
            "ours": {name: cost["ours"][name] for name in ("tensor_bytes", "process_bytes")},
            "other": {name: cost["other"][name] for name in ("tensor_bytes", "process_bytes")},
            "ratio": tensor_ratio,
            "wanted": "at most 1.0",
            "met": tensor_ratio <= 1.0,
            "about": "tensor_bytes: peak of tensors during a step, without model, optimizer state and batch; "
            "process_bytes: peak resident memory of the whole process during a step. Each side runs in a separate process",
        },
        "matrix_flops": {
            "ours": cost["ours"]["matrix_flops"],
            "other": cost["other"]["matrix_flops"],
            "ratio": cost["ours"]["matrix_flops"] / cost["other"]["matrix_flops"],
            "about": "floating-point operations of all matrix products of a step, which are counted and exact",
        },
        "repeats": repeats,
    }


def _agreement(ours: OurStep | TheirStep, other: OurStep | TheirStep) -> dict[str, float]:
    """Return the losses of both sides from the same weights, and the differences of loss and gradient."""
    losses = [float(side.gradient()) for side in (ours, other)]
    gradients = [_flat_gradient(side.model) for side in (ours, other)]
    for side in (ours, other):
        side.optimizer.zero_grad()
    agreement = {
        "loss_ours": losses[0],
        "loss_other": losses[1],
        "loss_difference": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradient_difference": float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
    }
    if max(agreement["loss_difference"], agreement["gradient_difference"]) > _SAME:
        raise AssertionError(
            f"the two sides do not compute the same: found {agreement}; expected up to {_SAME} relative"
        )
    return agreement


def _flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([weight.grad.flatten().double() for weight in model.parameters() if weight.grad is not None])


def queue_step(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Compare a step with a queue of `sizes.queue_steps` past steps with the same step without a queue.

    All rows are encoded at once, because the share of the queue is largest then.

    Args:
        sizes: batch, model and past steps.
        repeats: timed steps of each side.
    """
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), sizes)
        ours, other = OurStep(Path(name), None, sizes.queue_steps), OurStep(Path(name), None)
        times = take_turns(ours, other, repeats)
    queued = len(ours.trainer.queue)
    return times | {
        "about": f"a training step on {sizes.batch_size} pairs: {queued} candidates in the queue / no queue",
        "queued_per_query": queued / sizes.batch_size,
        "wanted": "at most 1.05",
        "met": times["ratio"] <= 1.05,
    }


def candidates_memory(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure the peak memory of the streamed loss, forward and backward, by number of candidates, and that of the
    plain loss.

    The products of the batch, two for each query, have gradients; the other candidates come from a queue. In
    `all_learn`, every candidate has a gradient, which adds a vector for each.

    Args:
        sizes: queries, numbers of candidates, and the width of the vectors.
        repeats: not used, because memory is the same in each repeat.

    Raises:
        AssertionError: the streamed and the plain loss differ.
    """
    del repeats
    block = 2 * sizes.loss_queries
    kinds: dict[str, tuple[int | None, bool]] = {
        "streamed": (block, False),
        "plain": (None, False),
        "streamed_all_learn": (block, True),
        "plain_all_learn": (None, True),
    }
    found: dict[str, dict[int, int]] = {kind: {} for kind in kinds}
    for count in sizes.candidates:
        losses: list[float] = []
        for kind, (block_size, all_learn) in kinds.items():
            run = _loss_of_many(sizes, count, block_size, all_learn)
            found[kind][count] = peak_bytes(run)
            losses.append(float(run()))
        torch.testing.assert_close(losses, losses[:1] * len(losses), rtol=1e-5, atol=1e-6)
    least, most = sizes.candidates[0], sizes.candidates[-1]
    slopes = {kind: (peaks[most] - peaks[least]) / (most - least) for kind, peaks in found.items()}
    growth = found["streamed"][most] / found["streamed"][least]
    return {
        "about": f"loss and gradient of {sizes.loss_queries} queries with vectors of {sizes.hidden_size}: bytes in tensors "
        f"without the inputs, by number of candidates; the streamed loss compares {block} at a time",
        "peak_bytes": found,
        "bytes_per_candidate": slopes,
        "ratio": growth,
        "wanted": f"flat: {most} candidates at most 1.05 times the memory of {least}",
        "met": growth <= 1.05,
    }


def _loss_of_many(sizes: Sizes, count: int, block_size: int | None, all_learn: bool) -> Callable[[], Tensor]:
    """Return a function that computes the loss of random vectors, and its gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(sizes.loss_queries + count, sizes.hidden_size, generator=generator)
    query_BD, candidate_CD = functional.normalize(vectors, dim=1).to(device).split([sizes.loss_queries, count])
    learning = count if all_learn else 2 * sizes.loss_queries
    own_CD, queued_CD = candidate_CD.split([learning, count - learning])
    query_BD, own_CD = query_BD.clone().requires_grad_(), own_CD.clone().requires_grad_()
    product_C = torch.arange(count, device=device)
    group_C = torch.full_like(product_C, NO_ID)
    target_B = 2 * torch.arange(sizes.loss_queries, device=device)
    empty = torch.empty((sizes.loss_queries, 0), dtype=torch.int64, device=device)
    facts = QueryFacts(target_B, torch.full_like(target_B, NO_ID), empty, empty)
    loss = InfoNCELoss(_TEMPERATURE, block_size)

    def run() -> Tensor:
        segments = [own_CD] if all_learn else [own_CD, queued_CD]
        exclusion = FalseNegatives(facts, product_C, group_C, target_B)
        value = loss(query_BD, segments, target_B, exclusion)
        value.backward()
        return value.detach()

    return run


COMPARISONS: dict[str, Callable[[Sizes, int], dict[str, Any]]] = {
    "cached_loss": cached_loss,
    "queue_step": queue_step,
    "candidates_memory": candidates_memory,
}


def measure_training_speed(
    output: Path, sizes: Sizes, *, only: Sequence[str] | None = None, repeats: int = 15
) -> dict[str, Any]:
    """Run comparisons and write the results file.

    Args:
        output: JSON file to write.
        sizes: the sizes of the measurement.
        only: names of `COMPARISONS`. Default: all.
        repeats (`int`): timed steps of each side. Default 15.

    Returns:
        The content of the file: comparison → results.
    """
    results: dict[str, Any] = {}
    for name in tqdm(only or list(COMPARISONS), desc="comparisons"):
        found = COMPARISONS[name](sizes, repeats)
        results[name] = found | {"sizes": asdict(sizes), "provenance": provenance(0)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return a line for each ratio: its value, its target, and whether it is met."""
    return [
        f"{name}: ratio {part['ratio']:.3f}, target {part['wanted']}: {'met' if part['met'] else 'NOT MET'} "
        f"({part.get('about', '')})"
        for name, found in results.items()
        for part in (found, *found.values())
        if isinstance(part, dict) and "wanted" in part
    ]
