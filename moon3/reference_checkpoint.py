"""Train a small Moon on a real language model, and compare it with frozen encoders on shops that it never saw."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 181
STARTS_PROCESSES = RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with grocery, spree, street, fashion and ikea, and chorus for --tables-only",
    )
    parser.add_argument("--image-encoder", metavar="PLACE", help="frozen image encoder: an .onnx file or a checkpoint")
    parser.add_argument(
        "--image-teacher", metavar="PLACE", help="image encoder that teaches (default: --image-encoder)"
    )
    parser.add_argument("--text-encoder", metavar="PLACE", help="frozen text encoder: a model of sentence-transformers")
    parser.add_argument(
        "--language-model", metavar="PLACE", help="whose lower layers read the words, as in moon3 make-base --text"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="one training for each (default: 0 1 2)"
    )
    parser.add_argument("--steps", type=int, help="steps of each training (default: those of the recipe)")
    parser.add_argument(
        "--tables-only",
        action="store_true",
        help="write the tables, and those of the evidence study, and train nothing",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reference"), help="folder for tables and trainings")
    parser.add_argument("--output", type=Path, default=Path("results/reference_checkpoint.json"), help="results file")


def run(chosen: argparse.Namespace) -> None:
    """Write the tables, train, compare, and print the table."""
    from product_data.errors import OptionError
    from product_data.outputs import require_writable_file, require_writable_folder
    from training.studies.reference_study import Encoders, table, write_reference_study
    from training.studies.reference_tables import write_evidence_tables, write_reference_tables

    require_writable_folder("--work", chosen.work)
    if chosen.tables_only:
        folder = chosen.work / "tables"
        names = [*write_reference_tables(chosen.data, folder), *write_evidence_tables(chosen.data, folder)]
        print("wrote", ", ".join(names))
        return
    for option in ("image_encoder", "text_encoder", "language_model"):
        if not getattr(chosen, option):
            raise OptionError(f"--{option.replace('_', '-')}: found none; expected a place, or --tables-only")
    require_writable_file("--output", chosen.output)
    places = (chosen.image_encoder, chosen.text_encoder, chosen.language_model, chosen.image_teacher or "")
    keys = {} if chosen.steps is None else {"max_steps": chosen.steps}
    results = write_reference_study(chosen.data, Encoders(*places), chosen.output, chosen.work, chosen.seeds, keys)
    print(table(results), table(results, "drawn"), sep="\n\n")
    print(f"wrote {chosen.output}")
