"""Render HTML pages from Jinja2 templates: every text is escaped, and every character of it can be seen.

A template is a file beside the module that fills it, `<module>.html.jinja`, and holds all of the page's markup and style.
"""

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

# No script runs and nothing is fetched, whatever a model or a table wrote.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Joiners are part of words in many scripts; every other invisible character is shown as its number.
_KEPT_FORMATS = "\u200c\u200d"


def render(template: Path, **values: Any) -> str:
    """Return the page that a template makes of values.

    Text becomes neither markup nor invisible: what a template writes is passed through `visible` and escaped, unless it is
    `markupsafe.Markup`, which only code of ours may make. In a template an attribute's value stands in double quotes.

    Args:
        template: the file. `policy` is known to it, the content security policy `POLICY`.
        values: what else it knows by name; a name that it uses and that is not here is an error.
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
    """Return the `src` of a picture that stands in the page itself, made smaller, as JPEG.

    Args:
        picture: in RGB; it stays as it is.
        side (`int`): longest side, in pixels.
        quality (`int`): of the JPEG. Default 80.
    """
    smaller, stream = picture.copy(), io.BytesIO()
    smaller.thumbnail((side, side))
    smaller.save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def visible(text: str) -> str:
    """Return text whose characters can all be seen: of control, format, lone surrogate and non-characters their number.

    So a model can neither reverse the direction of what stands beside its words nor hide some of them.
    """
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF:  # no characters, which HTML forbids
        return f"⟨U+{ord(character):04X}⟩"
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or character in _KEPT_FORMATS:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
