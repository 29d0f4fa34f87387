"""The README is short, its code runs, its commands have the options it names, its numbers are those of the result files."""

import contextlib
import functools
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from evaluation.core_crop_study import crop_tables
from evaluation.frozen_study import search_table
from evaluation.report import comparison_table, read_results
from evaluation.speed import speed_table
from moon3.__main__ import main as moon3
from training.train import main as train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", README, flags=re.DOTALL)
CHECKPOINT = "runs/quickstart/run/final"
COMMANDS = [
    line.strip()
    for text in PAGES.values()
    for kind, block in re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.DOTALL)
    if kind == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_the_readme_is_short():
    assert len(README.splitlines()) < 160
    assert len(README.split()) < 1300


@pytest.mark.parametrize("name", PAGES)
def test_no_page_names_a_module_where_there_is_a_command(name):
    assert not re.findall(r"python -m (?:evaluation|training|product_data|retrieval)\S*", PAGES[name])


@pytest.mark.parametrize("preset", ["moon1", "moon3"])
@pytest.mark.parametrize("block", [code for kind, code in BLOCKS if kind == "python"], ids=["transformers", "sentence"])
def test_each_python_block_runs(block, preset, tiny_moon, tmp_path, monkeypatch, capsys):
    assert CHECKPOINT in block
    for name in ("hoodie.jpg", "photo.jpg"):
        Image.new("RGB", (120, 120), "green").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace(CHECKPOINT, str(tiny_moon("qwen3_vl", preset=preset))), "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out


def program_of(command: str) -> tuple[str, ...]:
    """The words of the program that a command runs: of `moon3`, or of the training's script."""
    if found := re.search(r"\bmoon3 ((?:bench|ctr) [a-z]+|[a-z][a-z-]*)", command):
        return ("moon3", *found[1].split())
    return ("train",) if "training/train.py" in command else ()


@functools.cache
def usage_of(program: tuple[str, ...]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert {"moon3": moon3, "train": train}[program[0]]([*program[1:], "--help"]) == 0
    return said.getvalue()


@pytest.mark.parametrize("command", [command for command in COMMANDS if program_of(command)])
def test_each_command_names_options_that_exist(command):
    flags = set(re.findall(r"(?<=\s)--[a-z][a-z_-]*", command.partition("#")[0].rpartition("train.py")[2])) - {"--help"}
    usage = usage_of(program_of(command))
    for flag in flags:
        assert re.search(rf"{flag}\b", usage), f"{flag} is no option of {' '.join(program_of(command))}"
    for recipe in re.findall(r"training/recipes/\S+\.yaml", command):
        assert (ROOT / recipe).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_and_file_that_is_named_exists(name):
    makefile = (ROOT / "Makefile").read_text()
    text, folder = PAGES[name], ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"`make (\w+)`|^make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile
    packages = "modeling_moon|processing_moon|product_data|retrieval|evaluation|training|moon3|results|docs|tests"
    for path in re.findall(rf"`((?:{packages})/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for recipe in re.findall(r"`(\w+\.yaml)`", text):
        assert (ROOT / "training" / "recipes" / recipe).is_file(), recipe
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (folder / target).is_file(), target


def test_the_results_files_that_a_command_reports_are_results_files():
    shown = [
        pattern
        for command in COMMANDS
        for pattern in re.findall(r"(?:evaluation\.|moon3 )report (results/\S+)", command)
    ]
    assert shown
    for pattern in shown:
        paths = sorted(ROOT.glob(pattern))
        assert paths
        for path in paths:
            assert read_results(path)


def results_of(name: str) -> dict:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def test_the_speeds_are_those_of_the_result_file():
    assert "<!-- speed-table -->\n" + speed_table(results_of("speed.json")) in PAGES["results.md"]


FROZEN_ROWS = [
    ("fashion", "t2mm", "R@10"),
    ("fashion", "mm2mm", "R@10"),
    ("fashion", "t2i", "R@10"),
    ("fashion", "i2t", "R@10"),
    ("ikea", "t2mm", "R@10"),
    ("ikea", "i2mm", "R@10"),
    ("ikea", "mm2mm", "R@10"),
    ("grocery", "i2mm", "R@1"),
    ("grocery", "i2mm", "R@10"),
    ("grocery", "t2i", "R@10"),
    ("grocery", "i2t", "R@10"),
    ("spree", "i2mm", "R@10"),
    ("spree variants", "mm2mm", "R@10"),
    ("spree", "t2i", "R@10"),
]


def test_the_table_of_the_frozen_encoders_is_that_of_the_result_file():
    shown = search_table(results_of("frozen_baselines.json"), FROZEN_ROWS)
    assert f"<!-- frozen-table -->\n{shown}\n" in PAGES["results.md"]


def test_the_tables_of_the_core_crop_are_those_of_the_result_file():
    results = results_of("core_crop.json")
    assert results["complete"]
    for name, shown in zip(("fit", "search"), crop_tables(results), strict=True):
        assert f"<!-- crop-{name}-table -->\n{shown}\n" in PAGES["results.md"]


def test_the_tables_are_rendered_from_the_result_files():
    quickstart = results_of("quickstart.json")
    table = comparison_table([quickstart["before"], quickstart["after"]], names=["shipped", "trained further"])
    assert table in README
    assert table in PAGES["results.md"]
    results, names = [], []
    for model, name in (("moon1", "Moon"), ("dual_tower", "dual tower")):
        for when in ("before", "after"):
            for data in ("grocery", "fashion"):
                results.append(results_of(f"shared_{model}_{when}-{data}.json"))
                names.append(f"{name} {when}")
    assert comparison_table(results, names=names) in PAGES["results.md"]


def test_the_table_of_peers_is_rendered_from_the_result_files():
    files = sorted((ROOT / "results" / "peers").glob("*/*.json"))
    assert len(files) == 6
    shown = comparison_table([result for path in files for _, result in read_results(path)])
    assert "<!-- peers-table -->\n" + shown in PAGES["benchmarks.md"]


def test_the_rows_of_the_shops_are_those_of_the_study():
    study = (ROOT / "results" / "shops_study.md").read_text(encoding="utf-8")
    known = {
        tuple(re.sub(r"\s+", " ", cell).strip() for cell in line.strip("| ").split("|")) for line in study.splitlines()
    }
    for text in (README, PAGES["results.md"]):
        table = re.search(r"<!-- shops-table -->\n(.*?)\n\n", text, flags=re.DOTALL)
        rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table[1].splitlines()[2:]]
        assert len(rows) >= 5
        for shop, direction, *values in rows:
            name, seen = shop.rsplit(", ", 1)
            assert any(
                row[0] == f"{name} ({seen})" and row[1].startswith(direction) and list(row[2:]) == values
                for row in known
            )
    for sentence in results_of("shops_study.json")["words"]:
        assert sentence in PAGES["results.md"]
