"""The main job in five minutes: draw a catalogue, build a small Moon, train it, measure it before and after, search.

    python -m training.quickstart

Everything is written to runs/quickstart: the catalogue as a shop would bring it (parquet tables), the run with its metrics,
the trained checkpoint (run/final), results.json and search.png. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.report import comparison_table, contact_sheet
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.catalogue.making import write_catalogue
from product_data.tables import ProductTables, QueryRow, load_tables
from retrieval.encode import load_for_evaluation
from training.assembly.starting_model import load_start, prepare_base
from training.recipe.arguments import RecipeError, parse_recipe
from training.train import REFUSED, STOPPED, forgotten_if_refused, open_run
from training.train import run as train

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "training" / "recipes" / "quickstart.yaml"
SEARCHES = ("text", "image", "both")
OPTIONS_FILE = "options.json"


def draw_catalogue(folder: Path, options: dict[str, Any]) -> ProductTables:
    """The embedded catalogue as parquet tables in `folder`, drawn once for its options, and read like any shop's own."""
    stored = folder / OPTIONS_FILE
    if not stored.is_file() or json.loads(stored.read_text(encoding="utf-8")) != options:
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write_catalogue(partial, **options)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"catalogue: {error}") from error
        (partial / OPTIONS_FILE).write_text(json.dumps(options) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return load_tables(folder)


def measure(model: Any, processor: Any, tables: ProductTables, name: str) -> dict[str, Any]:
    """Recall in the five directions over the unseen products of the catalogue."""
    return evaluate_model(model, processor, tables, model_name=name, options=EvaluationOptions(only=("retrieval",)))


def check_both_libraries(checkpoint: Path, products: list[dict[str, Any]]) -> float:
    """Largest difference between the vectors of `AutoModel` and of `SentenceTransformer` from the same folder."""
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)
    with torch.inference_mode():
        ours = model(**processor(products=products, return_tensors="pt")).embeddings.numpy()
    theirs = SentenceTransformer(str(checkpoint), device="cpu").encode_document(products)
    return float(np.abs(ours - theirs).max())


def search(checkpoint: Path, tables: ProductTables, top: int = 5) -> list[SearchExample]:
    """Answer one text, one photo and one photo-with-text query among the unseen products, with sentence-transformers."""
    encoder = SentenceTransformer(str(checkpoint))
    gallery = encoder.encode_document([row.record() for row in tables.products], show_progress_bar=True)
    queries = [_example_query(tables, kind) for kind in SEARCHES]
    scores = encoder.similarity(encoder.encode_query([query.record() for query in queries]), gallery).numpy()
    examples = []
    for query, score_G in zip(queries, scores, strict=True):
        ranked = [i for i in np.argsort(-score_G) if tables.products[i].product_id != query.reference_product_id][:top]
        found = [
            (tables.products[i], float(score_G[i]), tables.products[i].product_id in query.positives) for i in ranked
        ]
        examples.append(SearchExample(query, tuple(found)))
    return examples


def _example_query(tables: ProductTables, kind: str) -> QueryRow:
    """A query of a kind whose answer is in the gallery; which one does not depend on the model."""
    known = {row.product_id for row in tables.products}
    fitting = [query for query in tables.queries if query.type == kind and known & set(query.positives)]
    return fitting[len(fitting) * (1 + SEARCHES.index(kind)) // 4]


def main(arguments: list[str] | None = None) -> int:
    """Command line; any further `--key value` replaces the recipe's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where everything is written")
    chosen, overrides = parser.parse_known_args(arguments)
    try:
        quickstart(chosen.folder, overrides)
    except (*REFUSED, *STOPPED) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 3 if isinstance(error, STOPPED) else 2
    return 0


def quickstart(folder: Path, overrides: list[str]) -> None:
    """The whole of it; what an earlier call has finished is kept.

    Args:
        folder: where everything is written.
        overrides: `--key value` pairs that replace the recipe's; `--overwrite` starts the run anew.

    Raises:
        RecipeError: the folder holds a run of other values, or a value that cannot be used.
    """
    started = time.monotonic()
    (folder / "catalogue").mkdir(parents=True, exist_ok=True)
    own = ["--output_dir", str(folder / "run"), "--data", str(folder / "catalogue")]
    recipe = parse_recipe([str(RECIPE), *own, *overrides])
    with forgotten_if_refused(recipe):
        open_run(
            recipe
        )  # before anything is drawn or made: it refuses other values, and clears where that is asked for
        recipe.training.overwrite = False
        print(f"1/6  The catalogue, drawn into {folder / 'catalogue'}", flush=True)
        tables = draw_catalogue(folder / "catalogue", recipe.data.catalogue or {})
        unseen = tables.select("test")
        print(
            f"     {len(tables.products)} products, {len(unseen.products)} of them never seen in training", flush=True
        )
        print("2/6  A small Moon with random weights, and what it finds untrained", flush=True)
        start = load_start(recipe, prepare_base(recipe, [tables.select("train")]), on_gpu=torch.cuda.is_available())
    before = measure(*start, unseen, "untrained")
    print(f"3/6  Training, about {recipe.training.train_minutes or 0:g} minutes", flush=True)
    train(recipe)
    checkpoint = folder / "run" / "final"
    print("4/6  What it finds now", flush=True)
    after = measure(*load_for_evaluation(checkpoint), unseen, "trained")
    print(comparison_table([before, after], names=["untrained", "trained"]))
    print("5/6  The checkpoint, read by transformers and by sentence-transformers", flush=True)
    records = [row.record() for row in unseen.products[:8]]
    difference = check_both_libraries(checkpoint, records)
    print(f"     largest difference between their vectors: {difference:.1e}", flush=True)
    print("6/6  Three searches: words, a photo, a photo and words", flush=True)
    contact_sheet(
        search(checkpoint, unseen), folder / "search.png", title="Searches among products never seen in training"
    )
    provenance = after["provenance"] | {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "largest_difference_between_libraries": difference,
    }
    results = {
        "model": str(checkpoint),
        "benchmark": "catalogue",
        "before": before,
        "after": after,
        "provenance": provenance,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'results.json'} and {folder / 'search.png'} after {provenance['seconds']:.0f} seconds")


if __name__ == "__main__":
    raise SystemExit(main())
