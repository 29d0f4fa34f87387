"""mteb's scores of a Moon are our own scores of the same vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import noise

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install moon3[mteb])")

from datasets import Dataset, Features, Image, Value  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from evaluation.metrics import recall_at, search_ndcg, search_ranks  # noqa: E402
from evaluation.mteb_model import MtebEncoder, MtebInputError, main_scores, record_of, run_tasks  # noqa: E402
from moon3.__main__ import main  # noqa: E402
from product_data.errors import OptionError  # noqa: E402
from retrieval.encode import encode, load_for_evaluation  # noqa: E402

COLOURS = ("red", "blue", "green", "brown", "white", "striped")
NOUNS = ("running shoes", "leather bag", "mug", "cotton shirt")
TITLES = [f"{colour} {noun}" for colour in COLOURS for noun in NOUNS]
METADATA: dict[str, Any] = {
    "description": "made",
    "reference": "https://example.org",
    "dataset": {"path": "NA", "revision": "NA"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "main_score": "ndcg_at_10",
    "date": ("2025-01-01", "2025-01-02"),
    "dialect": [],
    "domains": [],
    "task_subtypes": [],
    "license": "cc-by-4.0",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}


class MadeRetrieval(AbsTaskRetrieval):
    """Texts find products of title and body; every second query has two right answers of different grades."""

    metadata = TaskMetadata(name="MadeRetrieval", type="Retrieval", category="t2t", modalities=["text"], **METADATA)
    queries = [{"id": f"q{number}", "text": f"a {title} for women"} for number, title in enumerate(TITLES)]
    corpus = [{"id": f"d{number}", "title": title, "text": f"size {number}"} for number, title in enumerate(TITLES)]
    answers = {
        f"q{number}": {f"d{number}": 2} | ({f"d{(number + 1) % len(TITLES)}": 1} if number % 2 else {})
        for number in range(len(TITLES))
    }

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        split = {
            "corpus": Dataset.from_list(self.corpus),
            "queries": Dataset.from_list(self.queries),
            "relevant_docs": self.answers,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class MadePictures(AbsTaskRetrieval):
    """Texts find products that are pictures with a text."""

    metadata = TaskMetadata(
        name="MadePictures", type="Any2AnyRetrieval", category="t2it", modalities=["text", "image"], **METADATA
    )
    answers = {f"q{number}": {f"d{number}": 1} for number in range(6)}

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        features = Features({"id": Value("string"), "text": Value("string"), "image": Image()})
        corpus = [{"id": f"d{n}", "text": TITLES[n], "image": noise(40, 40, n)} for n in range(6)]
        split = {
            "corpus": Dataset.from_list(corpus, features=features),
            "queries": Dataset.from_list([{"id": f"q{n}", "text": f"a {TITLES[n]}"} for n in range(6)]),
            "relevant_docs": self.answers,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def rounded(score: float) -> float:
    """Round to the digits that mteb keeps."""
    return round(float(score), 5)


def scores_of(results: list[dict[str, Any]]) -> dict[str, float]:
    ((scores,),) = [result["scores"]["test"] for result in results]
    return scores


@pytest.mark.parametrize("preset", [{}, {"readout": "emb", "fusion": True, "fire_layers": [0]}])
def test_mtebs_scores_are_ours_on_the_same_vectors(tiny_moon: Callable[..., Path], preset: dict[str, Any]) -> None:
    folder = tiny_moon(**preset)
    results = run_tasks(str(folder), [MadeRetrieval()], device="cpu")
    model = load_for_evaluation(folder, device="cpu")
    queries = encode(*model, [{"text": row["text"]} for row in MadeRetrieval.queries], kind="query", progress=False)
    records = [{"title": row["title"], "description": row["text"]} for row in MadeRetrieval.corpus]
    products = encode(*model, records, progress=False)
    place = {row["id"]: number for number, row in enumerate(MadeRetrieval.corpus)}
    gains = [{place[name]: float(grade) for name, grade in found.items()} for found in MadeRetrieval.answers.values()]
    rank_Q = search_ranks(queries.vectors, products.vectors, [list(found) for found in gains])
    ndcg = search_ndcg(queries.vectors, products.vectors, gains, None, (1, 5, 10))
    found = scores_of(results)
    for k in (1, 5, 10):
        assert found[f"ndcg_at_{k}"] == pytest.approx(rounded(ndcg[k].mean()), abs=1e-6), k
        assert found[f"hit_rate_at_{k}"] == pytest.approx(rounded(recall_at(rank_Q, k)), abs=1e-6), k
    assert 0 < found["ndcg_at_10"] < 1
    assert main_scores(results) == [["MadeRetrieval", "test", "default", found["ndcg_at_10"]]]


def test_pictures_and_texts_of_a_task_are_one_product(tiny_moon: Callable[..., Path]) -> None:
    found = scores_of(run_tasks(str(tiny_moon()), [MadePictures()], device="cpu"))
    model = load_for_evaluation(tiny_moon(), device="cpu")
    records = [{"title": TITLES[n], "images": noise(40, 40, n)} for n in range(6)]
    products = encode(*model, records, progress=False).vectors
    queries = encode(*model, [{"text": f"a {TITLES[n]}"} for n in range(6)], kind="query", progress=False).vectors
    rank_Q = search_ranks(queries, products, [[n] for n in range(6)])
    assert found["mrr_at_10"] == pytest.approx(rounded((1 / rank_Q).mean()), abs=1e-6)


def test_an_input_becomes_a_record_with_its_own_fields() -> None:
    document = {"text": "Red shoes size 3", "title": "Red shoes", "body": "size 3"}
    assert record_of(document, False) == {"title": "Red shoes", "description": "size 3", "images": None}
    assert record_of({"text": "words", "title": "", "body": "words"}, False) == {"title": "words", "images": None}
    assert record_of({"text": "words"}, True) == {"text": "words", "image": None}


def test_an_input_that_cannot_be_embedded_is_an_error_and_never_a_vector(tiny_moon: Callable[..., Path]) -> None:
    encoder = MtebEncoder(*load_for_evaluation(tiny_moon(), device="cpu"), "moon")
    batches = [{"text": ["red shoes", " "]}]
    with pytest.raises(
        MtebInputError, match="MadeRetrieval: 1 of 2 inputs cannot be embedded; first: number 1, record: neither text"
    ):
        encoder.encode(batches, task_metadata=MadeRetrieval.metadata, prompt_type=PromptType.query)
    query = encoder.encode([{"text": ["red"]}], task_metadata=MadeRetrieval.metadata, prompt_type=PromptType.query)
    other = encoder.encode([{"text": ["red"]}], task_metadata=MadeRetrieval.metadata)
    assert np.abs(query - other).max() > 1e-5
    with pytest.raises(OptionError, match="'bm25' has no vectors of its own"):
        MtebEncoder(*load_for_evaluation("bm25", device="cpu"), "bm25")


def test_the_command_writes_and_prints_the_scores(
    tiny_moon: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = mteb.get_task
    monkeypatch.setattr(mteb, "get_task", lambda name: MadePictures() if name == "MadePictures" else own(name))
    output = tmp_path / "scores" / "mteb.json"
    command = ["mteb", "MadePictures", "--model", str(tiny_moon()), "--device", "cpu"]
    assert main([*command, "--output", str(output)]) == 0
    assert "| MadePictures | test    | default  |" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["tasks"][0]["task_name"] == "MadePictures"
    assert main(["mteb", "NoSuchTask", "--model", str(tiny_moon())]) == 2
    assert "'NoSuchTask'" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(command) == 2
    assert "expected pip install moon3[mteb]" in capsys.readouterr().err
