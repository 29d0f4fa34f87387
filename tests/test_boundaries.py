"""Imports flow one way, shipped files stay flat and small, and no file shadows a library."""

import ast
import graphlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: each may import itself and what stands before it; the first three are one storey.
PACKAGES = (
    "modeling_moon",
    "processing_moon",
    "model_cards",
    "product_data",
    "retrieval",
    "evaluation",
    "training",
    "applications",
    "moon3",
)
ALONE = ("modeling_moon", "processing_moon", "model_cards")
# The folders and files of `training/`, from the ground up in the same way.
ROOMS = ("places", "errors", "losses", "rewards", "encoding", "libraries", "parallel", "model", "recipe", "batches") + (
    "labels",
    "co_augmentation",
    "runs",
    "contrastive",
    "reasoning",
    "assembly",
    "train",
    "mining",
    "shop",
    "shipped_checkpoint",
    "quickstart",
    "studies",
)
SHIPPED_LIBRARIES = {"torch", "transformers", "PIL", "numpy", "huggingface_hub"}
SHIPPED = sorted(
    path
    for folder in ("modeling_moon", "processing_moon")
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
)
SOURCES = sorted(path for package in {*PACKAGES, *ALONE} for path in (ROOT / package).rglob("*.py"))


def imports_of(code: str, with_names: bool = False) -> list[tuple[int, str]]:
    """(level, dotted name) of every import statement; `with_names` adds what is imported to the module's name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and with_names:
            found += [(node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def imports(path: Path) -> list[tuple[int, str]]:
    """As `imports_of`, of a file."""
    return imports_of(path.read_text())


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_files_to_check():
    assert len(SHIPPED) >= 6
    assert len(SOURCES) > 20


def climbs(parts: tuple[str, ...], code: str) -> list[str]:
    """The imports of a file, those under TYPE_CHECKING too, that its place in the house forbids.

    Args:
        parts: the file's path below the root, without its ending.
        code: its text.
    """
    package = parts[0]
    names = [
        name.split(".") for level, name in imports_of(code) if level == 0 and name.split(".")[0] in {*PACKAGES, *ALONE}
    ]
    found = []
    for name in names:
        if name[0] == package:
            if package == "training" and len(name) > 1 and ROOMS.index(name[1]) > ROOMS.index(parts[1]):
                found.append(".".join(name))
        elif package in ALONE or name[0] not in PACKAGES or PACKAGES.index(name[0]) > PACKAGES.index(package):
            found.append(".".join(name))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_imports_only_what_stands_below_it(path):
    assert not climbs(path.relative_to(ROOT).with_suffix("").parts, path.read_text())


@pytest.mark.parametrize(
    ("parts", "line", "forbidden"),
    [
        (("product_data", "rows"), "import retrieval.encode", ["retrieval.encode"]),
        (("processing_moon", "x_moon"), "from modeling_moon import MoonModel", ["modeling_moon"]),
        (("model_cards", "rendering"), "from product_data.errors import OptionError", ["product_data.errors"]),
        (("evaluation", "run"), "def f():\n    from training.train import main", ["training.train"]),
        (("training", "losses", "x"), "from training.contrastive.trainer import A", ["training.contrastive.trainer"]),
        (
            ("training", "batches", "x"),
            "if TYPE_CHECKING:\n    import training.contrastive.trainer",
            ["training.contrastive.trainer"],
        ),
        (("training", "assembly", "x"), "from training.losses.info_nce import a\nimport evaluation.run", []),
    ],
)
def test_a_planted_violation_is_found(parts, line, forbidden):
    assert climbs(parts, line) == forbidden


def test_no_two_files_import_each_other_in_a_circle():
    """Circles through any number of files of ours, whether an import runs at once, late or for types alone."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }

    def targets(name):
        package = name if modules[name].stem == "__init__" else name.rpartition(".")[0]
        for level, module in imports_of(modules[name].read_text(), with_names=True):
            full = f"{package}.{module}" if level else module
            yield next((known for known in (full, full.rpartition(".")[0]) if known in modules and known != name), None)

    graph = {name: {target for target in targets(name) if target} for name in modules}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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
def test_a_shipped_file_has_at_most_600_lines_and_the_architecture_900(path):
    assert len(path.read_text().splitlines()) <= (900 if path.name == "modeling_moon.py" else 600)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_bears_the_name_of_a_library(path):
    """A script's own folder comes first on the import path: training/datasets.py would hide `datasets`."""
    if path.stem in ("__init__", "__main__") or path.relative_to(ROOT).parts[0].endswith("_moon"):
        return
    assert path.stem not in sys.stdlib_module_names
    spec = importlib.util.find_spec(path.stem)
    assert spec is None or (spec.origin or "").startswith(str(ROOT)), f"{path.stem} is also {spec.origin}"


def test_the_configuration_needs_no_torch():
    names = [name for _, name in imports(ROOT / "modeling_moon" / "configuration_moon.py")]
    assert not [name for name in names if name.split(".")[0] == "torch"]
