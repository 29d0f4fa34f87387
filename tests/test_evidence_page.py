"""The page of evidence and the README show the numbers of the results files."""

import json
import re
from pathlib import Path

import pytest

from training.studies.ablation_table import cells_table, papers_table
from training.studies.reasoning_study import models_table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = ["fashion t→mm", "fashion mm→mm", "fashion t→i", "grocery i→mm", "catalogue t→mm", "ikea t→mm", "chorus t→mm"]


def results_of(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def block(name: str, text: str) -> str:
    """The lines from a marker to the next empty line."""
    return re.search(rf"<!-- {name} -->\n(.*?)\n\n", text, flags=re.DOTALL)[1]


@pytest.mark.parametrize("name", ["evidence", "evidence_queue"])
def test_the_tables_against_the_papers_are_those_of_the_result_files(name):
    assert block(name, PAGE) == papers_table(results_of(name), sources=False)


def test_the_table_of_directions_is_that_of_the_result_file():
    assert block("evidence_directions", PAGE) == cells_table(results_of("evidence"), ROWS)


def test_the_table_of_the_models_that_reason_is_that_of_the_result_file():
    assert block("reasoning_language", PAGE) == models_table(results_of("reasoning_language"))


def test_every_cell_of_the_study_is_finished_with_three_seeds_and_names_its_commits():
    for name in ("evidence", "evidence_queue"):
        results = results_of(name)
        assert results["missing"] == []
        for facts in results["facts"].values():
            assert facts["seeds"] == ["0", "1", "2"]
            assert len(facts["minutes"]) == 3
            assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in facts["commits"])
        assert (ROOT / "results" / f"{name}.png").stat().st_size > 10_000
    language = results_of("reasoning_language")
    assert (language["finished"], [seed["seed"] for seed in language["seeds"]]) == (3, [0, 1, 2])


def test_the_readme_has_the_six_findings_of_the_page():
    findings = block("findings", PAGE)
    assert findings == block("findings", README)
    assert len(re.findall(r"[.!] (?=[A-Z])|[.]$", findings.replace("\n", " "))) == 6


def test_the_numbers_of_the_findings_are_those_of_the_result_files():
    """Every interval in points that the findings quote is a difference of the study."""
    known = set()
    for name in ("evidence", "evidence_queue"):
        for row in results_of(name)["table"]:
            for cell in row["cells"].values():
                if cell["difference"] and cell["difference"]["interval"]:
                    known.add(points(cell["difference"]["mean"], *cell["difference"]["interval"]))
    for sentence in results_of("reasoning_language")["verdict"]:
        known |= {
            tuple(float(value) for value in found)
            for found in re.findall(r"mean ([+-][\d.]+) \(95 % t-interval ([+-][\d.]+) to ([+-][\d.]+)\)", sentence)
        }
    quoted = re.findall(r"([+−][\d.]+)(?: points)? \(([+−][\d.]+) to ([+−][\d.]+)\)", block("findings", PAGE))
    assert len(quoted) >= 5
    for values in quoted:
        assert tuple(float(value.replace("−", "-")) for value in values) in known, values


def points(*values: float) -> tuple[float, ...]:
    return tuple(float(f"{100 * value:.1f}") for value in values)
