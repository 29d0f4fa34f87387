"""Read product data: the embedded catalogue, a folder in the two-table format, or a user's files.

Two tables make a data set. `products`: product_id, title, description, category_path, attributes, images, split, group,
core_box; and, as in MBE3.0, attributes_image and attributes_text: the attributes that the picture and the text of a
product show, in cells like those of attributes (an empty list means that none are shown, a missing cell that this is
unknown). `queries`: query_id, type (text, image, both), text, image or image_id, bbox, positives, positive_weights,
negatives, split, kind, derived, reference_product_id, positive_categories. The table `query_images` (image_id, image)
holds the pictures that `image_id` refers to. `positive_weights` grades the answers: a number above 0 for each of
`positives`, 1 for a purchase; without the column every answer has 1. With or instead of `queries`, a shop's log
`interactions` (query, query_image, product_id, action, count, time, split) becomes queries: see
`product_data.interactions`. A table `written_attributes` (product_id, attributes_image, attributes_text), as `moon3
annotate` makes it, fills in these attributes if the products table lacks them. A report counts and lists the issues
of the tables before training or evaluation starts; reading leaves out no product.

    moon3 tables FOLDER|FILE [--images-root FOLDER] [--strip-html] [--category-separator SIGN]

prints the report, after opening every picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from product_data.checking import (
    Ids,
    Issue,
    IssueLog,
    ValidationReport,
    check_html,
    check_pictures,
    check_products,
    check_queries,
    named_images,
)
from product_data.duplicates import EqualProducts, identical_examples, variants_sentence
from product_data.feeds.reading import read_feed, shop_feed
from product_data.interactions import InteractionOptions
from product_data.missing_images import find_beside, table_folders
from product_data.reading import (
    ReadingOptions,
    Table,
    read_interactions,
    read_products,
    read_queries,
    read_query_images,
    with_written_attributes,
)
from product_data.rows import EVERY_SPLIT, PRODUCT_FORMS, QUERY_TYPES, ProductRow, QueryRow
from product_data.table_files import SUFFIXES, ImageSource, TableError

__all__ = [
    "EVERY_SPLIT",
    "PRODUCT_FORMS",
    "QUERY_TYPES",
    "ImageSource",
    "Issue",
    "ProductRow",
    "ProductTables",
    "QueryRow",
    "TableError",
    "ValidationReport",
    "load_tables",
]

_NEVER_FEEDS = (".parquet", ".jsonl")
_PARTS = ("products", "queries", "query_images", "interactions", "written_attributes")


@dataclass(frozen=True)
class ProductTables:
    """Products and queries of one data set (or of one split of it).

    `report` describes the tables as they were read; `validate()` checks the current products and queries again.
    `labels` are rows that only contribute labels (categories and attribute values); they are neither searched nor
    evaluated. `level_names` are the names of the category levels, root first; empty: level_1, level_2, ….
    """

    name: str
    products: list[ProductRow]
    queries: list[QueryRow]
    report: ValidationReport
    reading_issues: tuple[Issue, ...] = ()
    interactions: int = 0
    notes: tuple[str, ...] = ()
    labels: tuple[ProductRow, ...] = ()
    level_names: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """Return split → (products, queries) with exactly this name."""
        products = Counter(row.split for row in self.products)
        queries = Counter(row.split for row in self.queries)
        return {split: (products[split], queries[split]) for split in dict.fromkeys([*products, *queries])}

    def select(self, split: str | None) -> ProductTables:
        """Return the products and queries of one split and of split "all"; `None` or "all" keeps everything.

        Raises:
            TableError: no such split; the message lists the existing ones.
        """
        names = self.splits
        if split in (None, EVERY_SPLIT) or set(names) <= {EVERY_SPLIT}:
            return self
        if split not in names:
            raise TableError(f"{self.name}: found no split {split!r}; expected one of {', '.join(sorted(names))}")
        kept = (split, EVERY_SPLIT)
        return replace(
            self,
            products=[row for row in self.products if row.split in kept],
            queries=[row for row in self.queries if row.split in kept],
        )

    def validate(self, *, check_images: bool = False) -> ValidationReport:
        """Check ids, contents and image files, and return a report.

        Args:
            check_images (`bool`): also open each picture, as the processor does. Default False.
        """
        log = IssueLog(self.reading_issues)
        check_products(self.products, log, any(row.positive_categories for row in self.queries))
        equal = EqualProducts(self.products)
        for count, example in identical_examples(equal):
            log.add("identical_products", example, count)
        notes = (*self.notes, *filter(None, [variants_sentence(equal)]))
        check_queries(self.queries, Ids(row.product_id for row in self.products), log)
        check_html(self.products, self.queries, log)
        check_pictures(named_images(self.products, self.queries), log, check_images)
        counts = len(self.products), len(self.queries)
        return ValidationReport(self.name, *counts, self.splits, log.issues(), self.interactions, notes)


def load_tables(
    source: str | Path | Mapping[str, Any],
    *,
    split: str | None = None,
    images_root: str | Path | None = None,
    seed: int = 0,
    check_images: bool = False,
    interactions: InteractionOptions | None = None,
    reading: ReadingOptions | None = None,
    **catalogue_options: Any,
) -> ProductTables:
    """Read a data set.

    Args:
        source: "catalogue" (the embedded one); a folder with products.{parquet,jsonl,csv} and optionally
            queries.*, query_images.*, interactions.* and written_attributes.*; a products file; the export of a shop system,
            see `product_data.feeds.reading` (also as "products" below); or {"products": …,
            "queries": …, "query_images": …, "interactions": …, "written_attributes": …, "images": folder} whose tables
            are files or iterables of row dicts, such as a `datasets.Dataset`.
        split (`str` or `None`): keep one split. Default: all.
        images_root: folder that image paths are relative to. Default: the folder of the table.
        seed (`int`): seed of the embedded catalogue; other sources do not use it. Default 0.
        check_images (`bool`): open each picture for the report. Default False.
        interactions: options that turn interactions into weights. Default: `InteractionOptions()`.
        reading: options for reading cells: HTML, category separators. Default: `ReadingOptions()`.
        **catalogue_options: options of `product_data.catalogue.making.make_catalogue`; for "catalogue" only.

    Raises:
        TableError: a missing source, file, required column or split.

    Relations: call `tables.report.raise_if_fatal()` before training or evaluation.
    """
    if source == "catalogue":
        from product_data.catalogue.making import make_catalogue  # only this source needs to draw

        products, queries = make_catalogue(seed=seed, **catalogue_options)
        parts: dict[str, Any] = {"products": products, "queries": queries}
        name = "catalogue"
    elif catalogue_options:
        raise TableError(
            f"options {', '.join(sorted(catalogue_options))} are for source 'catalogue', not for {source!r}"
        )
    else:
        name, parts = find_parts(source)
    options = reading or ReadingOptions()
    parts, notes = _with_feed(parts, images_root or parts.get("images"))
    tables = _build(name, parts, images_root, replace(options, interactions=interactions) if interactions else options)
    if images_root is None and not parts.get("images"):
        tables = _with_pictures_beside(tables, table_folders(parts.values()))
    tables = replace(tables, notes=(*tables.notes, *notes))
    tables = replace(tables, report=tables.validate(check_images=check_images))
    return tables.select(split)


def _with_feed(parts: Mapping[str, Any], images_root: str | Path | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Replace the file of a shop system among the parts by the rows of its products; return also its report."""
    path = parts.get("products")
    if not isinstance(path, str | Path) or not Path(path).is_file() or Path(path).suffix.lower() in _NEVER_FEEDS:
        return dict(parts), ()
    try:
        file = shop_feed(path)
    except TableError:
        return dict(parts), ()  # its columns are not known: the reader of tables says what it expects
    if file is None:
        return dict(parts), ()
    feed = read_feed(file, images_root=images_root)
    rows = [
        {
            "product_id": row.product_id,
            "title": row.title,
            "description": row.description,
            "category_path": list(row.category),
            "attributes": [{"key": key, "value": list(values)} for key, values in row.attributes.items()],
            "images": list(row.images),
        }
        for row in (product.row for product in feed)
    ]
    return {**parts, "products": rows}, (f"read as a feed: {feed.report}",)


def _with_pictures_beside(tables: ProductTables, folders: Sequence[Path]) -> ProductTables:
    """Replace missing picture files by those of a folder `images` beside the tables."""
    products, of_products = find_beside(tables.products, "images", folders)
    queries, of_queries = find_beside(tables.queries, "image", folders)
    count = len(of_products | of_queries)
    notes = (f"{count} picture files were found in the folder 'images' beside the table",) if count else ()
    return replace(tables, products=products, queries=queries, notes=(*tables.notes, *notes))


def find_parts(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a data set and its tables: part → file or rows.

    Args:
        source: as for `load_tables`, but not "catalogue".

    Raises:
        TableError: a missing file or folder, or an unknown part.
    """
    if isinstance(source, Mapping):
        accepted = (*_PARTS, "images")
        unknown = set(source) - set(accepted)
        if unknown or not source:
            raise TableError(
                f"source: found {', '.join(sorted(unknown)) or 'no entry'}; expected one of {', '.join(accepted)}"
            )
        path = source.get("products")
        return (Path(path).parent.name or "tables") if isinstance(path, str | Path) else "tables", dict(source)
    path = Path(source)
    if path.is_dir():
        parts = {part: file for part in _PARTS if (file := _find_table(path, part))}
        if not parts.keys() & {"products", "queries"}:
            raise TableError(f"{path}: no products table; expected products{{{','.join(SUFFIXES)}}} in that folder")
        return path.resolve().name, parts
    if path.is_file():
        return path.stem, {"products": path}
    raise TableError(
        f"{source}: no such file or folder; expected 'catalogue', a folder with products.*, or a products file"
    )


def _find_table(folder: Path, part: str) -> Path | None:
    files = [folder / f"{part}{suffix}" for suffix in SUFFIXES if (folder / f"{part}{suffix}").is_file()]
    if len(files) > 1:
        raise TableError(f"{folder}: found {' and '.join(path.name for path in files)}; expected only one of them")
    return files[0] if files else None


def _build(
    name: str, parts: Mapping[str, Any], images_root: str | Path | None, options: ReadingOptions
) -> ProductTables:
    log = IssueLog()
    root = images_root or parts.get("images")
    if root is not None and not Path(root).is_dir():
        raise TableError(f"images folder {root}: no such folder")
    tables = {
        part: Table(part, parts[part], log, options) for part in parts if part != "images" and parts[part] is not None
    }
    products = read_products(tables["products"], root) if "products" in tables else []
    if "written_attributes" in tables:
        products = with_written_attributes(products, tables["written_attributes"])
    images = read_query_images(tables["query_images"], root) if "query_images" in tables else {}
    queries = read_queries(tables["queries"], images, root) if "queries" in tables else []
    if "interactions" in tables:
        queries += read_interactions(tables["interactions"], products, root)
    issues = log.issues()
    empty = ValidationReport(name, len(products), len(queries), {}, issues)
    rows = len(tables["interactions"].rows) if "interactions" in tables else 0
    return ProductTables(name, products, queries, empty, issues, rows)
