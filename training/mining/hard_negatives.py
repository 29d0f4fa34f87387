"""Choose the hard negatives of a query: products near to it and in the category of its answer, but not answers.

Shape suffixes: B queries of a block, N products, S products of a shard, K best candidates, D embedding width.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from product_data.duplicates import EqualProducts
from product_data.errors import OptionError
from product_data.tables import ProductRow, QueryRow

CHOICES = ("hardest", "random")


@dataclass(frozen=True)
class MiningOptions:
    """Filters against false negatives, and the number of negatives.

    A candidate is in the same category as an answer and within the rank window. It is not a known answer, a variant of an
    answer or the reference product, nor identical to one of these in text and pictures (or to an answer in title and
    pictures). Its similarity is at most `min over known answers of s − margin` and `s − (1 − ratio)·|s|`.
    Source: MOON, arXiv 2508.11999 §3.2, for "same category, another product"; the filters are our design (precedent:
    NV-Retriever, arXiv 2407.15831: TopK-shifted, TopK-MarginPos and TopK-PercPos, of which 95 % of the positive's
    similarity was best; sentence-transformers' `mine_hard_negatives` has the same filters for plain texts).

    Args:
        per_query (`int`): number of negatives for each query. Default 4.
        first_rank, last_rank (`int`): the rank window, counted from 1 among the candidates of the category. Default 1, 100.
        margin (`float`): see above, in units of cosine similarity, 0 or more. Default 0.
        ratio (`float`): see above, above 0 and at most 1. Default 0.95.
        category_levels (`int` or `None`): number of levels of the category path that must agree, from the top; `None`: the
            whole path, 0: no level. An answer without a path agrees with every product. Default `None`.
        mask_groups (`bool`): whether products of an answer's group are left out. Default True.
        choose (`str`): "hardest" takes the nearest candidates, "random" draws among them with `seed`. Default "hardest".
        seed (`int`): seed of "random". Default 0.

    Raises:
        OptionError: a number is outside these bounds, or the choice is unknown.
    """

    per_query: int = 4
    first_rank: int = 1
    last_rank: int = 100
    margin: float = 0.0
    ratio: float = 0.95
    category_levels: int | None = None
    mask_groups: bool = True
    choose: str = "hardest"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_query < 1:
            raise OptionError(f"per_query: found {self.per_query}; expected 1 or more")
        if not 1 <= self.first_rank <= self.last_rank:
            raise OptionError(
                f"first_rank and last_rank: found {self.first_rank} and {self.last_rank}; expected 1 ≤ first ≤ last"
            )
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise OptionError(f"margin: found {self.margin}; expected 0 or more")
        if not 0 < self.ratio <= 1:
            raise OptionError(f"ratio: found {self.ratio}; expected above 0 and at most 1")
        if self.category_levels is not None and self.category_levels < 0:
            raise OptionError(f"category_levels: found {self.category_levels}; expected 0 or more, or none")
        if self.choose not in CHOICES:
            raise OptionError(f"choose: found {self.choose!r}; expected one of {', '.join(CHOICES)}")


@dataclass(frozen=True)
class Mined:
    """The hard negatives of one query: product ids, the nearest first, their similarities, and why some are missing."""

    negatives: tuple[str, ...] = ()
    similarities: tuple[float, ...] = ()
    reason: str = ""


class ProductIndex:
    """Codes of the products of a gallery that the filters compare, by row.

    Args:
        products: the gallery, in the order of its vectors.
        options: see `MiningOptions`.

    Shapes:
        category_N, group_N, identical_N and looks_N (N,) int64 codes; -1 in group_N or category_N means that the product has
        no group or no category. Products with equal codes in identical_N have the same texts and pictures; with equal codes
        in looks_N, the same title and pictures.
    """

    def __init__(self, products: Sequence[ProductRow], options: MiningOptions) -> None:
        self.options = options
        self.ids = [row.product_id for row in products]
        self.row_of = {name: row for row, name in enumerate(self.ids)}
        categories: dict[tuple[str, ...], int] = {}
        groups: dict[str, int] = {}
        levels = options.category_levels
        paths = [row.category if levels is None else row.category[:levels] for row in products]
        self.category_N = torch.tensor([categories.setdefault(path, len(categories)) if path else -1 for path in paths])
        self.group_N = torch.tensor(
            [groups.setdefault(row.group, len(groups)) if row.group else -1 for row in products], dtype=torch.int64
        )
        equal = EqualProducts(products)
        self.identical_N = torch.tensor(equal.identical(), dtype=torch.int64)
        self.looks_N = torch.tensor(equal.same_looks, dtype=torch.int64)

    def rows(self, names: Iterable[str]) -> list[int]:
        """Return the rows of those products that are in the gallery."""
        return [self.row_of[name] for name in names if name in self.row_of]

    def allowed(self, queries: Sequence[QueryRow], rows: slice) -> Tensor:
        """Return which products may be hard negatives of each query, by all filters except similarity.

        Args:
            queries: B queries.
            rows: S rows of the gallery.

        Shapes:
            (B, S) bool.
        """
        return torch.stack([self._allowed(query, range(len(self.ids))[rows]) for query in queries])

    def _allowed(self, query: QueryRow, rows: range) -> Tensor:
        category_S, group_S = self.category_N[rows.start : rows.stop], self.group_N[rows.start : rows.stop]
        allowed_S = torch.ones(len(rows), dtype=torch.bool)
        answers = self.rows(query.positives)
        categories = self.category_N[answers].unique()
        if len(categories) and -1 not in categories:
            allowed_S &= torch.isin(category_S, categories)
        if self.options.mask_groups:
            groups = self.group_N[answers].unique()
            allowed_S &= ~torch.isin(group_S, groups[groups >= 0])
        references = self.rows([query.reference_product_id] if query.reference_product_id else [])
        part = slice(rows.start, rows.stop)
        allowed_S &= ~torch.isin(self.identical_N[part], self.identical_N[[*answers, *references]])
        allowed_S &= ~torch.isin(self.looks_N[part], self.looks_N[answers])
        return allowed_S


def similarity_limit(positive_similarities: Sequence[float], options: MiningOptions) -> float:
    """Return the greatest similarity that a hard negative may have; see `MiningOptions` for the equation."""
    lowest = min(positive_similarities)
    return min(lowest - options.margin, lowest - (1.0 - options.ratio) * abs(lowest))


def best_candidates(
    query_BD: Tensor, shards: Iterable[tuple[int, Tensor]], allowed: Callable[[slice], Tensor], depth: int
) -> tuple[Tensor, Tensor]:
    """Return the `depth` nearest allowed products of each query, reading the gallery shard by shard.

    Memory does not grow with the gallery: the best list so far is merged with each shard.

    Args:
        query_BD: vectors of length one.
        shards: (row of the first product, vectors of length one), together the whole gallery; rows of products that
            could not be encoded hold NaN.
        allowed: called with the rows of a shard, returns which of them are allowed for which query: (B, S) bool.
        depth: K.

    Shapes:
        query_BD (B, D) float; each shard (S, D) float. Returns similarity (B, K) float32 in descending order, padded with
        -inf, and product rows (B, K) int64.
    """
    blocks, device = len(query_BD), query_BD.device
    best_BK = torch.full((blocks, depth), -math.inf, device=device)
    row_BK = torch.zeros((blocks, depth), dtype=torch.int64, device=device)
    for first, shard_SD in shards:
        shard_SD = shard_SD.to(device, query_BD.dtype)
        similarity_BS = (query_BD @ shard_SD.T).float()
        allowed_BS = allowed(slice(first, first + len(shard_SD))).to(device)
        similarity_BS = similarity_BS.masked_fill(~allowed_BS | similarity_BS.isnan(), -math.inf)
        row_BS = torch.arange(first, first + len(shard_SD), device=device).expand(blocks, -1)
        # Stable: among equal similarities the first row wins, for any size of the shards.
        merged, order = torch.cat([best_BK, similarity_BS], dim=1).sort(dim=1, descending=True, stable=True)
        best_BK, order = merged[:, :depth], order[:, :depth]
        row_BK = torch.cat([row_BK, row_BS], dim=1).gather(1, order)
    return best_BK, row_BK


def choose_negatives(
    index: ProductIndex, similarity_K: Tensor, row_K: Tensor, limit: float, rng: np.random.Generator
) -> Mined:
    """Pick a query's negatives from its ranked candidates.

    Args:
        index: the products and the options.
        similarity_K: similarities in descending order, padded with -inf.
        row_K: rows of the candidates.
        limit: the result of `similarity_limit`.
        rng: random generator of the choice "random".

    Shapes:
        similarity_K (K,) float; row_K (K,) int64; K at least `last_rank`.
    """
    options = index.options
    candidates = int(torch.isfinite(similarity_K).sum())
    window = range(options.first_rank - 1, min(options.last_rank, candidates))
    kept = [rank for rank in window if float(similarity_K[rank]) <= limit]
    if options.choose == "random" and len(kept) > options.per_query:
        kept = sorted(int(rank) for rank in rng.choice(kept, options.per_query, replace=False))
    kept = kept[: options.per_query]
    reason = ""
    if len(kept) < options.per_query:
        reason = (
            "no other product in the category"
            if not candidates
            else "no candidate in the rank window"
            if not len(window)
            else "too near to the positive"
            if len(window) >= options.per_query
            else "few products in the category"
        )
    return Mined(
        tuple(index.ids[int(row_K[rank])] for rank in kept), tuple(float(similarity_K[rank]) for rank in kept), reason
    )
