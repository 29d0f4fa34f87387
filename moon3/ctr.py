"""Predict clicks with product vectors: kind simulate (make a log of simulated users), or train (and measure)."""

from __future__ import annotations

import argparse
from pathlib import Path

from moon3._arguments import TABLES

ORDER = 124


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from applications.ctr.simulation import BehaviourSettings

    kinds = parser.add_subparsers(dest="kind", required=True, metavar="simulate|train")
    simulate = kinds.add_parser("simulate", help="write a log of simulated users", allow_abbrev=False)
    simulate.add_argument("products", help=f"{TABLES}; queries in it say which attributes matter")
    simulate.add_argument("--output", type=Path, required=True, help="the log to write (.parquet)")
    simulate.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    for name, value in vars(BehaviourSettings()).items():
        option = f"--{name.replace('_', '-')}"
        simulate.add_argument(
            option, type=type(value), default=value, help=f"see docs/applications.md (default: {value:g})"
        )
    add_train_arguments(kinds.add_parser("train", help="train click models and measure them", allow_abbrev=False))


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ctr train`."""
    from applications.ctr.model import VARIANTS, CtrSettings

    add_log(parser)
    parser.add_argument(
        "--vectors",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="folders of moon3 embed, with a name for the table",
    )
    parser.add_argument("--form", choices=("mm", "t", "i"), default="mm", help="form of the products (default: mm)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="what the models use (default: all)",
    )
    for name, value in vars(CtrSettings()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(value), default=value, help=f"see applications/ctr/model.py (default: {value:g})"
        )
    parser.add_argument(
        "--output", type=Path, required=True, help="results file (.json); table and chart are written beside it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/ctr/cells"), help="folder for finished trainings")


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add the log and the seeds of click models."""
    parser.add_argument(
        "--log",
        required=True,
        help="table with user_id, product_id, time, clicked: one row for each showing; {seed} in the name: a log for each seed",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings (default: 0 1 2)")


def run(chosen: argparse.Namespace) -> None:
    """Simulate a log; or train, write the results, and print the table."""
    if chosen.kind == "simulate":
        run_simulate(chosen)
    else:
        run_train(chosen)


def run_simulate(chosen: argparse.Namespace) -> None:
    """Write a simulated log."""
    from applications.ctr.simulation import BehaviourSettings, simulate
    from product_data.impressions import write_impressions
    from product_data.outputs import OutputError, require_writable_file
    from product_data.tables import load_tables

    if chosen.output.suffix != ".parquet":
        raise OutputError(f"--output: found {chosen.output}; expected a .parquet file")
    require_writable_file("--output", chosen.output)
    settings = BehaviourSettings(**{name: getattr(chosen, name) for name in vars(BehaviourSettings())})
    tables = load_tables(chosen.products)
    log = simulate(tables.products, tables.queries, settings, seed=chosen.seed)
    write_impressions(log, chosen.output)
    clicks = int(log.clicked_N.sum())
    print(f"{chosen.output}: simulated {len(log):,} showings and {clicks:,} clicks of {settings.users:,} users")


def run_train(chosen: argparse.Namespace) -> None:
    """Train, write the results, and print the table."""
    from applications.ctr import report
    from applications.ctr.model import CtrSettings
    from applications.ctr.study import CtrStudy, run_study
    from product_data.outputs import OutputError, require_writable_file, require_writable_folder

    if chosen.output.suffix != ".json":
        raise OutputError(f"--output: found {chosen.output}; expected a .json file")
    require_writable_file("--output", chosen.output)
    require_writable_folder("--work", chosen.work)
    settings = CtrSettings(**{name: getattr(chosen, name) for name in vars(CtrSettings())})
    study = CtrStudy(chosen.log, folders_of(chosen.vectors), chosen.variants, chosen.seeds, chosen.form, settings)
    results = report.write(run_study(study, chosen.work), chosen.output)
    print(report.what_log(results), report.table(results), *results["words"], sep="\n")


def folders_of(words: list[str]) -> dict[str, Path]:
    """Return name → folder.

    Raises:
        OptionError: a word that is not NAME=FOLDER, or a name that is given twice.
    """
    from product_data.errors import OptionError

    folders: dict[str, Path] = {}
    for word in words:
        name, separator, folder = word.partition("=")
        if not (name and separator and folder) or name in folders:
            raise OptionError(f"--vectors: found {word!r}; expected NAME=FOLDER, each name once")
        folders[name] = Path(folder)
    return folders
