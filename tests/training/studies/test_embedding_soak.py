"""The study that kills an embedding job: what it draws, what it finds, and, slowly, that a killed job equals a whole one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from moon3.__main__ import main
from product_data.errors import OptionError
from product_data.feeds.reading import read_feed
from training.studies.embedding_soak import EmbeddingSoak, Feed, compare_update, plan


@pytest.mark.parametrize("changes", [{"products": 299}, {"kills": 2}, {"pictures": 1}, {"rows_per_shard": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(OptionError, match=f"{next(iter(changes)).replace('_', '-')}: found .*; expected at least"):
        EmbeddingSoak(tmp_path / "out", **changes)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OptionError, match="which is not empty"):
        EmbeddingSoak(tmp_path)


def test_the_moments_hold_a_write_of_a_shard_and_the_finish(tmp_path):
    for seed in range(5):
        moments = plan(EmbeddingSoak(tmp_path / "out", kills=5), random.Random(seed))
        assert len(moments) == 5
        assert moments[-1] == ("finish", 0)
        assert "shard" in {kind for kind, _ in moments[:-1]}


def test_a_feed_changes_in_the_shares_that_are_stated(tmp_path):
    feed = Feed(tmp_path / "feed", EmbeddingSoak(tmp_path / "out", products=300, pictures=18))
    feed.write()
    before = {product.row.product_id: product for product in read_feed(feed.path)}
    assert len(before) == 300
    assert len({product.row.title for product in before.values()}) == 300
    changes = feed.change(random.Random(0))
    feed.write()
    after = {product.row.product_id: product for product in read_feed(feed.path)}
    assert {name: len(ids) for name, ids in changes.items()} == dict.fromkeys(
        ("changed", "removed", "priced", "added"), 3
    )
    assert after.keys() == (before.keys() - changes["removed"]) | changes["added"]
    other = {id_ for id_ in after.keys() & before.keys() if after[id_].row != before[id_].row}
    assert other == changes["changed"]
    priced = {id_ for id_ in after.keys() & before.keys() if after[id_].price != before[id_].price}
    assert priced == changes["priced"]
    fields = Counter(
        name
        for id_ in other
        for name in ("title", "attributes", "images")
        if getattr(after[id_].row, name) != getattr(before[id_].row, name)
    )
    assert fields == {"title": 1, "attributes": 1, "images": 1}


def test_an_update_that_did_something_else_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("training.studies.embedding_soak.vectors_of", lambda folder: {})
    monkeypatch.setattr("training.studies.embedding_soak.VectorFolder", lambda folder: _Empty())
    nothing = dict.fromkeys(("changed", "removed", "priced", "added"), set())
    numbers = dict.fromkeys(("embedded", "kept", "updated", "removed", "failed"), 0)
    assert compare_update(tmp_path, nothing, numbers, {}, {}) == []
    [found] = compare_update(tmp_path, nothing, numbers | {"embedded": 1}, {}, {})
    assert "'embedded': 1" in found
    assert len(compare_update(tmp_path, nothing | {"added": {"p"}}, numbers, {}, {})) == 2


class _Empty:
    def products(self):
        return iter(())


@pytest.mark.slow
def test_a_killed_job_equals_an_uninterrupted_one(tmp_path, capsys):
    command = ["soak-embed", "--products", "600", "--pictures", "36", "--rows-per-shard", "100", "--kills", "4"]
    assert main([*command, "--output", str(tmp_path / "soak"), "--results", str(tmp_path / "soak.json")]) == 0
    assert "600 products, 4 kills: equal to the uninterrupted job" in capsys.readouterr().out
