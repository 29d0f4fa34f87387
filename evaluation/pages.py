"""Render HTML pages from Jinja2 templates: all text is escaped, and all of its characters are visible.

A template is a file beside the module that fills it, `<module>.html.jinja`, and contains all markup and style of the
page.
"""

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

# Scripts do not run and nothing is fetched, whatever text a model or a table contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Joiners are part of words in many scripts; all other invisible characters are shown as their code point.
_KEPT_FORMATS = "\u200c\u200d"


def render(template: Path, **values: Any) -> str:
    """Render a template with values, and return the page.

    All values pass through `visible` and are escaped, except `markupsafe.Markup`, which only this project's code may
    create. In a template, attribute values must be in double quotes.

    Args:
        template: the template file. It can use `policy`, the content security policy `POLICY`.
        values: values by name; a name that the template uses must not be missing.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(policy=POLICY, **values)


def inline_picture(picture: Image.Image, side: int, *, quality: int = 80) -> str:
    """Return the `src` of a picture that is embedded in the page, as a reduced JPEG.

    Args:
        picture: an RGB picture; it is not changed.
        side (`int`): longest side, in pixels.
        quality (`int`): quality of the JPEG. Default 80.
    """
    smaller, stream = picture.copy(), io.BytesIO()
    smaller.thumbnail((side, side))
    smaller.save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def visible(text: str) -> str:
    """Replace control and format characters, lone surrogates and non-characters by their code points.

    The text of a model can then neither reverse the direction of the text around it nor hide words.
    """
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:  # non-characters, which HTML forbids
        return f"⟨U+{ord(character):04X}⟩"
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or character in _KEPT_FORMATS:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
