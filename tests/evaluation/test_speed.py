"""The comparisons run, interleave, and write the promised form."""

import json

import pytest

from evaluation.speed import COMPARISONS, Comparison, compare, main


def test_both_sides_run_equally_often_and_take_turns_in_going_first():
    calls = []
    result = compare(Comparison(lambda: calls.append("ours"), lambda: calls.append("other"), "x"), repeats=4, warm_up=1)
    assert calls == ["ours", "other"] * 2 + ["other", "ours"] + ["ours", "other"] + ["other", "ours"]
    assert result["ratio_range"][0] <= result["ratio"] <= result["ratio_range"][1]


def test_every_comparison_writes_seconds_and_a_ratio(tiny_moon, tmp_path):
    output = tmp_path / "speed.json"
    assert main(["--output", str(output), "--model", str(tiny_moon("qwen3_vl")), "--repeats", "1"]) == 0
    results = json.loads(output.read_text())
    assert set(results) == set(COMPARISONS)
    for result in results.values():
        assert result["ratio"] == pytest.approx(result["ours_seconds"] / result["other_seconds"])


def test_a_comparison_that_needs_a_model_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "speed.json"), "--only", "encode_products"])
    assert "needs --model DIR" in capsys.readouterr().err
    with pytest.raises(ValueError, match="repeats=0"):
        compare(Comparison(list, list, "x"), repeats=0)
