"""The cards of a whole training: every number is in a file, every snippet runs, and what is pushed and pulled is whole."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from closeness import VALUE
from safetensors.torch import load_file

from evaluation.baselines.dual_tower import DualTower
from evaluation.benchmarks.dimensions import evaluate_dimensions
from evaluation.benchmarks.retrieval import evaluate_retrieval
from evaluation.report import results_table
from model_cards.facts import Licence, read_card
from model_cards.licences import why_not_published
from model_cards.metadata import front_matter, problems_of
from model_cards.publishing import missing_files
from model_cards.rendering import LEVEL, MARK
from moon3.__main__ import main
from processing_moon import MoonProcessor
from product_data.catalogue.making import write_catalogue
from product_data.tables import load_tables
from retrieval.encode import VectorCache, encode, load_for_evaluation
from training.assembly.trained_model import save_trained
from training.model.upcycle import upcycle
from training.recipe.same_recipe import differing_keys
from training.runs.cards import steps_of, training_step
from training.train import main as train

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = [{"title": "red mug", "attributes": {"colour": "red"}}, {"title": "oak table"}]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """A tiny base upcycled, trained two steps with adapters and narrower widths, and measured before and after."""
    folder = tmp_path_factory.mktemp("cards")
    write_catalogue(folder / "shop", products=120, image_size=64, progress=False)
    recipe = {
        "base": str(tiny_base("qwen3_vl")),
        "moon": {"embedding_dim": 32},
        "lora": {"r": 2},
        "matryoshka_dims": [8],
        "data": [str(folder / "shop"), {"path": "catalogue", "name": "drawn"}],
        "catalogue": {"products": 40, "image_size": 64},
        "max_image_tokens": 4,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "evaluate_before": True,
        "evaluate_after": True,
        "disable_tqdm": True,
        "output_dir": str(folder / "tiny-shop"),
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert train([str(folder / "tiny.yaml")]) == 0
    return folder / "tiny-shop"


@pytest.fixture
def final(run, tmp_path):
    """A copy of the trained model with its run's results, to be changed."""
    for path in run.glob("results_*.json"):
        shutil.copy(path, tmp_path)
    return Path(shutil.copytree(run / "final", tmp_path / "final"))


def text_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def numbers_shown(text):
    """Every number of a card's words and tables, and of the index in its metadata; code, links and ids of papers apart."""
    text = re.sub(r"\[[^]]*\]\(http[^)]*\)|commit \w+|time \S+", "", BLOCK.sub("", text))
    return {found.rstrip(",") for found in re.findall(r"(?<![\w.@-])\d[\d,]*(?:\.\d+)?(?!\w)", text)}


def numbers_in(value):
    """Every number of a parsed file: as it is, and as per cent with one decimal."""
    if isinstance(value, dict):
        return {found for pair in value.items() for one in pair for found in numbers_in(one)}
    if isinstance(value, list):
        return {found for one in value for found in numbers_in(one)}
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(re.findall(r"\d+(?:\.\d+)?", value))
    return {f"{value}", f"{value:,}", f"{100 * value:.1f}"}


def numbers_of_weights(folder):
    """Count the parameters of the weights: all, and without the experts that a token does not use."""
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    total = sum(weight.numel() for weight in weights.values())
    expert = sum(weight[0].numel() for name, weight in weights.items() if ".experts." in name)
    idle = config["num_experts"] - config["num_experts_per_token"]
    counts = [total, total - idle * expert, total - (idle - 1) * expert, (folder / "model.safetensors").stat().st_size]
    return {f"{count:,}" for count in counts}


def test_every_number_of_the_card_is_in_a_file(run):
    final = run / "final"
    known = numbers_of_weights(final) | {str(LEVEL)}
    for path in [
        *run.glob("results_*.json"),
        final / "config.json",
        final / "processor_config.json",
        final / "provenance.json",
    ]:
        known |= numbers_in(json.loads(path.read_text()))
    known |= numbers_in(yaml.safe_load((final / "resolved_recipe.yaml").read_text()))
    known |= {name for path in run.glob("results_*.json") for name in re.findall(r"\d+", path.name)}
    shown = numbers_shown(text_of(final))
    assert len(shown) > 50
    assert numbers_shown("R@10 of 98.76 in 1,234,567") - known == {"98.76", "1,234,567"}
    places = {str(place) for place in range(1, 3)}  # of the steps in their list
    assert shown - known - places == set()


def test_the_card_says_how_the_weights_were_made_and_under_which_licence(run):
    text, card = text_of(run / "final"), read_card(run / "final")
    assert [step.kind for step in card.steps] == ["upcycling", "training"]
    assert card.base.random
    assert {one.name: one.licence for one in card.data} == {"shop": "apache-2.0", "drawn": "apache-2.0"}
    assert card.licence.id == "apache-2.0"
    assert problems_of(text) == []
    assert str(ROOT) not in text
    assert str(run.parent) not in text
    assert "LoRA r 2" in text
    assert "The adapter is merged into the weights." in text
    assert {result["side"] for result in card.results} == {"before", "after"}
    assert len(card.results) == 4
    assert "## Dimensions against quality: shop" in text


def test_the_adapter_and_the_upcycled_checkpoint_have_cards_of_their_own(run):
    adapter, base = text_of(run / "adapter"), text_of(run / "base")
    assert "LoRA weights of a Moon model" in adapter
    assert "More Information Needed" not in adapter
    assert "It was upcycled and not trained" in base
    assert problems_of(adapter) == problems_of(base) == []
    assert missing_files(run / "adapter", "adapter") == missing_files(run / "base", "moon") == []


@pytest.mark.parametrize(("name", "blocks"), [("final", 3), ("adapter", 1)])
@pytest.mark.slow
def test_each_snippet_runs(run, name, blocks):
    found = BLOCK.findall(text_of(run / name))
    assert len(found) == blocks
    for block in found:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if "import modeling_moon" not in block:
            environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=run, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "tensor" in done.stdout


@pytest.mark.slow
def test_a_snippet_of_a_model_that_reasons_runs(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon3")
    block = BLOCK.findall(text_of(folder))[3]
    done = subprocess.run([sys.executable, "-c", block], cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch.Size([1, 32])" in done.stdout


@pytest.mark.slow
def test_the_dual_tower_has_a_card_whose_snippet_runs(tiny_base, tiny_moon, tmp_path):
    processor = MoonProcessor.from_pretrained(tiny_moon("qwen3_vl"))
    tower = DualTower.from_base(tiny_base("qwen3_vl"), processor, embedding_dim=16)
    save_trained(tower, processor, tmp_path / "final", tiny_moon("qwen3_vl"))
    text = text_of(tmp_path / "final")
    assert problems_of(text) == []
    assert "Its two towers began as layers of qwen3_vl" in text
    block = BLOCK.findall(text)[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tensor" in done.stdout


PULLED = """
import sys
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor
from sentence_transformers import SentenceTransformer

folder, out, products = sys.argv[1], sys.argv[2], eval(sys.argv[3])
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    ours = model(**processor(products=products)).embeddings.numpy()
np.savez(out, ours=ours, theirs=SentenceTransformer(folder, trust_remote_code=True).encode_document(products))
"""


def test_what_is_pushed_into_a_folder_and_pulled_again_is_whole_and_gives_equal_vectors(run, tmp_path, capsys):
    pushed = tmp_path / "hub" / "tiny-shop"
    assert main(["push", str(run / "final"), "our/tiny-shop", "--to", str(pushed), "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert not pushed.exists()
    assert main(["push", str(run / "final"), "our/tiny-shop", "--to", str(pushed)]) == 0
    names = {path.name for path in pushed.iterdir()}
    assert names == {path.name for path in (run / "final").iterdir()} - {"__pycache__"}
    for path in pushed.iterdir():
        assert f"{path.stat().st_size:>15,}  {path.name}" in listed
    assert 'checkpoint = "our/tiny-shop"' in text_of(pushed)
    assert 'checkpoint = "final"' in text_of(run / "final")
    pulled = shutil.copytree(pushed, tmp_path / "pulled")
    (tmp_path / "load.py").write_text(PULLED)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    words = [sys.executable, "load.py", str(pulled), "vectors.npz", repr(PRODUCTS)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "vectors.npz")
    expected = encode(*load_for_evaluation(run / "final"), PRODUCTS, progress=False).vectors
    np.testing.assert_allclose(found["ours"], expected, rtol=0, atol=VALUE)
    np.testing.assert_allclose(found["theirs"], expected, rtol=0, atol=VALUE)


def test_the_card_is_rendered_again_from_results_that_changed(final):
    before = text_of(final)
    assert main(["card", str(final)]) == 0
    assert text_of(final) == before
    results = json.loads((final.parent / "results_after-shop.json").read_text())
    results["scores"]["t2mm"] |= {"R@10": 0.4321, "R@10_interval": [0.4, 0.5]}
    (final.parent / "results_after-shop.json").write_text(json.dumps(results))
    assert main(["card", str(final)]) == 0
    assert "43.2 (40.0–50.0)" in text_of(final)
    for path in final.parent.glob("results_*.json"):  # without its run, a model keeps what its card holds
        path.unlink()
    kept = text_of(final)
    assert main(["card", str(final)]) == 0
    assert text_of(final) == kept
    other = final.parent / "of_another_day.json"
    other.write_text(json.dumps({**results, "benchmark": "new"}))
    assert (
        main(["card", str(final), "--results", str(other), "--hub-dataset", "new=our/searches", "--name", "Shop"]) == 0
    )
    assert "### new" in text_of(final)
    assert "### shop" not in text_of(final)
    assert "# Shop\n" in text_of(final)
    assert (final / ".eval_results" / "new.yaml").is_file()


def test_a_users_own_readme_stays_and_is_pushed_as_it_is_if_its_metadata_is_right(final, tmp_path, capsys):
    own = "---\nlicense: mit\npipeline_tag: feature-extraction\n---\n# Mine\n"
    (final / "README.md").write_text(own)
    assert main(["card", str(final)]) == 1
    assert "which moon3 card did not render; --overwrite replaces it" in capsys.readouterr().out
    assert main(["push", str(final), "--to", str(tmp_path / "pushed")]) == 0
    assert text_of(tmp_path / "pushed") == own
    (final / "README.md").write_text(own.replace("mit", "mitt").replace("feature-extraction", "search"))
    assert main(["push", str(final), "--to", str(tmp_path / "again")]) == 2
    said = capsys.readouterr().err
    assert "license: found 'mitt'; did you mean 'mit'?" in said
    assert "pipeline_tag: found 'search'" in said
    assert not (tmp_path / "again").exists()
    assert main(["card", str(final), "--overwrite"]) == 0
    assert MARK in text_of(final)


def test_a_licence_of_the_data_that_forbids_it_keeps_weights_from_being_pushed(final, tmp_path, capsys):
    def push():
        return main(["push", str(final), "our/shop", "--to", str(tmp_path / "pushed"), "--dry-run"])

    for licence, why in (
        ("none", "data set shop: its owner has granted no licence"),
        ("cc-by-nc-4.0", "data set shop: cc-by-nc-4.0 forbids commercial use, and the weights are under apache-2.0"),
        ("cc-by-nd-4.0", "data set shop: cc-by-nd-4.0 forbids derived works"),
        ("unknown", "data set shop: found no licence"),
        ("other", "licence 'other' does not say what it permits"),
    ):
        assert main(["card", str(final), "--data-licence", f"shop={licence}"]) == 0
        assert why in capsys.readouterr().out
        assert push() == 2
        assert why in capsys.readouterr().err
    for licence in ("mit", "own", "permitted"):
        assert main(["card", str(final), "--data-licence", f"shop={licence}"]) == 0
        assert push() == 0
    assert front_matter(text_of(final))["license"] == "apache-2.0"
    capsys.readouterr()
    words = ["--data-licence", "shop=cc-by-nc-4.0", "--licence", "cc-by-nc-sa-4.0"]
    assert main(["card", str(final), *words]) == 0
    assert push() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-licence", "shop=mitt"], "licence of shop: found 'mitt'; did you mean 'mit'?"),
        (["--data-licence", "other=mit"], "found other; expected a data set of the checkpoint: shop, drawn"),
        (["--data-licence", "shop"], "--data-licence: found 'shop'; expected NAME=VALUE"),
        (["--licence", "apache"], "--licence: found 'apache'"),
        (["--licence", "other"], "expected both with other"),
        (["--results", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--hub-dataset", "x=a/b"], "found benchmark 'x'; expected one of the results: drawn, shop"),
        (["--hub-dataset", "shop=x"], "shop: found 'x'; expected the id of a data set on the Hub"),
    ],
)
def test_what_cannot_be_declared_is_refused_and_the_card_stays(words, said, final, capsys):
    before = text_of(final)
    assert main(["card", str(final), *words]) == 2
    assert said in capsys.readouterr().err
    assert text_of(final) == before


def test_an_incomplete_checkpoint_is_not_pushed(final, tmp_path, capsys):
    (final / "routing_moon.py").unlink()
    (final / "tokenizer.json").unlink()
    assert main(["push", str(final), "--to", str(tmp_path / "pushed")]) == 2
    assert "found no routing_moon.py, tokenizer.json; expected" in capsys.readouterr().err
    (final / "model_card.json").unlink()
    assert main(["push", str(final), "--to", str(tmp_path / "pushed")]) == 2
    assert "found no model_card.json; expected a checkpoint with a card" in capsys.readouterr().err
    assert main(["push", str(final)]) == 2
    assert "expected one of them" in capsys.readouterr().err
    assert main(["push", str(final), "no id"]) == 2
    assert "expected an id on the hub" in capsys.readouterr().err


def test_an_adapter_is_pushed_only_over_a_base_that_others_have(run, tmp_path, capsys):
    folder = shutil.copytree(run / "adapter", tmp_path / "adapter")
    assert main(["push", str(folder), "our/adapter", "--dry-run"]) == 2
    assert "found an adapter over 'base', which is not on the hub; expected the model" in capsys.readouterr().err
    facts = json.loads((folder / "model_card.json").read_text())
    (folder / "model_card.json").write_text(json.dumps({**facts, "adapter_base": "our/moon"}))
    assert main(["push", str(folder), "our/adapter", "--dry-run"]) == 0


def test_what_came_before_cards_is_unrecorded_until_it_is_declared(final, tmp_path, capsys):
    for name in ("model_card.json", "README.md", "resolved_recipe.yaml"):
        (final / name).unlink()
    assert main(["card", str(final)]) == 0
    said = capsys.readouterr().out
    assert "the training data of the weights is not recorded" in said
    assert "license: found nothing" in said
    assert main(["push", str(final), "--to", str(tmp_path / "pushed")]) == 2
    assert main(["card", str(final), "--data-licence", "old-shop=own", "--licence", "mit"]) == 0
    assert main(["push", str(final), "--to", str(tmp_path / "pushed")]) == 0
    assert "Declared afterwards: trained on old-shop." in text_of(tmp_path / "pushed")


def test_a_broken_record_of_the_start_counts_as_none(final):
    (final / "model_card.json").write_text("not json")
    assert [step.kind for step in steps_of(final)] == ["unrecorded", "training"]
    assert [step.kind for step in steps_of(final.parent / "nowhere")] == ["unrecorded"]


def test_a_licence_in_the_recipe_stands_on_the_card_and_is_no_other_run(run, tmp_path):

    recipe = yaml.safe_load((run / "resolved_recipe.yaml").read_text())
    with_licence = {**recipe, "data": [{"path": recipe["data"][0], "licence": "cc-by-4.0"}, recipe["data"][1]]}
    assert differing_keys(recipe, with_licence) == []
    (tmp_path / "resolved_recipe.yaml").write_text(yaml.safe_dump(with_licence))
    assert [one.licence for one in training_step(tmp_path).data] == ["cc-by-4.0", "apache-2.0"]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"data": [{"path": "catalogue", "licence": "mitt"}], "max_steps": 1})
    )
    assert train([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]) == 2


def test_a_base_hands_its_licence_and_its_id_on(tiny_base, tmp_path, monkeypatch):
    base = shutil.copytree(tiny_base("qwen3_vl"), tmp_path / "snapshot")
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE\n---\n# Base\n"
    )
    monkeypatch.setattr("training.model.upcycle.snapshot_download", lambda *_, **__: str(base))
    folder = upcycle("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path / "moon", embedding_dim=32)
    values = front_matter(text_of(folder))
    assert values["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (values["license"], values["license_name"]) == ("other", "qwen-research")
    card = read_card(folder)

    assert why_not_published(card) == []
    said = why_not_published(dataclasses.replace(card, licence=Licence("mit")))
    assert said == ["base Qwen/Qwen2.5-VL-3B-Instruct: its licence qwen-research binds derived weights; found mit"]


def test_uploading_sends_every_file_in_one_commit(run, monkeypatch, capsys):
    sent = {}

    class Hub:
        def create_repo(self, repository, **options):
            sent["repository"] = (repository, options)

        def create_commit(self, repository, operations, commit_message):
            sent["files"] = {one.path_in_repo: one.path_or_fileobj for one in operations}
            return type("Commit", (), {"repo_url": f"https://huggingface.co/{repository}"})

    monkeypatch.setattr("model_cards.publishing.HfApi", Hub)
    assert main(["push", str(run / "final"), "our/shop", "--private"]) == 0
    assert sent["repository"] == ("our/shop", {"private": True, "exist_ok": True})
    assert set(sent["files"]) == {path.name for path in (run / "final").iterdir() if path.is_file()}
    assert b'checkpoint = "our/shop"' in sent["files"]["README.md"]
    assert "https://huggingface.co/our/shop" in capsys.readouterr().out


def test_narrower_vectors_are_scored_as_if_they_were_encoded_so(run):
    """The slow reference: a model whose vectors are cut and normalised before they are searched."""

    model, processor = load_for_evaluation(run / "final")
    tables = load_tables(run.parent / "shop").select("test")

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.embeddings = torch.nn.functional.normalize(output.embeddings[:, :8], dim=-1)
            return output

    found = evaluate_dimensions(VectorCache(model, processor, tables.products, tables.queries, progress=False), [8, 32])
    slow = evaluate_retrieval(VectorCache(Narrow(), processor, tables.products, tables.queries, progress=False))[
        "scores"
    ]
    whole = evaluate_retrieval(VectorCache(model, processor, tables.products, tables.queries, progress=False))["scores"]
    assert found["8"]["scores"] == {name: scores for name, scores in slow.items() if scores}
    assert found["32"]["scores"] == {name: scores for name, scores in whole.items() if scores}
    assert found["8"]["scores"] != found["32"]["scores"]
    table = results_table([json.loads((run / "results_after-shop.json").read_text())])
    shown = f"| t→mm, first 8 numbers | {100 * found['8']['scores']['t2mm']['R@1']:.1f} |"
    assert shown in re.sub(" +", " ", table)
