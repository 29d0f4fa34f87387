"""What becomes of splits when a recipe's data is read, and what would be trained on and evaluated on alike."""

import dataclasses
import json

import pytest
import yaml
from table_files import write_table

from product_data.tables import ProductRow, ProductTables, QueryRow, TableError, ValidationReport
from training.assembly.data import open_data
from training.assembly.sources import (
    read_data,
    read_evaluated,
    shared_with_evaluation,
    unanswered_queries,
    with_splits,
)
from training.recipe.arguments import RecipeError, parse_recipe
from training.runs.run import Run


def tables(products, queries=()):
    report = ValidationReport("shop", len(products), len(queries), {})
    return ProductTables("shop", list(products), list(queries), report)


def product(number, group=None, split="all"):
    return ProductRow(f"p{number}", title=f"thing {number}", group=group, split=split)


@pytest.fixture
def shop(tmp_path):
    """A shop's own table, without splits, and a recipe for it."""

    def make(products=40, rows=None, **values):
        rows = rows or [{"product_id": f"p{n}", "title": f"thing {n}", "group": f"g{n // 2}"} for n in range(products)]
        queries = [
            {"query_id": f"q{n}", "text": f"wish {n}", "positives": [row["product_id"]]} for n, row in enumerate(rows)
        ]
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        for name, content in (("products", rows), ("queries", queries)):
            write_table(folder / f"{name}.jsonl", content)
        recipe = {"small_base": {"hidden_size": 32}, "max_steps": 1, "data": [str(folder)], **values}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return parse_recipe([str(tmp_path / "recipe.yaml")])

    return make


def test_a_table_without_splits_is_split_by_group_and_says_so(shop, capsys):
    run = Run(shop(evaluate_after=True))
    (table,) = read_data(run)
    train, test = table.select("train"), table.select("test")
    assert 0 < len(test.products) < len(train.products)
    assert len(train.products) + len(test.products) == 40
    assert {row.group for row in train.products}.isdisjoint(row.group for row in test.products)
    for part in (train, test):
        there = {row.product_id for row in part.products}
        assert len(part.queries) == len(there)
        assert all(there.issuperset(query.positives) for query in part.queries)
    assert run.facts == {"split_by_us": ["shop"]}
    assert "shop: found no splits; split by group or product id: test " in capsys.readouterr().out


def test_a_product_keeps_its_side_when_the_shop_grows():
    small, large = (with_splits(tables([product(n) for n in range(count)])) for count in (100, 300))
    sides = {row.product_id: row.split for row in large.products}
    assert {row.product_id: row.split for row in small.products}.items() <= sides.items()
    assert sum(side == "test" for side in sides.values()) == pytest.approx(60, abs=20)


@pytest.mark.parametrize("count", range(2, 9))
def test_both_sides_have_a_product_however_small_the_shop(count):
    assert {row.split for row in with_splits(tables([product(n) for n in range(count)])).products} == {"train", "test"}


def test_one_product_cannot_be_split():
    alone = tables([product(0)])
    assert with_splits(alone) is alone


def test_splits_that_are_there_stay_and_all_asks_for_everything(shop):
    rows = [{"product_id": f"p{n}", "title": "x", "split": "train" if n else "test"} for n in range(4)]
    (table,) = read_data(Run(shop(rows=rows)))
    assert {row.product_id: row.split for row in table.products} == {row["product_id"]: row["split"] for row in rows}
    (table,) = read_data(Run(shop(split="all")))
    assert len(table.select("all").products) == 40
    assert {row.split for row in table.products} == {"all"}


def test_what_is_trained_on_and_evaluated_on_is_counted_and_warned_of(shop, capsys):
    run = Run(shop(split="all", evaluate_after=True))
    read_data(run)
    (warning,) = run.facts["warnings"]
    assert "40 of 40 queries and 0 of 40 products of evaluate_split 'test' are also in the training split" in warning
    assert f"WARNING: {warning}" in capsys.readouterr().out
    run = Run(shop(split="all"))
    read_data(run)
    assert run.facts == {}


def test_a_gallery_of_every_split_is_by_design_where_the_queries_are_apart():
    queries = [QueryRow(f"q{n}", "text", "x", positives=("p0",), split="test" if n else "train") for n in range(3)]
    assert shared_with_evaluation(tables([product(0)], queries), "train", "test") is None
    with_everywhere = [*queries, dataclasses.replace(queries[0], query_id="q9", split="all")]
    assert "1 of 3 queries and 0 of 1 products" in shared_with_evaluation(
        tables([product(0)], with_everywhere), "train", "test"
    )
    only_products = tables([product(0), product(1, split="train"), product(2, split="test")])
    assert "0 of 0 queries and 1 of 2 products" in shared_with_evaluation(only_products, "train", "test")


def test_queries_without_an_answer_in_the_split_are_counted_by_type():
    queries = [QueryRow("a", "text", "x", positives=("p0",)), QueryRow("b", "text", "x", positives=("gone",))]
    assert unanswered_queries([tables([product(0)], queries), tables([product(1)], queries)]) == {"text": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "holidays"}, "no split 'holidays'; expected one of test, train"),
        ({"evaluate_split": "valid", "evaluate_after": True}, "no split 'valid'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(shop, values, message):
    with pytest.raises(TableError, match=message):
        read_data(Run(shop(**values)))


def test_an_empty_gallery_is_refused_before_training(shop, tmp_path):
    recipe = shop(rows=[{"product_id": "p0", "title": "x", "split": "train"}], evaluate_after=True)
    queries = tmp_path / "shop" / "queries.jsonl"
    queries.write_text(json.dumps({"query_id": "q", "text": "x", "positives": ["p0"], "split": "test"}) + "\n")
    with pytest.raises(TableError, match="evaluate_split: found no products in split 'test'"):
        read_data(Run(recipe))


@pytest.fixture
def left_out(tmp_path):
    """A shop that is evaluated and not trained on, with products of the split "valid"."""
    folder = tmp_path / "left_out"
    folder.mkdir()
    write_table(folder / "products.jsonl", [{"product_id": "x", "title": "hat", "split": "valid"}])
    return str(folder)


def test_data_sets_that_are_left_out_of_the_training_are_evaluated_in_place_of_its_own(shop, left_out, capsys):
    run = Run(shop(evaluate_data=[left_out], evaluate_split="valid", evaluate_after=True))
    data = open_data(run)
    assert [table.name for table in data.evaluated] == ["left_out"]
    assert [table.name for table in data.tables] == ["shop"]
    assert "left_out: 1 products" in capsys.readouterr().out
    assert [table.name for table in open_data(Run(shop(evaluate_after=True))).evaluated] == ["shop"]
    assert open_data(Run(shop())).evaluated == []


def test_left_out_data_sets_that_cannot_be_evaluated_are_refused(shop, left_out):
    with pytest.raises(TableError, match="no split 'test'; expected one of valid"):
        read_evaluated(Run(shop(evaluate_data=[left_out], evaluate_after=True)))
    with pytest.raises(RecipeError, match="evaluate_data: found two data sets named 'left_out'"):
        read_evaluated(Run(shop(evaluate_data=[left_out, left_out], evaluate_split="valid", evaluate_after=True)))
    with pytest.raises(RecipeError, match="evaluate_data: found {}; expected either a path or products"):
        shop(evaluate_data=[{}])


def test_options_that_the_catalogue_refuses_are_named(shop):
    with pytest.raises(RecipeError, match="catalogue: "):
        read_data(Run(shop(data=["catalogue"], catalogue={"products": -1})))


def test_an_interactions_table_is_read_with_the_recipes_weights(tmp_path):
    (tmp_path / "products.csv").write_text("product_id,title,split\na,hat,train\nb,shoe,train\nc,bag,test\n")
    (tmp_path / "log.csv").write_text("query,product_id,action\nwarm,a,wish\nwarm,b,purchase\n")
    source = {"products": str(tmp_path / "products.csv"), "interactions": str(tmp_path / "log.csv")}
    values = {"small_base": {}, "max_steps": 1, "data": [source], "action_weights": {"wish": 0.5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    (table,) = read_data(Run(parse_recipe([str(tmp_path / "recipe.yaml"), "--action_weights.purchase", "0.9"])))
    assert [query.answers for query in table.queries] == [{"b": 0.9, "a": 0.5}]


def test_a_data_set_of_a_recipe_says_how_its_cells_are_read(tmp_path, shop):
    rows = [{"product_id": f"p{n}", "title": "a &amp; b", "category_path": f"Home/Part {n}"} for n in range(4)]
    entry = {"path": str(tmp_path / "shop"), "strip_html": True, "category_separator": ">"}
    shop(rows=rows)
    recipe = shop(rows=rows, data=[entry])
    (table,) = read_data(Run(recipe))
    assert {row.title for row in table.products} == {"a & b"}
    assert table.products[0].category == ("Home/Part 0",)
    for key, wrong in (("strip_html", "yes"), ("category_separator", "")):
        with pytest.raises(RecipeError, match=f"data: {key}: found {wrong!r}; expected"):
            shop(rows=rows, data=[entry | {key: wrong}])


def test_half_of_an_emoji_is_named_before_training(shop, capsys):
    with pytest.raises(TableError, match=r"row 1, column 'title': 'hat \\ud83d'"):
        read_data(Run(shop(rows=[{"product_id": "a", "title": "x"}, {"product_id": "b", "title": "hat \ud83d"}])))
    assert "invalid_unicode" not in capsys.readouterr().out  # said once, by the error
