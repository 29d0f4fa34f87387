"""Show the products that a search found: as a table, as a picture, or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tabulate import tabulate

from evaluation.contact_sheets import FAINT, GAP, GROUND, HEAD, INK, MARGIN, TILE, WRONG, draw_pill, draw_tile, wrap
from evaluation.fonts import Font, font_for, readable
from evaluation.pages import inline_picture, render
from processing_moon import ProductError, open_image
from product_data.atomic_files import write_atomically
from product_data.outputs import OutputError, require_writable_file
from retrieval.queries import Query
from retrieval.search import Answer
from retrieval.stores.interface import Hit, StoredProduct

_PICTURES, _SUFFIXES = (".png", ".jpg", ".jpeg"), (".json", ".html", ".png", ".jpg", ".jpeg")
_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_COLUMNS, _CAPTION, _INLINE = 5, 62, 240
_FORMS = {"mm": "text and picture", "t": "text", "i": "picture", "": "words"}
_LONGEST = 60


def describe_query(query: Query) -> str:
    """Return a phrase that describes a query: its words, its picture, or the product that it is like."""
    parts = [f"“{query.text.strip()}”"] if query.has_text else []
    if query.image is not None:
        name = Path(query.image).name if isinstance(query.image, str) else "a picture"
        parts.append(name + (f", region {','.join(f'{side:g}' for side in query.box)}" if query.box else ""))
    if query.like is not None:
        parts.append(f"like product {query.like}")
    return " with ".join(parts) + ("" if query.weight is None else f" (weight of the words {query.weight:g})")


def describe_answer(answer: Answer) -> str:
    """Return a line on how a search was done: the number of products, reasoning, kind of search and times."""
    count = len(answer.hits)
    parts = [
        f"{count} product{'' if count == 1 else 's'}" + (f" from rank {answer.offset + 1}" if answer.offset else "")
    ]
    parts += ["reasoned first"] if answer.reasoned else []
    parts += [answer.store] if answer.store else []
    times = ", ".join(f"{part} {time:.0f} ms" for part, time in answer.milliseconds.items())
    return "; ".join([*parts, times])


def price_of(product: StoredProduct) -> str:
    """Return the price with its currency, such as "49.90 EUR"; "" without a price."""
    return "" if product.price is None else f"{product.price:,.2f} {product.currency}".strip()


def hits_table(answer: Answer, *, style: str = "simple") -> str:
    """Return the products as a table, one line each.

    Args:
        answer: the result of a search.
        style (`str`): a tabulate format. Default "simple".
    """
    if not answer.hits:
        return "no product was found"
    rows = [
        (
            answer.offset + rank,
            f"{hit.score:.3f}",
            _FORMS.get(hit.form, hit.form),
            hit.product.product_id,
            _cut(hit.product.title),
            price_of(hit.product),
            hit.product.availability.replace("_", " "),
        )
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    columns = ("rank", "score", "nearest by", "product", "title", "price", "availability")
    return tabulate(rows, columns, tablefmt=style, disable_numparse=True)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def require_sheet(option: str, path: Path | None) -> None:
    """Check that the products of a search can be written to a file.

    Args:
        option (`str`): the option, for error messages.
        path: the file; `None` is not checked.

    Raises:
        OutputError: a suffix that `write_hits` does not write, or a file that cannot be written.
    """
    if path is not None and path.suffix.lower() not in _SUFFIXES:
        found = path.suffix or "a name without a suffix"
        raise OutputError(f"{option} {path}: found {found}; expected one of {', '.join(_SUFFIXES)}")
    require_writable_file(option, path)


def write_hits(query: Query, answer: Answer, path: Path, *, query_picture: Any = None) -> Path:
    """Write the products that were found: as JSON, as a page that fetches nothing (.html), or as a picture (.png, .jpg).

    Args:
        query, answer: a search.
        path: the file; its folder is made.
        query_picture: the picture to show for the query. Default `None`: the query's own.

    Raises:
        OutputError: see `require_sheet`.
    """
    require_sheet("output", path)
    source = query.image if query_picture is None else query_picture
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        draw_hits(query, answer, source).save(path, quality=90)
    else:
        text = f"{answer.json()}\n" if suffix == ".json" else hits_page(query, answer, source)
        write_atomically(path, text)
    return path


def draw_hits(query: Query, answer: Answer, query_picture: Any = None) -> Image.Image:
    """Draw a query and the products that were found, five in a row, as an RGB picture.

    Args:
        query, answer: a search.
        query_picture: what `open_image` opens; `None`: the query has no picture.
    """
    title, note = describe_query(query), describe_answer(answer)
    captions = [_caption(hit) for hit in answer.hits]
    font, lacking = font_for("".join([title, *captions]))
    rows = max(1, -(-len(answer.hits) // _COLUMNS))
    left = MARGIN + (0 if query_picture is None else TILE + 3 * GAP)
    width = left + _COLUMNS * (TILE + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, HEAD + 16 + rows * (TILE + _CAPTION + GAP) + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    heading = wrap(draw, readable(title, lacking), font(20), width - 2 * MARGIN, 1)
    draw.text((MARGIN, 18), heading[0] if heading else "", fill=INK, font=font(20))
    draw.text((MARGIN, 48), note, fill=FAINT, font=font(12))
    top = HEAD + 16
    if query_picture is not None:
        draw_tile(sheet, draw, query_picture, (MARGIN, top, TILE), font, frame=WRONG)
        draw.text((MARGIN + 2, top + TILE + 6), "the query", fill=FAINT, font=font(12))
    for place, hit in enumerate(answer.hits):
        corner = (
            left + place % _COLUMNS * (TILE + GAP),
            top + place // _COLUMNS * (TILE + _CAPTION + GAP),
        )
        _draw_hit(sheet, hit, readable(captions[place], lacking), corner, font)
    if not answer.hits:
        draw.text((left, top + TILE / 2), "no product was found", fill=FAINT, font=font(16), anchor="lm")
    return sheet


def _caption(hit: Hit) -> str:
    return hit.product.title or hit.product.product_id


def _draw_hit(sheet: Image.Image, hit: Hit, caption: str, corner: tuple[int, int], font: Font) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    draw_tile(sheet, draw, next(iter(hit.product.images), None), (left, top, TILE), font, frame=WRONG)
    lines = wrap(draw, caption, font(12), TILE, 2)
    draw.multiline_text((left, top + TILE + 5), "\n".join(lines), fill=INK, font=font(12), spacing=2)
    draw.text((left, top + TILE + 38), price_of(hit.product), fill=FAINT, font=font(12))
    draw_pill(draw, f"{hit.score:.3f}", (left + 8, top + TILE - 25), font(11))


def hits_page(query: Query, answer: Answer, query_picture: Any = None) -> str:
    """Return a query and the products that were found as one HTML document; the arguments are those of `draw_hits`."""
    pictures = [_inline(next(iter(hit.product.images), None)) for hit in answer.hits]
    ranks = range(answer.offset + 1, answer.offset + 1 + len(pictures))
    return render(
        _TEMPLATE,
        title=describe_query(query),
        note=describe_answer(answer),
        reasoning=answer.reasoning,
        query_picture=_inline(query_picture),
        hits=list(zip(ranks, answer.hits, pictures, strict=True)),
        price=price_of,
        form=lambda hit: _FORMS.get(hit.form, hit.form),
        is_link=lambda url: url.startswith(("http://", "https://")),
    )


def _inline(source: Any) -> str:
    """Return the `src` of a picture; "" if there is none, or if it cannot be read or is not on this machine."""
    if source is None:
        return ""
    try:
        return inline_picture(open_image(source), _INLINE)
    except ProductError:
        return ""
