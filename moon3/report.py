"""Print results files as tables, compare models in columns, or write them as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from moon3._arguments import (
    TABLES,
    add_catalogue,
    add_data_set,
    add_device,
    add_images_root,
    add_reading,
    data_set_of,
    reading_of,
)

if TYPE_CHECKING:
    from evaluation.query_sheets import Sheet

ORDER = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("files", nargs="+", help="results files of moon3 evaluate")
    parser.add_argument(
        "--compare", metavar="METRIC", help="compare one metric, with one column for each model: R@k, nDCG@k or MRR"
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="with --compare or --output: the model that the others are compared with, query by query, by its name in the table",
    )
    parser.add_argument("--output", type=Path, help="HTML page with everything in the files, and charts")
    parser.add_argument("--model", help="with --output: the checkpoint of the first file, to show what it found")
    parser.add_argument(
        "--data", help=f"with --model, what the first file was measured on: {TABLES}, or a public data set"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    add_device(parser)
    add_images_root(parser)
    add_reading(parser)
    add_data_set(parser)
    add_catalogue(parser, "of the catalogue and the sample")


def run(chosen: argparse.Namespace) -> None:
    """Print the tables, or write the page."""
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file

    if chosen.output is not None and chosen.compare:
        raise OptionError("--compare and --output; expected one of them: the page compares by itself")
    if (chosen.model is None) != (chosen.data is None) or (chosen.model and chosen.output is None):
        raise OptionError("--model, --data and --output; expected all three, or neither of the first two")
    if chosen.reference and not chosen.compare and chosen.output is None:
        raise OptionError("--reference without --compare or --output; expected one of them")
    if chosen.output is None:
        print(_tables(chosen))
        return
    if chosen.output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"--output {chosen.output}; expected a .html file")
    require_writable_file("--output", chosen.output)
    from evaluation.results_page import write_page

    sheets = _sheets(chosen) if chosen.model else ()
    print(f"wrote {write_page(chosen.files, chosen.output, sheets, reference=chosen.reference)}")


def _tables(chosen: argparse.Namespace) -> str:
    from evaluation.report import named_results, report, warning_lines

    if not chosen.reference:
        return report(chosen.files, chosen.compare)
    from evaluation.against_reference import against_reference
    from evaluation.peer_table import scores_and_differences

    names, results = named_results(chosen.files)
    found = against_reference(results, names=names, reference=chosen.reference)
    return "\n\n".join([scores_and_differences(results, found, chosen.compare), *warning_lines(results)])


def _sheets(chosen: argparse.Namespace) -> list[Sheet]:
    """Return what the model of the first file finds for some of its queries."""
    from evaluation.compare import measured
    from evaluation.query_sheets import make_sheets
    from evaluation.report import named_results
    from evaluation.run import limited_tables, load_benchmark
    from retrieval.encode import load_for_evaluation

    names, results = named_results(chosen.files)
    first = measured(names[0], results[0])
    facts = results[0]["provenance"]
    tables = load_benchmark(
        chosen.data,
        split=facts["split"],
        seed=chosen.seed,
        images_root=chosen.images_root,
        reading=reading_of(chosen),
        catalogue_products=chosen.catalogue_products,
        data_set=data_set_of(chosen),
        labels=chosen.labels,
    ).select(facts["split"])
    tables = limited_tables(tables, facts["limit"], facts["seed"]) if facts["limit"] else tables
    model, processor = load_for_evaluation(chosen.model, device=chosen.device)
    return make_sheets(model, processor, tables, results[0], first.directions, batch_size=chosen.batch_size)
