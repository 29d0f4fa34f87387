"""One command puts Moons, a dual tower and peers into one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import file_of, noise
from table_files import write_table
from tiny_peers import make_siglip, make_text_encoder

from evaluation.baselines.dual_tower import DualTower
from evaluation.peer_table import folder_names, models_table, peer_lines, require_some_scores
from evaluation.report import short_name
from evaluation.run import NothingScoredError
from evaluation.significance import holm
from moon3.__main__ import main
from processing_moon import MoonProcessor
from product_data.errors import OptionError

COLOURS = ("red", "blue", "green", "brown")
NAMES = ("moon1", "moon2", "moon3", "tower", "base (vlm_mean)", "random (clip)", "siglip (siglip)")
TEXT_ALONE = ("model (sentence_transformer)", "bm25")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    folder.mkdir()
    products, queries = [], []
    for number, colour in enumerate(COLOURS):
        (folder / f"{colour}.png").write_bytes(file_of(noise(48, 40, number)))
        row = {"id": f"p{number}", "name": f"{colour} shoes", "image": f"{colour}.png"}
        products.append(row | {"category": f"Home > {'Shoes' if number % 2 else 'Boots'}"})
        queries.append({"id": f"t{number}", "text": f"a {colour} shoe", "positives": [f"p{number}"]})
        queries.append({"id": f"i{number}", "image": f"{colour}.png", "positives": [f"p{number}"]})
    write_table(folder / "products.jsonl", products)
    write_table(folder / "queries.jsonl", queries)
    return folder


@pytest.fixture(scope="module")
def models(
    tiny_base: Callable[..., Path], tiny_moon: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The models of `NAMES` and `TEXT_ALONE`, each in a folder of its own name."""
    root = tmp_path_factory.mktemp("models")
    presets = {
        "moon1": tiny_moon(),
        "moon2": tiny_moon(preset="moon2"),
        "moon3": tiny_moon(preset="moon3", embedding_dim=32),
    }
    for name, place in {**presets, "base": tiny_base()}.items():
        (root / name).symlink_to(place, target_is_directory=True)
    processor = MoonProcessor.from_pretrained(tiny_moon())
    DualTower.from_base(tiny_base(), processor, embedding_dim=32).save_pretrained(root / "tower")
    processor.save_pretrained(root / "tower")
    peers = [f"vlm_mean={root / 'base'}", "clip=random", f"siglip={make_siglip(root / 'siglip')}"]
    peers += [f"sentence_transformer={make_text_encoder(root / 'text')}", "bm25"]
    return [*(str(root / name) for name in (*presets, "tower")), *peers]


def test_one_command_puts_all_models_into_one_table(
    models: list[str], shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "peers"
    first, *others = models
    command = ["evaluate", "--model", first, "--model", *others, "--benchmark", str(shop), "--device", "cpu"]
    command += ["--reference", others[1], "--weights", f"{others[-2]}=published"]
    assert main([*command, "--only", "retrieval,classification,matrix", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    head = next(line for line in printed.splitlines() if line.startswith("| benchmark"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == ["benchmark", "R@10, %", *NAMES, *TEXT_ALONE, "chance"]
    rows = {
        cells[1]: cells for line in printed.splitlines() if (cells := cells_of(line)) and len(cells) == len(columns)
    }
    assert rows["weights"][2:] == ["random"] * 3 + [
        "not recorded",
        "random",
        "random",
        "not recorded",
        "published (declared)",
        "none",
        "",
    ]
    assert all(cell[0].isdigit() for cell in rows["t→t"][2:])
    assert all(cell[0].isdigit() for cell in rows["t→mm"][2 : 2 + len(NAMES)])
    assert rows["t→mm"][2 + len(NAMES) :] == ["–", "–", "100.0"]  # ten of four products
    assert "random (clip) on shop: mm is the mean of the unit vectors of what a record has" in printed
    why = "bm25 reads no pictures, and 4 of 4 products of the form 'mm' have one"
    assert f"bm25 on shop: no t2mm, i2mm, classification: {why}." in printed
    assert "the data has no queries of type 'both'" not in printed  # no model has these scores
    files = sorted(path.relative_to(output).as_posix() for path in output.glob("*/*.json"))
    assert files == sorted(f"{name}/shop.json" for name in folder_names(models))
    of_bm25 = json.loads((output / "bm25" / "shop.json").read_text())
    assert of_bm25["peer"]["reads_pictures"] is False
    assert of_bm25["matrix"]["t"]["t"]["queries"] == 4
    of_moon = json.loads((output / "moon1" / "shop.json").read_text())
    assert (of_moon["peer"], peer_lines(of_moon)) == (None, [])
    # What peers wrote in another environment joins through its results file.
    results = [str(output / name / "shop.json") for name in ("moon1", "random_clip", "bm25")]
    assert main(["report", *results, "--compare", "R@10"]) == 0
    assert "random (clip)" in capsys.readouterr().out
    every = [str(path) for path in sorted(output.glob("*/shop.json"))]
    assert main(["report", *every, "--compare", "R@10", "--reference", "moon3"]) == 0
    again = capsys.readouterr().out
    assert "Differences to moon3 in points of R@10" in again
    for name in ("moon1", "bm25"):  # the same differences as the command that evaluated
        assert column_of(again, name) == column_of(printed, name)
    assert main(["report", *every, "--reference", "moon3"]) == 2
    assert "--reference without --compare or --output" in capsys.readouterr().err
    assert models_table([of_moon, of_bm25]).count("bm25 on shop") > 0
    check_significance(printed, output)


def check_significance(printed: str, output: Path) -> None:
    """Check that the printed differences, the JSON and the page are those of the results files, against moon3."""
    head = next(line for line in printed.splitlines() if ", points " in line and line.startswith("| benchmark"))
    others = [name for name in (*NAMES, *TEXT_ALONE) if name != "moon3"]
    assert cells_of(head) == ["benchmark", "R@10, points", *others]
    found = json.loads((output / "significance.json").read_text())
    (on_shop,) = found["benchmarks"]
    assert (found["reference"], on_shop["baseline"]) == ("moon3", "moon3")
    assert [one["model"] for one in on_shop["comparisons"]] == others
    assert {row["what"] for row in on_shop["comparisons"][-1]["rows"]} == {"t2t"}  # of BM25
    rows = [row for one in on_shop["comparisons"] for row in one["rows"]]
    assert found["tested"] == len(rows)
    assert [row["p_holm"] for row in rows] == holm([row["difference"]["p"] for row in rows])
    files = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/shop.json")}
    for one in (on_shop["comparisons"][0], on_shop["comparisons"][-1]):
        row = next(row for row in one["rows"] if row["what"] == "t2t" and row["metric"] == "MRR")
        apart = files[one["model"]]["matrix"]["t"]["t"]["MRR"] - files["moon3"]["matrix"]["t"]["t"]["MRR"]
        assert row["difference"]["difference"] == pytest.approx(apart)
    page = (output / "report.html").read_text()
    assert "Differences to moon3" in page
    assert f"correction for all {found['tested']} rows" in page
    assert f"correction for all {found['tested']} rows" in printed


def column_of(printed: str, model: str) -> dict[str, str]:
    """Return direction → the difference of a model in the table of differences."""
    lines = iter(printed.splitlines())
    head = next(cells for line in lines if "R@10, points" in (cells := cells_of(line)))
    found = {}
    for line in lines:
        if not line.startswith("|"):
            return found
        cells = cells_of(line)
        found[cells[1]] = cells[head.index(model)]
    return found


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "all.json"], "expected a folder when there are several models"),
        (["--reasoning", "generate"], "reasoning with bm25; expected models that reason"),
        (["--model", "bm25"], "several models are called 'bm25'"),
        (["--weights", "bm26=x"], "--weights bm26; expected models as in --model: "),
        (["--weights", "bm26"], "--weights: found 'bm26'; expected MODEL=WORDS"),
        (["--reference", "clip=random"], "--reference clip=random; expected one of several models: moon1, bm25"),
        (["--model", "open_clip=nowhere/at-all"], "needs the package open_clip, which is not installed"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_evaluation(
    models: list[str],
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluation.peer_table.evaluate_benchmarks", None)  # whoever calls it fails
    command = ["evaluate", "--model", models[0], "bm25", "--benchmark", str(shop), "--device", "cpu"]
    assert main([*command, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_needs_a_score_of_one_model_and_not_of_all() -> None:
    nothing = {"benchmark": "shop", "scores": {"t2mm": None}, "image_only": {}}
    require_some_scores([nothing, nothing | {"scores": {"t2mm": {"R@1": 0.5}}}])
    with pytest.raises(NothingScoredError, match="found no scores for shop"):
        require_some_scores([nothing, nothing])


def test_models_are_called_by_their_folder_and_kind() -> None:
    assert short_name("clip=patrickjohncyh/fashion-clip") == "fashion-clip (clip)"
    assert short_name("vlm_mean=runs/x/final") == "x (vlm_mean)"
    assert short_name("runs/lr=1/final") == "lr=1"
    assert folder_names(["a/b c", "clip=x/y", "bm25"]) == ["b_c", "y_clip", "bm25"]
    with pytest.raises(OptionError, match="several models are called 'y'"):
        folder_names(["x/y", "z/y"])
