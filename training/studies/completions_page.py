"""Write the page of `completions_report` from elements, so that no text can become markup; curves as SVG."""

import inspect
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, tostring

from processing_moon.reasoning_moon import THINK_END, read_reasoning
from training.rewards import reward_function, reward_names

if TYPE_CHECKING:
    from training.studies.completions_report import Group, ItemFacts, PairOfGroups, Report, Rollout

_ABSENT = "–"
_EXAMPLES = 6
_MOST_POINTS, _SMOOTH_FROM, _SMOOTH_SHARE = 300, 40, 0.05
_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _FOOT = 380, 190, 46, 10, 10, 24
_ATTRIBUTES_SHOWN = 12
# Joiners are part of words in many scripts; every other invisible character is shown as its number.
_KEPT_FORMATS = "\u200c\u200d"
# No script runs and nothing is fetched, whatever a model or a table wrote.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f8; --card: #fff; --ink: #20242c; --faint: #6b7280; --line: #dfe3ea;
  --good: #17803f; --bad: #c0392f; --chip: #eef2f8;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --card: #1d2128; --ink: #e6e8ec; --faint: #9aa3b2;
  --line: #343a45; --good: #4cc27b; --bad: #f0776c; --chip: #29303b;
  --c0: #5ab4e5; --c1: #f39a4f; --c2: #3cc9a0; --c3: #e3a1c6; --c4: #d9bd4a; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; background: var(--ground); color: var(--ink); }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 20px; margin: 34px 0 8px; } h3 { font-size: 15px; margin: 0 0 4px; }
p { margin: 4px 0 8px; } .faint, figcaption, dt { color: var(--faint); } figcaption { font-size: 13px; }
a { color: var(--c0); }
dl { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 8px 0; } dl div { display: flex; gap: 6px; } dd { margin: 0; }
.note { border-left: 4px solid var(--c1); padding: 4px 12px; background: var(--card); margin: 6px 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 14px; }
figure, article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 0; padding: 14px; }
article { margin: 14px 0; } article > header { display: flex; justify-content: space-between; gap: 20px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--faint); }
svg .axis { stroke: var(--line); } svg .shown { stroke: var(--faint); stroke-dasharray: 3 3; }
svg .raw { fill: none; stroke-width: 1; opacity: .35; } svg .curve { fill: none; stroke-width: 2; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px; }
ul.legend { list-style: none; margin: 4px 0; padding: 0; font-size: 13px; }
.side { display: grid; grid-template-columns: 170px minmax(0, 1fr); gap: 16px; margin-top: 12px; }
.side img { max-width: 100%; border-radius: 6px; border: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: right; font-weight: 600; color: var(--faint); white-space: nowrap; } th:first-child { text-align: left; }
td, th { padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child, td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 220px; }
.chip { display: inline-block; background: var(--chip); border-radius: 6px; padding: 0 7px; margin: 0 5px 3px 0; }
.chip b, .item b { font-weight: 600; } bdi, .item { overflow-wrap: anywhere; }
.malformed { color: var(--bad); } code { font-size: 12px; overflow-wrap: anywhere; }
.better { color: var(--good); } .worse { color: var(--bad); }
"""


def tag(name: str, /, *children: "str | Element", **attributes: str | None) -> Element:
    """Return an HTML element. Text is escaped when the page is written, and its control characters become visible.

    Args:
        name: of the element.
        children: text and elements, in order.
        attributes: `class_` is class, `_` in other names is `-`; None leaves one out.
    """
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    element = Element(name, {names[key]: visible(value) for key, value in attributes.items() if value is not None})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + visible(child)
        else:
            last.tail = (last.tail or "") + visible(child)
    return element


def visible(text: str) -> str:
    """Return text whose characters can all be seen: of control, format, lone surrogate and non-characters their number.

    So a model can neither reverse the direction of what stands beside its words nor hide some of them.
    """
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:  # no characters, which HTML forbids
        return f"⟨U+{ord(character):04X}⟩"
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or character in _KEPT_FORMATS:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def page(report: "Report") -> str:
    """Return a report as one HTML document.

    Args:
        report: of `training.studies.completions_report.make_report`.
    """
    title = f"What {report.name} writes"
    style = Element("style")
    style.text = _STYLE
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        style,
    )
    facts = [tag("div", tag("dt", key), tag("dd", value)) for key, value in report.facts.items()]
    body = tag(
        "main",
        tag("h1", title),
        tag("dl", *facts),
        *(tag("p", note, class_="note") for note in report.notes),
        *_summary(report),
        *_curves(report),
        *_items(report),
    )
    return "<!doctype html>\n" + tostring(tag("html", head, tag("body", body), lang="en"), "unicode", "html") + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One figure: what it says, and the logged names that it draws.

    Args:
        title: its heading.
        sentence: what is drawn, and which way is good.
        lines: logged name → label.
    """

    title: str
    sentence: str
    lines: Mapping[str, str]


_INFONCE = {
    "infonce": "all four, weighted",
    "infonce_reasoned": "reasoned query → reasoned product",
    "infonce_to_plain": "reasoned query → plain product",
    "infonce_from_plain": "plain query → reasoned product",
    "infonce_plain": "plain query → plain product",
}
_OWN_CURVES = (
    Curve(
        "Rank of the right answer",
        "Mean over the step, among the batch and the queue. Lower is better; where the line with reasoning is the lower one, "
        "writing attributes helps.",
        {"rank": "with reasoning", "rank_without_reasoning": "without reasoning"},
    ),
    Curve(
        "Candidates",
        "Among how many products the right answer is ranked. While the queue fills, ranks grow with them.",
        {"candidates": "mean"},
    ),
    Curve(
        "InfoNCE",
        "The contrastive loss over all rollouts, and its terms; plain means without reasoning. Lower is better.",
        _INFONCE,
    ),
    Curve(
        "KL to the starting policy",
        "How far the writing has moved from where this stage began. It should rise slowly; a leap means that the model "
        "unlearns to write.",
        {"kl": "KL"},
    ),
    Curve(
        "Entropy",
        "How undecided the model is about each next token. Near 0 all rollouts are the same and nothing is explored.",
        {"entropy": "nats per token"},
    ),
    Curve(
        "Degenerate groups",
        "Groups whose rollouts all had the same reward, so that GRPO learned nothing from them. Lower is better.",
        {"frac_reward_zero_std": "share of the groups"},
    ),
    Curve(
        "Length",
        "Tokens written; a rollout is cut off at the longest length that the recipe allows.",
        {"completions/mean_length": "mean", "completions/max_length": "longest"},
    ),
    Curve(
        "Cut off",
        "Share of rollouts that had not closed their reasoning when their tokens were used up. Lower is better.",
        {"completions/clipped_ratio": "share"},
    ),
)
_LOGGED_REWARD = re.compile(r"rewards/(.+)_reward/mean")


def _curves(report: "Report") -> list[Element]:
    """All figures whose values are logged."""
    drawn = [_figure(curve, report) for curve in _all_curves(report) if set(curve.lines) & set(report.series)]
    if not drawn:
        return []
    note = "The dashed line is the step whose rollouts this page shows."
    if any(len(steps) > _MOST_POINTS for steps in report.series.values()):
        note += f" Of more than {_MOST_POINTS} values neighbours are drawn as their mean."
    return [tag("h2", "Curves"), tag("p", note, class_="faint"), tag("div", *drawn, class_="curves")]


def _all_curves(report: "Report") -> list[Curve]:
    total = Curve(
        "Reward, weighted sum",
        "What GRPO raises: the sum of all rewards with their weights, mean over the step's rollouts. Higher is better.",
        {"reward": "mean", "reward_std": "spread within a group"},
    )
    names = [match[1] for name in report.series if (match := _LOGGED_REWARD.fullmatch(name))]
    weights = report.weights or {}
    rewards = [
        Curve(
            f"Reward: {name}" + (f", weight {weights[name]:g}" if name in weights else ""),
            f"{reward_sentence(name)} Mean before weighting.",
            {f"rewards/{name}_reward/mean": "mean", f"rewards/{name}_reward/std": "spread"},
        )
        for name in names
    ]
    return [total, *rewards, *_OWN_CURVES]


def reward_sentence(name: str) -> str:
    """Return the first sentence of a reward's own docstring.

    Args:
        name: of a reward, one of `training.rewards.reward_names` or one that is gone.
    """
    if name not in reward_names():
        return "This version has no reward of this name."
    paragraph = (inspect.getdoc(reward_function(name)) or "").partition("\n\n")[0]
    text = re.sub(r"[;,] see [\w.]+\.?$", "", " ".join(paragraph.replace("`", "").split()))
    return text if text.endswith(".") else f"{text}."


def _figure(curve: Curve, report: "Report") -> Element:
    lines = {label: _points(report.series[name]) for name, label in curve.lines.items() if name in report.series}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return tag("figure", tag("h3", curve.title), tag("p", "No value that can be drawn.", class_="faint"))
    entries = [
        tag("li", tag("span", class_="key", style=f"background: var(--c{number})"), f"{label}: {_ends(points)}")
        for number, (label, points) in enumerate(lines.items())
    ]
    logged = sum(len(report.series.get(name, ())) for name in curve.lines)
    lost = logged - sum(map(len, lines.values()))
    said = curve.sentence + (f" Left out, because not finite: {lost} of {logged} values." if lost else "")
    drawing = draw_lines(list(lines.values()), report.step, curve.title)
    return tag("figure", tag("h3", curve.title), drawing, tag("ul", *entries, class_="legend"), tag("figcaption", said))


Points = list[tuple[float, float]]
"""(step, value), sorted by step."""


def _points(series: Mapping[int, float]) -> Points:
    return [(step, value) for step, value in sorted(series.items()) if math.isfinite(value)]


def _ends(points: Points) -> str:
    """The mean of the first tenth and of the last."""
    count = max(1, len(points) // 10)
    first, last = (fmean(value for _, value in part) for part in (points[:count], points[-count:]))
    return f"{_short(first)} → {_short(last)}" if len(points) > 1 else _short(first)


def _binned(points: Points, most: int) -> Points:
    """At most so many points, each the mean of neighbours."""
    if len(points) <= most:
        return points
    cuts = [len(points) * place // most for place in range(most + 1)]
    parts = [points[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def smoothed(points: Points) -> Points:
    """Return the mean of each point and its neighbours within a twentieth of the curve.

    Args:
        points: sorted by step.
    """
    half = max(1, round(_SMOOTH_SHARE * len(points) / 2))
    parts = [points[max(0, place - half) : place + half + 1] for place in range(len(points))]
    return [(step, fmean(value for _, value in part)) for (step, _), part in zip(points, parts, strict=True)]


def draw_lines(lines: Sequence[Points], marked: int, name: str) -> Element:
    """Return an SVG of lines over steps; long ones faint, with their running mean above.

    Args:
        lines: each with at least one point.
        marked: the step of the dashed line.
        name: what a screen reader says.
    """
    steps = [step for points in lines for step, _ in points] + [marked]
    lines = [_binned(points, _MOST_POINTS) for points in lines]
    ticks = _ticks([value for points in lines for _, value in points])
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    low, high, first, last = ticks[0], ticks[-1], min(steps), max(steps)

    def label_of(value: float) -> str:
        return f"{value:.{decimals}f}".replace("-", "−") if decimals < 5 and abs(value) < 1e5 else f"{value:.4g}"

    def x_of(step: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * ((step - first) / (last - first) if last > first else 0.5)

    def y_of(value: float) -> float:
        return _HIGH - _FOOT - (_HIGH - _FOOT - _TOP) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        level = f"{y_of(tick):.1f}"
        parts.append(tag("line", x1=f"{_LEFT}", x2=f"{_WIDE - _RIGHT}", y1=level, y2=level, class_="axis"))
        parts.append(tag("text", label_of(tick), x=f"{_LEFT - 6}", y=f"{y_of(tick) + 4:.1f}", text_anchor="end"))
    at = f"{x_of(marked):.1f}"
    parts.append(tag("line", x1=at, x2=at, y1=f"{_TOP}", y2=f"{_HIGH - _FOOT}", class_="shown"))
    for step, anchor in {
        first: "start" if last > first else "middle",
        last: "end" if last > first else "middle",
    }.items():
        label = f"step {step:g}"
        parts.append(tag("text", label, x=f"{x_of(step):.1f}", y=f"{_HIGH - 6}", text_anchor=anchor))
    for number, points in enumerate(lines):
        colour = f"var(--c{number})"
        placed = [(x_of(step), y_of(value)) for step, value in points]
        long = len(points) >= _SMOOTH_FROM
        parts.append(_line(placed, "raw" if long else "curve", colour))
        if long:
            parts.append(_line([(x_of(step), y_of(value)) for step, value in smoothed(points)], "curve", colour))
        else:
            dots = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.5", style=f"fill: {colour}") for x, y in placed]
            parts += dots
    return tag("svg", *parts, viewBox=f"0 0 {_WIDE} {_HIGH}", role="img", aria_label=name)


def _line(placed: Sequence[tuple[float, float]], kind: str, colour: str) -> Element:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return tag("polyline", points=points, class_=kind, style=f"stroke: {colour}")


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers around all values: multiples of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * place for place in range(first, max(last, first + 2) + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# The step in numbers, and examples
# ---------------------------------------------------------------------------------------------------------------------


def _summary(report: "Report") -> list[Element]:
    rollouts = [one for pair in report.pairs for one in pair.rollouts]
    groups = [group for pair in report.pairs for group in pair.groups]
    sides: dict[str, tuple[list[Group], list[Rollout]]] = {"both sides": (groups, rollouts)}
    for side in dict.fromkeys(group.side for group in groups):
        own = [group for group in groups if group.side == side]
        sides[side] = (own, [one for group in own for one in group.rollouts])
    columns = [_numbers(*found) for found in sides.values()]
    rows = [tag("tr", tag("td", name), *(tag("td", column[name]) for column in columns)) for name in columns[0]]
    head = tag("tr", tag("th", ""), *(tag("th", side) for side in sides))
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    others = [f"{step}" for step in report.steps if step != report.step]
    also = f" Other steps with completions: {_few(others)}; see --step." if others else ""
    return [
        tag("h2", f"Step {report.step} in numbers"),
        tag(
            "p",
            "Rank before: of the pair's two vectors without reasoning. After: of a rollout's vector, where its query or "
            f"product is compared with the mean of the other side's rollouts.{also}",
            class_="faint",
        ),
        tag("div", table, class_="scroll"),
        *_examples(report),
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])} … {', '.join(names[-3:])}"


def _numbers(groups: "Sequence[Group]", rollouts: "Sequence[Rollout]") -> dict[str, str]:
    """What stands in one column of the summary."""
    count = len(rollouts)
    found = {
        "groups": f"{len(groups)}",
        "degenerate groups (all rewards alike)": _share(sum(group.degenerate for group in groups), len(groups)),
        "rollouts": f"{count}",
        "well formed": _share(sum(one.well_formed for one in rollouts), count),
        "mean rank before": f"{fmean(one.rank_without for one in rollouts):.2f}",
        "mean rank after": f"{fmean(one.rank for one in rollouts):.2f}",
        "rank better": _share(sum(one.rank < one.rank_without for one in rollouts), count),
        "rank the same": _share(sum(one.rank == one.rank_without for one in rollouts), count),
        "rank worse": _share(sum(one.rank > one.rank_without for one in rollouts), count),
        "candidates": f"{fmean(one.candidates for one in rollouts):.1f}",
    }
    for name in rollouts[0].rewards:
        found[f"{name}: mean, least to most"] = _spread([one.rewards[name] for one in rollouts])
    if rollouts[0].total is not None:
        found["weighted sum: mean, least to most"] = _spread([one.total for one in rollouts])
    return found


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "does not apply"
    missing = f", not for {len(values) - len(known)}" if len(known) < len(values) else ""
    return f"{_number(fmean(known))}, {_number(min(known))} to {_number(max(known))}{missing}"


def _examples(report: "Report") -> list[Element]:
    """Rollouts whose rank moved most, each of another group."""
    best: list[tuple[PairOfGroups, Group, Rollout]] = []
    worst: list[tuple[PairOfGroups, Group, Rollout]] = []
    for pair in report.pairs:
        for group in pair.groups:
            best.append((pair, group, max(group.rollouts, key=lambda one: one.gain)))
            worst.append((pair, group, min(group.rollouts, key=lambda one: one.gain)))
    helped = [one for one in sorted(best, key=lambda one: -one[2].gain) if one[2].gain > 0][:_EXAMPLES]
    hurt = [one for one in sorted(worst, key=lambda one: one[2].gain) if one[2].gain < 0][:_EXAMPLES]
    shown = {pair.number for _, pairs in _sections(report) for pair in pairs}
    parts = []
    for title, found, all_of in (
        ("Where reasoning helped most", helped, sum(one.gain > 0 for _, _, one in best)),
        ("Where reasoning hurt most", hurt, sum(one.gain < 0 for _, _, one in worst)),
    ):
        parts.append(tag("h2", title))
        if all_of > len(found):
            cut = f"The first {len(found)} of {all_of} queries and products, each with the rollout that moved most."
            parts.append(tag("p", cut, class_="faint"))
        if not found:
            parts.append(tag("p", "No rollout of this step did.", class_="faint"))
            continue
        rows = [
            tag("tr", tag("td", *_written(one)), tag("td", _link(pair, group, shown), class_="words"), _rank(one))
            for pair, group, one in found
        ]
        head = tag("tr", tag("th", "written"), tag("th", "for"), tag("th", "rank"))
        parts.append(tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll"))
    return parts


def _link(pair: "PairOfGroups", group: "Group", shown: set[int]) -> Element:
    name = tag("bdi", group.item or _ABSENT)
    link = tag("a", name, href=f"#pair-{pair.number}") if pair.number in shown else name
    return tag("span", f"{group.side} ", link)


# ---------------------------------------------------------------------------------------------------------------------
# Items
# ---------------------------------------------------------------------------------------------------------------------


def _sections(report: "Report") -> "list[tuple[str, Sequence[PairOfGroups]]]":
    """The pairs that are shown, under their headings."""
    best, worst = halves(report.pairs, report.items, report.order)
    count = len(report.pairs)
    if report.order == "step":
        return [(f"Items: the first {len(best)} of {count}, as they came", best)]
    by = {"change": "the rank's change", "reward": "the weighted reward"}[report.order]
    found = [(f"Items: the best by {by}, {len(best)} of {count}", best)]
    return [*found, (f"Items: the worst by {by}, {len(worst)} of {count}", worst)] if worst else found


def halves(
    pairs: "Sequence[PairOfGroups]", items: int, order: str
) -> "tuple[Sequence[PairOfGroups], Sequence[PairOfGroups]]":
    """Return the pairs that a page shows: the best and the worst, each from its end, or the first ones.

    Args:
        pairs: from best to worst, or as they came.
        items: how many at most.
        order: "step": the first ones alone.
    """
    count = min(items, len(pairs))
    best = count if order == "step" else (count + 1) // 2
    return pairs[:best], pairs[::-1][: count - best]


def _items(report: "Report") -> list[Element]:
    sections = _sections(report)
    said = (
        "A pair of query and product, each with the attributes that were tried for it, the reinforced ones first. Advantage: "
        "green was reinforced, red was suppressed."
    )
    left = len(report.pairs) - sum(len(pairs) for _, pairs in sections)
    if left:
        between = "after these" if report.order == "step" else "between the best and the worst"
        said += f" {left} pairs {between} are left out; more --items show them."
    if any(facts.picture for facts in report.facts_of.values()):
        said += " Of an item's pictures the first is shown, made smaller."
    if report.order == "change":
        said += " The rank's change is the mean over a pair of log2(before / after): 1 is a halved rank."
    parts = []
    for number, (title, pairs) in enumerate(sections):
        parts.append(tag("h2", title, id=f"items-{number}"))
        if not number:
            parts.append(tag("p", said, class_="faint"))
            if len(sections) > 1:
                parts.append(tag("p", tag("a", sections[1][0], href="#items-1")))
        parts += [_card(pair, report) for pair in pairs]
    return parts


def _card(pair: "PairOfGroups", report: "Report") -> Element:
    said = f"rank's change {pair.gain:+.2f}".replace("-", "−")
    if not math.isnan(pair.total):
        said += f", weighted reward {pair.total:.3f}"
    sides = [_side(group, report.facts_of.get((pair.number, group.side)), report) for group in pair.groups]
    header = tag("header", tag("strong", f"Pair {pair.number + 1} of the step"), tag("span", said, class_="faint"))
    return tag("article", header, *sides, id=f"pair-{pair.number}")


def _side(group: "Group", facts: "ItemFacts | None", report: "Report") -> Element:
    parts = [tag("b", group.side.capitalize()), " ", tag("bdi", group.item or "without a name", class_="faint")]
    if group.degenerate:
        parts.append(tag("div", "degenerate: all rewards alike", class_="worse"))
    if facts is not None:
        if facts.picture is not None:
            parts.append(tag("div", tag("img", src=facts.picture, alt=f"{group.side} {group.item}")))
        if facts.text:
            parts.append(tag("div", tag("bdi", facts.text)))
        known = list(facts.attributes.items())
        written = "; ".join(f"{key}: {', '.join(values)}" for key, values in known[:_ATTRIBUTES_SHOWN])
        if written:
            more = f"; and {len(known) - _ATTRIBUTES_SHOWN} more" if len(known) > _ATTRIBUTES_SHOWN else ""
            parts.append(tag("div", "known: ", tag("bdi", written + more), class_="faint"))
        if facts.note:
            parts.append(tag("div", tag("bdi", facts.note), class_="faint"))
    names = list(group.rollouts[0].rewards)
    totals = group.rollouts[0].total is not None
    heads = [tag("th", name, title=reward_sentence(name)) for name in names]
    head = [tag("th", "written"), *heads, *([tag("th", "weighted")] if totals else ())]
    head += [tag("th", "advantage"), tag("th", "rank")]
    by_advantage = sorted(group.rollouts, key=lambda one: -math.inf if one.advantage is None else one.advantage)[::-1]
    rows = [_row(one, names, totals) for one in by_advantage]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return tag("section", tag("div", *parts, class_="item"), tag("div", table, class_="scroll"), class_="side")


def _row(one: "Rollout", names: Sequence[str], totals: bool) -> Element:
    cells = [tag("td", *_written(one))]
    cells += [tag("td", _number(one.rewards[name])) for name in names]
    if totals:
        cells.append(tag("td", _number(one.total)))
    colour = None
    if one.advantage is not None and math.isfinite(one.advantage):
        strength = min(1.0, abs(one.advantage) / 2) * 0.55
        red_green_blue = "34, 160, 84" if one.advantage > 0 else "204, 68, 60"
        colour = f"background: rgba({red_green_blue}, {strength:.2f})"
    cells.append(tag("td", _number(one.advantage, sign=True), style=colour))
    return tag("tr", *cells, _rank(one))


def _written(one: "Rollout") -> list[Element]:
    """Attributes that can be read as chips; what cannot be read is marked and said, with the whole text."""
    reading = read_reasoning(one.text + THINK_END)
    parts = [
        tag("span", tag("b", tag("bdi", key)), ": ", tag("bdi", ", ".join(values)), class_="chip")
        for key, values in reading.attributes.items()
    ]
    if one.well_formed:
        return parts
    wrong = [f"not read: {problem}" for problem in reading.unparsed]
    whole = tag("code", tag("bdi", one.text))
    if not one.text.strip():
        wrong = ["nothing was written"]
    elif not wrong:
        wrong = ["not closed within its tokens, or with ids that the tokenizer does not know"]
    elif not parts and len(wrong) == 1 and reading.unparsed[0].startswith("no 'key: value'"):
        return [tag("div", "✗ no 'key: value' in ", whole, class_="malformed")]
    parts += [tag("div", f"✗ {problem}", class_="malformed") for problem in wrong]
    if reading.unparsed:
        parts.append(tag("div", "all of it: ", whole, class_="faint"))
    return parts


def _rank(one: "Rollout") -> Element:
    """Rank before and after, by sign and colour."""
    sign, kind = ("=", None) if one.gain == 0 else ("▲", "better") if one.gain > 0 else ("▼", "worse")
    text = f"{sign} {one.rank_without:g} → {one.rank:g}"
    return tag("td", tag("span", text, class_=kind), tag("span", f" of {one.candidates}", class_="faint"))


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return _ABSENT
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "−")  # + 0.0: no -0.000


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
