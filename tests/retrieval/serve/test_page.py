"""The page in a browser: every way of searching, at two widths and in both colours, without a request that leaves it."""

from __future__ import annotations

import csv
import shutil
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import uvicorn
from shop_exports import write_export

from evaluation.match_page import heat_maps
from moon3.__main__ import main
from processing_moon.images_moon import open_image
from retrieval.search import open_searcher
from retrieval.serve.app import create_app
from retrieval.serve.explaining import MatchAnswers
from training.shipped_checkpoint import SHIPPED

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here, in which the page would run")

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
SCREENS = {"desktop, light": (1280, 900, "light"), "desktop, dark": (1280, 900, "dark")} | {
    "phone, light": (390, 844, "light"),
    "phone, dark": (390, 844, "dark"),
}
# WCAG 2 contrast of each visible text against the nearest opaque ground; disabled and image text are not meant.
LOW_CONTRAST = """() => {
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const parts = color => color.match(/[\\d.]+/g).map(Number), found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || element.closest("script, style, .unseen, .skip") || !element.checkVisibility()) continue;
    let ground = element;
    while (ground && (parts(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 1) ground = ground.parentElement;
    const style = getComputedStyle(element), under = getComputedStyle(ground || document.body);
    const a = light(parts(style.color)), b = light(parts(under.backgroundColor));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), size = parseFloat(style.fontSize);
    if (contrast < (size >= 24 ? 3 : 4.5)) found.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, select, a, canvas, img")].filter(one => {
  const label = one.labels && [...one.labels].map(label => label.textContent).join(" ");
  return one.checkVisibility() && !(one.getAttribute("aria-label") || label || one.textContent || one.alt || "").trim();
}).map(one => one.outerHTML.slice(0, 80))"""
HAND_OVER = """([data, kind]) => {
  const held = new DataTransfer();
  held.items.add(new File([new Uint8Array(data)], "photo.jpg", {type: "image/jpeg"}));
  const shared = {bubbles: true, cancelable: true};
  document.dispatchEvent(kind === "drop" ? new DragEvent("drop", {dataTransfer: held, ...shared})
    : new ClipboardEvent("paste", {clipboardData: held, ...shared}));
}"""
FOCUSED = "(one => one.id || one.className || one.textContent)(document.activeElement)"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Serve a shop of 60 products with the shipped model; yield the address and the folder of the export."""
    folder = tmp_path_factory.mktemp("shop")
    write_export(folder, products=60)
    export = folder / "products_export.csv"
    vectors = folder / "vectors"
    assert main(["embed", str(export), "--model", str(SHIPPED), "--output", str(vectors)]) == 0
    with open_searcher(vectors) as searcher:
        store = searcher.store
        (product,) = store.get(["tote-0"])
        store.upsert([replace(product, title=HOSTILE)], {"mm": store.vectors(["tote-0"], "mm")})
        app = create_app(searcher, answers=MatchAnswers(searcher, vectors / "phrases", heat_maps))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", folder
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, shop, request):
    """A page of the shop; at the end nothing was fetched from elsewhere, and the console has no error."""
    width, height, colours = SCREENS[getattr(request, "param", "desktop, light")]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
    opened, asked, said = context.new_page(), [], []
    context.on("request", lambda one: asked.append(one.url))
    opened.on("console", lambda one: said.append(one.text) if one.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.goto(shop[0])
    yield opened
    outside = [
        url
        for url in asked
        if urlsplit(url).netloc != urlsplit(shop[0]).netloc and not url.startswith(("data:", "blob:"))
    ]
    context.close()
    assert outside == []
    assert said == []


def search(page, words):
    page.fill("#text", words)
    page.keyboard.press("Enter")
    settled(page)
    page.wait_for_selector(".hit")


def titles(page):
    return page.locator(".hit h3").all_inner_texts()


def ids(page):
    """The ids of the products that are shown, by the addresses of their pictures."""
    return [
        source.rpartition("/")[2]
        for source in page.locator(".frame img").evaluate_all("all => all.map(one => one.src)")
    ]


def facts_of(folder):
    """Product id → its colour and type in the export."""
    with (folder / "products_export.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    colour = next(name for name in rows[0] if name.startswith("Color"))
    return {row["Handle"]: (row[colour], row["Product Category"].split(" > ")[-1]) for row in rows}


def settled(page):
    """Wait for the answer to the last change."""
    page.wait_for_selector("#results:not([aria-busy])")


def shows(page, count):
    """Wait for the answer, and check the number of products."""
    settled(page)
    assert page.locator(".hit").count() == count


@pytest.mark.parametrize("page", SCREENS, indirect=True)
def test_a_customer_types_and_pages(page):
    assert page.locator("#empty").inner_text().startswith("Nothing to search for yet")
    search(page, "red tote bag")
    assert len(titles(page)) == 24
    assert page.locator(".hit img").first.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
    page.click("#more")
    shows(page, 48)
    assert len(set(page.locator(".frame img").evaluate_all("all => all.map(one => one.src)"))) == 48


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("red mug", ("red", "Mugs")),
        ("teal shirt", ("teal", "Shirts")),
        ("green chair", ("green", "Chairs")),
        ("orange dress", ("orange", "Dresses")),
        ("white headphones", ("white", "Headphones")),
        ("purple tote bag", ("purple", "Tote bags")),
    ],
)
def test_words_find_the_products_of_their_colour_and_type_first(page, shop, words, right):
    facts = facts_of(shop[1])
    search(page, words)
    wanted = [product_id for product_id, found in facts.items() if found == right]
    assert len(wanted) == 2
    assert set(ids(page)[:2]) == set(wanted), [facts[one] for one in ids(page)[:4]]


@pytest.mark.parametrize("product_id", ["chairs-44", "shirts-20", "mugs-24", "lamps-40", "dresses-34", "watches-57"])
def test_a_dropped_picture_of_a_product_finds_it_or_its_variants_first(page, shop, product_id):
    """The page marks the product in the picture: the shipped model learned from pictures whose product is marked."""
    facts = facts_of(shop[1])
    data = list((shop[1] / "images" / f"{product_id}.jpg").read_bytes())
    page.evaluate(HAND_OVER, [data, "drop"])
    page.wait_for_selector(".hit")
    settled(page)
    assert page.locator("#unmark").is_visible()
    assert "marked region is searched" in page.locator("#canvas-help").inner_text()
    first = ids(page)
    assert facts[first[0]][1] == facts[product_id][1], [facts[one] for one in first[:4]]
    assert product_id in first[:3]


@pytest.mark.parametrize("page", SCREENS, indirect=True)
def test_a_customer_adds_a_picture_weighs_it_against_the_words_and_marks_a_region(page, shop):
    search(page, "red tote bag")
    by_words = titles(page)
    page.set_input_files("#file", str(shop[1] / "photo.jpg"))
    page.wait_for_selector("#canvas:visible")
    settled(page)
    together = titles(page)
    page.locator("#weight").fill("100")
    settled(page)
    assert titles(page) == by_words  # all weight on the words: as without the picture
    page.click("#together")
    settled(page)
    assert titles(page) == together
    page.fill("#text", "")
    page.locator("#form button[type=submit]").click()
    settled(page)
    whole = titles(page)
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    page.mouse.up()
    settled(page)
    page.wait_for_selector("#unmark:visible")
    assert titles(page) != whole


@pytest.mark.parametrize("page", SCREENS, indirect=True)
def test_a_customer_filters_and_asks_why(page):
    search(page, "red tote bag")
    if not page.locator("#filters").evaluate("one => one.open"):
        page.click("#filters summary")
    page.get_by_label("In stock", exact=False).first.check()
    settled(page)
    assert page.locator(".hit .small", has_text="Out of stock").count() == 0
    page.fill("#most", "40")
    page.keyboard.press("Tab")
    settled(page)
    prices = [float(text) for text in page.locator(".hit .price").all_inner_texts()]
    assert prices
    assert max(prices) <= 40

    page.get_by_role("button", name="Why").first.click()
    page.wait_for_selector("#why-body .part")
    page.wait_for_selector("#why-body .maps img, #why-body .maps p")
    assert "Cosine" in page.locator("#why-body").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Why this?"


@pytest.mark.parametrize("page", SCREENS, indirect=True)
def test_every_control_has_a_name_texts_have_contrast_and_nothing_is_wider_than_the_screen(page):
    search(page, "blue chair")
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.get_by_role("button", name="Why").first.click()
    page.wait_for_selector("#why-body .part")
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate("[...document.querySelectorAll('h1, h2, h3')].length") > 3
    assert page.get_attribute("html", "lang") == "en"


def test_the_keyboard_alone_reaches_everything_in_reading_order_and_marks_a_region(page, shop):
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate(FOCUSED))
    assert order == ["skip", "theme", "text", "main", "file", "words"]
    page.set_input_files("#file", str(shop[1] / "photo.jpg"))
    page.wait_for_selector("#canvas:visible")
    settled(page)
    page.locator("#canvas").focus()
    page.keyboard.press("Escape")
    page.wait_for_timeout(700)
    settled(page)
    whole = titles(page)
    page.locator("#canvas").focus()
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowLeft", "Shift+ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_timeout(700)
    settled(page)
    assert page.locator("#unmark").is_visible()
    assert titles(page) != whole
    page.locator("#canvas").focus()
    page.keyboard.press("Escape")
    page.wait_for_timeout(700)
    settled(page)
    assert titles(page) == whole


def test_a_picture_can_be_dropped_and_pasted(page, shop):
    """Both with the file that a browser would hand over."""
    data = list((shop[1] / "photo.jpg").read_bytes())
    page.evaluate(HAND_OVER, [data, "drop"])
    page.wait_for_selector(".hit")
    dropped = titles(page)
    page.click("#remove")
    page.wait_for_selector("#empty:visible")
    page.evaluate(HAND_OVER, [data, "paste"])
    page.wait_for_selector(".hit")
    assert titles(page) == dropped


def test_more_like_this_leaves_out_the_product_and_takes_words_with_a_weight(page):
    search(page, "red tote bag")
    first = page.locator(".frame img").first.get_attribute("src")
    page.get_by_role("button", name="More like").first.click()
    settled(page)
    assert first not in page.locator(".frame img").evaluate_all("all => all.map(one => one.getAttribute('src'))")
    alone = titles(page)
    page.fill("#text", "green")
    page.keyboard.press("Enter")
    settled(page)
    assert page.locator("#weight-value").inner_text() == "50 % words"
    assert titles(page) != alone


def test_a_title_with_markup_is_shown_as_text(page, shop):
    for _ in range(2):
        page.click("#more") if page.locator("#more").is_visible() else search(page, "product")
    shows(page, 48)
    page.click("#more")
    shows(page, 60)
    assert HOSTILE in titles(page)


def test_no_product_within_the_filters_is_said_and_the_filters_can_be_cleared(page):
    search(page, "red tote bag")
    page.fill("#least", "99999")
    page.keyboard.press("Tab")
    page.wait_for_selector("#empty:visible")
    assert "Remove a filter" in page.locator("#empty").inner_text()
    page.click("#clear")
    page.wait_for_selector(".hit")
    page.fill("#least", "cheap")
    page.keyboard.press("Tab")
    page.wait_for_selector("#status.bad")
    assert "expected a number" in page.locator("#status").inner_text()


def test_a_file_that_is_not_a_picture_is_refused_and_colours_are_kept(page, tmp_path):
    note = tmp_path / "note.png"
    note.write_text("not a picture")
    page.set_input_files("#file", str(note))
    page.wait_for_selector("#status.bad")
    assert "note.png is not a picture" in page.locator("#status").inner_text()
    page.click("#theme")
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_pictures_are_served_small_and_only_those_that_the_store_names(page, shop):
    answer = page.request.get(shop[0] + "pictures/0/tote-0")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(open_image(answer.body()).size) <= 480
    for path in ("pictures/9/tote-0", "pictures/0/nothing", "pictures/0/..%2F..%2Fetc%2Fpasswd", "pictures/-1/tote-0"):
        assert page.request.get(shop[0] + path).status == 404
