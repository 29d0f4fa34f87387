"""Unpack the small trained checkpoint that the package ships, or train it again and measure it.

    moon3 shipped-checkpoint

draws the products, trains with training/recipes/quickstart_checkpoint.yaml and then quickstart_checkpoint_photos.yaml, measures
on products of two other seeds, and writes training/checkpoints/moon1-catalogue with its card, and results/moon1_catalogue.json.

The checkpoint is in a package, beside the recipes, so that installed wheels contain it. Its folder has a name like a repository
on the Hub. It contains no copy of the code, which could differ from the code of the package. `unpack` writes a complete
folder, which loads anywhere.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.provenance import provenance
from evaluation.report import comparison_table
from evaluation.run import EvaluationOptions, evaluate_model
from model_cards.rendering import write_card
from model_cards.scores import summary
from modeling_moon import MoonConfig
from processing_moon import MoonProcessor
from product_data.atomic_files import write_atomically, written_whole
from product_data.catalogue.making import plan_products, write_catalogue
from product_data.tables import load_tables
from retrieval.encode import load_for_evaluation
from training.model.checkpoint import write_code_and_settings
from training.recipe.arguments import parse_recipe
from training.runs.cards import collected
from training.runs.run import Run
from training.train import train

SHIPPED = Path(__file__).resolve().parent / "checkpoints" / "moon1-catalogue"
RECIPES = {"run": "quickstart_checkpoint.yaml", "photos": "quickstart_checkpoint_photos.yaml"}
"""The recipes of the two training runs, by their folder; the second starts from the model of the first."""
RESULTS = Path(__file__).resolve().parents[1] / "results" / "moon1_catalogue.json"
TRAINED_ON = {"products": 6000, "seed": 1, "image_size": 96}
MEASURED_ON = {
    "validation": {"products": 3400, "seed": 2, "image_size": 96},
    "unseen": {"products": 3400, "seed": 0, "image_size": 96},
}
"""Catalogues whose test splits have 510 products each. Settings were chosen on the first, and nothing on the second."""


def unpack(folder: Path) -> Path:
    """Write the shipped checkpoint with the code that loads it, and return its folder.

    Args:
        folder: folder to write; an existing folder is not changed.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(folder) as partial:
            shutil.copytree(SHIPPED, partial, dirs_exist_ok=True)
            write_code_and_settings(
                MoonConfig.from_pretrained(SHIPPED), MoonProcessor.from_pretrained(SHIPPED), partial
            )
            write_card(partial, replace(collected(partial), source=folder.name))
    return folder


def measure(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Return the results of a checkpoint on the two catalogues that its training did not see.

    Args:
        checkpoint: folder of the model.
        folder: folder for the drawn catalogues.
    """
    model, processor = load_for_evaluation(checkpoint)
    found: dict[str, Any] = {}
    for name, options in MEASURED_ON.items():
        if not (folder / name).is_dir():
            with written_whole(folder / name) as partial:
                write_catalogue(partial, **options, only="test")
        tables = load_tables(folder / name)
        only = EvaluationOptions(only=("retrieval",))
        found[name] = evaluate_model(model, processor, tables, model_name="moon1-catalogue", options=only)
    return found


def ship(final: Path, results: dict[str, Any], target: Path) -> None:
    """Write a trained checkpoint as it is shipped: weights, settings, provenance and the card, without code.

    Args:
        final: the trained checkpoint.
        results: the result of `measure`, and "steps".
        target: folder to write.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(final, target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    write_shipped_card(target, results)


def write_shipped_card(target: Path, results: dict[str, Any]) -> None:
    """Write `model_card.json`, the facts, and README.md, as `moon3 card` renders it from them.

    Args:
        target: the shipped checkpoint.
        results: the result of `measure`, and "steps".
    """
    measured = tuple(summary(results[name] | {"benchmark": name}, RESULTS.name) for name in MEASURED_ON)
    notes = notes_of(results, vocabulary=len(MoonProcessor.from_pretrained(target).tokenizer))
    card = replace(collected(target), name=SHIPPED.name, source=SHIPPED.name, results=measured, notes=notes)
    write_card(target, card, overwrite=True)


def notes_of(results: dict[str, Any], *, vocabulary: int) -> dict[str, tuple[str, ...]]:
    """Return what the card says of this checkpoint besides its facts, by section.

    Args:
        results: the result of `measure`, and "steps".
        vocabulary (`int`): tokens of its tokenizer.
    """
    drawn = plan_products(TRAINED_ON["products"], seed=TRAINED_ON["seed"])
    products = sum(product.split == "train" for product in drawn)
    kinds = len({product.design.kind.name for product in drawn})
    side = TRAINED_ON["image_size"]
    seeds = {name: options["seed"] for name, options in MEASURED_ON.items()}
    return {
        "what": (
            "It is very small: `make quickstart` searches with it. It demonstrates the architecture and is not a model for a "
            "real shop.",
        ),
        "loading": (
            "`training.shipped_checkpoint.SHIPPED` is this folder in an installed package. "
            "`training.shipped_checkpoint.unpack(folder)` writes a complete folder with the code, which loads without the "
            "package (`trust_remote_code=True`); `make quickstart` does so in `runs/quickstart/shipped`.",
        ),
        "data": (
            f"They were trained on drawn products only: {products:,} products of the embedded catalogue (seed "
            f"{TRAINED_ON['seed']}) with their photos and queries, as `product_data.catalogue.making` draws them. The drawings "
            "contain no pictures or texts of other people.",
        ),
        "making": (
            f"`moon3 shipped-checkpoint`: {results['steps']:,} steps from random weights, on a CPU, in two training runs. The "
            "second one uses mostly photos. `resolved_recipe.yaml` and `provenance.json` belong to the second run.",
        ),
        "results": (
            f"Drawn products that it was not trained on: of seed {seeds['validation']}, on which the settings were chosen "
            f'("validation"), and of seed {seeds["unseen"]}, on which nothing was chosen ("unseen"). An image is a photo on a '
            "cluttered background.",
        ),
        "limits": (
            f"It knows {kinds} kinds of drawn products, {vocabulary:,} byte-pair tokens of English, and pictures of {side} × "
            f"{side} pixels. It does not know photographs of real products.",
            "Photos come with the box of the product, as in its training; recall without boxes was not measured.",
        ),
    }


def card_table(results: dict[str, Any]) -> str:
    """Return a table with recall on both catalogues."""
    return comparison_table([results[name] for name in MEASURED_ON], names=["moon1-catalogue"] * len(MEASURED_ON))


def train_twice(folder: Path) -> tuple[Path, int]:
    """Run both training runs, unless they are finished, and return the last model and the sum of their steps.

    Args:
        folder: folder of the training runs, and of the products in "catalogue".
    """
    steps, start = 0, []
    for name, file in RECIPES.items():
        own = ["--output_dir", str(folder / name), "--data", str(folder / "catalogue")]
        recipe = parse_recipe([str(Path(__file__).resolve().parent / "recipes" / file), *own, *start])
        run = Run(recipe)
        train(run)
        steps += run.max_steps
        start = ["--base", str(run.folder.final)]
    return run.folder.final, steps


def make_shipped_checkpoint(folder: Path, target: Path = SHIPPED, results_file: Path = RESULTS) -> dict[str, Any]:
    """Train, measure and write the shipped checkpoint, keeping the finished steps of an earlier call.

    Args:
        folder: folder for the products and the training runs.
        target: folder of the shipped checkpoint.
        results_file: JSON file for the results.

    Returns:
        The results.
    """
    drawn = folder / "catalogue"
    if not drawn.is_dir():
        drawn.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(drawn) as partial:
            write_catalogue(partial, **TRAINED_ON)
    final, steps = train_twice(folder)
    results = measure(final, folder) | {"benchmark": "catalogue", "steps": steps}
    results["provenance"] = provenance(0, dtype="float32", trained_on=TRAINED_ON, recipes=list(RECIPES.values()))
    ship(final, results, target)
    write_atomically(results_file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results
