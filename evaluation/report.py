"""Results as tables, and pictures of what a search found.

moon3 report results/shared_*.json [--compare R@10]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps
from tabulate import tabulate

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.fonts import Font, font_for, readable
from evaluation.metrics import CUTOFFS
from evaluation.reasonings import MARKS, reasoning_note
from processing_moon import ProductError, open_image
from product_data.errors import OptionError
from product_data.tables import ProductRow, QueryRow

_ABSENT = "–"
_RELAXED_AT = 11  # the column of a row of labels with which the figures of the relaxed rule begin
_OF_EVERY_RUN = ("final", "run")  # folders that each training has
_DIRECTIONS = {
    "t2mm": "t→mm",
    "i2mm": "i→mm",
    "mm2mm": "mm→mm",
    "t2i": "t→i",
    "i2t": "i→t",
    "i2i": "i→i",
    "mm2i": "mm→i",
    "t2t": "t→t",
    "mm2t": "mm→t",
}


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return _ABSENT
    around = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * value:.1f}{around}"


def results_table(results: Sequence[dict[str, Any]], *, style: str = "github") -> str:
    """Everything that results hold: retrieval, image-only retrieval, classification, attributes, what was written.

    A model that reasoned says so behind its name: "moon3 (reasoning ≤ 32)", "moon3 (queries reason ≤ 32)".

    Args:
        results: results as `moon3 evaluate` writes them.
        style (`str`): a format of tabulate. Default "github", which is Markdown.

    Returns: percentages; at R@10 (or the largest k) and at top-1, precision, recall and F1 with the 95 % interval in brackets,
        and what chance, and at top-1 always naming the most common label, would give beside it; "in 10" are the figures of the
        relaxed rule, see `evaluation.metrics.relaxed_scores`. Below, where there are any, what was counted as right or left out
        because it is equal to an answer, and the warnings of the results.
    """
    cutoffs, graded = _cutoffs(results), _is_graded(results)
    last = _last(cutoffs)
    retrieval = [row for result in results for row in _retrieval_rows(result, cutoffs, graded)]
    labels = [row for result in results for row in _label_rows(result)]
    head = ["model", "benchmark"]
    parts = []
    if retrieval:
        columns = [*head, "direction", *(f"R@{k}" for k in cutoffs), f"chance R@{last}"]
        columns += [*([f"nDCG@{last}"] if graded else []), "queries", "gallery"]
        parts.append(_table(retrieval, columns, style))
    if labels:
        columns = [*head, "task", "input", "top-1", "chance", "most common", "top-10", "precision", "recall", "F1"]
        columns += [f"{name}, in 10" for name in ("precision", "recall", "F1")] if _is_relaxed(labels) else []
        columns += ["labels", "items"]
        parts.append(_table([_without_relaxed(row, _is_relaxed(labels)) for row in labels], columns, style))
    if agreeing := [row for result in results for row in _agreement_rows(result, cutoffs)]:
        columns = [*head, "direction", "attribute"]
        columns += [f"{metric}@{k}" for metric in ("recall", "agreement") for k in cutoffs]
        parts.append(_table(agreeing, [*columns, f"chance recall@{last}", "queries"], style))
    if written := [row for result in results for row in _written_rows(result)]:
        columns = [*head, "written from", "reasonings", *(name.replace("_", " ") for name in MARKS)]
        parts.append(_table(written, columns, style))
    return "\n\n".join([*(parts or ["no scores"]), *_equal_lines(results), *warning_lines(results)])


def _equal_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """What became of products that are equal to an answer, once for each benchmark."""
    lines = []
    for result in results:
        counts: Counter[str] = Counter()
        for scores in result.get("scores", {}).values():
            counts.update((scores or {}).get("equal", {}))
        said = [
            words.format(counts[name])
            for name, words in (
                ("identical_right", "identical products count as right in {} searches"),
                ("variants_left_out", "variants of the answer are left out of {} searches"),
                ("variants_right", "variants of the answer count as right in {} searches"),
            )
            if counts[name]
        ]
        if said:
            lines.append(f"{result['benchmark']}: {'; '.join(said)}.")
    return list(dict.fromkeys(lines))


def warning_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The warnings of results, each said once, with the model and the benchmark before it."""
    lines = [
        f"WARNING: {_name(result)} on {result['benchmark']}: {one}"
        for result in results
        for one in result.get("warnings", [])
    ]
    return list(dict.fromkeys(lines))


def _table(rows: Sequence[Sequence[Any]], columns: Sequence[str], style: str) -> str:
    align = ["left"] * (4 if "attribute" in columns else 3) + ["right"] * len(columns)
    align = align[: len(columns)]
    return tabulate(rows, headers=columns, tablefmt=style, disable_numparse=True, colalign=align)


def short_name(model: str) -> str:
    """What a table calls a model: the name of its folder, and of a training's `final` (or `run/final`) that of its run.

    A model of another kind, "clip=PLACE", has its kind behind the name.
    """
    kind, equals, place = model.partition("=")
    if equals and place and kind.isidentifier():
        return f"{short_name(place)} ({kind})"
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in _OF_EVERY_RUN:
        parts.pop()
    return parts[-1] if parts else model


def _name(result: dict[str, Any]) -> str:
    return short_name(result["model"]) + reasoning_note(result.get("reasoning"))


def _written_rows(result: dict[str, Any]) -> list[list[str]]:
    sides = (result.get("reasoning") or {}).get("written", {})
    return [
        [_name(result), result["benchmark"], side if name == side else f"{side}, {name}"]
        + [str(counts[column]) for column in ("written", *MARKS)]
        for side, found in sides.items()
        for name, counts in found["inputs"].items()
    ]


def _cutoffs(results: Sequence[dict[str, Any]]) -> list[int]:
    """All k of R@k that results have."""
    return sorted({k for result in results for k in result.get("cutoffs", CUTOFFS)}) or list(CUTOFFS)


def _last(cutoffs: Sequence[int]) -> int:
    """The k whose interval and chance are shown."""
    return 10 if 10 in cutoffs else max(cutoffs)


def _is_graded(results: Sequence[dict[str, Any]]) -> bool:
    return any((scores or {}).get("graded") for result in results for scores in result.get("scores", {}).values())


def _is_relaxed(rows: Sequence[Sequence[str]]) -> bool:
    return any(row[_RELAXED_AT] != _ABSENT for row in rows)


def _without_relaxed(row: list[str], shown: bool) -> list[str]:
    return row if shown else [*row[:_RELAXED_AT], *row[_RELAXED_AT + 3 :]]


def _agreement_rows(result: dict[str, Any], cutoffs: Sequence[int]) -> list[list[str]]:
    """Attribute-level recall: the mean of the keys, then each key."""
    rows = []
    last = _last(cutoffs)
    for name, found in result.get("attribute_recall", {}).items():
        scored = {f"mean of {found['mean']['keys']} keys": found["mean"]} | found["keys"]
        for key, scores in scored.items():
            cells = [_percent(scores.get(f"{metric}@{k}")) for metric in ("recall", "agreement") for k in cutoffs]
            cells += [_percent(scores.get(f"recall@{last}_chance")), str(scores.get("queries", _ABSENT))]
            rows.append([_name(result), result["benchmark"], _DIRECTIONS.get(name, name), key, *cells])
    return rows


def _groups(result: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """(direction, scores, note) of everything that was searched, each direction once."""
    own, image = result.get("scores", {}), result.get("image_only", {})
    groups = [(name, scores, "") for name, scores in own.items()]
    groups += [(name, scores, ", image only") for name, scores in image.items() if name not in own]
    for asked, cells in result.get("matrix", {}).items():
        if asked != "absent":
            names = {form: f"{asked}2{form}" for form in cells}
            groups += [(names[form], cells[form], "") for form in cells if names[form] not in {*own, *image}]
    groups += [
        (name, scores, f", first {width} numbers")
        for width, found in result.get("dimensions", {}).items()
        for name, scores in found["scores"].items()
    ]
    return groups


def _retrieval_rows(result: dict[str, Any], cutoffs: Sequence[int], graded: bool) -> list[list[str]]:
    rows = []
    last = _last(cutoffs)
    groups = _groups(result)
    for name, scores, note in groups:
        label = _DIRECTIONS.get(name, name) + note
        if scores is None:
            cells = [_ABSENT] * (len(cutoffs) + 3 + graded)
        else:
            label += ", own parts" if scores.get("source") == "products" else ""
            label += f", {_percent(scores['reasoned'])} % reasoned" if "reasoned" in scores else ""
            cells = [
                _percent(scores.get(f"R@{k}"), scores.get(f"R@{k}_interval") if k == last else None) for k in cutoffs
            ]
            cells += [_percent(scores.get(f"R@{last}_chance"))]
            cells += [_percent(scores.get(f"nDCG@{last}"))] if graded else []
            cells += [str(scores.get("queries", _ABSENT)), str(scores.get("gallery", _ABSENT))]
        rows.append([_name(result), result["benchmark"], label, *cells])
    return rows


def _mean_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """The mean over attribute keys, with that of the relaxed rule."""
    return attributes["mean"] | {"relaxed": attributes.get("relaxed")}


def _label_rows(result: dict[str, Any]) -> list[list[str]]:
    found = []
    for form, levels in result.get("classification", {}).items():
        last = [name for name in levels if name != "deepest"][-1]
        for name, scores in levels.items():
            if name != "deepest" or scores != levels[last]:  # where all paths are as long, it says nothing new
                found.append((f"category, {name.replace('_', ' ')}", form, scores))
    for form, attributes in result.get("attributes", {}).items():
        found.append((f"attributes, mean of {attributes['mean']['keys']} keys", form, _mean_of(attributes)))
    for form, attributes in result.get("shown_attributes", {}).items():
        what = "picture" if form == "i" else "text"
        found.append(
            (f"attributes of the {what}, mean of {attributes['mean']['keys']} keys", form, _mean_of(attributes))
        )
    for kind, scores in result.get("query_categories", {}).items():
        found.append(("category of queries", kind, scores))
    with_interval = ("precision", "recall", "f1")
    return [
        [_name(result), result["benchmark"], task, form]
        + [_percent(scores["top1"], scores.get("top1_interval"))]
        + [_percent(scores.get(metric)) for metric in ("top1_chance", "majority", "top10")]
        + [_percent(scores[metric], scores.get(f"{metric}_interval")) for metric in with_interval]
        + [_percent((scores.get("relaxed") or {}).get(metric)) for metric in with_interval]
        + [str(scores.get(name, _ABSENT)) for name in ("labels", "items")]
        for task, form, scores in found
        if scores
    ]


def _compared(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """(direction, scores) of the rows that are compared: the five directions, and what else the matrix has scores of."""
    own = result["scores"]
    more = {
        f"{asked}2{form}": cell
        for asked, row in result.get("matrix", {}).items()
        if asked != "absent"
        for form, cell in row.items()
    }
    return [*own.items(), *((name, cell) for name, cell in more.items() if cell and name not in own)]


def comparison_table(
    results: Sequence[dict[str, Any]],
    *,
    names: Sequence[str] | None = None,
    metric: str = "R@10",
    style: str = "github",
) -> str:
    """One row a benchmark and direction, one column a model: before and after, ours and a baseline.

    The same model with another reasoning is another column: what reasoned is put behind every name, given or not.

    Args:
        results: results as `moon3 evaluate` writes them.
        names (`Sequence[str]` or `None`): the columns' names, one a result. Default: the models' names.
        metric (`str`): "MRR", or R@k or nDCG@k of a k that all results have, such as "R@1". Default "R@10".
        style (`str`): a format of tabulate.

    Raises:
        ValueError: another metric, names that do not match the results, or two results of one name on one benchmark.
    """
    common = [k for k in _cutoffs(results) if all(k in result.get("cutoffs", CUTOFFS) for result in results)]
    known = [f"R@{k}" for k in common] + [f"nDCG@{k}" for k in common if all("cutoffs" in result for result in results)]
    if metric not in (*known, "MRR"):
        raise OptionError(f"metric={metric!r}; expected {', '.join((*known, 'MRR'))}")
    names = [short_name(result["model"]) for result in results] if names is None else list(names)
    if len(names) != len(results):
        raise ValueError(f"{len(names)} names for {len(results)} results; expected one name a result")
    names = [name + reasoning_note(result.get("reasoning")) for name, result in zip(names, results, strict=True)]
    columns = list(dict.fromkeys(names))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    chance: dict[tuple[str, str], str] = {}
    for name, result in zip(names, results, strict=True):
        for direction, scores in _compared(result):
            place = (result["benchmark"], _DIRECTIONS.get(direction, direction))
            if name in cells.get(place, {}):
                raise OptionError(
                    f"two results are called {name!r} on {result['benchmark']}; expected a name for each of them"
                )
            value = _ABSENT if scores is None else _percent(scores[metric], scores.get(f"{metric}_interval"))
            cells.setdefault(place, {})[name] = value
            if scores is not None or place not in chance:  # a model without a score does not hide the chance
                chance[place] = _ABSENT if scores is None else _percent(scores.get(f"{metric}_chance"))
    rows = [[*place, *(found.get(name, _ABSENT) for name in columns), chance[place]] for place, found in cells.items()]
    return _table(rows, ["benchmark", f"{metric}, %", *columns, "chance"], style)


# ---------------------------------------------------------------------------------------------------------------------
# The contact sheet
# ---------------------------------------------------------------------------------------------------------------------
_TILE, _GAP, _MARGIN, _CAPTION, _QUERY_WIDTH, _HEAD = 148, 14, 26, 46, 232, 64
_INK, _FAINT, _GROUND, _CARD = (32, 36, 44), (120, 126, 138), (244, 245, 248), (255, 255, 255)
_RIGHT, _WRONG, _LINE = (34, 160, 84), (201, 205, 213), (226, 229, 235)


def contact_sheet(examples: Sequence[SearchExample], path: str | Path, *, title: str = "Search results") -> Path:
    """Draw queries with the products that were found for them; right ones are framed in green and ticked.

    Args:
        examples: from `evaluation.benchmarks.retrieval.search_examples`.
        path: where the PNG is written; its folder is made.
        title (`str`): the sheet's heading. What is written is drawn in the font of the system that has its characters
            (`evaluation.fonts.font_for`); what no font has is put into words, behind the product's id.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("a contact sheet of 0 queries; expected at least one")
    font, lacking = font_for(title + _all_text(examples))
    columns = max(1, max(len(example.found) for example in examples))
    row_height = _TILE + _CAPTION + _GAP
    width = 2 * _MARGIN + _QUERY_WIDTH + columns * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(examples) * row_height + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), readable(title, lacking), fill=_INK, font=font(22))
    hits = sum(any(right for _, _, right in example.found) for example in examples)
    note = f"a right product among the first {columns}: {hits} of {len(examples)} queries"
    draw.text((width - _MARGIN, 26), note, fill=_FAINT, font=font(13), anchor="ra")
    for number, example in enumerate(examples):
        top = _HEAD + number * row_height
        shown = readable(example.query.text, lacking)
        _draw_query(sheet, draw, replace(example.query, text=shown), (_MARGIN, top), font)
        for column, (product, score, right) in enumerate(example.found):
            left = _MARGIN + _QUERY_WIDTH + 2 * _GAP + column * (_TILE + _GAP)
            picture = product.images[0] if product.images else None
            _draw_tile(sheet, draw, picture, (left, top, _TILE), font, frame=_RIGHT if right else _WRONG)
            if right:
                _draw_tick(draw, left + _TILE - 15, top + 15)
            lines = _wrap(draw, _caption(product, lacking), font(12), _TILE, 2)
            draw.multiline_text((left, top + _TILE + 5), "\n".join(lines), fill=_INK, font=font(12), spacing=2)
            _draw_pill(draw, f"{score:.2f}", (left + 8, top + _TILE - 25), font(11))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def _caption(product: ProductRow, lacking: frozenset[str]) -> str:
    title = product.title or product.product_id
    return readable(title if lacking.isdisjoint(title) else f"{product.product_id}: {title}", lacking)


def _all_text(examples: Sequence[SearchExample]) -> str:
    titles = [product.title or product.product_id for example in examples for product, _, _ in example.found]
    return "".join([*titles, *(example.query.text for example in examples)])


def _draw_query(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, query: QueryRow, corner: tuple[int, int], font: Font
) -> None:
    left, top = corner
    draw.rounded_rectangle((left, top, left + _QUERY_WIDTH, top + _TILE), radius=10, fill=_CARD, outline=_LINE)
    record = query.record()
    text_width, text_left = _QUERY_WIDTH - 24, left + 12
    if "image" in record:
        picture_left = left if "text" in record else left + (_QUERY_WIDTH - _TILE) // 2
        _draw_tile(sheet, draw, record["image"], (picture_left, top, _TILE), font, frame=None)
        text_left, text_width = left + _TILE + 8, _QUERY_WIDTH - _TILE - 14
    if "text" in record:
        sized = font(12 if "image" in record else 16)
        lines = _wrap(draw, record["text"], sized, text_width, 6)
        draw.multiline_text(
            (text_left, top + _TILE / 2), "\n".join(lines), fill=_INK, font=sized, spacing=4, anchor="lm"
        )
    label = {"text": "text query", "image": "photo query", "both": "photo and text"}[query.type]
    draw.text((left + 2, top + _TILE + 6), label, fill=_FAINT, font=font(12))


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    source: Any,
    place: tuple[int, int, int],
    font: Font,
    *,
    frame: tuple[int, int, int] | None,
) -> None:
    left, top, side = place
    if frame is not None:
        draw.rounded_rectangle((left, top, left + side, top + side), radius=10, fill=_CARD)
    inner = side - 12
    try:
        picture = open_image(source) if source is not None else None
        note = "no image"
    except ProductError:
        picture, note = None, "unreadable"
    if picture is None:
        draw.text((left + side / 2, top + side / 2), note, fill=_FAINT, font=font(12), anchor="mm")
    else:
        picture = ImageOps.contain(picture, (inner, inner), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
    if frame is not None:
        width = 4 if frame == _RIGHT else 2
        draw.rounded_rectangle((left, top, left + side, top + side), radius=10, outline=frame, width=width)


def _draw_pill(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], font: Any) -> None:
    left, top = corner
    right = left + draw.textlength(text, font=font) + 10
    draw.rounded_rectangle((left, top, right, top + 17), radius=8, fill=_CARD, outline=_LINE)
    draw.text(((left + right) / 2, top + 8.5), text, fill=_INK, font=font, anchor="mm")


def _draw_tick(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=_RIGHT, outline=_CARD, width=2)
    draw.line([(x - 5, y), (x - 1, y + 4), (x + 5, y - 4)], fill=_CARD, width=3, joint="curve")


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float, most: int) -> list[str]:
    """Lines no wider than `width`; what does not fit in `most` lines ends in an ellipsis. Long words are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while draw.textlength(word, font=font) > width:
            head = next(
                size
                for size in range(len(word), 0, -1)
                if size == 1 or draw.textlength(word[:size], font=font) <= width
            )
            lines, line, word = [*lines, *([line] if line else []), word[:head]], "", word[head:]
        joined = f"{line} {word}".strip()
        if draw.textlength(joined, font=font) <= width:
            line = joined
        else:
            lines, line = [*lines, line], word
    lines = [*lines, line] if line else lines
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and draw.textlength(f"{last}…", font=font) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def read_results(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, result) pairs of a results file: one, or one each under "before" and "after".

    Raises:
        OptionError: a file that cannot be read, or without "scores".
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); expected a file that moon3 evaluate wrote") from error
    found = [(part, content[part]) for part in ("before", "after") if part in content] or [("", content)]
    pairs = []
    for part, result in found:
        if "scores" not in result:
            raise OptionError(f"{path}: no 'scores'; expected a file that moon3 evaluate wrote")
        result = {"model": content.get("model", Path(path).stem), "benchmark": content.get("benchmark", "")} | result
        name = f"{short_name(result['model'])} {part}".strip()
        pairs.append((name, result | {"model": name}))
    return pairs


def _told_apart(found: Sequence[tuple[str, str, dict[str, Any]]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and results of (file, name, result); where one name has two results of a benchmark, the file stands beside it."""

    def key(name: str, result: dict[str, Any]) -> tuple[str, str]:
        return name + reasoning_note(result.get("reasoning")), result["benchmark"]

    uses = Counter(key(name, result) for _, name, result in found)
    names = []
    for file, name, result in found:
        place = " ".join(Path(file).parts[-2:])
        names.append(f"{name} [{place}]" if uses[key(name, result)] > 1 else name)
    return names, [result | {"model": name} for name, (_, _, result) in zip(names, found, strict=True)]


def report(paths: Sequence[str | Path], compare: str | None = None) -> str:
    """Return results files as Markdown tables.

    Args:
        paths: results files, as `moon3 evaluate` writes them.
        compare: a metric (R@1, R@5, R@10 or MRR): one table, with a column for each model. Default: all metrics, in rows.

    Raises:
        OptionError: a file that cannot be read or holds no scores, another metric.
    """
    found = [(str(path), *pair) for path in paths for pair in read_results(path)]
    names, results = _told_apart(found)
    if compare is None:
        return results_table(results)
    return "\n\n".join([comparison_table(results, names=names, metric=compare), *warning_lines(results)])
