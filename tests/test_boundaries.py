"""Imports flow one way, shipped files stay flat and small, and no file shadows a library."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_moon", "processing_moon", "evaluation", "training", "model_cards")
MAY_IMPORT = {
    "modeling_moon": {"modeling_moon"},
    "processing_moon": {"processing_moon"},
    "model_cards": {"model_cards"},
    "evaluation": {"evaluation", "modeling_moon", "processing_moon"},
    "training": {"training", "evaluation", "modeling_moon", "processing_moon"},
}
SHIPPED_LIBRARIES = {"torch", "transformers", "PIL", "numpy", "huggingface_hub"}
SHIPPED = sorted(
    path
    for folder in ("modeling_moon", "processing_moon")
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import statement of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_files_to_check():
    assert len(SHIPPED) >= 6
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_layer_imports_only_the_layers_below_it(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for level, name in imports(path) if level == 0} & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", [p for p in SOURCES if {"losses", "rewards"} & set(p.parts)], ids=relative)
def test_a_loss_or_reward_never_imports_a_trainer(path):
    assert not [name for _, name in imports(path) if name.endswith("_trainer") or name == "training.train"]


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_a_shipped_file_imports_siblings_and_few_libraries_only(path):
    assert path.stem.endswith("_moon")
    allowed = SHIPPED_LIBRARIES | ({"sentence_transformers"} if path.stem == "sentence_transformer_moon" else set())
    for level, name in imports(path):
        top = name.split(".")[0]
        if level:
            assert level == 1
            assert (path.parent / f"{name}.py").exists()
            assert name.endswith("_moon")
            assert name != "sentence_transformer_moon"
        else:
            assert top in allowed or top in sys.stdlib_module_names, name
        if name.startswith("transformers.models.qwen"):
            assert path.name == "modeling_moon.py"


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_a_shipped_file_has_at_most_900_lines(path):
    assert len(path.read_text().splitlines()) <= 900


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_bears_the_name_of_a_library(path):
    """A script's own folder comes first on the import path: training/datasets.py would hide `datasets`."""
    if path.stem == "__init__" or path.relative_to(ROOT).parts[0].endswith("_moon"):
        return
    assert path.stem not in sys.stdlib_module_names
    spec = importlib.util.find_spec(path.stem)
    assert spec is None or (spec.origin or "").startswith(str(ROOT)), f"{path.stem} is also {spec.origin}"


def test_the_configuration_needs_no_torch():
    names = [name for _, name in imports(ROOT / "modeling_moon" / "configuration_moon.py")]
    assert not [name for name in names if name.split(".")[0] == "torch"]
