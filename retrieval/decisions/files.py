"""Write decisions and calibrations, and read calibrations."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from product_data.atomic_files import file_written_whole, write_atomically
from retrieval.decisions.calibration import Calibrator
from retrieval.decisions.deciding import Calibration, Catalogue, DecisionOptions, Decisions
from retrieval.decisions.errors import DecisionError
from retrieval.decisions.labelled_pairs import COLUMNS
from retrieval.decisions.pair_scores import FEATURES
from retrieval.decisions.promises import Promise, Step

FORMAT = 2
CALIBRATION, PAIRS, GROUPS, TO_LABEL = "calibration.json", "pairs.parquet", "groups.csv", "to_label.csv"


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    values = asdict(calibration) | {"calibrator": calibration.calibrator.as_dict()}
    text = json.dumps({"format": FORMAT} | values, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def read_calibration(path: Path) -> Calibration:
    """Read the calibration that `write_calibration` wrote.

    Raises:
        DecisionError: no such file, or a file with other contents.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (version := values.pop("format")) != FORMAT:
            raise ValueError(f"format {version}; expected format {FORMAT}")
        values["options"] = DecisionOptions(**values["options"])
        values["calibrator"] = Calibrator.from_dict(values["calibrator"])
        for name in ("same", "different"):
            steps = tuple(Step(**step) for step in values[name].pop("steps"))
            values[name] = Promise(**values[name], steps=steps)
        values["warnings"] = tuple(values["warnings"])
        values["labelled_scores"] = tuple(tuple(column) for column in values["labelled_scores"])
        if [len(column) for column in values["labelled_scores"]] != [values["labelled"]] * len(FEATURES):
            raise ValueError(
                "labelled_scores: expected a list for each feature, with one number for each labelled pair"
            )
        return Calibration(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DecisionError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected a calibration that moon3 decide wrote"
        ) from error


def write_decisions(folder: Path, catalogue: Catalogue, decisions: Decisions) -> None:
    """Write all decided pairs as pairs.parquet, and the groups of duplicates as groups.csv.

    pairs.parquet: left, right, cosine, margin, probability, decision; the most probable pair first.
    groups.csv: group (from 1), product_id, title, chain (whether a pair inside the group is not decided "same").

    Args:
        folder: the folder; it is made.
        catalogue, decisions: from `retrieval.decisions.deciding`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order_P = np.argsort(-decisions.probability_P, kind="stable")
    columns = {side: catalogue.ids[decisions.pair_P2[order_P, column]] for column, side in enumerate(COLUMNS[:2])}
    columns |= {name: decisions.feature_PF[order_P, column] for column, name in enumerate(FEATURES)}
    columns |= {"probability": decisions.probability_P[order_P], "decision": decisions.decision_P[order_P]}
    with file_written_whole(folder / PAIRS) as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial)
    rows = [
        (number, catalogue.products[row].product_id, catalogue.products[row].title, str(group.is_chain).lower())
        for number, group in enumerate(decisions.groups, start=1)
        for row in group.rows
    ]
    _write_csv(folder / GROUPS, ("group", "product_id", "title", "chain"), rows)


def write_to_label(folder: Path, catalogue: Catalogue, pair_P2: np.ndarray) -> None:
    """Write pairs for people to label as to_label.csv: left, right, an empty column same, and both titles."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [(catalogue.products[a], catalogue.products[b]) for a, b in pair_P2]
    rows = [(left.product_id, right.product_id, "", left.title, right.title) for left, right in found]
    _write_csv(folder / TO_LABEL, (*COLUMNS, "left_title", "right_title"), rows)


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[Any]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())
