"""Simulate shoppers who are shown products and click on some of them: users' tastes are about attributes, not about vectors.

Our design; the precedents are simulators of recommendation such as RecSim (arXiv 1909.04847). Everything that this file makes is
simulated behaviour, and results that use it must say so.

Each product p has a quality b_p ~ N(0, 1), a price z_p ~ N(0, 1) relative to its category, and a day of arrival. Each user
u belongs to one segment s, has interests π_u in categories, weights ω_uk of attribute keys, a price sensitivity
q_u ~ |N(0, 1)|, and a taste for each attribute value v, such as "red" or "leather", that drifts from day to day:

    θ_uv(d) = (m_sv + δ_uv(d)) / √2,    δ(d + 1) = (1 − drift) · δ(d) + √(1 − (1 − drift)²) · ε,    m, δ(0), ε ~ N(0, 1)
    π_u ∝ Gamma(interest),    ω_uk ∝ a_k · exp(N(0, 1) / 2) with Σ_k ω_uk² = 1 over the keys of a product

a_k is how much shoppers care about a key: the share of the shop's text queries that name the value of their answer. People like
what they ask for; a key that no query names, such as a size, does not matter. Without queries, a_k = 1 for all keys.

A session is about one category c ~ π_u. The products that are shown are drawn without replacement from those that have
arrived, with weights exp(exposure · x_p + focus · [category of p is c] + novelty · [p arrived within the last week]), where
x_p = (b_p + N(0, 1)) / √2: the shop's exposure follows quality only in part. There are no positions on a page. A product is
clicked with probability

    σ(intercept + taste · Σ_k ω_uk θ_uv(p,k)(d) + relevance · [category of p is c] + popularity · b_p
      − price · q_u z_p + noise · ε)

where ε ~ N(0, 1) is drawn for each showing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from tqdm import tqdm

from product_data.errors import OptionError
from product_data.impressions import ImpressionLog
from product_data.rows import ProductRow, QueryRow

_WORD = re.compile(r"[^\W_]+")
_START, _DAY, _WEEK = 1_767_225_600, 86_400, 7  # 2026-01-01 UTC


@dataclass(frozen=True)
class BehaviourSettings:
    """The parameters of the simulation; the equations are in the docstring of this file.

    Args:
        users (`int`): number of users. Default 1500.
        days (`int`): length of the log in days. Default 30.
        sessions (`float`): mean number of sessions of a user; each user's rate is drawn from a log-normal distribution with
            deviation 0.5. Default 12.
        shown (`int`): products that are shown in a session. Default 8.
        segments (`int`): groups of users with common tastes. Default 12.
        new_share (`float`): share of products that arrive during the log, at uniform times; the others are there from the
            start. Default 0.5.
        interest (`float`): shape of the Gamma distribution of interests; small values mean few categories. Default 0.3.
        drift (`float`): daily drift of tastes, from 0 (none) to 1 (new every day). Default 0.03.
        exposure, focus, novelty (`float`): weights of a product's exposure. Defaults 0.7, 3, 1.
        intercept, taste, relevance, popularity, price, noise (`float`): weights of a click. Defaults −3, 2, 1.5, 0.5, 0.5, 0.5.

    Raises:
        OptionError: a count below 1, a share or drift outside [0, 1], or another number that is negative or not finite
            (the intercept may be negative).
    """

    users: int = 1500
    days: int = 30
    sessions: float = 12.0
    shown: int = 8
    segments: int = 12
    new_share: float = 0.5
    interest: float = 0.3
    drift: float = 0.03
    exposure: float = 0.7
    focus: float = 3.0
    novelty: float = 1.0
    intercept: float = -3.0
    taste: float = 2.0
    relevance: float = 1.5
    popularity: float = 0.5
    price: float = 0.5
    noise: float = 0.5

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            is_count = option.name in ("users", "days", "shown", "segments")
            is_share = option.name in ("new_share", "drift")
            if is_count and not (isinstance(value, int) and value >= 1):
                raise OptionError(f"{option.name}: found {value!r}; expected a whole number of at least 1")
            if is_share and not 0 <= value <= 1:
                raise OptionError(f"{option.name}: found {value!r}; expected a number from 0 to 1")
            if not math.isfinite(value) or (value < 0 and option.name != "intercept"):
                raise OptionError(f"{option.name}: found {value!r}; expected a number of at least 0")
        if not self.interest > 0:
            raise OptionError(f"interest: found {self.interest!r}; expected a number above 0")


class _World:
    """Products and users of one simulation. Shape suffixes: P products, K keys, V values, U users, C categories, S segments."""

    def __init__(
        self,
        products: Sequence[ProductRow],
        importance: Mapping[str, float],
        settings: BehaviourSettings,
        rng: np.random.Generator,
    ) -> None:
        self.settings, count = settings, len(products)
        keys = list(importance)
        values: dict[str, int] = {}
        self.value_PK = np.full((count, len(keys)), -1)
        for place, row in enumerate(products):
            for key, texts in row.attributes.items():
                self.value_PK[place, keys.index(key)] = values.setdefault(texts[0], len(values))
        categories = list(dict.fromkeys(row.category for row in products))
        self.category_P = np.array([categories.index(row.category) for row in products])
        self.quality_P, self.price_P = rng.standard_normal((2, count))
        self.exposure_P = (self.quality_P + rng.standard_normal(count)) / math.sqrt(2)
        is_new_P = rng.random(count) < settings.new_share
        self.arrival_P = np.where(is_new_P, rng.uniform(0, settings.days, count), -np.inf)
        users = settings.users
        segment_U = rng.integers(settings.segments, size=users)
        self.common_UV = rng.standard_normal((settings.segments, len(values)))[segment_U]
        self.own_UV = rng.standard_normal((users, len(values)))
        interest_UC = rng.gamma(settings.interest, size=(users, len(categories))) + 1e-12
        self.interest_UC = interest_UC / interest_UC.sum(axis=1, keepdims=True)
        self.key_weight_UK = np.exp(rng.standard_normal((users, len(keys))) / 2) * np.array(list(importance.values()))
        self.price_sensitivity_U = np.abs(rng.standard_normal(users))
        rate_U = np.exp(0.5 * rng.standard_normal(users))
        self.rate_U = rate_U / rate_U.mean() * settings.sessions / settings.days

    def drift(self, rng: np.random.Generator) -> None:
        """Move all tastes on by one day."""
        kept = 1.0 - self.settings.drift
        self.own_UV = kept * self.own_UV + math.sqrt(1.0 - kept**2) * rng.standard_normal(self.own_UV.shape)

    def taste(self, user: int, shown: np.ndarray) -> np.ndarray:
        """Return how well products match a user's taste: Σ_k ω_uk θ_uv."""
        taste_V = (self.common_UV[user] + self.own_UV[user]) / math.sqrt(2)
        value_SK = self.value_PK[shown]
        weight_SK = np.where(value_SK >= 0, self.key_weight_UK[user], 0.0)
        norm_S = np.maximum(np.sqrt((weight_SK**2).sum(axis=1)), 1e-12)
        return (weight_SK * taste_V[value_SK]).sum(axis=1) / norm_S


def key_importance(products: Sequence[ProductRow], queries: Sequence[QueryRow]) -> dict[str, float]:
    """Return for each attribute key the share of text queries that name its value in their first answer; 1 without queries.

    Args:
        products: the products; the first value of an attribute counts.
        queries: the queries; those without text, or whose first answer lacks the key, do not count for a key.
    """
    by_id = {row.product_id: row for row in products}
    named: dict[str, list[bool]] = {key: [] for row in products for key in row.attributes}
    for query in queries:
        answer = by_id.get(query.positives[0]) if query.text and query.positives else None
        words = _words(query.text)
        for key, texts in answer.attributes.items() if answer else ():
            named[key].append(_words(texts[0]) in words)
    if not any(any(found) for found in named.values()):
        return dict.fromkeys(named, 1.0)
    return {key: float(np.mean(found)) if found else 0.0 for key, found in named.items()}


def _words(text: str) -> str:
    """Return a text's words with a space around each, so that whole words are found."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def simulate(
    products: Sequence[ProductRow],
    queries: Sequence[QueryRow] = (),
    settings: BehaviourSettings | None = None,
    *,
    seed: int = 0,
) -> ImpressionLog:
    """Simulate a log of showings and clicks.

    Args:
        products: the products with their categories and attributes. Their texts, pictures and vectors are not used.
        queries: the shop's queries, which say how much shoppers care about each attribute. Default: none, all equal.
        settings: parameters of the simulation. Default: `BehaviourSettings()`.
        seed (`int`): seed of everything that is drawn; the same seed, products and settings give the same log. Default 0.

    Raises:
        OptionError: products without attributes, or fewer products at the start than are shown in a session.
    """
    settings = settings or BehaviourSettings()
    if not any(row.attributes for row in products):
        raise OptionError(
            f"found {len(products)} products without attributes; expected attributes: users' tastes are about them"
        )
    rng = np.random.default_rng(seed)
    importance = key_importance(products, queries)
    world = _World(products, importance, settings, rng)
    if (at_start := int((world.arrival_P < 0).sum())) < settings.shown:
        raise OptionError(
            f"shown: found {settings.shown} products a session and {at_start} at the start; expected at least as many products"
        )
    rows: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]] = []
    for day in tqdm(range(settings.days), desc="simulate days", delay=3.0):
        for user in np.repeat(np.arange(settings.users), rng.poisson(world.rate_U)):
            moment = day + rng.random()
            rows.append((int(user), int(_START + moment * _DAY), *_session(world, int(user), moment, rng)))
        world.drift(rng)
    rows.sort(key=lambda row: row[1])
    shown = settings.shown
    return ImpressionLog(
        name="simulated",
        users=tuple(f"u{number:06}" for number in range(settings.users)),
        products=tuple(row.product_id for row in products),
        user_N=np.repeat([row[0] for row in rows], shown),
        product_N=np.concatenate([row[2] for row in rows]),
        time_N=np.repeat([float(row[1]) for row in rows], shown),
        clicked_N=np.concatenate([row[3] for row in rows]),
        probability_N=np.concatenate([row[4] for row in rows]),
        simulation={"seed": seed, "products": len(products), "importance": importance, **asdict(settings)},
    )


def _session(
    world: _World, user: int, moment: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the products that one session shows, whether each is clicked, and the probability of the click."""
    settings = world.settings
    category = int(rng.choice(world.interest_UC.shape[1], p=world.interest_UC[user]))
    is_relevant_P = world.category_P == category
    is_recent_P = world.arrival_P > moment - _WEEK
    weight_P = settings.exposure * world.exposure_P + settings.focus * is_relevant_P + settings.novelty * is_recent_P
    weight_P[world.arrival_P > moment] = -np.inf
    drawn_P = weight_P + rng.gumbel(size=len(weight_P))  # the largest are a draw without replacement
    shown = np.argpartition(-drawn_P, settings.shown - 1)[: settings.shown]
    logit = (
        settings.intercept
        + settings.taste * world.taste(user, shown)
        + settings.relevance * is_relevant_P[shown]
        + settings.popularity * world.quality_P[shown]
        - settings.price * world.price_sensitivity_U[user] * world.price_P[shown]
        + settings.noise * rng.standard_normal(len(shown))
    )
    chance = 1.0 / (1.0 + np.exp(-logit))
    return shown, rng.random(len(shown)) < chance, chance
