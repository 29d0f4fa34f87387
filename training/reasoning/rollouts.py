"""From pairs to rollouts: which prompts are continued, and what is appended to a continuation to read its vector.

Shape suffixes: L rollouts of this process and step, T tokens of a prompt and its continuation, C tokens of a continuation.
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
    """Return the sides to reason about, each pair's query and then its product, as TRL repeats and batches them.

    A row names its pair by number; `PromptCollator` reads it.

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
    """What is continued in one step and process: for each pair G times its query, then G times its product.

    Args:
        ids: token ids of each rollout's prompt, up to `<think>`.
        grids: (pictures, 3) int64 of each rollout, see the processor's image_grid_thw.
        patches: (patches, features) of each rollout.
        pairs: as they were read, without their pictures.
        batch: the same pairs without reasoning, as `PairCollator` makes them.
        rollouts: G.
    """

    ids: list[list[int]]
    grids: list[Tensor]
    patches: list[Tensor]
    pairs: list[Pair]
    batch: dict[str, Any]
    rollouts: int

    def pictures(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Return the pictures of some rollouts as a model takes them, and their number in each; nothing without pictures."""
        part = slice(start, stop)
        grids = self.grids[part]
        if not any(len(grid) for grid in grids):
            return {}
        patches = [
            one for one in self.patches[part] if len(one)
        ]  # a side without any picture does not know their width
        pictures = {"pixel_values": torch.cat(patches), "image_grid_thw": torch.cat(grids)}
        return pictures | {"num_images": [len(grid) for grid in grids]}

    def to(self, device: torch.device) -> "Prompts":
        """Return the prompts with their tensors on a device."""
        moved = {name: _on(value, device) for name, value in self.batch.items()}
        grids, patches = ([one.to(device) for one in some] for some in (self.grids, self.patches))
        return Prompts(self.ids, grids, patches, self.pairs, moved, self.rollouts)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _on(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


class PromptCollator(PairCollator):
    """Prompts of the rollouts of a step; a pair that cannot be read is replaced by a substitute, both sides together.

    Args:
        processor, allow_urls: as in `PairCollator`.
        pairs: `training.batches.pairs.PairDataset`, or what is used like it; also gives the substitutes.
        rollouts: G.

    Raises:
        UnreadableBatchError: a pair without a substitute that can be read: every process needs as many rollouts.
    """

    def __init__(self, processor: MoonProcessor, pairs: Any, rollouts: int, allow_urls: bool = False) -> None:
        super().__init__(processor, getattr(pairs, "draw", None), allow_urls)
        self.pairs, self.rollouts = pairs, rollouts

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> Prompts:
        """Return the prompts of rows of `rollout_dataset`, each repeated G times.

        Raises:
            ValueError: rows in another order.
        """
        numbers = [row["pair"] for row in rows[:: 2 * self.rollouts]]
        wanted = [(number, side) for number in numbers for side in SIDES for _ in range(self.rollouts)]
        if [(row["pair"], row["prompt"]) for row in rows] != wanted:
            raise ValueError(f"rows: expected each pair's query {self.rollouts} times, then its product as often")
        pairs = [self.pairs[number] for number in numbers]
        batch = self(pairs)
        read = batch.pop("pairs")
        if len(read) < len(pairs):
            reasons = "; ".join(f"{skip['item']}: {skip['field']}: {skip['reason']}" for skip in batch["skipped"][:5])
            raise UnreadableBatchError(f"{len(pairs) - len(read)} pairs without a substitute to read: {reasons}")
        asking = {**self.options, "reasoning": "generate", "on_error": "raise"}
        queries = self.processor(queries=[pair.query for pair in read], task="query", **asking)
        products = self.processor(products=[pair.products[0] for pair in read], form="mm", **asking)
        both = [row for rows_of_pair in zip(_rows(queries), _rows(products), strict=True) for row in rows_of_pair]
        ids, grids, patches = zip(*[row for row in both for _ in range(self.rollouts)], strict=True)
        told = [_without_pictures(pair) for pair in read]
        return Prompts(list(ids), list(grids), list(patches), told, batch, self.rollouts)

    def _batch(self, pairs: list[Pair], *parts: Any) -> dict[str, Any]:
        return super()._batch(pairs, *parts) | {"pairs": pairs}


def _without_pictures(pair: Pair) -> Pair:
    """A pair without what its tensors hold already, so that it is light to hand over between processes."""
    query = {name: value for name, value in pair.query.items() if name != "image"}
    products = [{name: value for name, value in one.items() if name != "images"} for one in pair.products]
    return dataclasses.replace(pair, query=query, products=products)


Rows = list[dict[str, Any]]


class PromptsAhead:
    """The prompts of step after step, made ahead by worker processes.

    TRL's loader gives numbers, several times over where a step has several chunks, and knows no tensors; so the workers are
    those of a loader of our own. It guesses that each step's pairs are so many behind those of the step before, and where
    they are not, as after a resumption, it begins anew from those that are asked for. What is made of numbers depends on them
    alone: with and without workers it is the same, and no random number of the training is drawn.

    Args:
        collator: makes the prompts.
        stride: pairs of a step, of all processes.
        workers: processes; 0: the calling one makes the prompts when it is asked for them.
        prefetch_factor: steps that each worker is ahead at most; None: torch's default.
        context: how workers are started, "fork" or "spawn"; None: torch's default.
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
        self._made: Iterator[tuple[Rows, Prompts]] | None = None
        self._next: Rows = []

    def prompts(self, rows: Rows) -> Prompts:
        """Return `PromptCollator.prompts` of rows.

        Raises:
            ValueError, UnreadableBatchError: as `PromptCollator.prompts`.
        """
        if not self.workers:
            return self.collator.prompts(rows)
        if self._made is None or rows != self._next:
            self._made = iter(self._loader(rows))
        found, prompts = next(self._made)
        if found != rows:
            raise RuntimeError(f"prompts made ahead: found those of {found[:1]}; expected those of {rows[:1]}")
        self._next = _behind(rows, self.stride)
        return prompts

    def _loader(self, rows: Rows) -> DataLoader:
        return DataLoader(
            _Ahead(self.collator, rows, self.stride),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the training's own
            **self._settings,  # type: ignore[arg-type]
        )


class _Ahead(TorchDataset):
    """The rows of a step and of those that follow it, each with their prompts."""

    def __init__(self, collator: PromptCollator, rows: Rows, stride: int) -> None:
        self.collator, self.rows, self.stride = collator, rows, stride

    def __len__(self) -> int:
        left = len(self.collator.pairs) - 1 - max(row["pair"] for row in self.rows)
        return 1 + max(0, left) // self.stride

    def __getitem__(self, step: int) -> tuple[Rows, Prompts]:
        rows = _behind(self.rows, step * self.stride)
        return rows, self.collator.prompts(rows)


def _behind(rows: Rows, pairs: int) -> Rows:
    return [{**row, "pair": row["pair"] + pairs} for row in rows]


def _as_it_is(made: Any) -> Any:
    return made


def _rows(inputs: Mapping[str, Tensor]) -> list[tuple[list[int], Tensor, Tensor]]:
    """Ids without padding, grids and patches of each row of a batch of the processor."""
    ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    counts = images_per_row(inputs).tolist()
    grid = inputs["image_grid_thw"] if "image_grid_thw" in inputs else torch.zeros(0, 3, dtype=torch.int64)
    grids = grid.split(counts)
    pixels = inputs["pixel_values"] if "pixel_values" in inputs else torch.zeros(0, 1)
    patches = pixels.split([int(one.prod(dim=1).sum()) for one in grids])
    if "pixel_values" in inputs:
        return list(zip(ids, grids, patches, strict=True))
    return [(row, grid[:0], pixels) for row in ids]


def with_ending(input_ids: Tensor, attention_mask: Tensor, tokens: int, config: Any) -> tuple[Tensor, Tensor]:
    """Put behind each continuation what reads a vector: `</think>` where it has not written it, then `<emb>`.

    As `think_then_embed` ends a reasoning at inference. The ending follows at once, without padding between: a base that counts
    positions without looking at the mask (a batch without pictures) would count that padding. Tokens before the ending do not
    see it, so that their probabilities stay what they are.

    Args:
        input_ids: prompts padded on the left, continuations on the right.
        attention_mask: 1 for tokens that count.
        tokens: C, the columns of continuations.
        config: MoonConfig, for the ids of the two tokens.

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
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], pad: int, config: Any
) -> tuple[Tensor, Tensor]:
    """Return whole texts, prompt, continuation and ending, with their mask.

    Args:
        prompts: ids of each prompt.
        continuations: ids of what was written after each.
        pad: id of the padding token.
        config: MoonConfig.

    Shapes:
        (L, T) int64 each; prompts padded on the left, the rest on the right.
    """
    before, after = max(map(len, prompts)), max(map(len, continuations))
    ids = torch.full((len(prompts), before + after), pad)
    mask = torch.zeros_like(ids)
    for row, (prompt, written) in enumerate(zip(prompts, continuations, strict=True)):
        ids[row, before - len(prompt) : before + len(written)] = torch.tensor([*prompt, *written])
        mask[row, before - len(prompt) : before + len(written)] = 1
    return with_ending(ids, mask, after, config)
