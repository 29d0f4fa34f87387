"""The whole way from real language models, where their files are at hand.

The folder in the environment variable MOON_TEST_WEIGHTS contains SmolLM2-135M-Instruct*.gguf and
Qwen2.5-Coder-0.5B-Instruct*.gguf (on the Hub: bartowski/SmolLM2-135M-Instruct-GGUF, Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF).
"""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from table_files import write_table
from tiny_donors import tiny_donor
from tiny_runs import write_recipe
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from moon3.__main__ import main
from product_data.atomic_files import read_lines
from training.model.text_base import make_text_base
from training.studies.real_base import PROMPTS

VISION = {"hidden_size": 64, "depth": 2, "max_image_tokens": 16, "min_image_tokens": 1}
RECIPE = {
    "catalogue": {"products": 40, "image_size": 64, "progress": False},
    "preset": "moon3",
    "moon": {"embedding_dim": 64, "max_reasoning_tokens": 6},
    "stage": "grpo",
    "cold_start": {"max_steps": 1, "per_device_train_batch_size": 2, "queue_steps": 0},
    "query_mix": None,
    "rollouts": 2,
    "queue_steps": 0,
    "max_steps": 1,
    "save_steps": 1,
    "learning_rate": 1e-5,
    "use_cpu": True,
}


def donor_file(pattern):
    pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    folder = os.environ.get("MOON_TEST_WEIGHTS")
    if not folder:
        pytest.skip("MOON_TEST_WEIGHTS is not set; expected a folder with GGUF files of real language models")
    found = sorted(Path(folder).glob(pattern))
    if not found:
        pytest.skip(f"MOON_TEST_WEIGHTS contains no {pattern}")
    return found[0]


def assert_hidden_states_of_donor(file, base):
    donor = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(base)
    before, after = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), AutoTokenizer.from_pretrained(base)
    for prompt in PROMPTS:
        ids = before(prompt)["input_ids"]
        assert after(prompt)["input_ids"] == ids
        with torch.no_grad():
            expected = donor.model(input_ids=torch.tensor([ids])).last_hidden_state
            found = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def train_and_use(base, folder):
    """Train a moon3 from a base for a step of each stage, load it into sentence-transformers, and draw a heat map."""
    from sentence_transformers import SentenceTransformer

    recipe = write_recipe(folder / "recipe.yaml", base=str(base), **RECIPE)
    assert main(["train", str(recipe), "--output_dir", str(folder / "run")]) == 0
    final = folder / "run" / "final"
    assert [line["step"] for line in read_lines(folder / "run" / "metrics.jsonl")] == [1]
    encoder = SentenceTransformer(str(final), trust_remote_code=True)
    vectors = encoder.encode([{"title": "red leather ankle boots"}, "a navy mug"])
    assert vectors.shape == (2, 64)
    assert abs(float(vectors[0] @ vectors[1])) < 0.9999
    encoder.save_pretrained(str(folder / "saved"))
    again = SentenceTransformer(str(folder / "saved"), trust_remote_code=True).encode(["a navy mug"])
    np.testing.assert_allclose(again[0], vectors[1], atol=1e-5)
    drawn = ["heatmap", "--model", final, "--data", "catalogue", "--catalogue-products", 20, "--first", 1]
    assert main([*map(str, drawn), "--reasoning", "generate", "--output", str(folder / "maps")]) == 0
    assert list((folder / "maps").glob("*.png"))


def test_a_tiny_language_model_becomes_a_moon_that_trains_reasons_searches_and_explains(tmp_path):
    donor = tiny_donor(tmp_path / "donor")
    train_and_use(make_text_base(donor, tmp_path / "base", corpus="catalogue", vision=VISION), tmp_path)


@pytest.mark.slow
def test_smollm2_is_exact_and_becomes_a_moon_that_trains_reasons_searches_and_explains(tmp_path):
    file = donor_file("SmolLM2-135M-Instruct*.gguf")
    base = make_text_base(file, tmp_path / "whole", vision=VISION)
    assert_hidden_states_of_donor(file, base)
    corpus = write_table(tmp_path / "products.csv", [{"product_id": "1", "title": "red leather ankle boots, navy mug"}])
    small = make_text_base(file, tmp_path / "small", layers=2, corpus=corpus, vision=VISION)
    assert len(AutoTokenizer.from_pretrained(small)) < 1500
    train_and_use(small, tmp_path)


@pytest.mark.slow
def test_qwen_is_exact_and_writes_the_attributes_of_a_product(tmp_path):
    file = donor_file("*[Qq]wen2.5*0.5[Bb]*.gguf")
    base = make_text_base(file, tmp_path / "base", vision=VISION)
    assert_hidden_states_of_donor(file, base)
    title = "Red leather ankle boots for women with a block heel"
    products = write_table(tmp_path / "products.csv", [{"product_id": "1", "title": title}])
    output = tmp_path / "written_attributes.parquet"
    words = ["annotate", products, "--model", base, "--forms", "text", "--attempts", 2, "--max-new-tokens", 64]
    assert main([*map(str, words), "--output", str(output), "--quiet"]) == 0
    row = pyarrow.parquet.read_table(output).to_pylist()[0]
    print(row)
    assert "red" in str(row["attributes_text"]).lower()
    assert "leather" in str(row["attributes_text"]).lower()
