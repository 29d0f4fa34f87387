"""The page of transfer shows the numbers of its results files."""

import json
from pathlib import Path

import pytest

from training.studies.ablation_table import cells_table
from training.studies.reference_study import table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
ROWS = ["fashion t→mm", "fashion mm→mm", "fashion mm→i", "fashion t→i", "ikea t→mm", "ikea mm→mm", "ikea t→i"]


def results_of(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["picture_transfer", "distillation"])
def test_the_tables_of_cells_are_those_of_the_result_files(name):
    shown = cells_table(results_of(name), ROWS)
    assert f"<!-- {name} -->\n{shown}\n" in PAGE


def test_the_comparison_with_the_frozen_encoders_is_that_of_the_result_file():
    results = results_of("reference_checkpoint")
    assert f"<!-- reference -->\n{table(results)}\n" in PAGE
    assert f"<!-- reference-drawn -->\n{table(results, 'drawn')}\n" in PAGE
