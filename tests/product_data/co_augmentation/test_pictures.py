"""The embedded picture editor: what is cut out, what stays the same, and what is never mirrored."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import noise, plain
from PIL import Image, ImageDraw

from product_data.co_augmentation.cutting import CutOutError, cut_out
from product_data.co_augmentation.editor import EmbeddedEditor
from product_data.co_augmentation.grounds import KINDS, draw_ground
from product_data.co_augmentation.light import colour_name, lab_of, relit
from product_data.co_augmentation.mirroring import looks_like_text, may_be_mirrored
from product_data.rows import ProductRow

BOX = (30, 40, 90, 110)


def product_on(ground: tuple[int, int, int], colour: str = "#1a7a2e", size: int = 120) -> Image.Image:
    image = Image.new("RGB", (size, size), ground)
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=colour)
    return image


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0.0, wide) * max(0.0, high) / (sum(areas) - max(0.0, wide) * max(0.0, high))


def row(**fields: object) -> ProductRow:
    return ProductRow("p", **({"title": "green box"} | fields))


@pytest.mark.parametrize("ground", [(255, 255, 255), (236, 232, 224), (60, 60, 70)])
def test_a_product_on_a_plain_ground_is_cut_out_whole_and_nothing_else(ground):
    cut = cut_out(product_on(ground))
    assert cut.way == "plain ground"
    assert overlap(cut.box, BOX) > 0.9
    alpha = np.asarray(cut.picture.getchannel("A"))
    assert alpha[60:90, 50:70].min() == 255
    assert alpha[:30].max() == 0
    visible = np.asarray(cut.picture)[alpha > 0][:, :3].astype(int)
    assert np.abs(visible - np.array([0x1A, 0x7A, 0x2E])).max() < 40, "the old ground is left in the edges"


def test_a_light_that_falls_off_across_the_ground_and_a_soft_shadow_are_ground():
    size = 120
    y, x = np.mgrid[0:size, 0:size]
    ground = 235 - 0.2 * x - 0.1 * y
    shadow = 40 * np.exp(-(((x - 66) / 38) ** 4 + ((y - 80) / 42) ** 4))
    image = Image.fromarray(np.dstack([ground - shadow] * 3).clip(0, 255).astype(np.uint8))
    image.paste(product_on((0, 0, 0)).crop(BOX), BOX[:2])
    assert overlap(cut_out(image).box, BOX) > 0.8


def test_a_white_product_with_an_outline_on_white_keeps_its_inside():
    image = product_on((255, 255, 255), "#fafafa")
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), outline="#8a8a8a", width=2)
    cut = cut_out(image)
    assert overlap(cut.box, BOX) > 0.85
    assert np.asarray(cut.picture.getchannel("A"))[50:100, 40:80].min() > 200


def test_the_ground_inside_a_handle_is_ground_but_a_logo_of_its_colour_is_not():
    image = Image.new("RGB", (160, 160), (245, 245, 245))
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 80, 120, 140), fill="#b02020")
    draw.arc((56, 30, 104, 130), 180, 360, fill="#b02020", width=6)
    draw.ellipse((70, 96, 90, 116), fill=(245, 245, 245))
    alpha = np.asarray(cut_out(image).picture.getchannel("A"))
    assert alpha[62, 80] == 0
    assert alpha[106, 80] == 255


def test_without_a_plain_ground_the_core_box_is_cut_out_or_the_reason_given():
    photo = noise(120, 120)
    with pytest.raises(
        CutOutError, match="the ground is not plain, and neither a mask nor a core box shows the product"
    ):
        cut_out(photo)
    cut = cut_out(photo, BOX)
    assert cut.way == "core box"
    assert overlap(cut.box, BOX) > 0.7


def test_a_saliency_mask_cuts_products_out_of_photos():
    class Masked:
        options = None

        def masks(self, images):
            return [np.asarray(product_on((0, 0, 0), "white").convert("L").resize((64, 64)), dtype=np.float32) / 255]

    cut = cut_out(noise(120, 120), saliency=Masked())  # type: ignore[arg-type]
    assert cut.way == "saliency"
    assert overlap(cut.box, BOX) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_has_another_ground_and_the_box_of_the_product(kind):
    image = product_on((250, 250, 250))
    editor = EmbeddedEditor(image, row())
    scene = editor.scene(KINDS.index(kind), np.random.default_rng(3), other=plain("orange", 50))
    again = editor.scene(KINDS.index(kind), np.random.default_rng(3), other=plain("orange", 50))
    assert scene.picture.tobytes() == again.picture.tobytes()
    assert scene.picture.size == image.size
    pixels = np.asarray(scene.picture).astype(int)
    green = (pixels[..., 1] - pixels[..., 0] > 40) & (pixels[..., 1] - pixels[..., 2] > 25)
    rows, columns = np.flatnonzero(green.sum(1) > 3), np.flatnonzero(green.sum(0) > 3)
    drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    if kind != "texture":  # whose colours can be green
        assert overlap(scene.box, drawn) > 0.8
    corner = pixels[:5, :5].reshape(-1, 3).mean(0)
    assert np.abs(corner - 250).max() > 4
    assert "plain ground" in scene.made_by


def test_the_clean_picture_is_the_product_alone_in_the_middle_of_white():
    clean = EmbeddedEditor(product_on((120, 140, 200)), row()).clean()
    pixels = np.asarray(clean.picture)
    assert pixels[0].min() == 255
    assert pixels[:, 0].min() == 255
    centre = ((clean.box[0] + clean.box[2]) / 2, (clean.box[1] + clean.box[3]) / 2)
    assert centre == pytest.approx((60, 60), abs=2)


@pytest.mark.parametrize(
    "colour", ["#c01818", "#1a7a2e", "#1d3fb0", "#e8c81e", "#7a3fa0", "#202022", "#f4f4f4", "#6b3f22"]
)
def test_other_light_never_changes_the_name_of_the_colour(colour):
    product = plain(colour, 24).convert("RGBA")
    changed = 0
    for seed in range(25):
        lit, words = relit(product, np.random.default_rng(seed))
        assert colour_name(lit) == colour_name(product)
        changed += lit.tobytes() != product.tobytes() and words.startswith("brightness")
    assert changed >= 10


def test_lab_is_that_of_known_colours():
    found = lab_of(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    assert found == pytest.approx(np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2]]), abs=0.3)


def test_a_ground_differs_from_the_product_and_an_unknown_kind_is_refused():
    for seed in range(20):
        ground, _ = draw_ground("plain", (8, 8), np.random.default_rng(seed), (200, 200, 200))
        colours = lab_of(np.array([ground.getpixel((0, 0)), (200, 200, 200)]))
        assert np.linalg.norm(colours[0] - colours[1]) >= 28
    with pytest.raises(ValueError, match="kind: found 'sky'; expected one of plain, gradient, texture, picture"):
        draw_ground("sky", (8, 8), np.random.default_rng(0), (0, 0, 0))


def written(text: str) -> Image.Image:
    from evaluation.fonts import font_for

    image = Image.new("RGB", (192, 192), "#c9d6e8")
    font, _ = font_for(text)
    ImageDraw.Draw(image).text((14, 70), text, fill="#101010", font=font(34))
    return image


def test_text_is_found_and_a_smooth_product_is_not_text():
    assert looks_like_text(written("MILANO 1987"))
    assert not looks_like_text(product_on((255, 255, 255), size=192))


@pytest.mark.parametrize(
    ("attributes", "image", "may"),
    [
        ({}, product_on((255, 255, 255)), True),
        ({"logo": ("star",)}, product_on((255, 255, 255)), False),
        ({"pattern": ("slogan print",)}, product_on((255, 255, 255)), False),
        ({"colour": ("blue",)}, written("SALE 50 %"), False),
    ],
)
def test_what_may_be_legible_is_never_mirrored(attributes, image, may):
    assert may_be_mirrored(row(attributes=attributes), image.convert("RGBA")) is may


def test_a_logo_stays_unmirrored_in_every_scene():
    image = product_on((250, 250, 250))
    for attributes, mirrored in (({"logo": ("star",)}, False), ({}, True)):
        editor = EmbeddedEditor(image, row(attributes=attributes))
        made = [editor.scene(0, np.random.default_rng(seed)).made_by for seed in range(12)]
        assert any("mirrored" in words for words in made) is mirrored
