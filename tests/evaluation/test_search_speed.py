"""`moon3 bench search` measures what it says, on tiny sizes."""

import json

import numpy as np
import pytest

from evaluation.search_speed import PARTS, SearchSizes, clustered_vectors, peak_bytes
from moon3.__main__ import main

TINY = ["--products", "3000", "--pass_products", "2000", "--store_products", "1000", "--queries", "20"]
TINY += ["--store_queries", "10", "--dimension", "16", "--repeats", "1"]


def test_every_part_writes_its_ratios_recalls_and_provenance(tmp_path, capsys):
    pytest.importorskip("faiss")
    output = tmp_path / "speed.json"
    assert main(["bench", "search", "--output", str(output), *TINY]) == 0
    said = capsys.readouterr().out
    results = json.loads(output.read_text())
    passes = {f"first_pass_{one}_queries_{number}" for one in (4, 8, "int8") for number in (1, 20)}
    assert set(results) == {"exact", "store", *passes}
    exact = results["exact"]
    assert exact["ratio"] == pytest.approx(exact["ours_seconds"] / exact["other_seconds"])
    assert exact["agreement"] > 0.999
    assert exact["stated_bytes"] >= 3000 * 16 * 4
    assert results["store"]["recall_at_10"] == results["store"]["filtered_recall_at_10"] == 1.0
    assert results["store"]["index"] is None
    assert all(0 < results[name]["recall_at_10"] <= 1 for name in passes)
    assert results["first_pass_int8_queries_20"]["ours_bytes"] > results["first_pass_int8_queries_20"]["other_bytes"]
    assert all(result["provenance"]["sizes"]["products"] == 3000 for result in results.values())
    assert "exact search, 3,000 × 16, 20 queries: ours / faiss IndexFlatIP: " in said
    assert "form mm: exact search over 1000 vectors" in said
    assert main(["bench", "search", "--output", str(output), *TINY, "--only", "store"]) == 0
    assert json.loads(output.read_text())["exact"] == exact


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "other"])
def test_the_peak_memory_holds_at_least_the_vectors_and_at_most_what_is_stated(side):
    pytest.importorskip("faiss")
    sizes = SearchSizes(products=200_000, queries=50, dimension=64)
    vectors = 200_000 * 64 * 4
    assert vectors <= peak_bytes(side, sizes) <= vectors + 4 * 16384 * (512 + 64) + 64 * 1024**2


def test_drawn_vectors_are_of_length_1_repeatable_and_differ_by_seed():
    first, again, other = (np.concatenate(list(clustered_vectors(20_000, 16, seed))) for seed in (0, 0, 1))
    assert first.shape == (20_000, 16)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).all(axis=1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--products", "0"], "--products: found 0; expected at least 1"),
        (["--dimension", "4"], "--dimension: found 4; expected at least 8"),
        (["--repeats", "0"], "--repeats: found 0; expected at least 1"),
    ],
)
def test_an_unusable_size_is_refused(options, message, tmp_path, capsys):
    assert main(["bench", "search", "--output", str(tmp_path / "x.json"), *options]) == 2
    assert message in capsys.readouterr().err
    assert PARTS == ("exact", "first_passes", "store")
