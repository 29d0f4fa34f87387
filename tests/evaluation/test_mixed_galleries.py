"""The report on galleries of texts, pictures and both, and the study of upgrades, with tiny models."""

import json
import math

import numpy as np
import pytest

from evaluation.mixed_galleries import measure_mixed_gallery
from evaluation.upgrade_study import Searched, study_upgrade
from moon3.__main__ import main
from product_data.catalogue.making import write_catalogue
from product_data.errors import OptionError
from product_data.tables import load_tables
from retrieval.encode import load_for_evaluation


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shops") / "shop"
    write_catalogue(folder, products=90, image_size=64, progress=False)
    return folder


def test_the_report_shows_shares_that_are_consistent(shop, tiny_moon, tmp_path, capsys):
    output = tmp_path / "mixed.json"
    words = ["form-balance", "--model", str(tiny_moon("qwen3_vl")), "--data", str(shop), "--split", "all", "--draw"]
    assert main([*words, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "results, % t/i/mm" in said
    found = json.loads(output.read_text())["galleries"]
    (gallery,) = found.values()
    assert sum(gallery["products"].values()) == 90
    for sides in gallery["queries"].values():
        for side in ("plain", "centred"):
            forms = sides[side]["forms"].values()
            for key in ("gallery", "results", "right"):
                assert sum(form[key] for form in forms) == pytest.approx(1, abs=1e-3)
        difference = sides["centred"]["R@10"] - sides["plain"]["R@10"]
        assert sides["difference"]["difference"] == pytest.approx(difference, abs=1e-3)
    assert gallery["queries"]["all"]["number"] == sum(
        sides["number"] for kind, sides in gallery["queries"].items() if kind != "all"
    )


def test_products_of_one_form_need_no_report(shop, tiny_moon):
    loaded = load_for_evaluation(tiny_moon("qwen3_vl"))
    with pytest.raises(OptionError, match="found products of the form mm only; expected .*--draw"):
        measure_mixed_gallery(*loaded, load_tables(shop))


def test_an_upgrade_to_a_rotated_copy_recovers_everything_at_every_backfill(shop):
    tables = load_tables(shop)
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)
    index = {row.product_id: number for number, row in enumerate(tables.products)}

    def unit(rows):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    product = unit(rng.normal(size=(90, 16)))
    answers = [index[next(iter(query.answers))] for query in tables.queries]
    query = unit(product[answers] + 0.2 * rng.normal(size=(len(answers), 16)))
    title = unit(product + 0.05 * rng.normal(size=(90, 16)))
    new = Searched(product, title, query)
    old = Searched(product @ turn, title @ turn, query @ turn)
    found = study_upgrade(old, new, tables, samples=[60])
    sample = found["samples"]["60"]
    assert sample["chosen"] == "procrustes"
    assert sample["searches"]["procrustes"]["share_of_old"] == 1
    assert sample["searches"]["procrustes"]["minus_old"]["difference"] == 0
    assert found["searches"]["new query, old vectors, not adapted"]["R@10"] < found["searches"]["old"]["R@10"]
    shares = found["backfill"]["shares"]
    assert list(shares) == ["0%", "10%", "50%", "100%"]
    for share, merged in shares.items():
        assert merged["calibrated"]["R@10"] == found["searches"]["new"]["R@10"]
        assert merged["calibrated"]["results_by_new"] == pytest.approx(float(share[:-1]) / 100, abs=0.1)
    narrow = Searched(unit(old.product_PD[:, :8]), unit(old.title_PD[:, :8]), unit(old.query_QD[:, :8]))
    assert "new query, old vectors, not adapted" not in study_upgrade(narrow, new, tables, samples=[60])["searches"]


def test_the_study_runs_from_the_command_line(shop, tiny_moon, tmp_path, capsys):
    old, new = (str(tiny_moon("qwen3_vl", trained=True, embedding_dim=width)) for width in (16, 32))
    same = str(tiny_moon("qwen2_5_vl", trained=True, embedding_dim=16))
    output = tmp_path / "upgrade.json"
    words = [
        "upgrade-study",
        "--old",
        old,
        "--data",
        str(shop),
        "--form",
        "t",
        "--samples",
        "60",
        "--output",
        str(output),
    ]
    assert main([*words, "--new", f"wider={new}", f"compatible={same}"]) == 0
    assert "calibrated" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert (found["form"], found["products"]) == ("t", 90)
    assert {name: one["widths"] for name, one in found["upgrades"].items()} == {
        "wider": [16, 32],
        "compatible": [16, 16],
    }
    for one in found["upgrades"].values():
        assert all(math.isfinite(search["R@10"]) for search in one["searches"].values())
        assert ("new query, old vectors, not adapted" in one["searches"]) == (one["widths"] == [16, 16])
    assert main([*words, "--new", "nameless"]) == 2
    assert "--new: found nameless; expected NAME=FOLDER" in capsys.readouterr().err
    assert main([*words, "--new", f"same={new}", f"same={same}"]) == 2
    assert "expected different names" in capsys.readouterr().err
