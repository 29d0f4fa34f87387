"""Sections of MOON (arXiv 2508.11999) that code and recipes cite: those that there are, and the right one for each subject."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_moon", "processing_moon", "evaluation", "training", "tests", "model_cards")
# Tasks; detection, read-out and guided experts; supervision, negatives and loss; the benchmark and its format; set-up;
# ablations; heat maps.
SECTIONS = {"2", "3.1", "3.2", "4", "4.2", "5.1", "5.3", "5.4"}
APPENDICES = {"A", "B"}  # the ten attribute keys and the levels of categories; metrics
CITED = re.compile(r"(?:MOON|2508\.11999\)?),? (?:§|App\. )\S+(?:(?:,| and) (?:§|App\. )\S+)*")
ONE = re.compile(r"(§|App\. )(\w+(?:\.\d+)?)")


def files():
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".yaml", ".md"))
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))


def citations(path):
    text = " ".join(line.strip().lstrip("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [one for cited in CITED.findall(text) for one in ONE.findall(cited)]


def test_every_section_that_is_cited_is_one_of_the_papers():
    cited = {path: citations(path) for path in files()}
    assert sum(map(len, cited.values())) > 20
    wrong = [
        f"{path.relative_to(ROOT)}: {kind}{name}"
        for path, found in cited.items()
        for kind, name in found
        if name not in (SECTIONS if kind == "§" else APPENDICES)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "sections"),
    [
        ("processing_moon/cropping_moon.py", {"3.1"}),
        ("processing_moon/processing_moon.py", {"3.1"}),
        ("processing_moon/text_moon.py", {"3.1"}),
        ("processing_moon/reasoning_moon.py", {"A"}),
        ("modeling_moon/configuration_moon.py", {"3.1"}),
        ("modeling_moon/modeling_moon.py", {"3.1"}),
        ("modeling_moon/tokens_moon.py", {"3.1"}),
        ("evaluation/benchmarks/classification.py", {"2"}),
        ("evaluation/benchmarks/attributes.py", {"2"}),
        ("product_data/catalogue/products.py", {"A"}),
        ("evaluation/heatmap.py", {"5.4"}),
        ("training/batches/negatives.py", {"3.2"}),
        ("training/losses/info_nce.py", {"3.2"}),
        ("training/mining/hard_negatives.py", {"3.2"}),
        ("product_data/attribute_keys.py", {"A"}),
        ("training/studies/ablation_boxes.py", {"3.1"}),
        ("training/recipes/ablations/moon1_no_extra_negatives.yaml", {"5.3"}),
    ],
)
def test_a_subject_is_cited_where_the_paper_treats_it(file, sections):
    assert {name for _, name in citations(ROOT / file)} == sections


def test_nothing_cites_a_page_that_is_not_part_of_the_project():
    named = re.compile(r"\bMETHOD\b")
    assert [path for path in files() if named.search(path.read_text(encoding="utf-8")) and path != Path(__file__)] == []
