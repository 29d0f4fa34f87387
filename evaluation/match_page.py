"""Show why a product matches: the parts of the cosine as a table, and beside it heat maps of both sides as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation.heatmap import draw_explanation
from evaluation.heatmap import explain as explain_attention
from evaluation.pages import inline_picture, render
from processing_moon import ProductError
from product_data.atomic_files import write_atomically
from product_data.errors import OptionError
from product_data.outputs import OutputError, require_writable_file
from retrieval.explanation.explain import MatchExplanation
from retrieval.queries import Query
from retrieval.search import Searcher
from retrieval.stores.interface import StoredProduct

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_SIDE = 1120
_NO_PHRASE = "no shared value carries this similarity"


def explanation_rows(found: MatchExplanation) -> Sequence[tuple[str, ...]]:
    """Return the parts of a cosine as rows: part, contribution, share of the cosine, lengths on both sides, who states it.

    The last cell is the share of held-out products whose value of this key is read right from their vector.

    Args:
        found: from `retrieval.explanation.explain`.
    """
    rows = [
        (
            str(entry.phrase),
            f"{entry.contribution:+.3f}",
            _share(entry.contribution, found),
            f"{entry.query_weight:.2f} × {entry.product_weight:.2f}",
            entry.stated,
            "" if entry.read_right is None else f"{entry.read_right:.0%}",
        )
        for entry in found.shared
    ]
    if not rows:
        rows.append((_NO_PHRASE, "", "", "", "", ""))
    parts = {
        "pairs of different values": found.different,
        "not described by these values (residual)": found.residual,
        "what all have in common (means)": found.common,
        "cosine": found.cosine,
    }
    return rows + [(name, f"{value:+.3f}", _share(value, found), "", "", "") for name, value in parts.items()]


HEADINGS = (
    "part",
    "contribution",
    "share of the cosine",
    "lengths of the parts",
    "stated by the shop about",
    "key read right",
)


def explanation_table(found: MatchExplanation, *, style: str = "simple") -> str:
    """Return the rows of `explanation_rows` as a table, and the largest pairs of different values under it.

    Args:
        found: from `retrieval.explanation.explain`.
        style (`str`): a tabulate format. Default "simple".
    """
    table = tabulate(explanation_rows(found), HEADINGS, tablefmt=style, disable_numparse=True)
    return "\n".join([table, "", *notes(found)])


def notes(found: MatchExplanation) -> list[str]:
    """Return sentences on what the shared values explain, and the largest pairs of different values."""
    share = found.share_explained
    query, product = (f"{1 - value:.0%}" for value in found.unexplained)
    sentences = [
        "Shared values carry "
        + (
            f"{share:.0%} of the similarity beyond what all have in common."
            if share is not None
            else "nothing: the vectors are not similar beyond what all have in common."
        )
    ]
    sentences.append(
        f"The values describe {query} of the query's vector and {product} of the product's (squared length)."
    )
    if found.different_pairs:
        pairs = "; ".join(f"{a} / {b} {value:+.3f}" for a, b, value in found.different_pairs)
        sentences.append(f"Largest pairs of different values: {pairs}.")
    return sentences


def _share(part: float, found: MatchExplanation) -> str:
    return f"{part / found.cosine:.0%}" if found.cosine > 0.01 else ""


def require_match_file(option: str, path: Path | None) -> None:
    """Check that a page can be written.

    Raises:
        OutputError: a suffix other than .html, or a file that cannot be written.
    """
    if path is not None and path.suffix.lower() != ".html":
        raise OutputError(f"{option} {path}: found {path.suffix or 'a name without a suffix'}; expected .html")
    require_writable_file(option, path)


def write_match(path: Path, searcher: Searcher, query: Query, product_id: str, found: MatchExplanation) -> None:
    """Write the explanation of a match as a page that fetches nothing, with heat maps of both sides.

    Args:
        path: the .html file; its folder is made.
        searcher: the store and the model.
        query, product_id: what was explained.
        found: the explanation.
    """
    page = render(
        _TEMPLATE,
        title=f"Why {product_id} matches {query.like if query.like is not None else query.text or 'the picture'}",
        headings=HEADINGS,
        rows=explanation_rows(found),
        notes=notes(found),
        sides=heat_maps(searcher, query, product_id, found),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


def heat_maps(searcher: Searcher, query: Query, product_id: str, found: MatchExplanation) -> list[dict[str, str]]:
    """Return for both sides of a match the title, and the heat map as a data URL ("picture") or why there is none ("why").

    Args:
        searcher: the store and the model.
        query, product_id: what was explained.
        found: the explanation.
    """
    product = searcher.store.get([product_id])[0]
    other = searcher.store.get([query.like])[0] if query.like is not None else None
    records = [product_record(other, found.form) if other is not None else query.records()[0]]
    records.append(product_record(product, found.form) if product is not None else {"id": product_id})
    titles = ("Other product" if other is not None else "Query", "Product")
    return [{"title": title} | _heat_map(searcher, record) for title, record in zip(titles, records, strict=True)]


def product_record(product: StoredProduct, form: str) -> dict[str, Any]:
    """Return the record of a stored product for the processor, in one form.

    Args:
        product: its facts.
        form (`str`): "mm", "t" or "i".
    """
    texts = {
        "title": product.title,
        "description": product.description,
        "category": list(product.category),
        "attributes": {key: list(values) for key, values in product.attributes.items()},
    }
    fields = (texts if form != "i" else {}) | ({"images": list(product.images)} if form != "t" else {})
    return {"id": product.product_id} | {name: value for name, value in fields.items() if value}


def _heat_map(searcher: Searcher, record: dict[str, Any]) -> dict[str, str]:
    """Return the picture of a record's heat map, or why there is none."""
    encoder = searcher.encoder
    try:
        with encoder.lock:
            attention = explain_attention(encoder.model, encoder.processor, [record])[0]
    except ProductError as error:  # the message about a file names its path, which clients of the service must not see
        is_picture = error.field.startswith("image")
        return {"picture": "", "why": "its picture cannot be read" if is_picture else str(error)}
    except OptionError as error:
        return {"picture": "", "why": str(error)}
    return {"picture": inline_picture(draw_explanation(attention), _SIDE), "why": ""}
