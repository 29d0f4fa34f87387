"""The comparisons run, interleave, and write the promised form."""

import json

import pytest

from evaluation import speed
from evaluation.speed import COMPARISONS, Comparison, Series, compare, compare_series, speed_table
from moon3.__main__ import main


def test_both_sides_run_equally_often_and_take_turns_in_going_first():
    calls = []
    result = compare(Comparison(lambda: calls.append("ours"), lambda: calls.append("other"), "x"), repeats=4, warm_up=1)
    assert calls == ["ours", "other"] * 2 + ["other", "ours"] + ["ours", "other"] + ["other", "ours"]
    assert result["ratio_range"][0] <= result["ratio"] <= result["ratio_range"][1]


def test_the_ways_of_a_series_run_in_the_same_rounds_and_take_turns_in_going_first():
    calls = []
    series = Series(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        lambda: calls.append("other"),
        {"a": "A / other", "b": "B / other"},
        items=6,
    )
    found = compare_series(series, repeats=4, warm_up=1)
    turns = [["other", "a", "b"], ["a", "b", "other"], ["b", "other", "a"]]
    assert calls == sum([turns[0], *turns, turns[0]], [])
    assert list(found) == ["a", "b"]
    assert found["a"]["other_seconds"] == found["b"]["other_seconds"]
    with pytest.raises(ValueError, match="repeats=0"):
        compare_series(series, repeats=0)


def test_the_table_has_items_per_second_only_where_some_were_counted():
    plain = {"about": "one / other", "ratio": 0.5}
    counted = {"about": "two / other", "ratio": 2.0, "ours_items_per_second": 3.25, "other_items_per_second": 6.5}
    assert "items/s" not in speed_table({"plain": plain})
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in speed_table({"p": plain, "c": counted}).splitlines()
    ]
    assert lines[0] == ["ours / other", "ratio", "items/s, ours / other"]
    assert lines[2:] == [["one / other", "0.50", ""], ["two / other", "2.00", "3.2 / 6.5"]]


def test_every_comparison_writes_seconds_and_a_ratio(tiny_moon, tmp_path, monkeypatch):
    sizes = {"_BATCH": 4, "_TOKENS": 32, "_PRODUCTS": 24, "_IMAGE_TOKENS": 4, "_REASONING": 8, "_LENGTHS": (2, 4, 8)}
    sizes["_WIDE"] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    for name, size in sizes.items():
        monkeypatch.setattr(speed, name, size)
    output = tmp_path / "speed.json"
    assert (
        main(["bench", "encode", "--output", str(output), "--model", str(tiny_moon("qwen3_vl")), "--repeats", "1"]) == 0
    )
    results = json.loads(output.read_text())
    reasoning = {f"reasoning_{way}" for way in ("2", "4", "8", "auto")}
    assert set(results) == set(COMPARISONS) - {"reasoning"} | reasoning
    for name in reasoning:
        assert results[name]["ours_items_per_second"] == pytest.approx(4 / results[name]["ours_seconds"])
        assert results[name]["other_items_per_second"] == pytest.approx(4 / results[name]["other_seconds"])
    for result in results.values():
        assert result["ratio"] == pytest.approx(result["ours_seconds"] / result["other_seconds"])


def test_the_lengths_that_are_timed_are_8_16_and_32_tokens():
    assert (speed._LENGTHS, speed._REASONING) == ((8, 16, 32), 32)


def test_a_comparison_that_needs_a_model_says_so(tmp_path, capsys):
    assert main(["bench", "encode", "--output", str(tmp_path / "speed.json"), "--only", "encode_products"]) == 2
    assert "needs --model DIR" in capsys.readouterr().err
    with pytest.raises(ValueError, match="repeats=0"):
        compare(Comparison(list, list, "x"), repeats=0)
