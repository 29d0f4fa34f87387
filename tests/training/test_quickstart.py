"""What the quickstart shows first, what it keeps of an earlier call, and what it refuses, on a few drawn products."""

import json
from pathlib import Path

import pytest

from moon3.__main__ import main
from retrieval.search import open_searcher
from training import quickstart
from training.shipped_checkpoint import SHIPPED

SMALL = ["--catalogue.products", "60", "--catalogue.image_size", "64", "--max_steps", "1"]
SMALL += ["--per_device_train_batch_size", "2"]


class ReachedError(quickstart.RecipeError):
    pass


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
        (["--learning_rat", "1"], "moon3 quickstart: command line: unknown key 'learning_rat'"),
        (["--catalogue.products", "-3"], "moon3 quickstart: catalogue: "),
        (
            ["--moon.embedding_dim", "4096"],
            "moon3 quickstart: moon: {'embedding_dim': 4096} cannot be applied to the Moon checkpoint ",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(quickstart, "first_minute", lambda *_: {})
    assert main(["quickstart", "--folder", str(tmp_path), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_shipped_checkpoint_is_searched_and_measured_before_anything_is_trained_or_timed(tmp_path, monkeypatch):
    shown = []

    def stop(*_):
        raise ReachedError("the shop's products come next")

    monkeypatch.setattr(quickstart, "measure", lambda *given: shown.append(given[2]) or {"scores": {}})
    monkeypatch.setattr(quickstart, "comparison_table", lambda *_, **__: "")
    monkeypatch.setattr(quickstart, "print_duration", stop)
    assert main(["quickstart", "--folder", str(tmp_path), *SMALL]) == 2
    assert (tmp_path / "search.png").is_file()
    assert (tmp_path / "shipped" / "modeling_moon.py").is_file()
    (unseen,) = shown
    assert {row.split for row in unseen.products} == {"test"}
    assert not (tmp_path / "run" / "final").exists()


def test_the_training_has_a_fixed_number_of_steps_starts_from_the_shipped_checkpoint_and_says_how_long_it_takes(
    tmp_path, capsys, monkeypatch
):
    def stop(run):
        assert (run.recipe.training.train_minutes, run.max_steps) == (None, 3)
        assert run.recipe.model.base == str(SHIPPED)
        raise ReachedError("the training is reached")

    monkeypatch.setattr(quickstart, "first_minute", lambda *_: {})
    monkeypatch.setattr(quickstart, "train", stop)
    assert main(["quickstart", "--folder", str(tmp_path), *SMALL, "--max_steps", "3"]) == 2
    assert "the training is reached" in capsys.readouterr().err


def test_how_long_it_takes_is_measured_and_said_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "first_minute", lambda *_: {})
    monkeypatch.setattr(quickstart, "train", lambda *_: (_ for _ in ()).throw(ReachedError("the training is reached")))
    main(["quickstart", "--folder", str(tmp_path), *SMALL])
    printed = capsys.readouterr().out
    assert "Training further: 1 steps at " in printed
    assert " seconds a step here, about " in printed


def test_the_recipe_of_the_quickstart_knows_no_minutes():
    recipe = quickstart.parse_recipe([str(quickstart.RECIPE)])
    assert recipe.training.train_minutes is None
    assert recipe.training.max_steps > 0


def test_other_values_are_refused_before_anything_is_drawn_and_overwrite_starts_anew(tmp_path, capsys, monkeypatch):
    def reached(*_):
        raise ReachedError("the training is reached")

    monkeypatch.setattr(quickstart, "first_minute", lambda *_: {})
    monkeypatch.setattr(quickstart, "print_duration", lambda *_: None)
    monkeypatch.setattr(quickstart, "train", reached)
    assert main(["quickstart", "--folder", str(tmp_path), *SMALL]) == 2
    assert "the training is reached" in capsys.readouterr().err
    products = tmp_path / "shop" / "products.parquet"
    drawn = products.stat().st_mtime_ns
    changed = ["--folder", str(tmp_path), *SMALL, "--catalogue.products", "72", "--learning_rate", "0.5"]
    assert main(["quickstart", *changed]) == 2
    message = capsys.readouterr().err
    assert "holds a run of another recipe (catalogue: " in message
    assert "learning_rate: " in message
    assert products.stat().st_mtime_ns == drawn
    assert main(["quickstart", *changed, "--overwrite"]) == 2
    assert "the training is reached" in capsys.readouterr().err
    assert products.stat().st_mtime_ns != drawn


def test_the_unseen_products_are_embedded_once_and_the_last_line_opens_their_page(tmp_path, capsys):
    unseen = quickstart.draw_catalogue(tmp_path / "unseen", {"products": 60, "image_size": 64, "only": "test"})
    said = [quickstart.embed_unseen(tmp_path / "vectors", SHIPPED, unseen) for _ in range(2)]
    assert said[0] == said[1]
    command = said[0].partition("  #")[0].split()
    assert command == ["moon3", "serve", str(tmp_path / "vectors")]
    assert "http://127.0.0.1:8000/" in said[0]
    count = len(unseen.products)
    assert f"embedded 0, kept {count}, removed 0, failed 0" in capsys.readouterr().out
    with open_searcher(command[2], device="cpu") as searcher:
        hits = searcher.search(unseen.products[0].title).hits
    assert len(hits) == min(10, count)
    assert all(Path(hit.product.images[0]).is_file() for hit in hits)


def test_the_page_comes_last(tmp_path, monkeypatch, capsys):
    for name in ("first_minute", "print_duration", "train", "second_look"):
        monkeypatch.setattr(quickstart, name, lambda *_: {"scores": {}, "provenance": {}})
    monkeypatch.setattr(quickstart, "check_both_libraries", lambda *_: 0.0)
    monkeypatch.setattr(quickstart, "embed_unseen", lambda output, *_: f"moon3 serve {output}")
    assert main(["quickstart", "--folder", str(tmp_path), *SMALL]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"moon3 serve {tmp_path / 'vectors'}"
