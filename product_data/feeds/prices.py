"""Read prices as shops write them: "1.299,00 EUR", "$1,299.00", "19,95", "12.50 USD", "1 299,-"."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_NUMBER = re.compile(r"[-+−]?\d[\d.,'’\s]*")
_GROUP = re.compile(r"(?<=\d)[\s'’](?=\d{3}(?!\d))")
_SIGNS = {
    **dict.fromkeys(("€", "eur", "euro"), "EUR"),
    **dict.fromkeys(("£",), "GBP"),
    **dict.fromkeys(("us$", "$", "usd$"), "USD"),
    **dict.fromkeys(("¥", "￥", "円"), "JPY"),
    **dict.fromkeys(("₹", "rs", "rs."), "INR"),
    **dict.fromkeys(("元", "rmb"), "CNY"),
    **dict.fromkeys(("kr", "kr."), "SEK"),
    **dict.fromkeys(("zł", "zl"), "PLN"),
    **dict.fromkeys(("r$",), "BRL"),
    **dict.fromkeys(("c$", "ca$"), "CAD"),
    **dict.fromkeys(("a$", "au$"), "AUD"),
    **dict.fromkeys(("sfr", "sfr.", "fr."), "CHF"),
    **dict.fromkeys(("kč",), "CZK"),
    **dict.fromkeys(("₺", "tl"), "TRY"),
    **dict.fromkeys(("₽", "руб", "руб."), "RUB"),
    **dict.fromkeys(("₩",), "KRW"),
    **dict.fromkeys(("₪",), "ILS"),
    **dict.fromkeys(("ft",), "HUF"),
    **dict.fromkeys(("лв", "лв."), "BGN"),
    **dict.fromkeys(("₫",), "VND"),
    **dict.fromkeys(("฿",), "THB"),
    **dict.fromkeys(("₴",), "UAH"),
}
_SHARED = frozenset(("$", "¥", "￥", "kr", "kr.", "rs", "rs.", "fr."))  # signs of several currencies
_THREE_DECIMALS = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))


class Price(NamedTuple):
    """A price.

    Args:
        value (`float`): the amount.
        currency (`str`): ISO 4217 code, or "".
        ambiguous (`bool`): whether the cell alone does not show what its sign means, as in "1.299".
        assumed (`bool`): whether several currencies share the sign of the currency.
    """

    value: float
    currency: str = ""
    ambiguous: bool = False
    assumed: bool = False


def parse_price(text: str, decimal: str = "") -> Price:
    """Return the price of a cell.

    Rule (our design): of two different signs, the last one is the decimal sign. A sign that occurs several times separates
    thousands. A single sign is a decimal sign, unless one to three digits, the first one not zero, stand before and three
    digits after it: then `decimal` decides. Spaces and apostrophes between groups of three digits separate thousands.

    Args:
        text (`str`): the cell.
        decimal (`str`): the decimal sign of the column's other prices, "." or ","; "" if they show none: then the sign
            separates thousands, except in a currency with three decimals.

    Raises:
        ValueError: not a price.
    """
    number, currency, assumed = _split(text)
    signs = _signs_in(number)
    ambiguous = _is_ambiguous(number)
    if ambiguous:
        sign = decimal or ("." if currency in _THREE_DECIMALS and "." in number else "")
        point = number.find(signs[0]) if sign == signs[0] else -1
    elif len(set(signs)) == 2 or len(signs) == 1:
        point = max(number.rfind("."), number.rfind(","))
    else:
        point = -1
    whole, fraction = (number[:point], number[point + 1 :]) if point >= 0 else (number, "")
    if any(sign in fraction for sign in ".,") or (point >= 0 and number[point] in whole):
        raise ValueError("expected a price, such as 12.50 EUR")
    if not _are_groups(whole):
        raise ValueError("expected a price with groups of three digits, such as 1,299.00 EUR")
    digits = whole.replace(".", "").replace(",", "")
    return Price(float(f"{digits}.{fraction or 0}"), currency, ambiguous, assumed)


def decimal_sign_of(text: str) -> str:
    """Return the decimal sign that a price shows, "." or ","; "" if it shows none or is not a price."""
    try:
        number, _, _ = _split(text)
    except ValueError:
        return ""
    signs = _signs_in(number)
    if not signs or _is_ambiguous(number):
        return ""
    if len(signs) > 1 and len(set(signs)) == 1:
        return "," if signs[0] == "." else "."
    return signs[-1]


def decimal_sign(shown: Counter[str]) -> str:
    """Return the decimal sign that most prices show; "" if none does or as many show the other one."""
    point, comma = shown["."], shown[","]
    return "." if point > comma else "," if comma > point else ""


def _split(text: str) -> tuple[str, str, bool]:
    """Return the number of a price, its currency, and whether several currencies share its sign."""
    text = re.sub(r"[.,][-–—]+(?=\D*$)", "", text.strip())
    match = _NUMBER.search(text)
    if match is None:
        raise ValueError("expected a price, such as 12.50 EUR")
    rest = (text[: match.start()] + text[match.end() :]).strip()
    number = match[0].strip()
    if number[-1] in ".,":
        number = number[:-1]
    number = _GROUP.sub("", number.removeprefix("+"))
    if number.startswith(("-", "−")):
        raise ValueError("expected a price that is not negative")
    if not re.fullmatch(r"\d[\d.,]*", number):
        raise ValueError("expected one price, such as 12.50 EUR")
    currency, assumed = _currency(rest)
    return number, currency, assumed


def _currency(text: str) -> tuple[str, bool]:
    name = text.casefold().strip()
    if not name:
        return "", False
    if name in _SIGNS:
        return _SIGNS[name], name in _SHARED
    if re.fullmatch(r"[a-z]{3}", name):
        return name.upper(), False
    raise ValueError("expected a price, such as 12.50 EUR")


def _signs_in(number: str) -> list[str]:
    return [sign for sign in number if sign in ".,"]


def _is_ambiguous(number: str) -> bool:
    return re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", number) is not None


def _are_groups(whole: str) -> bool:
    """Return whether thousands are separated in groups of three, or as in India (12,34,567)."""
    parts = re.split("[.,]", whole)
    return len(parts) == 1 or (
        len(parts[-1]) == 3 and len(parts[0]) <= 3 and all(len(part) in (2, 3) for part in parts[1:])
    )
