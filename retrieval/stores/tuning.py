"""Decide whether a form needs an approximate index, and choose its kind and settings by measured recall.

The recall is recall@10 against exact search on the catalogue's own vectors: a sample of its products are the queries, each
left out of its own answers; once over all products, and once under a filter. The filter keeps 2 % of the products, or, if the
store searches that few exactly anyway, the smallest share for which it uses the index. Our design (precedents: the
measured recall curves of ann-benchmarks, arXiv 1807.05614, and the estimated recall that decides in VBASE and in Vespa).

Legend: Q queries, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from lancedb.index import HnswSq, IvfFlat, IvfSq
from tqdm.auto import tqdm

from retrieval.stores.ranking import Candidate
from retrieval.stores.where import sql_text

EXACT_VALUES = 16_000_000
"""Vectors times dimensions up to which the search is exact: 62,500 vectors of 256. One query then reads 64 MB, which takes within
about 50 ms on two cores."""
RECALL_AT = 10
LEAST_RECALL, LEAST_FILTERED_RECALL = 0.97, 0.95
SAMPLED_QUERIES = 100
FILTERED_SHARE = 0.02
BUCKET, BUCKETS = "bucket", 1000
"""Column with a number below `BUCKETS` for each product, by its id: a random filter of any share."""
REBUILD_SHARE = 0.2
"""An index is built and measured again once this share of the vectors was written after it was built."""


@dataclass(frozen=True)
class Index:
    """The kind of an index and the settings of a search in it.

    Args:
        kind (`str`): a key of `KINDS`.
        nprobes (`int`): partitions that are searched.
        refine_factor (`int`): this many times k candidates are scored exactly.
        ef (`int` or `None`): candidates of a graph search, for "hnsw_sq".
    """

    kind: str
    nprobes: int
    refine_factor: int
    ef: int | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Index | None:
        """Return the index of a store's settings; None for exact search."""
        return None if values is None else cls(**values)

    def apply(self, query: Any) -> Any:
        """Return a query of LanceDB with these settings."""
        query = query.nprobes(self.nprobes).refine_factor(self.refine_factor)
        return query if self.ef is None else query.ef(self.ef)


KINDS: dict[str, Callable[[], Any]] = {
    "ivf_sq": lambda: IvfSq(distance_type="dot"),
    "ivf_flat": lambda: IvfFlat(distance_type="dot"),
    "hnsw_sq": lambda: HnswSq(distance_type="dot", num_partitions=1),
}
"""Name → configuration. None of them is LanceDB's default, IVF_PQ without exact scores, whose recall is too low."""
CANDIDATES = (
    Index("ivf_flat", 20, 1),
    Index("ivf_flat", 50, 1),
    Index("ivf_flat", 100, 1),
    Index("hnsw_sq", 1, 4, ef=200),
    Index("hnsw_sq", 1, 10, ef=500),
)
"""Tried in this order; the first that reaches both recalls is taken. Kinds that are built faster come first."""


@dataclass(frozen=True)
class Decision:
    """What was decided for the vectors of one form.

    Args:
        form (`str`): the form.
        vectors (`int`): number of vectors at the decision.
        index: the index to search with; None for exact search.
        exact_rows (`int`): a filter that leaves at most this many products is searched exactly.
        recall, filtered_recall (`float` or `None`): recall@10 over all products and under the filter: of the index, or, if
            none was good enough, of the best; None if none was needed.
        filtered_share (`float` or `None`): share of the products that the filter of the measurement keeps.
        reason (`str`): why.
    """

    form: str
    vectors: int
    index: Index | None
    exact_rows: int
    recall: float | None
    filtered_recall: float | None
    filtered_share: float | None
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the decision for the store's settings."""
        return asdict(self)


class Searched(Protocol):
    """What a measurement needs of a store."""

    dimension: int

    def nearest_of_form(
        self, query_D: np.ndarray, k: int, form: str, condition: str | None, index: Index | None
    ) -> list[Candidate]:
        """Return the k products with the nearest vectors of a form, best first."""
        ...

    def sample(self, form: str, number: int) -> tuple[list[str], np.ndarray]:
        """Return ids and (Q, D) vectors of a random sample of the products that have a vector of a form."""
        ...


def describe(decision: Decision) -> str:
    """Return a decision as words for a reader."""
    kind = "exact search" if decision.index is None else decision.index.kind
    text = f"{kind} over {decision.vectors} vectors ({decision.reason})"
    if decision.recall is not None:
        text += (
            f", recall@{RECALL_AT} {decision.recall:.3f}, under a filter that keeps {decision.filtered_share:.0%} "
            f"{decision.filtered_recall:.3f}; a filter that keeps at most {decision.exact_rows} is searched exactly"
        )
    return text


def exact_rows(dimension: int) -> int:
    """Return the number of vectors up to which the search is exact."""
    return EXACT_VALUES // dimension


def is_current(decision: dict[str, Any], vectors: int, dimension: int) -> bool:
    """Return whether an earlier decision still holds for a number of vectors."""
    if (vectors <= exact_rows(dimension)) != (decision["recall"] is None):
        return False
    return decision["recall"] is None or abs(vectors - decision["vectors"]) <= REBUILD_SHARE * decision["vectors"]


def decide(
    store: Searched,
    form: str,
    vectors: int,
    build: Callable[[Any], None],
    candidates: Sequence[Index] = CANDIDATES,
) -> Decision:
    """Return whether a form is searched exactly or with an index, after measuring the candidates.

    Args:
        store: the store.
        form (`str`): the form.
        vectors (`int`): number of its vectors.
        build: builds the form's index from a configuration of LanceDB, and replaces an earlier one.
        candidates: indices to try. Default `CANDIDATES`.
    """
    limit = exact_rows(store.dimension)
    if vectors <= limit:
        return Decision(form, vectors, None, limit, None, None, None, f"an index is built above {limit} vectors")
    best: tuple[float, float] = (0.0, 0.0)
    ids, query_QD = store.sample(form, SAMPLED_QUERIES)
    share = max(FILTERED_SHARE, limit / vectors)
    condition = f"{BUCKET} < {round(share * BUCKETS)}"
    exact = [_answers(store, ids, query_QD, form, one, None) for one in (None, condition)]
    built = None
    for index in tqdm(candidates, desc=f"indices of {form}", delay=3.0, leave=False):
        if index.kind != built:
            build(KINDS[index.kind]())
            built = index.kind
        recall = recall_of(_answers(store, ids, query_QD, form, None, index), exact[0])
        filtered = recall_of(_answers(store, ids, query_QD, form, condition, index), exact[1])
        if recall >= LEAST_RECALL and filtered >= LEAST_FILTERED_RECALL:
            return Decision(form, vectors, index, limit, recall, filtered, share, _settings_of(index))
        best = max(best, (recall, filtered))
    reason = f"no index reaches {LEAST_RECALL} and {LEAST_FILTERED_RECALL}"
    return Decision(form, vectors, None, limit, *best, share, reason)


def recall_of(found: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Return the mean share of the expected ids that were found; 1.0 if none is expected anywhere."""
    shares = [len(set(one) & set(other)) / len(other) for one, other in zip(found, expected, strict=True) if other]
    return float(np.mean(shares)) if shares else 1.0


def _answers(
    store: Searched, ids: Sequence[str], query_QD: np.ndarray, form: str, condition: str | None, index: Index | None
) -> list[list[str]]:
    """Return the ids of the best 10 other products for each sampled product."""
    answers = []
    for product_id, query_D in zip(ids, query_QD, strict=True):
        others = f"product_id != {sql_text(product_id)}"
        where = others if condition is None else f"{others} AND {condition}"
        answers.append([one.product_id for one in store.nearest_of_form(query_D, RECALL_AT, form, where, index)])
    return answers


def _settings_of(index: Index) -> str:
    text = f"nprobes {index.nprobes}, refine_factor {index.refine_factor}"
    return text if index.ef is None else f"{text}, ef {index.ef}"
