"""The note beside the results names files that are there, and marks what an older read-out gave."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_files_that_the_note_names_are_there():
    names = set(re.findall(r"`([\w*.]+\*|[\w*]+\.(?:json|md|\*|jsonl))`", (RESULTS / "README.md").read_text()))
    assert len(names) > 10
    assert not [name for name in names if not list(RESULTS.glob(name))]


def test_the_two_models_of_the_study_of_shops_took_the_same_steps_from_the_same_seed():
    lines = {
        name: (RESULTS / f"shops_{name}_metrics.jsonl").read_text().splitlines() for name in ("moon1", "dual_tower")
    }
    steps = {name: [json.loads(line)["step"] for line in found] for name, found in lines.items()}
    assert steps["moon1"] == steps["dual_tower"]
    recipes = {name: (RESULTS / f"shops_{name}_recipe.yaml").read_text() for name in ("moon1", "dual_tower")}
    apart = set(recipes["moon1"].splitlines()) ^ set(recipes["dual_tower"].splitlines())
    assert {line.split(":")[0] for line in apart} == {"architecture", "output_dir"}


def test_ahead_is_said_only_where_the_paired_interval_leaves_out_zero():
    results = json.loads((RESULTS / "shops_study.json").read_text())
    first, second = results["models"]
    for shop in results["shops"].values():
        for row in shop["rows"]:
            low, high = row["difference"]["interval"]
            assert row["ahead"] == (first if low > 0 else second if high < 0 else None)
