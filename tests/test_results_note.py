"""The note beside the results names files that are there, and marks what an older read-out gave."""

import json
import re
from pathlib import Path

import pytest

from evaluation.compare import measured
from evaluation.peer_table import scores_and_differences
from evaluation.report import read_results
from evaluation.significance import holm, sign_flip_p

RESULTS = Path(__file__).resolve().parents[1] / "results"
PEERS = RESULTS / "peers_shops"


def test_the_files_that_the_note_names_are_there():
    names = set(re.findall(r"`([\w*.]+\*|[\w*]+\.(?:json|md|\*|jsonl))`", (RESULTS / "README.md").read_text()))
    assert len(names) > 10
    assert not [name for name in names if not list(RESULTS.glob(name))]


def test_the_two_models_of_the_study_of_shops_took_the_same_steps_from_the_same_seed():
    lines = {
        name: (RESULTS / f"shops_{name}_metrics.jsonl").read_text().splitlines() for name in ("moon1", "dual_tower")
    }
    steps = {name: [json.loads(line)["step"] for line in found] for name, found in lines.items()}
    assert steps["moon1"] == steps["dual_tower"]
    recipes = {name: (RESULTS / f"shops_{name}_recipe.yaml").read_text() for name in ("moon1", "dual_tower")}
    apart = set(recipes["moon1"].splitlines()) ^ set(recipes["dual_tower"].splitlines())
    assert {line.split(":")[0] for line in apart} == {"architecture", "output_dir"}


def test_ahead_is_said_only_where_the_paired_interval_leaves_out_zero():
    results = json.loads((RESULTS / "shops_study.json").read_text())
    first, second = results["models"]
    for shop in results["shops"].values():
        for row in shop["rows"]:
            low, high = row["difference"]["interval"]
            assert row["ahead"] == (first if low > 0 else second if high < 0 else None)


def peers_on_shops():
    """Return the results files of the table of peers, and the comparison beside them."""
    results = [result for path in sorted(PEERS.glob("*/*.json")) for _, result in read_results(path)]
    return results, json.loads((PEERS / "significance.json").read_text())


def test_the_table_of_peers_on_shops_is_rendered_from_the_files():
    page = (RESULTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert "<!-- peers-shops-table -->\n" + scores_and_differences(*peers_on_shops(), "R@10") in page


def test_the_models_of_the_table_of_peers_say_their_weights_and_those_trained_took_the_same_steps():
    results, _ = peers_on_shops()
    weights = {result["model"]: result["weights"] for result in results}
    assert len(results) == 2 * len(weights) == 20
    trained = {model for model, words in weights.items() if words.startswith("trained")}
    assert trained == {"moon1", "moon2", "moon3", "dual_tower", "plain_qwen3_vl"}
    assert {weights[model] for model in trained} == {"trained from random, 300 steps on grocery, fashion"}
    assert {weights[model] for model in ("qwen3_vl (vlm_mean)", "random (clip)", "random (siglip)")} == {"random"}


def test_the_significance_of_the_table_of_peers_follows_from_the_ranks_of_its_files():
    results, found = peers_on_shops()
    rows = [row for on in found["benchmarks"] for one in on["comparisons"] for row in one["rows"]]
    assert found["tested"] == len(rows) > 200
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["difference"]["p"] for row in rows]))
    ranks = {(one["model"], one["benchmark"]): measured(one["model"], one).directions for one in results}
    checked = 0
    for on in found["benchmarks"]:
        base = ranks[found["reference"], on["benchmark"]]
        for one in on["comparisons"]:
            for row in (row for row in one["rows"] if row["metric"] == "R@10"):
                own, other = ranks[one["model"], on["benchmark"]][row["what"]], base[row["what"]]
                assert own.digests == other.digests
                difference_Q = own.values("R@10") - other.values("R@10")
                assert row["difference"]["difference"] == pytest.approx(difference_Q.mean())
                assert row["difference"]["p"] == pytest.approx(sign_flip_p(difference_Q))
                checked += 1
    assert checked == len(rows) // 3
