"""A shop system's import file becomes tables of products, and its other pictures become queries."""

import csv

import pytest
from PIL import Image

from product_data.spree import read_spree
from product_data.table_files import TableError

COLUMNS = ("slug", "name", "description", "category1", "option1_name", "option1_value", "image1_src")
COLUMNS += ("custom_field.custom.noise_level",)
ROWS = [
    ("fan", "Tower Fan", "Quiet, tall", "Air -> Fans", "", "", "https://x.example/a/fan.webp?v=2", "30dB"),
    ("fan", "", "", "", "Color", "Matte Black", "https://x.example/a/fan-black.webp", ""),
    ("fan", "", "", "", "Color", "White", "https://x.example/a/fan-white.webp", ""),
    ("fan", "", "", "", "", "", "", ""),
    ("iron", "Iron", "", "", "", "", "iron.webp", ""),
    ("iron", "", "", "", "Color", "Blue", "iron-blue.webp", ""),
]
PICTURES = ("fan", "fan-black", "fan-white", "iron", "iron-blue")


@pytest.fixture
def shop(tmp_path):
    def make(rows=ROWS, columns=COLUMNS, pictures=PICTURES):
        with (tmp_path / "products.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in pictures:
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.webp")
        return tmp_path

    return make


def test_pictures_of_variants_ask_for_their_product(shop):
    folder = shop()
    tables = read_spree(folder)
    fan, iron = tables.products
    assert (tables.name, fan.product_id, fan.title, fan.description) == ("spree", "fan", "Tower Fan", "Quiet, tall")
    assert fan.category == ("Air", "Fans")
    assert fan.attributes == {"noise level": ("30dB",)}
    assert fan.images == (str(folder / "images" / "fan.webp"),)
    assert (iron.category, iron.attributes) == ((), {})
    assert [(query.type, query.image.rsplit("/", 1)[1], query.positives) for query in tables.queries] == [
        ("image", "fan-black.webp", ("fan",)),
        ("image", "fan-white.webp", ("fan",)),
        ("image", "iron-blue.webp", ("iron",)),
    ]
    assert tables.report.ok
    assert not tables.report.issues


def test_a_picture_with_a_colour_asks_for_that_variant(shop):
    tables = read_spree(shop(), variants=True)
    black = tables.products[0]
    assert (tables.name, black.product_id, black.group) == ("spree variants", "fan in Matte Black", "fan")
    assert black.attributes == {"noise level": ("30dB",), "color": ("Matte Black",)}
    assert black.images[0].endswith("fan-black.webp")
    query = tables.queries[0]
    assert (query.type, query.text, query.positives) == ("both", "in matte black", (black.product_id,))
    assert query.image.endswith("fan.webp")
    assert query.derived
    assert len(tables.products) == len(tables.queries) == 3


def test_what_is_no_such_file_is_refused_by_name(shop):
    with pytest.raises(TableError, match=r"products.csv: found no column 'slug', which Spree product export needs"):
        read_spree(shop(columns=("handle", *COLUMNS[1:])))
    (shop() / "images" / "iron-blue.webp").unlink()
    with pytest.raises(
        TableError,
        match=r"products.csv, row 7, product 'iron', column 'image1_src': .*iron-blue.webp.*: found no picture",
    ):
        read_spree(shop(pictures=PICTURES[:-1]))


def test_the_real_file_has_37_products_and_124_pictures(shared_data):
    products, variants = read_spree(shared_data / "spree"), read_spree(shared_data / "spree", variants=True)
    assert (len(products.products), len(products.queries)) == (37, 87)
    assert (len(variants.products), len(variants.queries)) == (87, 87)
    pictures = {row.images[0] for row in products.products} | {query.image for query in products.queries}
    assert len(pictures) == 124
    assert not products.validate(check_images=True).issues
