"""Pages: whatever stands in a value is text that can be seen, and a name that is missing is an error."""

import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from evaluation import pages
from evaluation.pages import POLICY, render, visible

pytestmark = pytest.mark.lowest


def made(folder: Path, text: str, **values: object) -> str:
    (folder / "a.html.jinja").write_text(text, encoding="utf-8")
    return render(folder / "a.html.jinja", **values)


def test_characters_that_cannot_be_seen_are_shown_and_words_of_other_scripts_stay():
    assert visible("a\x00b\u2066c\ud800") == "a␀b⟨U+2066⟩c⟨U+D800⟩"
    assert visible("a\ufdd0b\uffffc\U0001fffe") == "a⟨U+FDD0⟩b⟨U+FFFF⟩c⟨U+1FFFE⟩"
    for words in ("شای\u200cها", "緑茶 500 ml", "café 🫖", "日本\u3000語"):
        assert visible(words) == words


def test_a_value_becomes_neither_markup_nor_an_attribute_nor_invisible(tmp_path: Path) -> None:
    nasty = "\"'><script>\u202e\x00&amp;\ud800"
    text = '{% macro shown(x) %}<i>{{ x }}</i>{% endmacro %}<p title="{{ x }}">{{ shown(x) }}{{ [x, "b"] | join(", ") }}</p>'
    found = made(tmp_path, text, x=nasty)
    seen = "&#34;&#39;&gt;&lt;script&gt;⟨U+202E⟩␀&amp;amp;⟨U+D800⟩"
    assert found == f'<p title="{seen}"><i>{seen}</i>{seen}, b</p>'
    assert made(tmp_path, "{{ x }}", x=Markup("<b>ours</b>")) == "<b>ours</b>"
    assert made(tmp_path, "{{ x }} {{ y }}", x=1.5, y=None) == "1.5 None"


def test_a_name_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="'absent' is undefined"):
        made(tmp_path, "{{ absent }}")


HOUSE = Path(pages.__file__).parents[1]
TEMPLATES = sorted(
    path
    for room in ("retrieval", "evaluation", "training", "applications", "model_cards")
    for path in (HOUSE / room).rglob("*.html.jinja")
)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_of_ours_escapes_everything_and_lets_nothing_be_fetched(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert '<meta http-equiv="Content-Security-Policy" content="{{ policy }}">' in text
    assert "default-src 'none'" in POLICY
    assert "safe" not in text
    assert "autoescape" not in text
    assert "={{" not in text  # an attribute's value stands in quotes
    assert "<script" not in text
    assert (path.parent / "__init__.py").is_file()
    packaged = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "*.jinja" in packaged["*"]  # so that it is installed beside its module
