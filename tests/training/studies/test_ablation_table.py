"""What a table of cells that are compared with the first one says: means, reasoned rows, and the signs of papers."""

import pytest
from PIL import Image

from training.studies.ablation_chart import draw_chart
from training.studies.ablation_table import (
    ALL_ROWS,
    LEFT_OUT_ROWS,
    REASONED,
    ablation_rows,
    against_papers,
    cells_table,
    in_words,
    label_rows,
    markdown,
    means_of,
)

VALUES = {"plain": 0.3, "up": 0.5, "down": 0.1, "same": 0.3, "reasoning": 0.3}
PUBLISHED = {
    "up": {"sign": "+", "source": "paper A"},
    "down": {"sign": "+", "source": "paper B"},
    "same": {"sign": "-", "source": "paper C"},
    "reasoning": {"sign": "+", "source": "paper D"},
}


def scores(cell, seed):
    value = VALUES[cell] + ((seed - 1) * 0.05 + 0.03) * (cell == "same")
    rows = {"shop t→mm": value, "shop i→i, own parts": value, "other t→mm": value + 0.1}
    if cell == "reasoning":
        rows |= {name + REASONED: value + 0.2 for name, value in rows.items()}
    return {name: {"R@10": found, "R@1": found / 2} for name, found in rows.items()}


@pytest.fixture
def results():
    cells = {cell: {str(seed): scores(cell, seed) for seed in range(3)} for cell in VALUES}
    names = list(dict.fromkeys(name for own in cells.values() for name in own["0"]))
    means = means_of(names, ["shop", "other"], ["other"])
    rows = ablation_rows(cells, cumulative=False, means=means)
    chance = {name: {"R@10": 0.01, "R@1": 0.001} for name in names}
    labels = {cell: {"0": {"shop category mm": {"top1": 0.5}}} for cell in VALUES}
    return {
        "suite": "evidence",
        "finished": 15,
        "planned": 15,
        "missing": [],
        "steps": 3,
        "interval": "intervals",
        "comparisons": 4,
        "cumulative": False,
        "boxes": {
            "up": {
                "shop": {"by": "saliency", "products": 4, "products_with_box": 3, "photos": 2, "queries_with_box": 1}
            }
        },
        "cells": dict.fromkeys(VALUES, {}),
        "words": in_words(rows, chance, cumulative=False, published=PUBLISHED),
        "published": PUBLISHED,
        "against_papers": against_papers(rows, PUBLISHED),
        "table": rows,
        "labels": label_rows(labels, cumulative=False),
        "chance": chance,
        "references": {"bm25": {"other t→mm": {"R@10": 0.667, "R@1": 0.25}}},
        "facts": {"plain": {"seeds": ["0", "1"], "minutes": [1.25, 2.5], "commits": ["abcdef0123456789"]}},
        "runs": {},
        "provenance": {"commits": ["abcdef0123456789"]},
    }


def cell_of(results, row, cell):
    return next(one for one in results["table"] if (one["metric"], one["row"]) == ("R@10", row))["cells"][cell]


def test_a_mean_has_either_reasoned_rows_or_the_others(results):
    assert cell_of(results, ALL_ROWS, "reasoning")["mean"] == pytest.approx(1 / 3)
    assert cell_of(results, ALL_ROWS + REASONED, "reasoning")["mean"] == pytest.approx(1 / 3 + 0.2)
    assert cell_of(results, LEFT_OUT_ROWS, "up")["mean"] == pytest.approx(0.6)
    assert cell_of(results, "mean of shop", "up")["mean"] == pytest.approx(0.5)
    assert cell_of(results, ALL_ROWS + REASONED, "up")["mean"] is None


def test_reasoned_rows_are_compared_with_the_first_cell_without_reasoning(results):
    for row in ("shop t→mm" + REASONED, ALL_ROWS + REASONED, LEFT_OUT_ROWS + REASONED):
        assert cell_of(results, row, "reasoning")["difference"]["mean"] == pytest.approx(0.2)
    assert cell_of(results, ALL_ROWS, "reasoning")["difference"]["mean"] == pytest.approx(0.0)


def test_a_cell_that_is_compared_with_another_one_says_so(results, tmp_path):
    against = {"cumulative": False, "compared_with": {"reasoning": "up"}}
    cells = {cell: {str(seed): scores(cell, seed) for seed in range(3)} for cell in VALUES}
    rows = ablation_rows(cells, **against)
    results |= against | {"table": rows, "against_papers": against_papers(rows, PUBLISHED)}
    assert cell_of(results, ALL_ROWS + REASONED, "reasoning")["difference"]["mean"] == pytest.approx(0.0)
    assert [one["agreement"] for one in results["against_papers"]][-1] == "these seeds do not show it"
    text = markdown(results)
    assert "| reasoning, reasoned (against up) " in text
    assert "### R@10: paired difference to plain, reasoning to up, points" in text
    with Image.open(draw_chart(results, tmp_path / "chart.png")) as chart:
        assert chart.size[0] > 500


def test_a_sign_agrees_only_if_the_interval_shows_it(results):
    found = {one["cell"]: one["agreement"] for one in results["against_papers"]}
    assert found == {
        "up": "agrees",
        "down": "disagrees",
        "same": "these seeds do not show it",
        "reasoning": "agrees",
    }
    assert [one["reasoned"] for one in results["against_papers"]] == [False, False, False, True]
    nothing = {
        one["cell"]: one["agreement"]
        for one in against_papers(results["table"], {"same": {**PUBLISHED["same"], "sign": "0"}})
    }
    assert nothing["same"] == "agrees"
    assert nothing["up"] == "not reported"
    one_seed = ablation_rows({cell: {"0": scores(cell, 0)} for cell in VALUES}, cumulative=False)
    assert {one["agreement"] for one in against_papers(one_seed, PUBLISHED)} == {"no verdict yet"}


def test_the_words_name_the_paper_and_the_left_out_shops(results):
    up, down, _, reasoning = results["words"]
    assert "helps; of 3 single rows better in shop t→mm, shop i→i, own parts, other t→mm" in up
    assert f"; {LEFT_OUT_ROWS} +20.0 (+20.0 to +20.0)" in up
    assert up.endswith("; the papers report a gain: agrees (paper A).")
    assert down.endswith("; the papers report a gain: disagrees (paper B).")
    assert f"; {ALL_ROWS}{REASONED} +20.0" in reasoning


def test_the_page_shows_signs_references_labels_minutes_and_commits(results):
    text = markdown(results)
    lines = text.splitlines()
    assert any(
        line.startswith("| up ") and "+20.0" in line and "agrees" in line and "paper A" in line for line in lines
    )
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert any(row[1] == "other t→mm" and row[-3:-1] == ["1.0", "66.7"] for row in cells if len(row) > 3)
    assert "## Categories and attributes, right label, %" in text
    assert "among the ten best" not in text  # no score of it
    assert any("1.2, 2.5" in line and "abcdef012345" in line for line in lines)
    assert "Core boxes of shop in up, by saliency: 3 of 4 pictured products" in text


def test_the_chart_draws_differences_to_the_first_cell(results, tmp_path):
    with Image.open(draw_chart(results, tmp_path / "chart.png")) as chart:
        colours = {colour for _, colour in chart.convert("RGB").getcolors(1 << 20)}
    assert {(34, 160, 84), (204, 68, 60), (150, 178, 214)} <= colours


def test_the_table_of_cells_has_a_line_for_each_finished_cell_and_one_for_chance(results):
    results["cells"]["unfinished"] = {}
    for row in results["table"]:
        row["cells"]["unfinished"] = {"mean": None, "interval": None, "seeds": 0, "difference": None}
    lines = cells_table(results, ["shop t→mm", "other t→mm"]).splitlines()
    cells = [line.split("|")[1].strip() for line in lines[2:]]
    assert cells == ["plain", "up", "down", "same", "reasoning", "chance"]
    assert [value.strip() for value in lines[2].split("|")[2:4]] == ["30.0 ± 0.0", "40.0 ± 0.0"]
    assert [value.strip() for value in lines[-1].split("|")[2:4]] == ["1.0", "1.0"]
