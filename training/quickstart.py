"""Show the main use in five minutes: search with a small trained Moon model, then train it further on a shop's own
products.

    moon3 quickstart

The searches of the first minute use the shipped checkpoint, so they are the same on every machine. The training that
follows has a fixed number of steps, and its duration is printed before it starts.

runs/quickstart then holds the complete shipped checkpoint (shipped), its searches (search.png), the products as parquet tables
like those of a shop, the run with its metrics, the checkpoint that was trained further (run/final), its searches
(search_after.png), results.json, and the vectors of the unseen products (vectors), which `moon3 serve` searches on a page. Run
the same command again to resume after an interruption.
"""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from evaluation.benchmarks.retrieval import SearchExample
from evaluation.contact_sheets import contact_sheet
from evaluation.report import comparison_table
from evaluation.run import EvaluationOptions, evaluate_model
from product_data.atomic_files import PARTIAL
from product_data.catalogue.making import write_catalogue
from product_data.feeds.feed_product import FeedProduct
from product_data.tables import ProductTables, QueryRow, load_tables
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import load_for_evaluation
from training.assembly.stages import trainer_factory
from training.assembly.starting_model import load_start, make_trainable, prepare_base
from training.assembly.step_rate import seconds_per_step
from training.recipe.arguments import RecipeError, parse_recipe
from training.runs.run import Run
from training.shipped_checkpoint import SHIPPED, unpack
from training.train import train

RECIPE = Path(__file__).resolve().parent / "recipes" / "quickstart.yaml"
SEARCHES = ("text", "image", "both")
OPTIONS_FILE = "options.json"
UNSEEN = "test"
"""The split of the catalogue for searches, which is never trained on."""


def draw_catalogue(folder: Path, options: dict[str, Any]) -> ProductTables:
    """Draw the embedded catalogue as parquet tables, unless they exist with these options, and read the tables.

    Args:
        folder: folder of the tables.
        options: arguments of `product_data.catalogue.making.write_catalogue`.

    Raises:
        RecipeError: the options cannot be used.
    """
    stored = folder / OPTIONS_FILE
    if not stored.is_file() or json.loads(stored.read_text(encoding="utf-8")) != options:
        partial = folder.with_name(folder.name + PARTIAL)
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
    """Return recall in the five directions over the unseen products of the catalogue."""
    return evaluate_model(model, processor, tables, model_name=name, options=EvaluationOptions(only=("retrieval",)))


def check_both_libraries(checkpoint: Path, products: list[dict[str, Any]]) -> float:
    """Return the largest difference between the vectors of `AutoModel` and `SentenceTransformer` from the same folder."""
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)
    with torch.inference_mode():
        ours = model(**processor(products=products, return_tensors="pt")).embeddings.numpy()
    theirs = SentenceTransformer(str(checkpoint), device="cpu").encode_document(products)
    return float(np.abs(ours - theirs).max())


def search(checkpoint: Path, tables: ProductTables, top: int = 5) -> list[SearchExample]:
    """Search with a text, a photo, and a photo with text among the unseen products, using sentence-transformers.

    Args:
        checkpoint: folder of the model.
        tables: the unseen products and their queries.
        top: number of products to show for each query.
    """
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
    """Return a query of a kind whose answer is in the gallery; the choice does not depend on the model."""
    known = {row.product_id for row in tables.products}
    fitting = [query for query in tables.queries if query.type == kind and known & set(query.positives)]
    return fitting[len(fitting) * (1 + SEARCHES.index(kind)) // 4]


def quickstart(folder: Path, overrides: Sequence[str]) -> None:
    """Search, train further and search again, keeping the finished steps of an earlier call.

    Args:
        folder: folder to write.
        overrides: `--key value` pairs that replace keys of the recipe; `--overwrite` deletes an earlier run.

    Raises:
        RecipeError: the folder holds a run with different values, or a value cannot be used.
    """
    started = time.monotonic()
    shop = folder / "shop"
    shop.mkdir(parents=True, exist_ok=True)
    own = ["--output_dir", str(folder / "run"), "--data", str(shop), "--base", str(SHIPPED)]
    recipe = parse_recipe([str(RECIPE), *own, *overrides])
    run = Run(recipe)
    with run.removed_on_failure():
        run.open()  # first of all: refuses other values, and clears the folder with --overwrite
        options = dict(recipe.data.catalogue or {})
        unseen = draw_catalogue(folder / "unseen", {**options, "only": UNSEEN})
        before = first_minute(folder, unseen)
        print(f"     first searches and recall after {time.monotonic() - started:.0f} seconds", flush=True)
        print(f"4/6  Drawing the shop's own products into {shop}", flush=True)
        own_products = draw_catalogue(shop, {**options, "only": recipe.data.split})
        print_duration(run, own_products)
    train(run)
    after = second_look(folder, run.folder.final, unseen, before)
    difference = check_both_libraries(run.folder.final, [row.record() for row in unseen.products[:8]])
    print(f"     largest difference between the vectors of transformers and sentence-transformers: {difference:.1e}")
    provenance = after["provenance"] | {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "largest_difference_between_libraries": difference,
        "steps": run.max_steps,
    }
    results = {
        "model": str(run.folder.final),
        "benchmark": "catalogue",
        "before": before,
        "after": after,
        "provenance": provenance,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"wrote {folder / 'results.json'} and {folder / 'search_after.png'} after {provenance['seconds']:.0f} seconds"
    )
    print(embed_unseen(folder / "vectors", run.folder.final, unseen))


def embed_unseen(output: Path, checkpoint: Path, unseen: ProductTables) -> str:
    """Embed the unseen products, unless an earlier call has done so, and return how to open the page that searches them.

    Args:
        output: folder of the vectors.
        checkpoint: the model.
        unseen: the products.
    """
    options = EmbeddingOptions(str(checkpoint), allow_removal=True)
    report = embed_feed(map(FeedProduct, unseen.products), output, options, report=lambda _: None)
    print(f"     vectors of the unseen products in {output}: {report}", flush=True)
    return f"moon3 serve {shlex.quote(str(output))}    # then open http://127.0.0.1:8000/ and search them"


def first_minute(folder: Path, unseen: ProductTables) -> dict[str, Any]:
    """Search and measure with the shipped checkpoint, independently of the speed of the machine.

    Args:
        folder: folder for the complete checkpoint and the searches.
        unseen: products that the checkpoint was not trained on, and their queries.

    Returns:
        The results of the checkpoint.
    """
    print(f"1/6  Reading {len(unseen.products)} products that the shipped checkpoint was not trained on", flush=True)
    checkpoint = unpack(folder / "shipped")
    print("2/6  Searching with words, with a photo, and with a photo and words", flush=True)
    _draw_searches(checkpoint, unseen, folder / "search.png", "The shipped checkpoint")
    print("3/6  Measuring recall", flush=True)
    before = measure(*load_for_evaluation(checkpoint), unseen, "shipped")
    print(comparison_table([before], names=["shipped"]), flush=True)
    return before


def print_duration(run: Run, products: ProductTables) -> None:
    """Time a few steps, restore the weights, and print how long the training will take on this machine.

    Args:
        run: the run; if it is finished, nothing is printed.
        products: its training data.
    """
    if run.folder.finished.is_file():
        return
    recipe = run.recipe
    tables = [products.select(recipe.data.split)]
    start = prepare_base(run, tables)
    model, processor = load_start(run, start, on_gpu=recipe.training.device.type == "cuda", tables=tables)
    learner = make_trainable(model, recipe.model)
    make = trainer_factory(run, learner, processor, tables)
    seconds, steps = seconds_per_step(run, make, learner), run.max_steps
    minutes = f"{seconds * steps / 60:.0f} minutes" if seconds * steps >= 90 else f"{seconds * steps:.0f} seconds"
    print(f"5/6  Training further: {steps} steps at {seconds:.2f} seconds a step here, about {minutes}", flush=True)


def second_look(folder: Path, checkpoint: Path, unseen: ProductTables, before: dict[str, Any]) -> dict[str, Any]:
    """Measure and search with the checkpoint that was trained further, and print both results."""
    print("6/6  Measuring recall again, on the same products", flush=True)
    after = measure(*load_for_evaluation(checkpoint), unseen, "trained further")
    print(comparison_table([before, after], names=["shipped", "trained further"]), flush=True)
    _draw_searches(checkpoint, unseen, folder / "search_after.png", "Trained further")
    return after


def _draw_searches(checkpoint: Path, unseen: ProductTables, path: Path, name: str) -> None:
    contact_sheet(search(checkpoint, unseen), path, title=f"{name}, among products that it was not trained on")
    print(f"     wrote {path}", flush=True)
