"""Prepare rollouts: make the prompts of pairs, and append the tokens from which the vector of a completion is read.

Shape suffixes: L rollouts of this process and step, T tokens of a prompt and its completion, C tokens of a completion.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from processing_moon import MoonProcessor
from training.batches.collate import PairCollator, UnreadableBatchError
from training.batches.pairs import Pair
from training.encoding.chunked_encoding import images_per_row

SIDES = ("query", "product")
_ENDING_TOKENS = 2


def rollout_dataset(pairs: int) -> Dataset:
    """Return a data set with two rows for each pair, its query and its product, which TRL repeats and batches.

    A row contains the index of its pair, which `PromptCollator` reads.

    Args:
        pairs: the number of pairs.
    """
    numbers = [number for number in range(pairs) for _ in SIDES]
    return Dataset.from_dict({"pair": numbers, "prompt": list(SIDES) * pairs})


def item_name(pair: Pair, side: str) -> str:
    """Return the name of a pair's query or product."""
    return pair.names[0] if side == "product" else str(pair.query.get("id", ""))


@dataclass
class Prompts:
    """The prompts of a process in a step: for each pair, its query G times, then its product G times.

    Args:
        ids: token ids of each rollout's prompt, up to `<think>`.
        grids: (pictures, 3) int64 for each rollout; see image_grid_thw of the processor.
        patches: (patches, features) for each rollout.
        pairs: the pairs, without their pictures.
        batch: the same pairs without reasoning, from `PairCollator`.
        rollouts: G.
    """

    ids: list[list[int]]
    grids: list[Tensor]
    patches: list[Tensor]
    pairs: list[Pair]
    batch: dict[str, Any]
    rollouts: int

    def pictures(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Return the pictures of selected rollouts as model inputs, and the number in each; empty without pictures."""
        part = slice(start, stop)
        grids = self.grids[part]
        if not any(len(grid) for grid in grids):
            return {}
        # A side without pictures does not have the width of their patches.
        patches = [rows for rows in self.patches[part] if len(rows)]
        pictures = {"pixel_values": torch.cat(patches), "image_grid_thw": torch.cat(grids)}
        return pictures | {"num_images": [len(grid) for grid in grids]}

    def to(self, device: torch.device) -> "Prompts":
        """Return the prompts with their tensors on a device."""
        moved = {name: _on(value, device) for name, value in self.batch.items()}
        grids, patches = ([tensor.to(device) for tensor in tensors] for tensors in (self.grids, self.patches))
        return Prompts(self.ids, grids, patches, self.pairs, moved, self.rollouts)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _on(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


class PromptCollator(PairCollator):
    """Collate the prompts of the rollouts of a step. A pair that cannot be read is replaced by a substitute.

    Args:
        processor: see `PairCollator`.
        pairs: `training.batches.pairs.PairDataset`, or a data set with the same methods, which also draws substitutes.
        rollouts: G.
        allow_urls, forms, earlier: see `PairCollator`; the forms are without reasoning.

    Raises:
        UnreadableBatchError: a pair does not have a readable substitute, because all processes need the same number of
            rollouts.
    """

    def __init__(
        self,
        processor: MoonProcessor,
        pairs: Any,
        rollouts: int,
        allow_urls: bool = False,
        forms: bool = False,
        earlier: Any = None,
    ) -> None:
        super().__init__(processor, getattr(pairs, "draw", None), allow_urls, forms, earlier=earlier)
        self.pairs, self.rollouts = pairs, rollouts

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> Prompts:
        """Return the prompts of rows of `rollout_dataset`, each repeated G times.

        Raises:
            ValueError: the rows are in a different order.
        """
        numbers = [row["pair"] for row in rows[:: 2 * self.rollouts]]
        wanted = [(number, side) for number in numbers for side in SIDES for _ in range(self.rollouts)]
        if [(row["pair"], row["prompt"]) for row in rows] != wanted:
            raise ValueError(
                f"rows: found a different order; expected the query of each pair {self.rollouts} times, then its "
                f"product {self.rollouts} times"
            )
        pairs = [self.pairs[number] for number in numbers]
        batch = self(pairs)
        readable = batch.pop("pairs")
        if len(readable) < len(pairs):
            reasons = "; ".join(f"{skip['item']}: {skip['field']}: {skip['reason']}" for skip in batch["skipped"][:5])
            raise UnreadableBatchError(
                f"batch: found {len(pairs) - len(readable)} pairs without a readable substitute; expected one for each: {reasons}"
            )
        options = {**self.options, "reasoning": "generate", "on_error": "raise"}
        query_records, product_records = zip(*(pair.rolled for pair in readable), strict=True)
        queries = self.processor(queries=list(query_records), task="query", **options)
        products = self.processor(products=list(product_records), form="mm", **options)
        both = [row for rows_of_pair in zip(_rows(queries), _rows(products), strict=True) for row in rows_of_pair]
        ids, grids, patches = zip(*[row for row in both for _ in range(self.rollouts)], strict=True)
        light = [_without_pictures(pair) for pair in readable]
        return Prompts(list(ids), list(grids), list(patches), light, batch, self.rollouts)

    def _batch(self, pairs: list[Pair], *parts: Any) -> dict[str, Any]:
        return super()._batch(pairs, *parts) | {"pairs": pairs}


def _without_pictures(pair: Pair) -> Pair:
    """Return a pair without its pictures, which the tensors contain, so that it is quick to send between processes."""
    query, *products = map(_light, (pair.query, *pair.products))
    rolled = pair.rollout_records and (_light(pair.rollout_records[0]), _light(pair.rollout_records[1]))
    return dataclasses.replace(pair, query=query, products=products, rollout_records=rolled)


def _light(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("image", "images")}


Rows = list[dict[str, Any]]


class PromptsAhead:
    """The prompts of consecutive steps, which worker processes prepare in advance.

    TRL's data loader yields indices, repeated for a step of several chunks, and no tensors. The prompts are therefore
    made by the workers of a second loader. It assumes that the pairs of each step follow those of the previous one at a
    fixed distance. If they do not, as after resuming, it starts again from the requested pairs. Prompts depend only on
    the indices: they are the same with and without workers, and do not use the random state of the training.

    Args:
        collator: makes the prompts.
        stride: the number of pairs of a step, over all processes.
        workers: the number of worker processes. 0: make prompts in the calling process, on request.
        prefetch_factor: the number of steps that each worker prepares in advance. None: torch's default.
        context: the start method of workers, "fork" or "spawn". None: torch's default.
    """

    def __init__(
        self,
        collator: PromptCollator,
        stride: int,
        workers: int = 0,
        prefetch_factor: int | None = None,
        context: str | None = None,
    ) -> None:
        self.collator, self.stride, self.workers = collator, stride, workers
        self._settings = {"prefetch_factor": prefetch_factor, "multiprocessing_context": context}
        self._iterator: Iterator[tuple[Rows, Prompts]] | None = None
        self._next: Rows = []

    def prompts(self, rows: Rows) -> Prompts:
        """Return `PromptCollator.prompts` of rows.

        Raises:
            ValueError, UnreadableBatchError: see `PromptCollator.prompts`.
        """
        if not self.workers:
            return self.collator.prompts(rows)
        if self._iterator is None or rows != self._next:
            self._iterator = iter(self._loader(rows))
        prepared, prompts = next(self._iterator)
        if prepared != rows:
            raise RuntimeError(f"prepared prompts: found those of {prepared[:1]}; expected those of {rows[:1]}")
        self._next = _shifted(rows, self.stride)
        return prompts

    def _loader(self, rows: Rows) -> DataLoader:
        return DataLoader(
            _StepPrompts(self.collator, rows, self.stride),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.workers,
            generator=torch.Generator(),  # otherwise the loader draws from the generator of the training
            **self._settings,  # type: ignore[arg-type]
        )


class _StepPrompts(TorchDataset):
    """The rows and prompts of a step and of the steps after it."""

    def __init__(self, collator: PromptCollator, rows: Rows, stride: int) -> None:
        self.collator, self.rows, self.stride = collator, rows, stride

    def __len__(self) -> int:
        left = len(self.collator.pairs) - 1 - max(row["pair"] for row in self.rows)
        return 1 + max(0, left) // self.stride

    def __getitem__(self, step: int) -> tuple[Rows, Prompts]:
        rows = _shifted(self.rows, step * self.stride)
        return rows, self.collator.prompts(rows)


def _shifted(rows: Rows, pairs: int) -> Rows:
    return [{**row, "pair": row["pair"] + pairs} for row in rows]


def _unchanged(prompts: Any) -> Any:
    return prompts


def _rows(inputs: Mapping[str, Tensor]) -> list[tuple[list[int], Tensor, Tensor]]:
    """Return the ids without padding, the grids and the patches of each row of a batch from the processor."""
    ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    counts = images_per_row(inputs).tolist()
    grid = inputs["image_grid_thw"] if "image_grid_thw" in inputs else torch.zeros(0, 3, dtype=torch.int64)
    grids = grid.split(counts)
    pixels = inputs["pixel_values"] if "pixel_values" in inputs else torch.zeros(0, 1)
    patches = pixels.split([int(sizes.prod(dim=1).sum()) for sizes in grids])
    if "pixel_values" in inputs:
        return list(zip(ids, grids, patches, strict=True))
    return [(row, grid[:0], pixels) for row in ids]


def with_ending(input_ids: Tensor, attention_mask: Tensor, tokens: int, config: Any) -> tuple[Tensor, Tensor]:
    """Append the tokens from which the vector is read to each completion: `</think>`, unless it has one, and `<emb>`.

    `think_then_embed` ends the reasoning in the same way at inference. The ending directly follows the completion,
    without padding, because a base that counts positions without the mask (in a batch without pictures) would count
    padding. The ending does not change the probabilities of the tokens before it.

    Args:
        input_ids: prompts padded on the left, completions padded on the right.
        attention_mask: 1 for tokens, 0 for padding.
        tokens: C, the number of columns of completions.
        config: the `MoonConfig`, with the ids of the two tokens.

    Shapes:
        (L, T) int64 each → (L, T + 2) each.
    """
    close, read = config.think_end_token_id, config.emb_token_id
    written_LC = attention_mask[:, -tokens:].bool()
    closed_L = ((input_ids[:, -tokens:] == close) & written_LC).any(dim=1)
    first_L1 = torch.where(closed_L, read, close)[:, None]
    ending_L2 = torch.cat([first_L1, torch.full_like(first_L1, read)], dim=1)
    counts_L2 = torch.stack([torch.ones_like(closed_L), ~closed_L], dim=1).to(attention_mask.dtype)
    start_L1 = input_ids.shape[1] - tokens + written_LC.sum(dim=1, keepdim=True)
    place_L2 = start_L1 + torch.arange(_ENDING_TOKENS, device=input_ids.device)
    ids = torch.cat([input_ids, torch.full_like(ending_L2, read)], dim=1).scatter(1, place_L2, ending_L2)
    mask = torch.cat([attention_mask, torch.zeros_like(counts_L2)], dim=1).scatter(1, place_L2, counts_L2)
    return ids, mask


def sequences(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int, config: Any
) -> tuple[Tensor, Tensor]:
    """Return the token ids of prompt, completion and ending, with their attention mask.

    Args:
        prompts: token ids of each prompt.
        completions: token ids of each completion.
        pad: the id of the padding token.
        config: the `MoonConfig`.

    Shapes:
        (L, T) int64 each; prompts are padded on the left, completions on the right.
    """
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = torch.full((len(prompts), before + after), pad)
    mask = torch.zeros_like(ids)
    for row, (prompt, written) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, before - len(prompt) : before + len(written)] = torch.tensor([*prompt, *written])
        mask[row, before - len(prompt) : before + len(written)] = 1
    return with_ending(ids, mask, after, config)
