"""Category paths in the spellings of shops: which sign separates, what is said about it, several paths in one cell."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from product_data.categories import CategoryReader, parse_category
from product_data.reading import ReadingOptions
from product_data.tables import ProductTables, load_tables


def shop(*cells: Any, **options: Any) -> ProductTables:
    products = [{"product_id": str(number), "title": "x", "category_path": cell} for number, cell in enumerate(cells)]
    return load_tables({"products": products}, reading=ReadingOptions(**options))


def paths(tables: ProductTables) -> list[tuple[str, ...]]:
    return [row.category for row in tables.products]


SPELLINGS = [" >> ", ">>", " > ", ">", " | ", "|", " / ", "/", " » ", "»", "›", " -> ", "→", "> "]


@pytest.mark.parametrize("sign", SPELLINGS)
def test_levels_are_found_whatever_sign_separates_them(sign: str) -> None:
    tables = shop(sign.join(["Home", "Sofas", "Big ones"]), sign.join(["Home", "Lamps"]), "Garden", None)
    assert paths(tables) == [("Home", "Sofas", "Big ones"), ("Home", "Lamps"), ("Garden",), ()]
    split = {issue.kind: issue.count for issue in tables.report.issues}
    documented = sign in (" > ", ">", "|", " | ")
    assert split == ({} if documented else {"split_categories": 2})
    if not documented:
        assert f"'0': {sign.join(['Home', 'Sofas', 'Big ones'])!r} → Home > Sofas > Big ones" in str(tables.report)
    given_sign = shop(sign.join(["Home", "Sofas"]), "Garden", category_separator=sign)
    assert paths(given_sign) == [("Home", "Sofas"), ("Garden",)]
    assert given_sign.report.issues == ()


def test_a_slash_inside_of_labels_separates_nothing_and_is_reported() -> None:
    beside_paths = shop("Clothing > Tops/Blouses", "Clothing > Shoes")
    assert paths(beside_paths)[0] == ("Clothing", "Tops/Blouses")
    assert beside_paths.report.issues == ()
    assert shop(["Home", "Tops/Blouses"], ["Home/Garden"], "<b>Home</b>").report.count("undecided_categories") == 0
    mixed = shop("Clothing > Shoes", "Clothing/Hats")
    assert (paths(mixed)[1], mixed.report.count("undecided_categories")) == (("Clothing/Hats",), 1)
    alone = shop("Tops/Blouses", "Shoes", "Bags/Purses", "Hats")
    assert paths(alone) == [("Tops/Blouses",), ("Shoes",), ("Bags/Purses",), ("Hats",)]
    assert alone.report.count("undecided_categories") == 2
    assert "category_separator: '/'" in str(alone.report)
    told = shop("Tops/Blouses", "Shoes", category_separator="/")
    assert paths(told) == [("Tops", "Blouses"), ("Shoes",)]
    undone = shop("Tops/Blouses", "Bags/Purses", category_separator=">")
    assert paths(undone) == [("Tops/Blouses",), ("Bags/Purses",)]
    assert undone.report.issues == told.report.issues == ()


def test_a_separator_with_spaces_leaves_the_sign_alone_inside_of_words() -> None:
    assert paths(shop("Home - T-Shirts - Long-sleeved", category_separator=" - ")) == [
        ("Home", "T-Shirts", "Long-sleeved")
    ]
    assert paths(shop("Home : A:B", category_separator=":")) == [("Home", "A", "B")]
    for wrong in ("", 5):
        with pytest.raises(ValueError, match="category_separator: found"):
            ReadingOptions(category_separator=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("A > B, A > C", ("A", "B")),
        ("A, A > B, A > B > C, A > D", ("A", "B", "C")),
        ("A > B; D > E", ("A", "B")),
        ("A > B\nD > E > F", ("A", "B")),
        ("A > B|A > C", ("A", "B")),
        ("A>>B, A>>C", ("A", "B")),
        (["A > B", "A > C"], ("A", "B")),
        ('["A > B", "A > C"]', ("A", "B")),
    ],
)
def test_of_several_paths_in_one_cell_one_is_read_and_the_cell_is_named(cell: Any, read: tuple[str, ...]) -> None:
    tables = shop(cell)
    assert paths(tables) == [read]
    assert tables.report.count("several_categories") == 1
    assert f"'0': {cell!r} → {' > '.join(read)}" in str(tables.report)


def test_paths_of_another_root_are_told_by_the_column_and_labels_with_commas_stay_whole() -> None:
    assert paths(shop("A > B, D > E", "D > F"))[0] == ("A", "B")
    for cell, read in (
        ("Furniture > Cabinets, Storage > Shelves", ("Furniture", "Cabinets, Storage", "Shelves")),
        ("Food, Drinks > Tea, Coffee", ("Food, Drinks", "Tea, Coffee")),
        ("Box, set of 3", ("Box, set of 3",)),
        ("Home &amp; Living > Sofas", ("Home &amp; Living", "Sofas")),
        ("Cups > >50 cm", ("Cups", ">50 cm")),
        (">50 cm", (">50 cm",)),
        ("TVs >27 inch", ("TVs >27 inch",)),
        ("<b>Home</b> > Sofas", ("<b>Home</b>", "Sofas")),
        (["Home", "Tops > Blouses"], ("Home", "Tops > Blouses")),
        (["A > B"], ("A", "B")),
        (["A|B"], ("A", "B")),
        ([], ()),
    ):
        tables = shop(cell, "Coffee")
        assert paths(tables)[0] == read
        assert tables.report.count("several_categories") == 0
    assert parse_category("A/B") == ("A/B",)  # one cell alone does not tell


LABELS = st.text(st.characters(categories=["Lu", "Ll", "Nd"], include_characters=" &,-'"), min_size=1, max_size=8)


@given(
    st.lists(st.lists(LABELS.map(str.strip).filter(lambda text: text.isalnum()), min_size=1, max_size=4), min_size=1),
    st.sampled_from([" > ", ">>", "|", "»"]),
)
def test_paths_that_were_written_are_read_back(written: list[list[str]], sign: str) -> None:
    absent = {"nan", "NaN", "None", "null", "NULL"}
    written = [labels for labels in written if not absent & set(labels)]
    cells = [sign.join(labels) for labels in written]
    reader = CategoryReader(cells)
    for cell, labels in zip(cells, written, strict=True):
        starts_with_digit = any(label[0].isdigit() for label in labels)
        if not starts_with_digit:
            assert reader.read(cell).path == tuple(labels)
    assert [CategoryReader().read(labels).path for labels in written] == [tuple(labels) for labels in written]


@example(["A;A>"])  # the same path twice is one path
@given(st.lists(st.text("AB >|/,;<b>&amp;\n", max_size=14)))
def test_any_cell_is_read_and_no_letter_is_lost_where_one_path_is_found(cells: list[str]) -> None:
    reader = CategoryReader(cells)
    for text in cells:
        cell = reader.read(text)
        if not cell.paths:
            kept = "".join(sign for label in cell.path for sign in label if sign in "AB")
            written = "".join(sign for sign in text if sign in "AB")
            copies = len(written) // len(kept) if kept else 1
            assert written == kept * copies
            assert copies <= len(re.split(r"[,;|\n]", text))  # what is written once is never shortened
