"""A shop's own CSV files, made by hand: mined, trained, reported, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageDraw
from table_files import write_table

from modeling_moon import MoonModel
from moon3.__main__ import main
from product_data.reading import ReadingOptions
from product_data.tables import ProductRow, ProductTables, QueryRow, TableError, ValidationReport, load_tables
from retrieval.encode import load_for_evaluation
from training.assembly.sources import with_held_out_queries
from training.shop import _recipe, read_shop

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = ("red", "blue", "green", "black", "orange")
KINDS = ("mug", "lamp", "scarf", "chair")


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory):
    """40 products, 120 clicks, carts and purchases, pictures in a folder, two of them broken."""
    folder = tmp_path_factory.mktemp("shop") / "my_shop"
    (folder / "pictures").mkdir(parents=True)
    products = []
    for number in range(40):
        colour, kind = COLOURS[number % 5], KINDS[number // 10]
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8 + number % 7, 40 + number % 9, 50), fill=colour)
        image.save(folder / "pictures" / f"{number}.png")
        products.append(
            {
                "product_id": f"{number:03d}",
                "title": f"{colour} {kind} no. {number}",
                "category": f"Home > {kind}",
                "attributes": f"colour: {colour}",
                "images": f"pictures/{number}.png",
            }
        )
    whole = (folder / "pictures" / "7.png").read_bytes()
    (folder / "pictures" / "7.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pictures" / "23.png").write_text("not a picture")
    rng = np.random.default_rng(0)
    clicks = []
    for number in range(120):
        product = int(rng.integers(40))
        colour, kind = COLOURS[product % 5], KINDS[product // 10]
        by_photo = number % 10 == 0
        clicks.append(
            {
                "query": "" if by_photo else f"{colour} {kind}",
                "query_image": f"pictures/{product if product not in (7, 23) else 1}.png" if by_photo else "",
                "product_id": f"{product:03d}",
                "action": ("click", "cart", "purchase")[number % 3],
                "time": f"2024-05-{1 + number % 30:02d}T10:00:{number % 60:02d}",
            }
        )
    for name, rows in (("products", products), ("interactions", clicks)):
        write_table(folder / f"{name}.csv", rows)
    return folder


@pytest.fixture(scope="module")
def overrides(tiny_base):
    """The shop's recipe on a tiny base: everything else stays as it is shipped."""
    values = {
        "base": tiny_base("qwen3_vl"),
        "moon": "{readout: mean, embedding_dim: 32}",
        "lora.r": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "max_image_tokens": 4,
        "queue_steps": 2,
        "disable_tqdm": True,
    }
    return [text for key, value in values.items() for text in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def finished(shop_folder, overrides, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "my_shop"
    assert main(["shop", "--data", str(shop_folder), "--output", str(output), *overrides]) == 0
    return output


def test_one_command_makes_model_adapter_and_report(finished):
    run = finished / "run"
    assert (run / "final" / "model.safetensors").is_file()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    report = (finished / "report.md").read_text()
    assert "40 products, 120 interactions" in report
    assert "Fine-tuned model: `run/final`." in report
    (loaded,) = re.findall(
        r"PeftModel.from_pretrained\(AutoModel.from_pretrained\('([^']*)', .*?\), '([^']*)'\)", report
    )
    merged, processor = load_for_evaluation(run / "final")
    adapted = PeftModel.from_pretrained(MoonModel.from_pretrained(finished / loaded[0]), finished / loaded[1]).eval()
    inputs = processor(queries=[{"text": "a red mug"}], return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(adapted(**inputs).embeddings, merged(**inputs).embeddings, atol=1e-4, rtol=0)
    for part in ("## What was read", "## Hard negatives", "## Before and after", "## What could not be encoded"):
        assert part in report
    for metric in ("R@1", "R@5", "R@10"):
        assert metric in report
    assert "Only 5 searches are held out" in report
    for when in ("before", "after"):
        assert f"![{when}](searches_{when}.png)" in report
        with Image.open(finished / f"searches_{when}.png") as sheet:
            assert sheet.width > 300
        scores = json.loads((run / f"results_{when}.json").read_text())["scores"]
        assert scores["t2mm"]["gallery"] == 38


def test_the_two_broken_pictures_are_named_wherever_they_matter(finished):
    report = (finished / "report.md").read_text()
    assert "2 × images that cannot be opened" in report
    left_out = report.split("## What could not be encoded")[1].split("\n## ")[0].strip().splitlines()
    assert [line.split(",")[0] for line in left_out] == ["- product 007", "- product 023"]
    assert all("images[0]" in line for line in left_out)


def test_the_log_became_graded_queries_with_hard_negatives_of_the_training_split_alone(finished, shop_folder):
    products = {row.product_id: row for row in load_tables(shop_folder).products}
    queries = load_tables(
        {"products": shop_folder / "products.csv", "queries": finished / "mined" / "queries.parquet"}
    ).queries
    assert {query.type for query in queries} == {"text", "image"}
    by_split = {split: [query for query in queries if query.split == split] for split in ("train", "test")}
    assert 1 <= len(by_split["test"]) < len(by_split["train"])
    assert not any(query.negatives for query in by_split["test"])
    mined = [query for query in by_split["train"] if query.negatives]
    assert len(mined) >= 4  # a model with random weights finds most products too near to the answer
    for query in mined:
        kinds = {products[name].category for name in query.positives}
        assert {products[name].category for name in query.negatives} <= kinds
        assert not set(query.negatives) & set(query.positives)
    weights = {weight for query in queries for weight in query.answers.values()}
    assert 1.0 in weights
    assert min(weights) == pytest.approx(0.25)


def test_the_same_command_again_changes_nothing_and_an_interrupted_one_goes_on(
    finished, shop_folder, overrides, tmp_path, capsys
):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    for path in (again / "run" / "finished.json", again / "report.md", again / "run" / "results_after.json"):
        path.unlink()
    for path in (again / "run" / "final", again / "run" / "checkpoint-4"):
        shutil.rmtree(path)
    for path in (again / "recipe.yaml", again / "run" / "resolved_recipe.yaml"):
        path.write_text(path.read_text().replace(str(finished), str(again)))
    for path in (again / "run").rglob("resolved_recipe.yaml"):
        path.write_text(path.read_text().replace(str(finished), str(again)))
    (again / "run" / "checkpoint-2" / "complete.json").unlink()
    from training.runs.folder import mark_complete

    mark_complete(again / "run" / "checkpoint-2")
    command = ["--data", str(shop_folder), "--output", str(again), *overrides]
    assert main(["shop", *command]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert (again / "report.md").read_text() == (finished / "report.md").read_text()
    written = (again / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(["shop", *command]) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert (again / "run" / "final" / "model.safetensors").stat().st_mtime_ns == written


def test_tables_and_pictures_can_lie_apart_and_measuring_can_be_left_out(shop_folder, overrides, tmp_path):
    tables, output = tmp_path / "tables", tmp_path / "out"
    tables.mkdir()
    for name in ("products.csv", "interactions.csv"):
        (tables / name).write_text((shop_folder / name).read_text().replace("pictures/", ""))
    parts = {"products": "products.csv", "interactions": "interactions.csv"}
    named = [text for key, name in parts.items() for text in (f"--{key}", str(tables / name))]
    more = ["--images", str(shop_folder / "pictures"), "--output", str(output), "--mine-per-query", "1"]
    unmeasured = ["--evaluate_before", "false", "--evaluate_after", "false", "--max_steps", "1"]
    assert main(["shop", *named, *more, *overrides, *unmeasured]) == 0
    report = (output / "report.md").read_text()
    assert "2 × images that cannot be opened" in report
    assert "missing_images" not in report
    assert "Not measured: evaluate_before or evaluate_after is off." in report
    assert set(json.loads((output / "mined" / "report.json").read_text())["negatives"]) <= {"0", "1"}


def test_what_cannot_work_is_refused_in_a_sentence(finished, shop_folder, overrides, tmp_path, capsys):
    folder, output = str(shop_folder), ["--output", str(tmp_path / "out")]
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(shop_folder / "products.csv", lonely)
    shutil.copytree(shop_folder / "pictures", lonely / "pictures")
    for arguments, message in (
        (output, "give either --data FOLDER, or --products FILE"),
        (["--data", folder, "--products", "x", *output], "give either --data FOLDER, or --products FILE"),
        (["--interactions", "x", *output], "found interactions without products"),
        (["--data", str(tmp_path / "none"), *output], "found no products"),
        (["--data", str(lonely), *output], "lonely: found no searches"),
        (["--data", folder, *output, "--learning_rat", "1"], "unknown key 'learning_rat'"),
        (["--data", folder, *output, "--mine-ratio", "7"], "mine-ratio: ratio: found 7.0"),
        (["--data", folder, *output, "--action_weights", "{click: 3}"], "action_weights: 'click': found 3"),
        (["--data", folder, "--output", str(finished), *overrides, "--seed", "9"], "holds a run of another recipe"),
    ):
        assert main(["shop", *arguments]) == 2
        assert message in capsys.readouterr().err
    astray = tmp_path / "astray"
    astray.mkdir()
    for name in ("products.csv", "interactions.csv"):
        (astray / name).write_text(
            (shop_folder / name).read_text().replace("pictures/1.png", "https://shop.example/1.png")
        )
    assert main(["shop", "--data", str(astray), *output]) == 2
    message = capsys.readouterr().err
    assert "found no product whose pictures can be opened" in message
    assert "× images given as URLs" in message
    assert "(missing_images): product '000', images[0]" in message
    changed = tmp_path / "changed"
    shutil.copytree(shop_folder, changed)
    (changed / "interactions.csv").write_text("query,product_id,action\nx,001,click\ny,002,click\nz,003,click\n")
    products = str(shop_folder / "products.csv")
    command = ["--products", products, "--interactions", str(changed / "interactions.csv")]
    assert main(["shop", *command, "--output", str(finished), *overrides]) == 2
    message = capsys.readouterr().err
    assert "another recipe" in message or "the data of the stored vectors differs" in message


def test_searches_are_held_out_by_their_names_and_every_product_stays_in_the_gallery():
    products = [ProductRow(f"p{n}", title="x") for n in range(5)]

    def table(count, **more):
        queries = [QueryRow(f"q{n}", "text", "x", positives=(f"p{n % 5}",), **more) for n in range(count)]
        return ProductTables("shop", products, queries, ValidationReport("shop", 5, count, {}))

    small, large = (with_held_out_queries(table(count)) for count in (40, 400))
    sides = {query.query_id: query.split for query in large.queries}
    assert {query.query_id: query.split for query in small.queries}.items() <= sides.items()
    assert sum(side == "test" for side in sides.values()) == pytest.approx(80, abs=25)
    for count in range(2, 9):
        assert {query.split for query in with_held_out_queries(table(count)).queries} == {"train", "test"}
    assert len(small.select("test").products) == len(small.select("train").products) == 5
    named = table(4, split="valid")
    assert with_held_out_queries(named) is named
    with pytest.raises(TableError, match="found 1 queries with an answer"):
        with_held_out_queries(table(1))


def test_tables_that_name_splits_keep_them(shop_folder, tmp_path):
    queries = [
        {"query_id": f"q{n}", "text": "x", "positives": [f"{n:03d}"], "split": "test" if n else "train"}
        for n in range(3)
    ]
    write_table(tmp_path / "queries.jsonl", queries)
    tables = read_shop({"products": str(shop_folder / "products.csv"), "queries": str(tmp_path / "queries.jsonl")})
    assert [query.split for query in tables.queries] == ["train", "test", "test"]


def test_how_cells_are_read_reaches_the_tables_and_the_recipe(tmp_path, capsys):
    (tmp_path / "products.csv").write_text("product_id,title,category_path\n1,a &amp; b,Home/Hats\n2,c,Home/Shoes\n")
    (tmp_path / "interactions.csv").write_text("query,product_id,action\nx,1,click\ny,2,click\n")
    reading = ReadingOptions(strip_html=True, category_separator=">")
    tables = load_tables(tmp_path, reading=reading)
    assert (tables.products[0].title, tables.products[0].category) == ("a & b", ("Home/Hats",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mined").mkdir()
    (tmp_path / "out" / "mined" / "queries.parquet").touch()
    recipe = _recipe(str(tmp_path), {"name": "shop", **reading.as_entry()}, tmp_path / "out", [])
    (entry,) = recipe.data.data
    assert ReadingOptions.of(entry) == reading
    assert main(["shop", "--data", str(tmp_path), "--output", str(tmp_path / "no"), "--category-separator", ""]) == 2
    assert "category_separator: found ''" in capsys.readouterr().err
