"""Write Chinese in simplified characters, so that 紅色 and 红色 are one value.

Which characters belong together depends on words (乾 is 干 or stays), so that a library decides: OpenCC, an optional extra. It is
asked only where a reading option says so: what a table says never depends on what is installed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from product_data.errors import OptionError


@lru_cache(maxsize=65536)
def simplified(text: str) -> str:
    """Return a text with its traditional Chinese characters in simplified form; other text stays as it is.

    Args:
        text: any string.

    Raises:
        OptionError: OpenCC is not installed.
    """
    return text if text.isascii() else str(_converter().convert(text))


def require_converter() -> None:
    """Check that OpenCC is installed.

    Raises:
        OptionError: it is not.
    """
    _converter()


@cache
def _converter() -> Any:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise OptionError(
            "simplify_chinese needs OpenCC, which is not installed; expected pip install moon3[chinese]"
        ) from error
    return OpenCC("t2s")
