"""Read public retrieval sets of two forms: three tables as mteb has them, and the query and candidate files of M-BEIR.

mteb (arXiv 2210.07316, and its retrieval sets with pictures): `corpus` and `queries` with id, text and image, `qrels` with
query-id, corpus-id and score. M-BEIR (UniIR, arXiv 2311.17136): JSON lines of queries (qid, query_txt, query_img_path,
pos_cand_list, neg_cand_list) and of candidates (did, txt, img_path).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from product_data.checking import Found, ValidationReport
from product_data.columns import ROW_ID, RowColumns, cell_of, find_columns, level_names, product_fields
from product_data.picture_files import FAILURES, FetchedPictures, fetch_pictures
from product_data.row_files import Rows, column_names, open_rows, sampled
from product_data.rows import ProductRow, QueryRow
from product_data.table_files import TableError, is_address, parse_text, parse_texts
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, had_pictures, pictures_of

_PARTS = {"corpus": ("corpus", "gallery"), "queries": ("queries", "query"), "qrels": ("qrels", "relevance")}
_QUERY_IDS, _PRODUCT_IDS = ("query-id", "query_id", "qid"), ("corpus-id", "corpus_id", "doc_id", "did")
_SCORES = ("score", "relevance", "label")
_NAMES = {"id": "id", "_id": "id", "txt": "text", "img_path": "image", "did": "id", "qid": "id"}
_QUERY_NAMES = {"query_txt": "text", "query_img_path": "image"}
_IDS_OF_ROWS = (ROW_ID, "positive.id")


def mteb_tables(name: str, place: str | Path, options: TripletOptions | None = None) -> ProductTables:
    """Return a retrieval set in mteb's form.

    A query may have several answers, graded by `score`; scores of 0 and below say nothing. A query or product that cannot be
    read, or whose pictures cannot be had, is left out (`broken_rows`), and so are judgements of ids that are not there.

    Args:
        name (`str`): of the data set.
        place: a folder with files or folders named corpus, queries (or query) and qrels, or a data set of the hub with
            configurations of these names.
        options: `columns` name the corpus's columns as "positive.…" and those of queries as "query.…"; `sample` takes queries,
            the gallery stays whole.

    Raises:
        TableError: a part that is not there.
    """
    options = options or TripletOptions()
    judged: dict[str, dict[str, float]] = {}
    for row in _part(place, "qrels", options.split):
        query, product = _first(row, _QUERY_IDS), _first(row, _PRODUCT_IDS)
        score = float(_first(row, _SCORES) or 1)
        if query and product and score > 0:
            judged.setdefault(query, {})[product] = score
    return _tables(name, _part(place, "corpus", options.split), _part(place, "queries", options.split), judged, options)


def mbeir_tables(name: str, folder: str | Path, prefix: str, options: TripletOptions | None = None) -> ProductTables:
    """Return the tasks of one data set of M-BEIR, the candidates of all of them together in one gallery.

    Candidates that are pictures alone are searched by t→i and i→i, texts alone by i→t, so that these directions search what the
    task's own pool holds.

    Args:
        name (`str`): of the data set.
        folder: M-BEIR's root with `query/<split>/` and `cand_pool/local/`, or a folder with such files.
        prefix (`str`): which its files begin with, such as "mbeir_fashion200k".
        options: as for `mteb_tables`. `images_root` of "." means `folder`.

    Raises:
        TableError: no files of queries or of candidates.
    """
    options = options or TripletOptions()
    root = Path(folder)
    if options.images_root == Path():
        options = replace(options, images_root=root)
    files = sorted(root.rglob(f"{prefix}*.jsonl"))
    pools = [file for file in files if "cand_pool" in file.as_posix()]
    pools = [file for file in pools if "local" in file.as_posix()] or pools
    asked = [file for file in files if "cand_pool" not in file.as_posix()]
    asked = [file for file in asked if options.split and f"_{options.split}" in file.stem] or asked
    if not pools or not asked:
        raise TableError(
            f"{root}: found {len(asked)} files of queries and {len(pools)} of candidates that begin with {prefix!r}; "
            f"expected query/{options.split or 'test'}/{prefix}_…jsonl and cand_pool/local/{prefix}_…cand_pool.jsonl"
        )
    queries = [_renamed(row, _NAMES | _QUERY_NAMES) for file in asked for row in open_rows(file)]
    corpus = {str(row.get("did")): _renamed(row, _NAMES) for file in pools for row in open_rows(file)}
    judged = {str(row.get("id")): dict.fromkeys(map(str, row.get("pos_cand_list") or ()), 1.0) for row in queries}
    wrong = {str(row.get("id")): parse_texts(row.get("neg_cand_list")) for row in queries}
    return _tables(name, list(corpus.values()), queries, judged, options, wrong)


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    kept = ("pos_cand_list", "neg_cand_list")
    return {names[column]: cell for column, cell in row.items() if column in names} | {
        column: row[column] for column in kept if column in row
    }


def _part(place: str | Path, part: str, split: str | None) -> Rows:
    root = Path(place)
    if root.is_dir():
        found = [path for path in sorted(root.iterdir()) if path.name.split(".")[0].split("-")[0] in _PARTS[part]]
        if not found:
            raise TableError(f"{root}: found no {part}; expected {', '.join(_PARTS[part])} as a folder or file")
        return [row for path in found for row in open_rows(path, split=split)]
    problems = []
    for config in _PARTS[part]:
        for named in dict.fromkeys((split or "test", config)):
            try:
                return open_rows(place, split=named, config=config)
            except TableError as error:
                problems.append(str(error))
    raise TableError(problems[0])


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((parse_text(row[name]) for name in names if name in row), "")


def _tables(
    name: str,
    corpus: Rows,
    queries: Rows,
    judged: Mapping[str, Mapping[str, float]],
    options: TripletOptions,
    wrong: Mapping[str, tuple[str, ...]] | None = None,
) -> ProductTables:
    found = Found()
    columns = find_columns(_plain(column_names(corpus)), _given(options, "positive"))
    asked = find_columns(_plain(column_names(queries)), _given(options, "query"))
    rows = [queries[place] for place in sampled(len(queries), options.sample, options.seed)]
    products = _read("corpus", corpus, columns, options, found)
    read = _read("queries", rows, asked, options, found)
    addresses = [one for fields in (*products.values(), *read.values()) for one in fields["images"] if is_address(one)]
    fetched = fetch_pictures(addresses, options.pictures)
    products = {
        key: had for key, one in products.items() if (had := had_pictures(f"product {key!r}", one, fetched, found))
    }
    read = {key: had for key, one in read.items() if (had := had_pictures(f"query {key!r}", one, fetched, found))}
    made = [
        _query(key, fields, judged.get(key, {}), (wrong or {}).get(key, ()), products, found)
        for key, fields in read.items()
    ]
    gallery = [ProductRow(product_id=key, **fields) for key, fields in products.items()]
    empty = ValidationReport(name, 0, 0, {})
    notes = _notes(columns, asked, fetched, options)
    tables = ProductTables(
        name, gallery, [query for query in made if query is not None], empty, found.issues(), notes=notes,
        level_names=level_names(columns),
    )  # fmt: skip
    return replace(tables, report=tables.validate())


def _notes(
    corpus: RowColumns, queries: RowColumns, fetched: FetchedPictures, options: TripletOptions
) -> tuple[str, ...]:
    """What the columns were taken for, and what became of addresses."""
    said = []
    for part, columns, word in (("corpus", corpus, "positive"), ("queries", queries, "query")):
        lines = [f"{role.replace('positive', word)} ← {', '.join(names)}" for role, names in columns.taken.items()]
        said.append(f"columns of {part}:\n    " + "\n    ".join(lines))
    if fetched.files or fetched.failures:
        said.append(str(fetched) + (f"; why: {options.pictures.folder / FAILURES}" if fetched.failures else ""))
    return tuple(said)


def _plain(names: Iterable[str]) -> list[str]:
    left_out = {"modality", "pos_cand_list", "neg_cand_list"}
    return [name for name in names if name not in left_out]


def _given(options: TripletOptions, part: str) -> dict[str, Any]:
    """The choices for one table; a query's stand under "query.…" and are read as those of any item."""
    return {
        role.replace("query.", "positive."): columns
        for role, columns in (options.columns or {}).items()
        if role.startswith(f"{part}.")
    }


def _read(
    part: str, rows: Rows, columns: RowColumns, options: TripletOptions, found: Found
) -> dict[str, dict[str, Any]]:
    """Id → fields of each row that can be read."""
    named = [column for role in _IDS_OF_ROWS for column in columns.taken.get(role, ())]
    read: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        try:
            name = next((text for column in named if (text := parse_text(cell_of(row, column)))), "")
            fields = product_fields(row, columns, "positive", options.reading)
            fields["images"] = pictures_of(fields["images"], options.images_root)
            if not name or not (fields.get("title") or fields["images"]):
                raise ValueError("neither text nor picture" if name else "no id")
        except (ValueError, TypeError) as error:
            found.add("broken_rows", f"{part}, row {index}: {error}")
            continue
        if name in read:
            found.add("repeated_rows", f"{part}, row {index} ({name!r})")
        read.setdefault(name, fields)
    return read


def _query(
    name: str,
    fields: Mapping[str, Any],
    grades: Mapping[str, float],
    wrong: Sequence[str],
    products: Mapping[str, Any],
    found: Found,
) -> QueryRow | None:
    answers = {product: grade for product, grade in grades.items() if product in products}
    for product in grades.keys() - answers.keys():
        found.add("dangling_positives", f"query {name!r} → {product!r}")
    if not answers:
        found.add("queries_without_positives", repr(name))
        return None
    text, image = fields.get("title", ""), next(iter(fields["images"]), None)
    weights = tuple(answers.values()) if len(set(answers.values())) > 1 else ()
    return QueryRow(
        name,
        "both" if text and image is not None else "text" if text else "image",
        text,
        image,
        fields.get("core_box"),
        tuple(answers),
        negatives=tuple(one for one in wrong if one in products and one not in answers),
        positive_weights=weights,
    )
