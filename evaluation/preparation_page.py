"""Show what a preparation found and changed as one HTML page: duplicates, pairs without a shared entity, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.pages import inline_picture, render
from processing_moon import ProductError, open_image
from product_data.preparation.job import Preparation
from product_data.preparation.pair_filter import NONE, SHARED, UNKNOWN, WITHOUT_WORDS
from product_data.rows import ProductRow, QueryRow

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_MOST_GROUPS, _MOST_MEMBERS, _MOST_PAIRS, _SIDE = 60, 6, 60, 168


def preparation_page(done: Preparation) -> str:
    """Return the report of a preparation.

    Groups with the lowest scores and pairs that were changed come first: they are the ones to check.

    Args:
        done: from `product_data.preparation.job.prepare`.
    """
    groups = sorted(done.findings.groups, key=lambda group: min(pair.score for pair in group.joined_by.values()))
    return render(
        _TEMPLATE,
        title=f"Preparation of {done.tables.name}",
        sentences=sentences(done),
        counts=_counts(done),
        groups=[_group(done, group) for group in groups[:_MOST_GROUPS]],
        groups_note=f"{min(len(groups), _MOST_GROUPS)} of {len(groups)} groups; those with the lowest scores first",
        pairs=_pairs(done),
        pairs_note=_pairs_note(done),
    )


def sentences(done: Preparation) -> list[str]:
    """Return sentences on what was found and what became of it.

    Args:
        done: from `product_data.preparation.job.prepare`.
    """
    pictures, duplicates, splits = (done.counts[step] for step in ("pictures", "duplicates", "splits"))
    pairs, tables = done.counts["pairs"], done.counts["tables"]
    found = ", ".join(f"{count} by {reason}" for reason, count in duplicates["pairs"].items() if count) or "none"
    moved = sum(splits["products moved"].values())
    changes = ", ".join(f"{count} {what}" for what, count in tables["changes"].items()) or "nothing changed"
    said = [
        f"pictures: {pictures['with a picture']} of {pictures['products']} products have one that can be opened, "
        f"{pictures['without a picture']} have none, {pictures['unreadable']} cannot be opened",
        f"duplicates: {duplicates['groups']} groups of {duplicates['products in groups']} products (pairs: {found}); "
        f"{duplicates['refused pairs']} pairs refused, because they would join products that contradict each other",
        f"splits: {splits['groups in several splits']} groups were in several splits; {moved} products moved",
        f"pairs: {pairs['pairs']}, of which {pairs[SHARED]} share an entity, {pairs[NONE]} share none, {pairs[UNKNOWN]} have "
        f"words without a known entity, {pairs[WITHOUT_WORDS]} have no words",
        f"written: {tables['products']} products, {tables['queries']} queries; {changes}",
    ]
    if duplicates["pictures that too many products share"]:
        said.insert(
            2,
            f"placeholders: {duplicates['pictures that too many products share']} products show a picture that too many "
            "share; it is no evidence",
        )
    return [*said, *done.notes, *pictures["examples"]]


def _counts(done: Preparation) -> list[tuple[str, str, int]]:
    """Return step, what was counted, and the number."""
    rows: list[tuple[str, str, int]] = []
    for step, counts in done.counts.items():
        for name, value in counts.items():
            if isinstance(value, dict):
                rows += [(step, f"{name}: {what}", number) for what, number in value.items()]
            elif isinstance(value, int):
                rows.append((step, name, value))
    return rows


def _group(done: Preparation, group: Any) -> dict[str, Any]:
    products = done.tables.products
    members = []
    for row in group.rows[:_MOST_MEMBERS]:
        pair, after = group.joined_by[row], done.plan.products[row]
        removed = row in done.plan.removed_products
        fate = "removed" if removed else "kept"
        before = products[row].split
        split = before if after.split == before or removed else f"{before} → {after.split}"
        members.append(
            _side(products[row])
            | {"note": f"{fate}; split {split}; {pair.reason} {pair.score:.3f}", "removed": removed}
        )
    more = len(group.rows) - len(members)
    return {"members": members, "more": f"and {more} more" if more > 0 else ""}


def _pairs(done: Preparation) -> list[dict[str, Any]]:
    product_of = {row.product_id: row for row in done.tables.products}
    shown = [pair for pair in done.findings.judged if pair.verdict == NONE][:_MOST_PAIRS]
    changed = {change.key: change for change in done.plan.changes if change.step == "pairs"}
    pairs = []
    for pair in shown:
        change = changed.get(("queries", pair.query_id, pair.product_id))
        pairs.append(
            {
                "query": _asked(done.tables.queries[pair.row]),
                "product": _side(product_of[pair.product_id]),
                "fate": change.action.replace("_", "-") if change else "kept",
                "named": ", ".join(pair.named),
            }
        )
    return pairs


def _pairs_note(done: Preparation) -> str:
    count = done.counts["pairs"][NONE]
    return (
        f"{min(count, _MOST_PAIRS)} of {count} pairs whose query names a category, a brand or an attribute value of the shop, "
        "none of which the product has"
    )


def _side(product: ProductRow) -> dict[str, Any]:
    values = "; ".join(f"{key}: {', '.join(values)}" for key, values in product.attributes.items())
    picture = _inline(product.images)
    return {"id": product.product_id, "title": product.title, "facts": values, "picture": picture}


def _asked(query: QueryRow) -> dict[str, Any]:
    picture = _inline([] if query.image is None else [query.image])
    return {"id": query.query_id, "title": query.text, "facts": "", "picture": picture}


def _inline(images: Sequence[Any]) -> str:
    """Return the `src` of the first picture; "" if there is none, or if it cannot be read."""
    if not images:
        return ""
    try:
        return inline_picture(open_image(images[0]), _SIDE)
    except ProductError:
        return ""
