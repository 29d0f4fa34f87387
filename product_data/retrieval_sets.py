"""Read public retrieval sets in two formats: the three tables of mteb, and the query and candidate files of M-BEIR.

mteb (arXiv 2210.07316, and its retrieval sets with pictures): `corpus` and `queries` with id, text and image, `qrels`
with query-id, corpus-id and score. M-BEIR (UniIR, arXiv 2311.17136): JSON lines of queries (qid, query_txt,
query_img_path, pos_cand_list, neg_cand_list) and of candidates (did, txt, img_path).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from product_data.checking import IssueLog, ValidationReport
from product_data.columns import ROW_ID, RowColumns, cell_of, find_columns, level_names, product_fields
from product_data.picture_files import FAILURES, FetchedPictures, available_pictures
from product_data.row_files import Rows, column_names, open_rows, sampled
from product_data.rows import ProductRow, QueryRow
from product_data.table_files import TableError, parse_text, parse_texts
from product_data.tables import ProductTables
from product_data.triplets import TripletOptions, pictures_of, with_picture_files

_PARTS = {"corpus": ("corpus", "gallery"), "queries": ("queries", "query"), "qrels": ("qrels", "relevance")}
_QUERY_IDS, _PRODUCT_IDS = ("query-id", "query_id", "qid"), ("corpus-id", "corpus_id", "doc_id", "did")
_SCORES = ("score", "relevance", "label")
_NAMES = {"id": "id", "_id": "id", "txt": "text", "img_path": "image", "did": "id", "qid": "id"}
_QUERY_NAMES = {"query_txt": "text", "query_img_path": "image"}
_IDS_OF_ROWS = (ROW_ID, "positive.id")


def mteb_tables(name: str, place: str | Path, options: TripletOptions | None = None) -> ProductTables:
    """Return a retrieval set in the format of mteb.

    A query may have several answers, graded by `score`; scores of 0 and below are ignored. A query or product that
    cannot be read, or whose pictures are missing, is left out (`broken_rows`). Judgements of unknown ids are left out
    too.

    Args:
        name (`str`): name of the data set.
        place: a folder with files or folders named corpus, queries (or query) and qrels, or a data set on the hub with
            configurations of these names.
        options: `columns` gives the columns of the corpus as "positive.…" and those of queries as "query.…"; `sample`
            draws queries, while the gallery stays complete.

    Raises:
        TableError: a missing part.
    """
    options = options or TripletOptions()
    grades_of: dict[str, dict[str, float]] = {}
    for row in _part(place, "qrels", options.split):
        query, product = _first(row, _QUERY_IDS), _first(row, _PRODUCT_IDS)
        score = float(_first(row, _SCORES) or 1)
        if query and product and score > 0:
            grades_of.setdefault(query, {})[product] = score
    return _tables(
        name, _part(place, "corpus", options.split), _part(place, "queries", options.split), grades_of, options
    )


def mbeir_tables(name: str, folder: str | Path, prefix: str, options: TripletOptions | None = None) -> ProductTables:
    """Return the tasks of one data set of M-BEIR, with the candidates of all tasks in one gallery.

    t→i and i→i search the candidates that are only pictures, i→t those that are only texts: these directions search the
    same candidates as the pool of their task.

    Args:
        name (`str`): name of the data set.
        folder: M-BEIR's root with `query/<split>/` and `cand_pool/local/`, or a folder with such files.
        prefix (`str`): prefix of its files, such as "mbeir_fashion200k".
        options: as for `mteb_tables`; an `images_root` of "." means `folder`.

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
    query_files = [file for file in files if "cand_pool" not in file.as_posix()]
    query_files = [file for file in query_files if options.split and f"_{options.split}" in file.stem] or query_files
    if not pools or not query_files:
        raise TableError(
            f"{root}: found {len(query_files)} files of queries and {len(pools)} of candidates "
            f"that begin with {prefix!r}; expected "
            f"query/{options.split or 'test'}/{prefix}_…jsonl and cand_pool/local/{prefix}_…cand_pool.jsonl"
        )
    queries = [_renamed(row, _NAMES | _QUERY_NAMES) for file in query_files for row in open_rows(file)]
    corpus = {str(row.get("did")): _renamed(row, _NAMES) for file in pools for row in open_rows(file)}
    grades_of = {str(row.get("id")): dict.fromkeys(map(str, row.get("pos_cand_list") or ()), 1.0) for row in queries}
    negatives = {str(row.get("id")): parse_texts(row.get("neg_cand_list")) for row in queries}
    return _tables(name, list(corpus.values()), queries, grades_of, options, negatives)


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    kept = ("pos_cand_list", "neg_cand_list")
    return {names[column]: cell for column, cell in row.items() if column in names} | {
        column: row[column] for column in kept if column in row
    }


def _part(place: str | Path, part: str, split: str | None) -> Rows:
    root = Path(place)
    if root.is_dir():
        paths = [path for path in sorted(root.iterdir()) if path.name.split(".")[0].split("-")[0] in _PARTS[part]]
        if not paths:
            raise TableError(f"{root}: found no {part}; expected one of {', '.join(_PARTS[part])} as a folder or file")
        return [row for path in paths for row in open_rows(path, split=split)]
    problems = []
    for config in _PARTS[part]:
        for hub_split in dict.fromkeys((split or "test", config)):
            try:
                return open_rows(place, split=hub_split, config=config)
            except TableError as error:
                problems.append(str(error))
    raise TableError(problems[0])


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((parse_text(row[name]) for name in names if name in row), "")


def _tables(
    name: str,
    corpus: Rows,
    queries: Rows,
    grades_of: Mapping[str, Mapping[str, float]],
    options: TripletOptions,
    negatives: Mapping[str, tuple[str, ...]] | None = None,
) -> ProductTables:
    log = IssueLog()
    columns = find_columns(_plain(column_names(corpus)), _given(options, "positive"))
    query_columns = find_columns(_plain(column_names(queries)), _given(options, "query"))
    rows = [queries[place] for place in sampled(len(queries), options.sample, options.seed)]
    products = _read("corpus", corpus, columns, options, log)
    read = _read("queries", rows, query_columns, options, log)
    images = [image for fields in (*products.values(), *read.values()) for image in fields["images"]]
    fetched = available_pictures(images, options.pictures)
    products = {
        key: kept
        for key, fields in products.items()
        if (kept := with_picture_files(f"product {key!r}", fields, fetched, log))
    }
    read = {
        key: kept
        for key, fields in read.items()
        if (kept := with_picture_files(f"query {key!r}", fields, fetched, log))
    }
    graded = [
        _query(key, fields, grades_of.get(key, {}), (negatives or {}).get(key, ()), products, log)
        for key, fields in read.items()
    ]
    gallery = [ProductRow(product_id=key, **fields) for key, fields in products.items()]
    empty = ValidationReport(name, 0, 0, {})
    notes = _notes(columns, query_columns, fetched, options)
    tables = ProductTables(
        name, gallery, [query for query in graded if query is not None], empty, log.issues(), notes=notes,
        level_names=level_names(columns),
    )  # fmt: skip
    return replace(tables, report=tables.validate())


def _notes(
    corpus: RowColumns, queries: RowColumns, fetched: FetchedPictures, options: TripletOptions
) -> tuple[str, ...]:
    """Return the report's notes: the role of each column, and the outcome of fetching."""
    notes = []
    for part, columns, word in (("corpus", corpus, "positive"), ("queries", queries, "query")):
        lines = [f"{role.replace('positive', word)} ← {', '.join(names)}" for role, names in columns.taken.items()]
        notes.append(f"columns of {part}:\n    " + "\n    ".join(lines))
    if fetched.files or fetched.failures:
        notes.append(str(fetched) + (f"; why: {options.pictures.folder / FAILURES}" if fetched.failures else ""))
    return tuple(notes)


def _plain(names: Iterable[str]) -> list[str]:
    left_out = {"modality", "pos_cand_list", "neg_cand_list"}
    return [name for name in names if name not in left_out]


def _given(options: TripletOptions, part: str) -> dict[str, Any]:
    """Return the chosen columns of one table; those of queries ("query.…") are named "positive.…", as in the corpus."""
    return {
        role.replace("query.", "positive."): columns
        for role, columns in (options.columns or {}).items()
        if role.startswith(f"{part}.")
    }


def _read(
    part: str, rows: Rows, columns: RowColumns, options: TripletOptions, log: IssueLog
) -> dict[str, dict[str, Any]]:
    """Return id → fields of each row that can be read."""
    id_columns = [column for role in _IDS_OF_ROWS for column in columns.taken.get(role, ())]
    read: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        try:
            name = next((text for column in id_columns if (text := parse_text(cell_of(row, column)))), "")
            fields = product_fields(row, columns, "positive", options.reading)
            fields["images"] = pictures_of(fields["images"], options.images_root)
            if not name or not (fields.get("title") or fields["images"]):
                raise ValueError("neither text nor picture" if name else "no id")
        except (ValueError, TypeError) as error:
            log.add("broken_rows", f"{part}, row {index}: {error}")
            continue
        if name in read:
            log.add("repeated_rows", f"{part}, row {index} ({name!r})")
        read.setdefault(name, fields)
    return read


def _query(
    name: str,
    fields: Mapping[str, Any],
    grades: Mapping[str, float],
    negatives: Sequence[str],
    products: Mapping[str, Any],
    log: IssueLog,
) -> QueryRow | None:
    answers = {product: grade for product, grade in grades.items() if product in products}
    for product in grades.keys() - answers.keys():
        log.add("dangling_positives", f"query {name!r} → {product!r}")
    if not answers:
        log.add("queries_without_positives", repr(name))
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
        negatives=tuple(product for product in negatives if product in products and product not in answers),
        positive_weights=weights,
    )
