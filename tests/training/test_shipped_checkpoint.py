"""The checkpoint that the package ships: small, with its card, of products that are not those it is measured on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from evaluation.report import ARROWS
from model_cards.facts import read_card
from model_cards.licences import why_not_published
from model_cards.metadata import problems_of
from model_cards.rendering import render
from model_cards.scores import summary
from moon3.__main__ import main
from product_data.catalogue.making import plan_products
from training import quickstart, shipped_checkpoint
from training.model.card_facts import sizes_of
from training.recipe.arguments import parse_recipe
from training.shipped_checkpoint import MEASURED_ON, SHIPPED, TRAINED_ON, ship, unpack, write_shipped_card

ROOT = Path(__file__).resolve().parents[2]
RESULTS = json.loads(shipped_checkpoint.RESULTS.read_text(encoding="utf-8"))
RED = {"title": "Noru red sneakers", "category": "Sneakers", "attributes": {"colour": "red", "sole": "white"}}


def test_all_files_together_take_at_most_12_megabytes_and_none_is_code():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert not [path for path in files if path.suffix == ".py"]
    assert {"README.md", "model.safetensors", "resolved_recipe.yaml", "provenance.json"} <= {
        path.name for path in files
    }


def test_an_installed_package_has_it():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'training = ["recipes/**/*.yaml", "launch/*.yaml", "checkpoints/**/*"]' in settings


def test_the_card_is_that_of_the_renderer_with_the_numbers_of_the_results_file(tmp_path):
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert card == render(read_card(SHIPPED))
    for name in MEASURED_ON:
        part = card.partition(f"### {name}")[2]
        for direction, scores in RESULTS[name]["scores"].items():
            low, high = scores["R@10_interval"]
            shown = f"| {100 * scores['R@10']:.1f} ({100 * low:.1f}–{100 * high:.1f}) |"
            row = next(line for line in part.splitlines() if line.startswith(f"| {ARROWS[direction]} |"))
            assert shown in row
    again = tmp_path / SHIPPED.name
    shutil.copytree(SHIPPED, again)
    write_shipped_card(again, RESULTS)
    assert (again / "README.md").read_text(encoding="utf-8") == card
    assert read_card(again) == read_card(SHIPPED)
    assert main(["card", str(again)]) == 0  # as a user renders it again
    assert (again / "README.md").read_text(encoding="utf-8") == card


def test_the_card_says_what_it_is_for_its_data_its_limits_and_how_it_was_made():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    drawn = plan_products(TRAINED_ON["products"], seed=TRAINED_ON["seed"])
    for words in (
        "license: apache-2.0",
        "is not a model for a real shop",
        f"{sum(item.split == 'train' for item in drawn):,} products of the embedded catalogue (seed 1)",
        "no pictures or texts of other people",
        f"{RESULTS['steps']:,} steps from random weights",
        "24 kinds of drawn products, 1,845 byte-pair tokens of English, and pictures of 96 × 96 pixels",
        "recall without boxes was not measured",
        "on which nothing was chosen",
        "`training.shipped_checkpoint.unpack(folder)`",
    ):
        assert words in card, words
    assert len({item.design.kind.name for item in drawn}) == 24


def test_the_code_on_its_card_runs(monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (SHIPPED / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(SHIPPED.parent)
    assert len(blocks) == 2
    for block in blocks:
        assert "trust_remote_code" not in block
        exec(compile(block, "README.md", "exec"), {})
        assert "tensor" in capsys.readouterr().out


def test_its_facts_are_those_of_the_results_file_and_let_it_be_published():
    facts = read_card(SHIPPED)
    assert [result["benchmark"] for result in facts.results] == list(MEASURED_ON)
    assert facts.results == tuple(
        summary(RESULTS[name] | {"benchmark": name}, "moon1_catalogue.json") for name in MEASURED_ON
    )
    assert facts.sizes == sizes_of(SHIPPED, facts.steps)
    assert why_not_published(facts) == problems_of((SHIPPED / "README.md").read_text(encoding="utf-8")) == []


def test_what_the_first_minute_shows_is_in_the_results_file():
    assert RESULTS["unseen"]["scores"]["i2mm"]["queries"] == 510
    quick = json.loads((ROOT / "results" / "quickstart.json").read_text(encoding="utf-8"))
    for direction, scores in quick["before"]["scores"].items():
        assert scores["R@10"] == pytest.approx(RESULTS["unseen"]["scores"][direction]["R@10"], abs=0.01)


def test_it_was_not_trained_on_what_it_is_measured_on():
    seeds = [options["seed"] for options in MEASURED_ON.values()]
    assert TRAINED_ON["seed"] not in seeds
    assert len(set(seeds)) == 2
    recipe = parse_recipe([str(quickstart.RECIPE)])
    assert {"seed": 0, **recipe.data.catalogue} == MEASURED_ON["unseen"]
    told_apart = [
        {(item.design.kind.name, *sorted(item.attributes.items()), item.design.proportions) for item in items}
        for items in (
            [item for item in plan_products(TRAINED_ON["products"], seed=TRAINED_ON["seed"]) if item.split == "train"],
            [item for item in plan_products(3400, seed=0) if item.split == "test"],
        )
    ]
    assert len(told_apart[1]) == 510
    assert not told_apart[0] & told_apart[1]


def test_both_libraries_read_it_and_find_the_red_shoe():
    products = [RED, {**RED, "attributes": {"colour": "blue", "sole": "white"}, "title": "Noru blue sneakers"}]
    products.append({"title": "Fjell glass vase", "category": "Vases", "attributes": {"colour": "red"}})
    query = {"text": "red trainers with white soles"}
    model, processor = AutoModel.from_pretrained(SHIPPED).eval(), AutoProcessor.from_pretrained(SHIPPED)
    with torch.inference_mode():
        ours = model(**processor(products=products)).embeddings @ model(**processor(queries=[query])).embeddings[0]
    encoder = SentenceTransformer(str(SHIPPED), device="cpu")
    theirs = encoder.similarity(encoder.encode_document(products), encoder.encode_query([query]))[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert int(ours.argmax()) == 0


def test_its_vectors_are_those_of_earlier_versions_of_the_code():
    image = Image.fromarray(np.linspace(0, 255, 96 * 64 * 3).reshape(96, 64, 3).astype("uint8"))
    products = [
        {"title": "red sneakers", "attributes": {"colour": "red"}},
        {"images": image},
        {"title": "a mug", "images": image, "core_box": [8, 8, 50, 80]},
    ]
    model, processor = AutoModel.from_pretrained(SHIPPED).eval(), AutoProcessor.from_pretrained(SHIPPED)
    with torch.inference_mode():
        vectors = model(**processor(products=products)).embeddings
    expected = [
        [0.0091742, 0.0351867, -0.0601467, -0.0365284, 0.0459555],
        [0.0015283, 0.0459329, -0.0194700, -0.0979010, -0.0823135],
        [-0.0213559, 0.0706501, 0.1036058, -0.0160746, -0.0307918],
    ]
    torch.testing.assert_close(vectors[:, :5], torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_unpacked_it_loads_in_a_process_that_cannot_see_the_package(tmp_path):
    folder = unpack(tmp_path / "shipped")
    (tmp_path / "load.py").write_text(
        "from transformers import AutoModel, AutoProcessor\n"
        "model = AutoModel.from_pretrained('shipped', trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained('shipped', trust_remote_code=True)\n"
        "print(model(**processor(products=[{'title': 'red shoe'}])).embeddings.shape)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("torch.Size([1, 128])"), done.stderr[-2000:]
    assert "the code comes with the checkpoint" in (folder / "README.md").read_text(encoding="utf-8")
    before = (folder / "config.json").stat().st_mtime_ns
    assert unpack(folder) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_shipping_leaves_the_code_behind_and_writes_the_card(tiny_moon, tmp_path):
    ship(tiny_moon("qwen3_vl"), RESULTS | {"steps": 7}, tmp_path / "target")
    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert {"README.md", "model.safetensors", "config.json", "processor_config.json"} <= names
    assert not [name for name in names if name.endswith(".py")]
    card = (tmp_path / "target" / "README.md").read_text(encoding="utf-8")
    assert card == render(read_card(tmp_path / "target"))
    assert "7 steps from random weights" in card
    assert read_card(tmp_path / "target").name == "moon1-catalogue"
