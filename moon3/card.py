"""Render the card of a checkpoint, README.md, from its files and from results files."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="results files of moon3 evaluate on these weights (default: those of the run, or those on the card)",
    )
    parser.add_argument("--name", help="heading of the card (default: unchanged)")
    parser.add_argument(
        "--licence", help="licence of the weights, an identifier from the hub (default: derived from base and data)"
    )
    parser.add_argument("--licence-name", help="name of the licence, with --licence other")
    parser.add_argument("--licence-link", help="file of the checkpoint or URL, with --licence other")
    parser.add_argument(
        "--data-licence",
        nargs="+",
        default=[],
        metavar="NAME=LICENCE",
        help="licence of a training data set: an identifier from the hub, own, permitted or none",
    )
    parser.add_argument(
        "--hub-dataset",
        nargs="+",
        default=[],
        metavar="BENCHMARK=OWNER/NAME",
        help="data set on the hub of a benchmark in the results, for .eval_results",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that moon3 card did not render")


def run(chosen: argparse.Namespace) -> int:
    """Write the card, and print what is missing before the checkpoint can be published."""
    from model_cards.facts import README_FILE, Licence
    from model_cards.licences import why_not_published
    from model_cards.metadata import problems_of
    from model_cards.rendering import write_card
    from training.runs.cards import rendered_again

    licence = None
    if chosen.licence or chosen.licence_name or chosen.licence_link:
        licence = Licence(chosen.licence, chosen.licence_name, chosen.licence_link)
    card = rendered_again(
        chosen.checkpoint,
        results=chosen.results,
        name=chosen.name,
        licence=licence,
        data_licences=pairs("--data-licence", chosen.data_licence),
        hub_datasets=pairs("--hub-dataset", chosen.hub_dataset),
    )
    path = chosen.checkpoint / README_FILE
    written = write_card(chosen.checkpoint, card, overwrite=chosen.overwrite)
    print(f"wrote {path}" if written else f"kept {path}, which moon3 card did not render; --overwrite replaces it")
    for sentence in (*why_not_published(card), *problems_of(path.read_text(encoding="utf-8"))):
        print(f"before publishing: {sentence}")
    return 0 if written else 1


def pairs(option: str, words: list[str]) -> dict[str, str]:
    """Return NAME=VALUE words as a mapping.

    Raises:
        CardError: a word lacks "=", a name or a value.
    """
    from model_cards.facts import CardError

    found = {}
    for word in words:
        name, _, value = word.rpartition("=")
        if not name or not value:
            raise CardError(f"{option}: found {word!r}; expected NAME=VALUE")
        found[name] = value
    return found
