"""Variants of products: what is made, scored, kept, resumed and refused."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launched import Launched
from pictures import file_of, noise, plain
from PIL import Image, ImageDraw

from evaluation.variant_sheet import variant_sheet
from moon3.__main__ import main
from processing_moon import open_image
from product_data.co_augmentation.variant_files import CLEAN, SCENE, TITLE, VariantFolder, is_variant_folder
from product_data.errors import OptionError
from product_data.tables import ProductRow, TableError, load_tables
from training.co_augmentation.consistency import Consistency, Vectors, check_tolerance
from training.co_augmentation.editors import CallableEditor, EditorError, open_editor
from training.co_augmentation.making import MakingOptions, make_variants
from training.labels.chat_writer import Answer
from training.labels.journal import WritingError

COLOURS = ("red", "green", "blue", "purple", "orange")


def product(number: int, **fields: object) -> ProductRow:
    colour = COLOURS[number % len(COLOURS)]
    image = Image.new("RGB", (72, 64), (248, 248, 246))
    ImageDraw.Draw(image).rectangle((20, 16, 50, 48), fill=colour)
    shown = {
        "title": f"{colour} box",
        "category": ("Home", "Boxes"),
        "attributes": {"colour": (colour,), "material": ("tin",), "brand": ("Kivo",)},
        "images": (file_of(image),),
    }
    return ProductRow(f"p{number}", **(shown | fields))


def options(folder: Path, **changed: object) -> MakingOptions:
    return MakingOptions(**({"output": folder, "views": 2, "titles": 2, "batch_size": 2, "progress": False} | changed))


class Scored(Consistency):
    """Scores by a rule: a picture by its mean brightness, so that dark scenes fall below the original."""

    def __init__(self, tolerance: float = 0.1) -> None:
        self.tolerance, self.name = tolerance, "brightness"

    @property
    def settings(self):
        return {"model": "brightness", "tolerance": self.tolerance}

    def of_pictures(self, pictures):
        level = [np.asarray(picture, dtype=np.float32).mean() / 255 for picture in pictures]
        return Vectors(np.array([[value, (1 - value**2) ** 0.5] for value in level]), np.ones(len(level), bool))

    def of_titles(self, titles):
        turned = [[0.8, 0.6] if "tin" in title else [1.0, 0.0] for title in titles]
        return Vectors(np.array(turned).reshape(-1, 2), np.array([bool(title) for title in titles]))


PRODUCTS = [product(number) for number in range(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    report = make_variants("boxes", PRODUCTS, options(folder), consistency=Scored())
    return VariantFolder(folder), report


def test_every_product_has_titles_a_clean_picture_and_scenes_with_their_boxes(made):
    folder, report = made
    assert (report.products, report.new) == (5, 5)
    assert folder.data_set == "boxes"
    for row in PRODUCTS:
        variants = folder.variants()[row.product_id]
        assert [one.kind for one in variants] == [TITLE, TITLE, CLEAN, SCENE, SCENE]
        for variant in variants[2:]:
            picture = open_image(folder.picture(variant))
            inside = np.asarray(picture.crop([round(side) for side in variant.core_box])).reshape(-1, 3)
            wanted = np.array(Image.new("RGB", (1, 1), row.attributes["colour"][0]).getpixel((0, 0)))
            near = np.abs(inside.astype(int) - wanted).max(axis=1) < 90
            assert near.mean() > 0.6
            assert "cut out by plain ground" in variant.made_by


def test_a_variant_is_kept_if_its_score_is_at_most_the_tolerance_below_that_of_the_original(made):
    folder, report = made
    variants = [one for every in folder.variants().values() for one in every]
    assert all(one.score is not None and one.original_score is not None for one in variants)
    for one in variants:
        assert one.accepted == (one.score >= one.original_score - 0.1)
        assert bool(one.reason) == (not one.accepted)
        assert one.accepted or one.reason.startswith("the consistency fell: ")
    assert 0 < sum(one.accepted for one in variants) < len(variants)
    assert report.counts[SCENE]["made"] == 10
    kept = folder.variants(accepted_only=True)
    assert sum(len(every) for every in kept.values()) == sum(one.accepted for one in variants)


def test_the_folder_is_no_data_set_and_cannot_become_a_gallery(made):
    with pytest.raises(TableError, match="no products table"):
        load_tables(made[0].path)


def test_without_a_model_variants_are_kept_without_a_score(tmp_path):
    make_variants("boxes", PRODUCTS[:2], options(tmp_path))
    variants = [one for every in VariantFolder(tmp_path).variants().values() for one in every]
    assert all(one.accepted and one.score is None for one in variants)
    assert json.loads((tmp_path / "co_augmentation.json").read_text())["scored"] is False


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}
    return found | {name: (folder / name).read_bytes() for name in ("variants.jsonl", "variants.parquet")}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import training.co_augmentation.making as module
from test_making import PRODUCTS, Scored, options
saved = 0
save = module._Maker._save

def killing(self, *arguments):
    global saved
    saved += 1
    if saved == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(self, *arguments)

module._Maker._save = killing
module.make_variants("boxes", PRODUCTS, options(Path({folder!r})), consistency=Scored())
"""


def test_a_killed_job_goes_on_after_its_last_batch_and_ends_as_one_that_was_left_alone(tmp_path, made):
    script, folder = tmp_path / "killed.py", tmp_path / "killed"
    script.write_text(KILLED.format(paths=[str(Path(__file__).parent)], folder=str(folder)))
    with Launched(script) as making:
        assert making.finish() == [-signal.SIGKILL], making.said()[-2000:]
    assert not is_variant_folder(folder)
    report = make_variants("boxes", PRODUCTS, options(folder), consistency=Scored())
    assert report.new == 3  # the batch of two was complete
    assert contents(folder) == contents(made[0].path)


def test_only_new_and_changed_products_are_made_again(tmp_path):
    make_variants("boxes", PRODUCTS[:3], options(tmp_path))
    before = VariantFolder(tmp_path).variants()
    changed = [PRODUCTS[0], replace(PRODUCTS[1], title="Kivo green box"), PRODUCTS[2], PRODUCTS[3]]
    assert make_variants("boxes", changed, options(tmp_path)).new == 2
    after = VariantFolder(tmp_path).variants()
    assert after["p0"] == before["p0"]
    assert list(after) == ["p0", "p1", "p2", "p3"]
    with pytest.raises(WritingError, match="was written with other settings .*seed 0, not 1.*--overwrite"):
        make_variants("boxes", changed, options(tmp_path, seed=1))
    assert make_variants("boxes", changed, options(tmp_path, seed=1, overwrite=True)).new == 4


def test_what_cannot_be_edited_is_kept_with_the_reason_and_unreadable_pictures_are_tried_again(tmp_path):
    rows = [
        product(0, images=(file_of(noise(60, 60)),)),
        product(1, images=()),
        product(2, images=(b"no picture",)),
        product(3, title=""),
    ]
    report = make_variants("boxes", rows, options(tmp_path), consistency=Scored())
    found = VariantFolder(tmp_path).variants()
    (clean,) = [one for one in found["p0"] if one.kind == CLEAN]
    assert (clean.accepted, clean.image) == (False, "")
    assert clean.reason.startswith("the ground is not plain")
    assert {one.kind for one in found["p1"]} == {TITLE}
    assert all(one.accepted and one.score is None for one in found["p1"])
    assert report.unreadable_count == 1
    assert report.unreadable[0].startswith("p2: ")
    assert not any(one.accepted for one in found["p3"])
    assert {one.reason for one in found["p3"]} == {"the consistency of picture and title cannot be scored"}
    assert make_variants("boxes", rows, options(tmp_path), consistency=Scored()).new == 1


class Writer:
    settings = {"temperature": 0.5}

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, questions, seeds=None):
        self.asked += len(questions)
        assert all(question.images and "Title: " in question.text for question in questions)
        colour = [question.text.split()[1] for question in questions]
        first = [f"Title: “Kivo {one} tin box”" for one in colour]
        return [
            Answer("Kivo green steel case 7" if one == "green" else text)
            for one, text in zip(colour, first, strict=True)
        ]


def test_a_writer_enriches_titles_and_its_wrong_ones_are_kept_with_the_reason(tmp_path):
    writer = Writer()
    make_variants("boxes", PRODUCTS[:3], options(tmp_path, views=0), writer=writer, writer_name="scripted")
    found = VariantFolder(tmp_path).variants()
    first = [found[name][0] for name in ("p0", "p1", "p2")]
    assert [one.title for one in first] == ["Kivo red tin box", "Kivo green steel case 7", "Kivo blue tin box"]
    assert [one.accepted for one in first] == [True, False, True]
    assert first[1].reason == "the category 'Boxes' is lost"
    assert first[1].made_by == "scripted, attempt 3"
    assert found["p0"][1].made_by == "templates"
    assert writer.asked == 3 + 2
    make_variants("boxes", PRODUCTS[:3], options(tmp_path, views=0), writer=writer, writer_name="scripted")
    assert writer.asked == 5


def bordered(picture: Image.Image, instruction: str) -> Image.Image:
    bordered.instructions.append(instruction)
    made = Image.new("RGB", (100, 100), "white" if "plain white" in instruction else "#445566")
    made.paste(plain("red", 40), (30, 30))
    return made


bordered.instructions = []


def not_a_picture(picture, instruction):
    return "a picture"


def failing(picture, instruction):
    raise RuntimeError("out of memory")


def test_an_editor_of_the_user_is_called_for_the_clean_picture_and_for_each_scene(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import test_making as module

    module.bordered.instructions.clear()
    editor = open_editor("test_making:bordered")
    make_variants("boxes", PRODUCTS[:1], options(tmp_path, titles=0), editor=editor)
    clean, *scenes = VariantFolder(tmp_path).variants()["p0"]
    assert 'only the product "red box"' in module.bordered.instructions[0]
    assert len(set(module.bordered.instructions)) == 3
    assert all('the same product "red box"' in text for text in module.bordered.instructions[1:])
    for variant in (clean, *scenes):
        assert variant.core_box == pytest.approx((30, 30, 70, 70), abs=2)
        assert variant.made_by.startswith("test_making:bordered: ")
    for name, problem in (
        ("not_a_picture", "found str; expected a PIL image"),
        ("failing", "RuntimeError: out of memory"),
    ):
        with pytest.raises(EditorError, match=f"product 'p0': .*{problem}"):
            CallableEditor(f"test_making:{name}").edit(plain("red", 8), PRODUCTS[0], 1, (0,), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("editor", r"--editor: found 'editor'; expected package.module:function, a function \(picture, instruction\)"),
        ("no_such_package:edit", "which cannot be imported"),
        ("math:no_such", "which cannot be imported"),
        ("math:pi", "which is not callable"),
        ("textwrap:TextWrapper.fill", "which cannot be imported"),
        ("json:loads", "which does not take them"),
    ],
)
def test_an_editor_that_cannot_be_called_is_refused(name, message):
    with pytest.raises(OptionError, match=message):
        open_editor(name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": -1}, "--views: found -1; expected a number of at least 0"),
        ({"batch_size": 0}, "--batch-size: found 0; expected a number of at least 1"),
        ({"views": 0, "titles": 0}, "--views and --titles: found 0 for both"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, changed, message):
    with pytest.raises(OptionError, match=message):
        options(tmp_path, **changed)
    with pytest.raises(OptionError, match="--tolerance: found 3; expected a number from 0 to 2"):
        check_tolerance(3)


def test_products_without_distinct_ids_are_refused(tmp_path):
    for rows, message in (([], "found no products"), ([PRODUCTS[0], PRODUCTS[0]], "found product_id 'p0' twice")):
        with pytest.raises(TableError, match=message):
            make_variants("boxes", rows, options(tmp_path))


def test_the_sheet_shows_products_with_rejected_variants_first(made, tmp_path):
    path = variant_sheet(made[0], PRODUCTS, tmp_path / "new" / "sheet.png", most=3)
    with Image.open(path) as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**24)}
    assert {(34, 160, 84), (204, 72, 58)} <= colours
    with pytest.raises(ValueError, match="found no variants of these products"):
        variant_sheet(made[0], [product(9)], tmp_path / "none.png")


def test_the_command_makes_variants_of_the_training_split_with_a_real_encoder(tmp_path, tiny_moon, capsys):
    rows = [product(number, split="test" if number == 4 else "train") for number in range(5)]
    folder = tmp_path / "shop"
    folder.mkdir()
    with (folder / "products.jsonl").open("w") as stream:
        for row in rows:
            (folder / f"{row.product_id}.png").write_bytes(row.images[0])
            fields = {
                "product_id": row.product_id,
                "title": row.title,
                "split": row.split,
                "images": [f"{row.product_id}.png"],
            }
            attributes = [{"key": key, "value": values[0]} for key, values in row.attributes.items()]
            stream.write(json.dumps(fields | {"category_path": list(row.category), "attributes": attributes}) + "\n")
    words = [
        "co-augment",
        str(folder),
        "--output",
        str(folder / "co_augmentation"),
        "--model",
        str(tiny_moon("qwen3_vl")),
    ]
    words += ["--views", "1", "--titles", "1", "--quiet", "--device", "cpu", "--sheet", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "4 products, 4 of them new or changed" in said
    found = VariantFolder(folder / "co_augmentation")
    assert list(found.variants()) == ["p0", "p1", "p2", "p3"]
    assert found.data_set == "shop"
    assert all(one.score is not None for every in found.variants().values() for one in every)
    assert (tmp_path / "sheet.png").is_file()
    assert main([*words[:4], "--tolerance", "0.2", "--quiet"]) == 2
    assert "--tolerance: found it without --model" in capsys.readouterr().err
