"""The one reader of product data: the embedded catalogue, a folder in the two-table format, a user's own files.

Two tables make a data set. `products`: product_id, title, description, category_path, attributes, images, split, group,
core_box; and, as in MBE3.0, attributes_image and attributes_text: what the picture and what the text show of a product, in
cells like those of attributes (an empty list says that it shows nothing, a missing cell that nobody has looked).
`queries`: query_id, type (text, image, both), text, image or image_id, bbox, positives, positive_weights, negatives, split,
kind, derived, reference_product_id, positive_categories. Pictures named by `image_id` stand in `query_images` (image_id,
image). `positive_weights` grades the answers: a number above 0 for each of `positives`, 1 for a purchase; without the column
every answer has 1. Beside or instead of `queries`, a shop's log `interactions` (query, query_image, product_id, action,
count, time, split) becomes such queries: see `product_data.interactions`. A table `written_attributes` (product_id,
attributes_image, attributes_text), as `moon3 annotate` makes it, fills cells of these columns that products
lack.
What is wrong with a table is counted and named in a report before anything starts; no row is left out on reading.

    moon3 tables FOLDER|FILE [--images-root FOLDER] [--strip-html] [--category-separator SIGN]

prints the report, every picture opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from product_data.checking import (
    Found,
    Ids,
    Issue,
    ValidationReport,
    check_html,
    check_pictures,
    check_products,
    check_queries,
    named_images,
)
from product_data.duplicates import EqualProducts, identical_examples, variants_sentence
from product_data.interactions import InteractionOptions
from product_data.missing_images import found_beside, table_folders
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

_PARTS = ("products", "queries", "query_images", "interactions", "written_attributes")


@dataclass(frozen=True)
class ProductTables:
    """Products and queries of one data set (or of one split of it).

    `report` is the report on the tables as they were read; `validate()` looks again, at these rows. `labels` are rows whose
    categories and attribute values are labels of the data set too, though nothing of them is searched or evaluated.
    `level_names` says what the levels of the category path are called, the first one first; empty: level_1, level_2, ….
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
        """Split → (products, queries) that bear exactly this name."""
        products = Counter(row.split for row in self.products)
        queries = Counter(row.split for row in self.queries)
        return {split: (products[split], queries[split]) for split in dict.fromkeys([*products, *queries])}

    def select(self, split: str | None) -> ProductTables:
        """The rows of one split; those of split "all" belong to every split. `None` or "all" keeps everything.

        Raises:
            TableError: no such split, naming those there are.
        """
        names = self.splits
        if split in (None, EVERY_SPLIT) or set(names) <= {EVERY_SPLIT}:
            return self
        if split not in names:
            raise TableError(f"{self.name}: no split {split!r}; there are: {', '.join(sorted(names))}")
        kept = (split, EVERY_SPLIT)
        return replace(
            self,
            products=[row for row in self.products if row.split in kept],
            queries=[row for row in self.queries if row.split in kept],
        )

    def validate(self, *, check_images: bool = False) -> ValidationReport:
        """Check ids, contents and image files.

        Args:
            check_images (`bool`): also open every picture, as the processor would. Default False.
        """
        found = Found(self.reading_issues)
        check_products(self.products, found, any(row.positive_categories for row in self.queries))
        equal = EqualProducts(self.products)
        for count, example in identical_examples(equal):
            found.add("identical_products", example, count)
        notes = (*self.notes, *filter(None, [variants_sentence(equal)]))
        check_queries(self.queries, Ids(row.product_id for row in self.products), found)
        check_html(self.products, self.queries, found)
        check_pictures(named_images(self.products, self.queries), found, check_images)
        counts = len(self.products), len(self.queries)
        return ValidationReport(self.name, *counts, self.splits, found.issues(), self.interactions, notes)


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
        source: "catalogue" (the embedded one); a folder with products.{parquet,jsonl,csv} and, where there are any,
            queries.*, query_images.*, interactions.* and written_attributes.*; a products file; or {"products": …,
            "queries": …, "query_images": …, "interactions": …, "written_attributes": …, "images": folder} whose tables
            are files or iterables of row dicts, such as a `datasets.Dataset`.
        split (`str` or `None`): keep one split. Default: all rows.
        images_root: folder that image paths are relative to. Default: the folder of the table.
        seed (`int`): seed of the embedded catalogue; other sources do not use it. Default 0.
        check_images (`bool`): open every picture for the report. Default False.
        interactions: how the interactions become weights. Default: InteractionOptions's own.
        reading: how cells are read: HTML, category separators. Default: ReadingOptions's own.
        **catalogue_options: options of `product_data.catalogue.making.make_catalogue`; for "catalogue" only.

    Raises:
        TableError: a source, file, required column or split that is not there.

    Relations: `tables.report.raise_if_fatal()` before training or evaluation.
    """
    if source == "catalogue":
        from product_data.catalogue.making import make_catalogue  # drawing is needed by this source alone

        products, queries = make_catalogue(seed=seed, **catalogue_options)
        parts: dict[str, Any] = {"products": products, "queries": queries}
        name = "catalogue"
    elif catalogue_options:
        raise TableError(
            f"options {', '.join(sorted(catalogue_options))} are for source 'catalogue', not for {source!r}"
        )
    else:
        name, parts = _find_parts(source)
    options = reading or ReadingOptions()
    tables = _build(name, parts, images_root, replace(options, interactions=interactions) if interactions else options)
    if images_root is None and not parts.get("images"):
        tables = _with_pictures_beside(tables, table_folders(parts.values()))
    tables = replace(tables, report=tables.validate(check_images=check_images))
    return tables.select(split)


def _with_pictures_beside(tables: ProductTables, folders: Sequence[Path]) -> ProductTables:
    """The tables with missing picture files taken from a folder `images` beside them."""
    products, found = found_beside(tables.products, "images", folders)
    queries, more = found_beside(tables.queries, "image", folders)
    count = len(found | more)
    notes = (f"{count} picture files were found in the folder 'images' beside the table",) if count else ()
    return replace(tables, products=products, queries=queries, notes=(*tables.notes, *notes))


def _find_parts(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        accepted = (*_PARTS, "images")
        unknown = set(source) - set(accepted)
        if unknown or not source:
            raise TableError(f"source has {', '.join(sorted(unknown)) or 'no entry'}; expected {', '.join(accepted)}")
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
    there = [folder / f"{part}{suffix}" for suffix in SUFFIXES if (folder / f"{part}{suffix}").is_file()]
    if len(there) > 1:
        raise TableError(f"{folder}: {' and '.join(path.name for path in there)} are both there; keep one of them")
    return there[0] if there else None


def _build(
    name: str, parts: Mapping[str, Any], images_root: str | Path | None, options: ReadingOptions
) -> ProductTables:
    found = Found()
    root = images_root or parts.get("images")
    if root is not None and not Path(root).is_dir():
        raise TableError(f"images folder {root}: no such folder")
    tables = {
        part: Table(part, parts[part], found, options) for part in parts if part != "images" and parts[part] is not None
    }
    products = read_products(tables["products"], root) if "products" in tables else []
    if "written_attributes" in tables:
        products = with_written_attributes(products, tables["written_attributes"])
    images = read_query_images(tables["query_images"], root) if "query_images" in tables else {}
    queries = read_queries(tables["queries"], images, root) if "queries" in tables else []
    if "interactions" in tables:
        queries += read_interactions(tables["interactions"], products, root)
    issues = found.issues()
    empty = ValidationReport(name, len(products), len(queries), {}, issues)
    rows = len(tables["interactions"].rows) if "interactions" in tables else 0
    return ProductTables(name, products, queries, empty, issues, rows)
