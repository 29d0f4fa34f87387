"""Measure how many points of click AUC go with a point of image search recall, and which metric predicts the AUC best."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3.ctr import add_log

ORDER = 126


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from applications.ctr.model import VARIANTS

    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run with at least five models")
    parser.add_argument(
        "--products", type=Path, required=True, help="folder of the products of the log, with queries for the metrics"
    )
    add_log(parser)
    parser.add_argument("--split", default="test", help="split of the queries (default: test)")
    parser.add_argument(
        "--variant",
        choices=[name for name, parts in VARIANTS.items() if parts.vectors],
        default="ids_vectors_histogram",
        help="what the click model uses (default: ids_vectors_histogram)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); tables and chart are written beside it"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/exchange_rate"), help="folder for finished vectors and trainings"
    )


def run(chosen: argparse.Namespace) -> None:
    """Measure, write the results, and print the tables."""
    from applications.ctr.study import CtrStudy
    from applications.exchange_rate import report
    from applications.exchange_rate.study import SUBSETS, ExchangeStudy, models_of, run_study
    from product_data.outputs import OutputError, require_writable_file, require_writable_folder

    if chosen.output.suffix != ".json":
        raise OutputError(f"--output: found {chosen.output}; expected a .json file")
    require_writable_file("--output", chosen.output)
    require_writable_folder("--work", chosen.work)
    vectors = {f"step {step}": path for step, path in models_of(chosen.run).items()}
    ctr = CtrStudy(chosen.log, vectors, [chosen.variant], chosen.seeds)
    study = ExchangeStudy(chosen.run, chosen.products, ctr, chosen.split)
    results = report.write(run_study(study, chosen.work), chosen.output)
    print(report.what_log(results), report.auc_table(results), sep="\n")
    print(*(f"\n{subset} products\n{report.table(results, subset)}" for subset in SUBSETS), *results["words"], sep="\n")
