"""Two results files are compared query by query where they were asked the same, and refused with what differs otherwise."""

import copy
import json

import numpy as np
import pytest
from scipy import stats

from evaluation.compare import NotComparableError, compare_results, compare_tables, comparison_text, notes_of
from evaluation.metrics import retrieval_scores
from evaluation.per_query import QueryValues, pack
from evaluation.significance import holm
from moon3.__main__ import main

QUERIES = 60


def result(model, seed, *, asked=range(QUERIES), better=0.0, cutoffs=(1, 5)):
    """A results file of a search of `asked` among 20 products, whose ranks are random; many are ties."""
    rng = np.random.default_rng(seed)
    drawn = np.where(rng.uniform(size=QUERIES) < better, 1, rng.integers(1, 9, QUERIES))
    rank_Q = drawn[list(asked)].astype(float)
    digests = {f"q{number}": f"d{number}" for number in asked}
    values = {
        "t2mm": QueryValues("text", digests, "gallery", 20, rank_Q, {}),
        "i2t": QueryValues("image", {f"i{name}": one for name, one in digests.items()}, "texts", 19, rank_Q[::-1], {}),
    }
    scores = {
        name: retrieval_scores(one.rank_Q, cutoffs=cutoffs, resamples=10)
        | {f"R@{k}_chance": k / 20 for k in cutoffs}
        | {"queries": len(rank_Q), "gallery": 20}
        for name, one in values.items()
    }
    return {
        "model": model,
        "benchmark": "shop",
        "cutoffs": list(cutoffs),
        "equal_products": {"identical": "right", "variants": "left_out"},
        "scores": scores,
        "image_only": {},
        "per_query": pack(values, []),
        "provenance": {"split": "test"},
    }


def compared(*results, **options):
    return compare_results([one["model"] for one in results], results, **options)


def test_each_row_is_the_paired_test_of_the_ranks():
    found = compared(result("one", 0), result("two", 1, better=0.6), metrics=["R@1", "MRR", "nDCG@5"])
    (comparison,) = found["comparisons"]
    rows = {(row["what"], row["metric"]): row for row in comparison["rows"]}
    assert set(rows) == {(name, metric) for name in ("t2mm", "i2t") for metric in ("R@1", "MRR", "nDCG@5")}
    first, second = (
        np.array([float(rank) for rank in one["per_query"]["directions"]["t2mm"]["rank"].split()])
        for one in (result("one", 0), result("two", 1, better=0.6))
    )
    row = rows["t2mm", "R@1"]
    gained, lost = int(((second <= 1) & (first > 1)).sum()), int(((first <= 1) & (second > 1)).sum())
    assert row["difference"]["difference"] == pytest.approx((gained - lost) / QUERIES)
    assert row["difference"]["p"] == pytest.approx(stats.binomtest(gained, gained + lost, 0.5).pvalue)
    assert (row["queries"], row["choices"], row["chance"]) == (QUERIES, 20, 1 / 20)
    assert row["models"]["one"]["value"] == pytest.approx((first <= 1).mean())
    assert rows["t2mm", "MRR"]["difference"]["difference"] == pytest.approx((1 / second - 1 / first).mean())
    gain = [np.where(ranks <= 5, 1 / np.log2(1 + ranks), 0).mean() for ranks in (first, second)]
    assert rows["t2mm", "nDCG@5"]["difference"]["difference"] == pytest.approx(gain[1] - gain[0])


def test_p_values_are_corrected_over_all_rows_of_all_models():
    found = compared(result("one", 0), result("two", 1, better=0.7), result("three", 2))
    assert found["metrics"] == ["R@5", "MRR", "nDCG@5"]
    rows = [row for one in found["comparisons"] for row in one["rows"]]
    assert len(rows) == 12
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["difference"]["p"] for row in rows]))
    for comparison in found["comparisons"]:
        for row in comparison["rows"]:
            leader = comparison["model"] if row["difference"]["difference"] > 0 else "one"
            assert row["ahead_after_holm"] == (leader if row["p_holm"] < 0.05 else None)
    assert {row["ahead_after_holm"] for row in found["comparisons"][0]["rows"]} == {"two"}
    assert found["words"][0].startswith("Of 6 rows two is ahead in 6 (t→mm R@5, ")
    text = comparison_text(found, style="github")
    assert text.count("| direction ") == 2
    assert all(f"- {note}" in text for note in notes_of(found))
    assert "corrected for all 12 rows" in notes_of(found)[-1]


def test_a_model_is_never_ahead_of_itself():
    found = compared(result("one", 0), result("again", 0))
    rows = found["comparisons"][0]["rows"]
    assert {row["difference"]["p"] for row in rows} == {1.0}
    assert {row["ahead_after_holm"] for row in rows} == {None}


def test_queries_that_one_model_skipped_are_left_out_and_counted():
    first, second = result("one", 0, asked=range(1, QUERIES)), result("two", 1, asked=range(QUERIES - 2))
    found = compared(first, second, metrics=["R@1"])
    row = found["comparisons"][0]["rows"][0]
    assert (row["queries"], row["chance"]) == (QUERIES - 3, None)
    ranks = [[int(rank) for rank in one["per_query"]["directions"]["t2mm"]["rank"].split()] for one in (first, second)]
    expected = np.mean([(b <= 1) - (a <= 1) for a, b in zip(ranks[0][:-2], ranks[1][1:], strict=True)])
    assert row["difference"]["difference"] == pytest.approx(expected)
    assert "t→mm: compared on the 57 queries that both ranked, of 59 of one and 58 of two." in notes_of(found)


def test_a_direction_of_one_model_alone_is_named():
    second = result("two", 1)
    del second["per_query"]["directions"]["i2t"]
    found = compared(result("one", 0), second)
    assert {row["what"] for row in found["comparisons"][0]["rows"]} == {"t2mm"}
    assert "i→t: only one was measured, so there is nothing to compare." in notes_of(found)
    del second["per_query"]["directions"]["t2mm"]
    with pytest.raises(NotComparableError, match="no direction in common"):
        compared(result("one", 0), second)


def _changed(path, value):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed(["benchmark"], "other"), "benchmark: 'shop' and 'other'"),
        (_changed(["provenance", "split"], "all"), "split: 'test' and 'all'"),
        (_changed(["equal_products", "variants"], "right"), "variants of an answer: 'left_out' and 'right'"),
        (
            _changed(["per_query", "directions", "t2mm", "products"], 21),
            "t→mm: a gallery of 20 and one of 21 products",
        ),
        (
            _changed(["per_query", "directions", "i2t", "gallery"], "x"),
            "i→t: 19 products each, but not the same ones or not with the same texts",
        ),
        (
            _changed(["per_query", "asked", "text", "q3"], "x"),
            r"t→mm: another text or other answers of 1 of 60 queries \('q3'\)",
        ),
        (
            _changed(["per_query", "asked", "text"], {f"z{number}": "d" for number in range(QUERIES)}),
            "t→mm: no query is in both",
        ),
        (_changed(["per_query", "directions", "t2mm", "rank"], "1 2"), "found 2 ranks; expected 60"),
        (_changed(["cutoffs"], [2]), "no cut-off k in common"),
    ],
)
def test_what_was_asked_otherwise_is_refused_with_what_differs(change, said):
    second = copy.deepcopy(result("two", 1))
    change(second)
    with pytest.raises(NotComparableError, match=said):
        compared(result("one", 0), second)


def test_the_asked_side_must_be_the_same():
    second = result("two", 1)
    second["per_query"]["asked"]["product t"] = second["per_query"]["asked"]["text"]
    second["per_query"]["directions"]["t2mm"]["asked"] = "product t"
    with pytest.raises(NotComparableError, match="t→mm: asked by 'text' and by 'product t'"):
        compared(result("one", 0), second)


def test_the_command_prints_tables_and_writes_every_row(tmp_path, capsys):
    paths = []
    for name, seed, better in (("one", 0, 0.0), ("two", 1, 0.7)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(result(name, seed, better=better)))
    output = tmp_path / "made" / "compare.json"
    assert main(["compare", *map(str, paths), "--output", str(output), "--metrics", "R@1"]) == 0
    printed = capsys.readouterr().out
    assert "direction    metric" in printed
    written = json.loads(output.read_text())
    assert (written["baseline"], written["metrics"], written["benchmark"]) == ("one", ["R@1"], "shop")
    assert written["provenance"]["seed"] == 0
    assert len(compare_tables(written)[0][1]) == 2
    assert main(["compare", *map(str, paths), "--markdown"]) == 0
    assert "| direction   | metric   |" in capsys.readouterr().out

    old = result("old", 2)
    del old["per_query"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    for words, said in (
        ([paths[0]], "found 1 result; expected two or more"),
        ([paths[0], paths[0]], "expected each results file once"),
        ([paths[0], tmp_path / "old.json"], "found no 'per_query' in its results file"),
        ([*paths, "--metrics", "R@7"], "expected some of R@1, R@5, MRR, nDCG@1, nDCG@5"),
        ([*paths, "--resamples", "0"], "expected 1 or more"),
        ([*paths, "--output", tmp_path / "x.md"], "expected a .json file"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        assert said in capsys.readouterr().err


def test_before_and_after_of_one_file_are_compared(tmp_path, capsys):
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"before": result("moon", 0), "after": result("moon", 1, better=0.7)}))
    assert main(["compare", str(path)]) == 0
    assert "moon after is ahead in 6" in capsys.readouterr().out
