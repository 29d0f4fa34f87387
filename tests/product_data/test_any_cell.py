"""Whatever stands in a cell, a table is read and reported on, or refused in a sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from table_files import write_table

from product_data.reading import ReadingOptions
from product_data.tables import TableError, load_tables

ODD = ["", " ", "nan", "null", "\u200b", "hat \ud83d", "<b>x</b>", "a &amp; b", "a: b; c", "A > B, A > C", "A/B", "["]
ODD += [
    "[1, 2",
    "{}",
    '{"a": {"b": 1}}',
    "1|2",
    "0 0 4 4",
    "p.png|q.png",
    "2024-05-01 10:00:00 UTC",
    "1e400",
    "-1",
    "true",
]
ODD += ["test", "\x00"]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
CELLS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
COLUMNS = {
    "products": "title description category_path attributes images split group core_box attributes_image attributes_text",
    "queries": "query_id type text image bbox positives positive_weights negatives split kind derived positive_categories",
    "interactions": "query query_image product_id action count time split",
    "written_attributes": "attributes_image attributes_text",
}
NEEDED = {
    "products": {"product_id": "a", "title": "x"},
    "queries": {"query_id": "q", "text": "x", "positives": "a"},
    "interactions": {"query": "x", "product_id": "a", "action": "click"},
    "written_attributes": {"product_id": "a", "attributes_text": "a: b"},
}


def rows_of(part: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    row = st.fixed_dictionaries({}, optional={name: CELLS for name in COLUMNS[part].split()})
    return st.lists(row.map(lambda cells: NEEDED[part] | cells), max_size=3)


TABLES = st.fixed_dictionaries({part: rows_of(part) for part in COLUMNS})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TABLES, st.booleans(), st.sampled_from([None, "/", " - "]))
@example({"products": [{"product_id": "a", "images": "x" * 300}]}, False, None)
def test_any_cell_is_read_or_refused_in_a_sentence(tables: dict[str, Any], strip: bool, separator: str | None) -> None:
    options = ReadingOptions(strip_html=strip, category_separator=separator)
    try:
        found = load_tables(tables, reading=options)
    except TableError as refusal:
        str(refusal).encode()
        return
    str(found.report).encode()
    assert len(found.products) == len(tables["products"])
    for product in found.products:
        json.dumps(product.record("t"), ensure_ascii=False).encode()
    for query in found.queries:
        (query.text + query.query_id + "".join(query.positives)).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows_of("products"))
def test_a_file_reads_as_the_rows_in_memory_do(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.jsonl"
        write_table(path, rows)
        try:
            in_memory = load_tables({"products": [json.loads(json.dumps(row)) for row in rows], "images": folder})
        except TableError:
            with pytest.raises(TableError):
                load_tables({"products": path, "images": folder})
            return
        assert repr(load_tables({"products": path, "images": folder}).products) == repr(in_memory.products)
