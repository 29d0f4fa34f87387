"""Say whether a measured service was right, within the bounds that docs/service.md states, and show what was measured."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from evaluation.service_load import KINDS

MEMORY_GROWTH = 0.1
"""Growth that memory may have after the first quarter of the check, and in the overload level, as a share."""
KEPT_UNDER_OVERLOAD = 0.5
"""Answers a second of the overload level, at least, as a share of those of the level that is not refused."""


def service_problems(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that the service did wrong; none if it was right.

    Checked are: answers and statuses, lost writes, memory within `MEMORY_GROWTH`, and the level with more clients than requests
    may be in work: some are refused, each with `Retry-After`, and the others are still answered at the rate that
    `KEPT_UNDER_OVERLOAD` states. Memory is not checked where the system does not say it.

    Args:
        results: of `evaluation.service_load.measure_service`.
    """
    check, levels = results["check"], results["levels"]
    problems = [f"{check[name]} {words}" for name, words in _NEVER.items() if check[name]]
    for level in levels:
        if level["other_statuses"]:
            problems.append(
                f"{_named(level)}: found the statuses {level['other_statuses']}; expected 200 and 429 alone"
            )
    if errors := check["other_statuses"].keys() - {"0"}:  # 0: the service was killed
        problems.append(f"the check: found the statuses {sorted(errors)}; expected 200, 429 and none")
    if silent := sum(level["refused_without_retry_after"] for level in (*levels, check)):
        problems.append(f"{silent} refusals without Retry-After; expected it with each one")
    return problems + _overload_problems(levels) + _memory_problems(levels, check)


_NEVER = {"wrong_answers": "answers were wrong", "lost_writes": "acknowledged writes were lost"}


def _overload_problems(levels: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the last level, against the largest one of the same kind that has fewer clients."""
    *others, overload = levels
    before = max((one for one in others if one["kind"] == overload["kind"]), key=lambda one: int(one["clients"]))
    problems = [f"{_named(one)}: found 429; expected all answered" for one in others if one["share_429"]]
    if not overload["share_429"]:
        problems.append(f"{_named(overload)}: found no 429; expected some, since not all may be in work")
    least = KEPT_UNDER_OVERLOAD * before["answers_a_second"]
    if overload["answers_a_second"] < least:
        problems.append(
            f"{_named(overload)}: found {overload['answers_a_second']} answers a second; expected at least {least:.1f}, "
            f"{KEPT_UNDER_OVERLOAD:.0%} of those of {before['clients']} clients"
        )
    return problems


def _memory_problems(levels: list[dict[str, Any]], check: dict[str, Any]) -> list[str]:
    *others, overload = [level["megabytes"] for level in levels]
    pairs = {
        "the overload level": (overload, max((held for held in others if held), default=None)),
        "the check after its first quarter": (check["megabytes_later"], check["megabytes_first_quarter"]),
    }
    return [
        f"{name}: found {held} MB; expected at most {MEMORY_GROWTH:.0%} more than the {before} MB before"
        for name, (held, before) in pairs.items()
        if held and before and held > (1 + MEMORY_GROWTH) * before
    ]


def _named(level: dict[str, Any]) -> str:
    return f"{level['clients']} clients, {level['kind']}"


def service_table(results: dict[str, Any]) -> str:
    """Return the levels as a table in Markdown, for docs/service.md: a row for each kind, a column for each number of clients."""
    levels = {(one["kind"], one["clients"]): one for one in results["levels"]}
    numbers = sorted({one["clients"] for one in results["levels"] if one["kind"] == KINDS[-1]})
    rows = [[kind, *(_shown(levels[kind, number]) for number in numbers)] for kind in KINDS]
    headings = ["query", *(f"{number} client{'s' if number > 1 else ''}" for number in numbers)]
    return str(tabulate(rows, headings, tablefmt="github", disable_numparse=True))


def _shown(level: dict[str, Any]) -> str:
    return f"{level['p50']:.0f} ms ({level['p95']:.0f}), {level['answers_a_second']:.0f}/s"


def service_lines(results: dict[str, Any]) -> list[str]:
    """Return the results as lines for a reader, and what was wrong last."""
    lines = [f"{results['products']:,} products"]
    for kind, parts in results["parts"].items():
        shown = ", ".join(f"{name} {one['p50']:.1f} ms (95 %: {one['p95']:.1f})" for name, one in parts.items())
        lines.append(f"one query at a time, {kind}: {shown}")
    for level in results["levels"]:
        lines.append(
            f"{_named(level)}: {level['p50']:.0f} ms (95 %: {level['p95']:.0f}), {level['answers_a_second']:.1f} answers a "
            f"second, {level['share_429']:.1%} refused, {_memory(level['megabytes'])}"
        )
    check = results["check"]
    lines.append(
        f"with writes and a kill: {check['wrong_answers']} wrong answers, {check['lost_writes']} of {check['writes']} writes "
        f"lost, {_memory(check['megabytes_first_quarter'])} in the first quarter after the restart, "
        f"{_memory(check['megabytes_later'])} later"
    )
    return [*lines, *check["first_wrong"], *(f"wrong: {problem}" for problem in service_problems(results))]


def _memory(megabytes: int | None) -> str:
    return "memory not measured" if megabytes is None else f"{megabytes} MB"
