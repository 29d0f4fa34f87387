"""Collect the tokens of a corpus: its texts alone, as products and as queries, in the prompts of a Moon model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from processing_moon import MoonProcessor
from processing_moon.reasoning_moon import REASONING_KEYS, reasoning_text
from product_data.table_files import SUFFIXES, TableError
from product_data.tables import load_tables

_NO_LIMIT = 1_000_000
_BATCH = 256
# The processors of moon1 and of moon3: their prompts differ at the beginning of a title and at the end.
_SETTINGS: tuple[dict[str, Any], ...] = ({}, {"readout": "emb", "title_markers": True, "max_reasoning_tokens": 64})


Corpus = str | Path | Sequence[str | Path]
"""See `read_corpus`."""


def read_corpus(corpus: Corpus) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the products and the queries of a corpus, without pictures.

    Args:
        corpus: "catalogue", a folder or file of product tables (see `product_data.tables.load_tables`), or a text file in
            UTF-8 (any other ending) whose lines are read as titles and as queries; or a list of these.

    Raises:
        TableError: the corpus cannot be read, or contains no text.
    """
    if not isinstance(corpus, str | Path):
        parts = [read_corpus(one) for one in corpus]
        return [row for products, _ in parts for row in products], [row for _, queries in parts for row in queries]
    path = Path(corpus)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise TableError(f"{path}, byte {error.start}: found no UTF-8; expected a text file in UTF-8") from error
        products, queries = [{"title": line} for line in lines], [{"text": line} for line in lines]
    else:
        tables = load_tables(corpus)
        tables.report.raise_if_fatal()
        products = [row.record("t") for row in tables.products if row.has_text]
        queries = [{"id": row.query_id, "text": row.text} for row in tables.queries if row.text]
    if not products and not queries:
        raise TableError(f"{corpus}: found no text; expected products, queries or lines with text")
    return products, queries


def texts_of(products: Iterable[dict[str, Any]], queries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield each text of products and queries alone, and the reasoning that contains a product's attributes."""
    yield from (query["text"] for query in queries)
    yield from REASONING_KEYS
    for product in products:
        yield from (product[name] for name in ("title", "description") if name in product)
        attributes = {"category": product.get("category", ())} | product.get("attributes", {})
        yield "; ".join(filter(None, (reasoning_text({key: values}) for key, values in attributes.items())))


def corpus_ids(folder: str | Path, corpus: Corpus) -> set[int]:
    """Return the ids of all tokens in a corpus and in the prompts of its products and queries.

    Args:
        folder: the folder of a base with its tokenizer and image-processor settings.
        corpus: see `read_corpus`.

    Raises:
        TableError: see `read_corpus`.
    """
    products, queries = read_corpus(corpus)
    processors = [MoonProcessor.from_base(folder, **settings) for settings in _SETTINGS]
    ids: set[int] = set()
    encoded = processors[0].encode
    for texts in _batches(list(texts_of(products, queries)), "Reading the corpus"):
        ids.update(id_ for row in encoded(texts) for id_ in row)
    for processor in processors:
        options: dict[str, Any] = {"max_tokens": _NO_LIMIT, "return_tensors": None, "on_error": "skip"}
        for task in processor.instructions:
            ids.update(processor(queries=[{"text": "a"}], task=task, **options)["input_ids"][0])
        for kind, records in (("products", products), ("queries", queries)):
            for batch in _batches(records, f"Reading the prompts of {kind}"):
                rows = processor(**{kind: batch}, padding=False, **options).get("input_ids", [])
                ids.update(id_ for row in rows for id_ in row)
    return ids


def _batches(records: Sequence[Any], description: str) -> Iterator[list[Any]]:
    bar = tqdm(total=len(records), desc=description, unit="text", delay=3.0)
    for start in range(0, len(records), _BATCH):
        batch = list(records[start : start + _BATCH])
        yield batch
        bar.update(len(batch))
    bar.close()
