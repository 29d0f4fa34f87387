"""Convert Chinese to simplified characters: 紅色 and 红色 become one value.

The simplified form of a character depends on its word (乾 is 干 or stays), so a library converts: OpenCC, an optional
extra. It is used only if a reading option requires it; what is read therefore never depends on what is installed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from product_data.errors import OptionError


@lru_cache(maxsize=65536)
def simplified(text: str) -> str:
    """Return a text with its traditional Chinese characters in simplified form; other text is unchanged.

    Args:
        text: any string.

    Raises:
        OptionError: OpenCC is not installed.
    """
    return text if text.isascii() else str(_converter().convert(text))


def require_converter() -> None:
    """Check that OpenCC is installed.

    Raises:
        OptionError: OpenCC is not installed.
    """
    _converter()


@cache
def _converter() -> Any:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise OptionError(
            "simplify_chinese: OpenCC is not installed; install it with pip install moon3[chinese]"
        ) from error
    return OpenCC("t2s")
