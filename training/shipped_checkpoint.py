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
from product_data.catalogue.making import write_catalogue
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

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: feature-extraction
tags: [multimodal, e-commerce, product-search, moon]
---
# moon1-catalogue

A very small Moon model (preset `moon1`, {parameters:.1f} million parameters, {megabytes:.1f} MB, vectors of 128 numbers)
that `make quickstart` searches with. It demonstrates the architecture and is not a model for a real shop.

## Data and licence
Drawn products only: 4,800 products of the embedded catalogue (seed 1) with their photos and queries, as
`product_data.catalogue.making` draws them. They contain no pictures or texts of other people. Weights and drawings are under
the licence of the code, Apache-2.0.

## How to load it
The folder holds weights and settings; the code is in the package.

```python
from sentence_transformers import SentenceTransformer
import modeling_moon  # the code of the checkpoint
from training.shipped_checkpoint import SHIPPED

encoder = SentenceTransformer(str(SHIPPED))
vectors = encoder.encode_document([{{"title": "Noru low-top sneakers", "attributes": {{"colour": "red"}}}}])
```

`training.shipped_checkpoint.unpack(folder)` writes a complete folder with the code, which loads without this package
(`trust_remote_code=True`); `make quickstart` does so in `runs/quickstart/shipped`.

## What it finds
R@10 in per cent, with 95 % intervals, among 510 drawn products each that it was not trained on: of seed 2, on which the
settings were chosen ("validation"), and of seed 0, on which nothing was chosen ("unseen"). t: text, i: a photo on a cluttered
background, mm: both. The numbers are from `results/moon1_catalogue.json`.

{table}

## Limits
- It knows 24 kinds of drawn products, {vocabulary:,} byte-pair tokens of English, and pictures of 96 × 96 pixels.
  It does not know photographs of real products.
- One training run, with one seed.
- Photos come with the box of the product, as in its training; recall without boxes was not measured.

## How it was made
`moon3 shipped-checkpoint`: {steps:,} steps of 48 pairs from random weights, on a CPU, in two training runs. The
second one uses mostly photos. `resolved_recipe.yaml` and `provenance.json` belong to the second run.
"""


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

    `CARD` is the text of README.md; `model_card.json` holds the facts that `moon3 push` and further training runs read.

    Args:
        final: the trained checkpoint.
        results: the result of `measure`, and "steps".
        target: folder to write.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(final, target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    model, processor = load_for_evaluation(final)
    parameters = sum(weights.numel() for weights in model.parameters())
    card = CARD.format(
        parameters=parameters / 1e6,
        megabytes=sum(path.stat().st_size for path in target.iterdir()) / 1e6,
        vocabulary=len(processor.tokenizer),
        table=card_table(results),
        steps=results["steps"],
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    measured = tuple(summary(results[name] | {"benchmark": name}, RESULTS.name) for name in MEASURED_ON)
    write_card(target, replace(collected(target), name=SHIPPED.name, source=SHIPPED.name, results=measured))


def card_table(results: dict[str, Any]) -> str:
    """Return the table of the card, with recall on both catalogues."""
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
