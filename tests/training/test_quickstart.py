"""What the quickstart keeps of an earlier call, and what it refuses, with the training itself left out."""

import json

import pytest

from training import quickstart

SMALL = ["--catalogue.products", "60", "--catalogue.image_size", "64", "--max_steps", "1"]


def test_a_catalogue_is_drawn_again_only_for_other_options(tmp_path):
    options = {"products": 60, "image_size": 64, "progress": False}
    first = quickstart.draw_catalogue(tmp_path / "catalogue", options)
    drawn = (tmp_path / "catalogue" / "products.parquet").stat().st_mtime_ns
    quickstart.draw_catalogue(tmp_path / "catalogue", options)
    assert (tmp_path / "catalogue" / "products.parquet").stat().st_mtime_ns == drawn
    other = quickstart.draw_catalogue(tmp_path / "catalogue", {**options, "products": 72})
    assert (len(first.products), len(other.products)) == (60, 72)
    assert json.loads((tmp_path / "catalogue" / "options.json").read_text())["products"] == 72


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "quickstart: command line: unknown key 'learning_rat'"),
        (["--catalogue.products", "-3"], "quickstart: catalogue: "),
        (["--moon.embedding_dim", "4096"], "quickstart: base or moon: "),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(tmp_path, capsys, arguments, message):
    assert quickstart.main(["--folder", str(tmp_path), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_values_are_refused_before_anything_is_drawn_and_overwrite_starts_anew(tmp_path, capsys, monkeypatch):
    def reached(*_):
        raise quickstart.RecipeError("the training is reached")

    monkeypatch.setattr(quickstart, "train", reached)
    monkeypatch.setattr(quickstart, "measure", lambda *_: {})
    assert quickstart.main(["--folder", str(tmp_path), *SMALL]) == 2
    assert "the training is reached" in capsys.readouterr().err
    base, products = tmp_path / "run" / "base" / "config.json", tmp_path / "catalogue" / "products.parquet"
    times = base.stat().st_mtime_ns, products.stat().st_mtime_ns
    changed = ["--folder", str(tmp_path), *SMALL, "--catalogue.products", "72", "--small_base.hidden_size", "64"]
    changed += ["--moon.embedding_dim", "64"]
    assert quickstart.main(changed) == 2
    message = capsys.readouterr().err
    assert "holds a run of another recipe (catalogue: " in message
    assert "small_base: " in message
    assert (base.stat().st_mtime_ns, products.stat().st_mtime_ns) == times
    assert quickstart.main([*changed, "--overwrite"]) == 2
    assert "the training is reached" in capsys.readouterr().err
    assert json.loads(base.read_text())["vlm_config"]["text_config"]["hidden_size"] == 64
    assert products.stat().st_mtime_ns != times[1]
