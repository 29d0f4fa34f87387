"""The comparison of a base with its language model: what is equal, what is not, and the file of figures."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_donors import donor_tokenizer, tiny_donor

from moon3.__main__ import main
from training.model.text_base import make_text_base
from training.studies.real_base import PROMPTS, compare, record, summary, table

VISION = {"hidden_size": 32, "depth": 2, "max_image_tokens": 4, "min_image_tokens": 1}


def test_a_base_and_its_moons_are_equal_to_the_language_model(tmp_path):
    donor = tiny_donor(tmp_path / "donor", spare=0)  # a spare row could be written, and is no token
    result = compare(donor, make_text_base(donor, tmp_path / "base", vision=VISION))
    assert result["equal"]
    assert list(result["models"]) == ["base", "moon1", "moon2", "moon3"]
    assert result["same_tokens"] == result["prompts"] == len(PROMPTS) == 10
    assert all(found["same_texts"] == 10 for found in result["models"].values())
    assert all(found["relative_difference"] <= 1e-5 for found in result["models"].values())
    assert result["models"]["base"]["largest_value"] > 0.1
    assert len(set(result["written"])) > 3
    assert summary(result).endswith("\nequal")


def test_layers_and_a_corpus_are_compared_with_the_language_model_cut_in_the_same_way(tmp_path):
    donor = tiny_donor(tmp_path / "donor", "qwen2", tokenizer=donor_tokenizer(None))
    (tmp_path / "corpus.txt").write_text("red bags\ngold mugs\n")
    options = {"layers": 2, "corpus": tmp_path / "corpus.txt"}
    base = make_text_base(donor, tmp_path / "base", vision=VISION, **options)
    result = compare(donor, base, presets=["moon1"], **options)
    assert result["equal"]
    assert result["written"] is None
    assert (result["layers"], result["pruned"]) == (2, True)
    assert not compare(donor, base, presets=[], corpus=options["corpus"])["equal"]  # all three layers of the donor


def test_another_weight_is_noticed(tmp_path):
    donor = tiny_donor(tmp_path / "donor", spare=0)  # a spare row could be written, and is no token
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.bias"))
    assert not tensors[name].any()
    tensors[name] += 0.5 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    result = compare(donor, base, presets=[])
    assert not result["equal"]
    assert summary(result).endswith("NOT equal")


def test_a_result_is_added_to_the_file_and_replaces_its_older_one(tmp_path):
    one = {"text": "a", "layers": None, "pruned": False, "equal": True}
    path = tmp_path / "real_base.json"
    for result in (one, {**one, "text": "b"}, {**one, "equal": False}):
        record(result, path)
    found = json.loads(path.read_text())["bases"]
    assert [(result["text"], result["equal"]) for result in found] == [("b", True), ("a", False)]


def test_the_table_in_the_docs_is_rendered_from_the_file(project_root):
    results = json.loads((project_root / "results" / "real_base.json").read_text())
    assert all(result["equal"] for result in results["bases"])
    assert "<!-- real-base-table -->\n" + table(results) in (project_root / "docs" / "training.md").read_text()


@pytest.mark.parametrize("equal", [True, False])
def test_the_command_writes_the_figures_and_fails_if_they_differ(tmp_path, capsys, monkeypatch, equal):
    from training.studies import real_base

    donor = tiny_donor(tmp_path / "donor", spare=0)  # a spare row could be written, and is no token
    monkeypatch.setattr(real_base, "TOLERANCE", 1e-5 if equal else -1.0)
    words = ["--text", donor, "--out", tmp_path / "base", "--check", tmp_path / "figures.json", "--layers", 1]
    assert main(["make-base", *map(str, words)]) == (0 if equal else 1)
    assert ("NOT equal" in capsys.readouterr().out) != equal
    found = json.loads((tmp_path / "figures.json").read_text())["bases"]
    assert [(result["text"], result["layers"], result["equal"]) for result in found] == [("donor", 1, equal)]
