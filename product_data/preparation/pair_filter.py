"""Judge pairs of a query and a product that answers it by the entities that both name.

A pair whose query names a category, a brand or an attribute value of the shop, none of which the product has, is likely noise: a
click by accident, or a search that bought something else. MOON Embedding (arXiv 2511.11305) filters its pairs by named entities;
the verdicts, and lowering a weight in place of dropping a pair, are our design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from product_data.atomic_files import file_written_whole
from product_data.errors import OptionError
from product_data.preparation.entities import EntityDictionary, entity_names, shared_entities
from product_data.rows import ProductRow, QueryRow

SHARED, NONE, UNKNOWN, WITHOUT_WORDS = VERDICTS = ("shared", "none", "unknown", "no words")
"""What a query and its answer have in common: an entity, none although the query names some, none because the query names none,
or none because the query is a picture."""
UNRELATED = ("keep", "down_weight", "drop")
"""What happens to pairs without a shared entity."""


@dataclass(frozen=True)
class PairOptions:
    """What happens to pairs whose query names entities of which the product has none.

    Args:
        unrelated (`str`): "keep", "down_weight" (the relevance weight of the answer is multiplied by `weight`) or "drop".
            Default "down_weight".
        weight (`float`): factor of the relevance weight, in (0, 1). Default 0.25.

    Raises:
        OptionError: another value of `unrelated`, or a weight out of range.
    """

    unrelated: str = "down_weight"
    weight: float = 0.25

    def __post_init__(self) -> None:
        if self.unrelated not in UNRELATED:
            raise OptionError(f"unrelated: found {self.unrelated!r}; expected one of {', '.join(UNRELATED)}")
        if not 0 < self.weight < 1:
            raise OptionError(f"weight: found {self.weight}; expected a number between 0 and 1")


@dataclass(frozen=True)
class JudgedPair:
    """A query and one of its answers.

    Args:
        row (`int`): row of the query.
        query_id, product_id (`str`): the pair.
        verdict (`str`): one of `VERDICTS`.
        named: entities that the query names, such as "colour: red".
        shared: values that both name.
    """

    row: int
    query_id: str
    product_id: str
    verdict: str
    named: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def judge_pairs(
    products: Sequence[ProductRow], queries: Sequence[QueryRow], *, progress: bool = True
) -> list[JudgedPair]:
    """Judge each pair of a query and a known answer, in the order of the queries.

    Args:
        products, queries: all rows of the data set; answers that are no products are left out.
        progress (`bool`): whether to show a progress bar. Default True.
    """
    dictionary = EntityDictionary(products)
    product_of = {row.product_id: row for row in products}
    wanted = {name for query in queries if query.type != "image" for name in query.positives if name in product_of}
    bar = tqdm(sorted(wanted), desc="entities of products", unit="product", delay=3.0, disable=not progress)
    entities_of = {name: dictionary.of_product(product_of[name]) for name in bar}
    judged = []
    for row, query in enumerate(tqdm(queries, desc="pairs", unit="query", delay=3.0, disable=not progress)):
        has_words = query.type != "image" and bool(query.text)
        found = dictionary.named_in(query.text) if has_words else {}
        names = entity_names(found)
        for product_id in query.positives:
            if product_id not in product_of:
                continue
            shared = shared_entities(found, entities_of[product_id]) if found else ()
            verdict = SHARED if shared else NONE if found else UNKNOWN if has_words else WITHOUT_WORDS
            judged.append(JudgedPair(row, query.query_id, product_id, verdict, names, shared))
    return judged


_TEXTS = pyarrow.list_(pyarrow.string())
_SCHEMA = pyarrow.schema(
    [("row", pyarrow.int64())]
    + [(name, pyarrow.string()) for name in ("query_id", "product_id", "verdict")]
    + [("named", _TEXTS), ("shared", _TEXTS)]
)


def write_pairs(path: Path, judged: Sequence[JudgedPair]) -> None:
    """Write judged pairs as parquet, atomically."""
    columns = {name: [getattr(pair, name) for pair in judged] for name in _SCHEMA.names}
    with file_written_whole(path) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=_SCHEMA), partial)


def read_pairs(path: Path) -> list[JudgedPair]:
    """Read the pairs that `write_pairs` wrote."""
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [JudgedPair(**row | {name: tuple(row[name]) for name in ("named", "shared")}) for row in rows]
