"""Render a report on completions as one HTML page: `completions_page.html.jinja` has the markup, this file the content."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from evaluation.charts import drawing, inline_svg
from evaluation.pages import render
from processing_moon.reasoning_moon import THINK_END, read_reasoning
from training.rewards import reward_function, reward_names
from training.studies.completions import Group, ItemFacts, PairOfGroups, Report, Rollout, halves

_TEMPLATE = Path(__file__).with_suffix(".html.jinja")
_ABSENT = "–"
_EXAMPLES = 6
_MOST_POINTS, _SMOOTH_FROM, _SMOOTH_SHARE = 300, 40, 0.05
_WIDE, _HIGH = 380, 190
_ATTRIBUTES_SHOWN = 12
# Colours of drawings → colours of the template, which differ in dark mode.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")
_FAINT, _LINE = "#6b7280", "#dfe3ea"
_COLOURS = {colour: f"var(--c{number})" for number, colour in enumerate(_LINES)}
_COLOURS |= {_FAINT: "var(--faint)", _LINE: "var(--line)"}


def page(report: Report) -> str:
    """Return a report as one HTML document.

    Args:
        report: from `training.studies.completions_report.make_report`.
    """
    sections = _sections(report)
    shown = {pair.number for _, pairs in sections for pair in pairs}
    return render(
        _TEMPLATE,
        report=report,
        other_steps=_shorten_list([f"{step}" for step in report.steps if step != report.step]),
        summary=_summary(report),
        examples=_examples(report),
        shown=shown,
        figures=[_figure(number, curve, report) for number, curve in enumerate(_logged_curves(report))],
        thinned=any(len(steps) > _MOST_POINTS for steps in report.series.values()),
        most_points=_MOST_POINTS,
        sections=sections,
        left_out=len(report.pairs) - len(shown),
        pictures=any(facts.picture for facts in report.facts_of.values()),
        # Functions that the template calls:
        read=_read,
        known=_attributes_text,
        reward_sentence=reward_sentence,
        by_advantage=_by_advantage,
        shade=_shade,
        number=_number,
        outcome=_outcome,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A figure and the logged names that it draws.

    Args:
        title: heading of the figure.
        sentence: what is drawn, and which direction is better.
        lines: logged name → label.
    """

    title: str
    sentence: str
    lines: Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """A curve as the page shows it.

    Args:
        title: title of the curve.
        sentence: sentence of the curve.
        drawing: SVG; empty if all values are not finite.
        legend: label, first value and last value of each line.
        logged: number of logged values.
        lost: number of logged values that are not finite.
    """

    title: str
    sentence: str
    drawing: Markup
    legend: Sequence[tuple[str, str]]
    logged: int
    lost: int


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
        "Mean over the step, among the batch and the queue. Lower is better; reasoning helps if its line is below the other one.",
        {"rank": "with reasoning", "rank_without_reasoning": "without reasoning"},
    ),
    Curve(
        "Candidates",
        "Number of products among which the right answer is ranked. Ranks grow while the queue fills.",
        {"candidates": "mean"},
    ),
    Curve(
        "InfoNCE",
        'The contrastive loss over all rollouts, and its terms; "plain" means without reasoning. Lower is better.',
        _INFONCE,
    ),
    Curve(
        "KL to the starting policy",
        "Distance of the policy from the start of this stage. It should rise slowly; a jump means that the model forgets how to "
        "write.",
        {"kl": "KL"},
    ),
    Curve(
        "Entropy",
        "Uncertainty of the model about each next token. Near 0, all rollouts are equal and nothing is explored.",
        {"entropy": "nats per token"},
    ),
    Curve(
        "Degenerate groups",
        "Groups whose rollouts all had the same reward, so GRPO learned nothing from them. Lower is better.",
        {"frac_reward_zero_std": "share of the groups"},
    ),
    Curve(
        "Length",
        "Number of tokens; a rollout is cut off at the maximum length of the recipe.",
        {"completions/mean_length": "mean", "completions/max_length": "longest"},
    ),
    Curve(
        "Cut off",
        "Share of rollouts that did not close their reasoning within the maximum length. Lower is better.",
        {"completions/clipped_ratio": "share"},
    ),
)
_LOGGED_REWARD = re.compile(r"rewards/(.+)_reward/mean")


def _logged_curves(report: Report) -> list[Curve]:
    """Return the curves with logged values."""
    total = Curve(
        "Reward, weighted sum",
        "The objective of GRPO: the weighted sum of all rewards, mean over the step's rollouts. Higher is better.",
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
    return [curve for curve in (total, *rewards, *_OWN_CURVES) if set(curve.lines) & set(report.series)]


def reward_sentence(name: str) -> str:
    """Return the first sentence of a reward's docstring.

    Args:
        name: name of a reward, one of `training.rewards.reward_names` or a removed one.
    """
    if name not in reward_names():
        return "This version has no reward with this name."
    paragraph = (inspect.getdoc(reward_function(name)) or "").partition("\n\n")[0]
    text = re.sub(r"[;,] see [\w.]+\.?$", "", " ".join(paragraph.replace("`", "").split()))
    return text if text.endswith(".") else f"{text}."


def _figure(number: int, curve: Curve, report: Report) -> Figure:
    lines: dict[str, Points] = {}
    for name, label in curve.lines.items():
        points = sorted((step, value) for step, value in report.series.get(name, {}).items() if math.isfinite(value))
        if points:
            lines[label] = [*points]
    legend = [(label, _ends(points)) for label, points in lines.items()]
    logged = sum(len(report.series.get(name, ())) for name in curve.lines)
    lost = logged - sum(map(len, lines.values()))
    drawn = draw_lines(list(lines.values()), report.step, f"curve-{number}") if lines else Markup()
    return Figure(curve.title, curve.sentence, drawn, legend, logged, lost)


Points = list[tuple[float, float]]
"""(step, value), sorted by step."""


def _ends(points: Points) -> str:
    """Return the means of the first and the last tenth of the points, as text."""
    count = max(1, len(points) // 10)
    first, last = (fmean(value for _, value in part) for part in (points[:count], points[-count:]))
    return f"{_short(first)} → {_short(last)}" if len(points) > 1 else _short(first)


def _binned(points: Points, most: int) -> Points:
    """Return at most `most` points, each the mean of neighbours."""
    if len(points) <= most:
        return points
    cuts = [len(points) * place // most for place in range(most + 1)]
    parts = [points[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def running_mean(points: Points) -> Points:
    """Return the mean of each point and its neighbours within a twentieth of the curve.

    Args:
        points: points sorted by step.
    """
    half = max(1, round(_SMOOTH_SHARE * len(points) / 2))
    parts = [points[max(0, place - half) : place + half + 1] for place in range(len(points))]
    return [(step, fmean(value for _, value in part)) for (step, _), part in zip(points, parts, strict=True)]


def draw_lines(lines: Sequence[Points], marked: int, name: str) -> Markup:
    """Return an SVG of lines over steps; long lines are faint, with their running mean on top.

    Args:
        lines: lines with at least one point each.
        marked: the step of the dashed line.
        name: name of the drawing, different for each drawing of a page.
    """
    steps = [step for points in lines for step, _ in points] + [marked]
    first, last = min(steps), max(steps)
    with drawing(_WIDE, _HIGH) as (figure, axes):
        for points, colour in zip(lines, _LINES, strict=False):
            points = _binned(points, _MOST_POINTS)
            long = len(points) >= _SMOOTH_FROM
            style = {"alpha": 0.35, "linewidth": 1} if long else {"linewidth": 2, "marker": "o", "markersize": 5}
            axes.plot(*zip(*points, strict=True), color=colour, clip_on=False, **style)
            if long:
                axes.plot(*zip(*running_mean(points), strict=True), color=colour, clip_on=False, linewidth=2)
        axes.axvline(marked, color=_FAINT, linewidth=1, linestyle=(0, (3, 3)), clip_on=False)
        values = [value for points in lines for _, value in points]
        low, high = min(values), max(values)
        room = 0 if high > low else 0.05 * abs(high) or 1
        ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], min_n_ticks=3).tick_values(low - room, high + room)
        axes.set(yticks=ticks, ylim=(ticks[0], ticks[-1]))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.tick_params(colors=_FAINT)
        axes.grid(axis="y", color=_LINE, clip_on=False)
        axes.set_xlim((first, last) if last > first else (first - 1, first + 1))
        places = {first: "left", last: "right"} if last > first else {first: "center"}
        axes.set_xticks(list(places), [f"step {step:g}" for step in places])
        for tick, place in zip(axes.get_xticklabels(), places.values(), strict=True):
            tick.set_horizontalalignment(place)
        return Markup(inline_svg(figure, name, _COLOURS))


# ---------------------------------------------------------------------------------------------------------------------
# The step in numbers, and examples
# ---------------------------------------------------------------------------------------------------------------------


def _summary(report: Report) -> dict[str, dict[str, str]]:
    """Return the summary table: column → row → text."""
    groups = [group for pair in report.pairs for group in pair.groups]
    columns = {"both sides": _numbers(groups)}
    for side in dict.fromkeys(group.side for group in groups):
        columns[side] = _numbers([group for group in groups if group.side == side])
    return columns


def _shorten_list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])} … {', '.join(names[-3:])}"


def _numbers(groups: Sequence[Group]) -> dict[str, str]:
    """Return one column of the summary table: row → text."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    count = len(rollouts)
    column = {
        "groups": f"{len(groups)}",
        "degenerate groups (all rewards equal)": _share(sum(group.degenerate for group in groups), len(groups)),
        "rollouts": f"{count}",
        "well formed": _share(sum(rollout.well_formed for rollout in rollouts), count),
        "mean rank before": f"{fmean(rollout.rank_without for rollout in rollouts):.2f}",
        "mean rank after": f"{fmean(rollout.rank for rollout in rollouts):.2f}",
        "rank better": _share(sum(rollout.rank < rollout.rank_without for rollout in rollouts), count),
        "rank the same": _share(sum(rollout.rank == rollout.rank_without for rollout in rollouts), count),
        "rank worse": _share(sum(rollout.rank > rollout.rank_without for rollout in rollouts), count),
        "candidates": f"{fmean(rollout.candidates for rollout in rollouts):.1f}",
    }
    for name in rollouts[0].rewards:
        column[f"{name}: mean, minimum to maximum"] = _spread([rollout.rewards[name] for rollout in rollouts])
    if rollouts[0].total is not None:
        column["weighted sum: mean, minimum to maximum"] = _spread([rollout.total for rollout in rollouts])
    return column


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "does not apply"
    missing = f", does not apply to {len(values) - len(known)}" if len(known) < len(values) else ""
    return f"{_number(fmean(known))}, {_number(min(known))} to {_number(max(known))}{missing}"


Example = tuple[PairOfGroups, Group, Rollout]


def _examples(report: Report) -> list[tuple[str, list[Example], int]]:
    """Return the rollouts with the largest change of rank, one for each group: heading, shown rollouts, total number."""
    groups = [(pair, group) for pair in report.pairs for group in pair.groups]
    best = [(pair, group, max(group.rollouts, key=lambda rollout: rollout.gain)) for pair, group in groups]
    worst = [(pair, group, min(group.rollouts, key=lambda rollout: rollout.gain)) for pair, group in groups]
    helped = [example for example in sorted(best, key=lambda example: -example[2].gain) if example[2].gain > 0]
    hurt = [example for example in sorted(worst, key=lambda example: example[2].gain) if example[2].gain < 0]
    return [
        ("Where reasoning helped most", helped[:_EXAMPLES], len(helped)),
        ("Where reasoning hurt most", hurt[:_EXAMPLES], len(hurt)),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


def _sections(report: Report) -> list[tuple[str, Sequence[PairOfGroups]]]:
    """Return the shown pairs, with their headings."""
    best, worst = halves(report.pairs, report.items, report.order)
    count = len(report.pairs)
    if report.order == "step":
        return [(f"Pairs: the first {len(best)} of {count}", best)]
    by = {"change": "change of rank", "reward": "weighted reward"}[report.order]
    sections = [(f"Pairs: the best by {by}, {len(best)} of {count}", best)]
    return [*sections, (f"Pairs: the worst by {by}, {len(worst)} of {count}", worst)] if worst else sections


def _outcome(pair: PairOfGroups) -> str:
    change = f"change of rank {pair.gain:+.2f}".replace("-", "−")
    return change if math.isnan(pair.total) else f"{change}, weighted reward {pair.total:.3f}"


def _attributes_text(facts: ItemFacts) -> str:
    """Return the first attributes of a product, as text."""
    known = list(facts.attributes.items())
    written = "; ".join(f"{key}: {', '.join(values)}" for key, values in known[:_ATTRIBUTES_SHOWN])
    return f"{written}; and {len(known) - _ATTRIBUTES_SHOWN} more" if len(known) > _ATTRIBUTES_SHOWN else written


def _by_advantage(group: Group) -> list[Rollout]:
    return sorted(group.rollouts, key=lambda rollout: -math.inf if rollout.advantage is None else rollout.advantage)[
        ::-1
    ]


def _shade(advantage: float | None) -> str:
    """Return a style: green for reinforced, red for suppressed rollouts, stronger for larger advantages."""
    if advantage is None or not math.isfinite(advantage):
        return ""
    strength = min(1.0, abs(advantage) / 2) * 0.55
    return f"background: rgba({'34, 160, 84' if advantage > 0 else '204, 68, 60'}, {strength:.2f})"


@dataclass(frozen=True)
class Reading:
    """A written text as the page shows it.

    Args:
        attributes: the readable attributes.
        problems: the problems of the text that `lead` does not state.
        lead: words before the whole text; empty: the text is not shown.
    """

    attributes: Mapping[str, Sequence[str]]
    problems: Sequence[str] = ()
    lead: str = ""


def _read(rollout: Rollout) -> Reading:
    """Return the readable attributes of a rollout, and its problems with the whole text."""
    reading = read_reasoning(rollout.text + THINK_END)
    attributes, unparsed = reading.attributes, reading.unparsed
    if rollout.well_formed:
        return Reading(attributes)
    lead = "whole text:" if unparsed else ""
    if not rollout.text.strip():
        return Reading(attributes, ["nothing was written"], lead)
    if not unparsed:
        return Reading(attributes, ["not closed within the maximum length, or with ids unknown to the tokenizer"])
    if not attributes and len(unparsed) == 1 and unparsed[0].startswith("no 'key: value'"):
        return Reading(attributes, lead="✗ no 'key: value' in")
    return Reading(attributes, [f"not read: {problem}" for problem in unparsed], lead)


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return _ABSENT
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "−")  # + 0.0: no -0.000


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
