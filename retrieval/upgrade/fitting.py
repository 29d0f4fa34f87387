"""Fit adapters on a sample that both models embedded, choose one on held-out products, and measure it on others.

Shape suffixes: V vectors, Q queries, D width of the new model, E width of the old model, P products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from retrieval.upgrade.adapters import Adapter, fit_affine
from retrieval.upgrade.calibration import Calibration, fit_calibration
from retrieval.upgrade.gallery import Gallery, ranks
from retrieval.upgrade.recipes import TEXT_WEIGHTS, Material, Recipe, Texts, linear_recipes, network_recipes
from retrieval.upgrade.sampling import UpgradeError, split

K = 10
OLD_TO_OLD, NEW_TO_NEW = "old query, old vectors", "new query, new vectors"
UNADAPTED, ADAPTED = "new query, old vectors, not adapted", "new query, old vectors, adapted"


@dataclass(frozen=True)
class Sample:
    """The vectors of a sample of products by both models, and those of a query for each product.

    Args:
        old, new: the products' vectors; row v of both is the same product in the same form.
        new_query_QD: the new model's vectors of the queries.
        right_Q: the product that each query looks for; at most one query for a product.
        old_query_QE: the old model's vectors of the queries; `None` if the old model is not available.
        texts: short texts of products, on which adapters are fitted too; `None` without any.

    Raises:
        UpgradeError: rows of old and new that are not the same products.
    """

    old: Gallery
    new: Gallery
    new_query_QD: np.ndarray
    right_Q: np.ndarray
    old_query_QE: np.ndarray | None = None
    texts: Texts | None = None

    def __post_init__(self) -> None:
        if not np.array_equal(self.old.product_V, self.new.product_V):
            raise UpgradeError(
                f"sample: found {len(self.old.product_V)} old and {len(self.new.product_V)} new vectors of different "
                "products; expected a pair of vectors for each product and form"
            )

    @property
    def material(self) -> Material:
        """What adapters are fitted on: everything but the queries."""
        return Material(self.old, self.new, self.texts)

    def ranks(self, query_QD: np.ndarray, gallery: Gallery, chosen_Q: np.ndarray) -> np.ndarray:
        """Return the rank of the answer of each chosen query in a gallery."""
        return ranks(gallery.scores(query_QD[chosen_Q]), [[product] for product in self.right_Q[chosen_Q]])


@dataclass(frozen=True)
class Fitted:
    """An adapter with what was measured of it.

    Args:
        name (`str`): the adapter that was chosen, such as "affine, rank 64".
        adapter: new → old, for queries; fitted on all products.
        back: old → new, for the vectors of products as queries ("like this product"); fitted on all products.
        calibration: cosines with old vectors → cosines with new ones.
        chosen_by: adapter → its score on the products that choose, see `fit_upgrade`.
        rank_by: search → rank of the answer of each query on the products that measure; the four searches above, and each
            adapter by its name.
        calibrated_on (`int`): number of queries that the calibration was fitted on.
        text_weight (`float`): the best weight of a text's pair on the products that choose; 0 without texts.
    """

    name: str
    adapter: Adapter
    back: Adapter
    calibration: Calibration
    chosen_by: dict[str, float]
    rank_by: dict[str, np.ndarray] = field(default_factory=dict)
    calibrated_on: int = 0
    text_weight: float = 0.0


def fit_upgrade(sample: Sample, *, seed: int = 0) -> Fitted:
    """Fit every adapter on 60 % of the products, choose on 20 %, measure on the other 20 %, and fit the chosen on all.

    The score of an adapter is the mean of two shares, of the products that choose: of the ten nearest old products of a product's
    old vector, the share that its adapted new vector finds among its own ten; and the same for the titles (or pictures) of these
    products as queries. Without the old model, the second is R@10 of the title's product. Of adapters with the same score the one
    with the higher mean reciprocal rank of the title's product is chosen, then the simpler one. Our design: agreement needs no
    right answers; titles alone, and still more the short texts that adapters are fitted on, favour adapters made for such
    texts (docs/upgrade.md).

    Every search is among all products of the sample. What is measured, and the calibration, are of adapters that were not fitted
    on the products of their queries.

    Args:
        sample: the vectors of both models.
        seed (`int`): of the parts and of the networks. Default 0.

    Raises:
        UpgradeError: no product that chooses, or none that measures, has a query.
    """
    parts = split(len(sample.old), seed=seed)
    choosing, measuring = (np.flatnonzero(np.isin(sample.right_Q, part)) for part in (parts.choose, parts.measure))
    if not (len(choosing) and len(measuring)):
        raise UpgradeError(
            f"sample: found {len(choosing)} and {len(measuring)} products with a title or picture to search by, among those "
            "that choose and that measure an adapter; expected at least one of each: enlarge --sample"
        )
    tried = _Tried(sample, choosing, parts.choose)
    for linear in linear_recipes(sample.material):
        tried.add(linear, linear.fit(parts.fit))
    weight = tried.best_weight()
    for network in network_recipes(sample.material, weight, seed):
        tried.add(network, network.fit(parts.fit))
    name = tried.best()
    adapter = tried.adapters[name]
    calibration = fit_calibration(
        sample.old.scores(adapter(sample.new_query_QD[choosing])), sample.new.scores(sample.new_query_QD[choosing])
    )
    rank_by = {ADAPTED: sample.ranks(adapter(sample.new_query_QD), sample.old, measuring)}
    rank_by |= _reference_ranks(sample, measuring)
    rank_by |= {
        other: sample.ranks(one(sample.new_query_QD), sample.old, measuring) for other, one in tried.adapters.items()
    }
    new_VD, old_VE = sample.new.vector_VD, sample.old.vector_VD
    back = fit_affine(old_VE, new_VD, min(old_VE.shape[1], new_VD.shape[1]))
    final = tried.recipes[name].fit(np.arange(len(sample.old)))
    chosen_by = {other: recall for other, (recall, _) in tried.scores.items()}
    return Fitted(name, final, back, calibration, chosen_by, rank_by, len(choosing), weight)


class _Tried:
    """Adapters and their scores on the products that choose one.

    Args:
        sample: the vectors of both models.
        choosing_Q: the queries of the sample that choose.
        products: the products that choose, whose vectors do so too.
    """

    def __init__(self, sample: Sample, choosing_Q: np.ndarray, products: np.ndarray) -> None:
        self.sample, self.choosing_Q = sample, choosing_Q
        self.chosen_V = np.flatnonzero(np.isin(sample.old.product_V, products))
        self.near_product_VK = _nearest(sample.old.scores(sample.old.vector_VD[self.chosen_V]))
        old_QE = sample.old_query_QE
        self.near_title_QK = None if old_QE is None else _nearest(sample.old.scores(old_QE[choosing_Q]))
        self.scores: dict[str, tuple[float, float]] = {}
        self.adapters: dict[str, Adapter] = {}
        self.recipes: dict[str, Recipe] = {}

    def add(self, recipe: Recipe, adapter: Adapter) -> None:
        sample = self.sample
        product_VP = sample.old.scores(adapter(sample.new.vector_VD[self.chosen_V]))
        title_QP = sample.old.scores(adapter(sample.new_query_QD[self.choosing_Q]))
        rank_Q = ranks(title_QP, [[product] for product in sample.right_Q[self.choosing_Q]])
        by_title = (
            float((rank_Q <= K).mean())
            if self.near_title_QK is None
            else _shared(_nearest(title_QP), self.near_title_QK)
        )
        found = (_shared(_nearest(product_VP), self.near_product_VK) + by_title) / 2
        self.scores[recipe.name] = (found, float((1 / rank_Q).mean()))
        self.adapters[recipe.name], self.recipes[recipe.name] = adapter, recipe

    def best(self) -> str:
        """Return the best adapter, of equals the first one, which is the simplest."""
        return max(self.scores, key=lambda name: self.scores[name])

    def best_weight(self) -> float:
        """Return the weight of texts of the best adapter that uses them; 0 without texts."""
        names = [name for name, recipe in self.recipes.items() if recipe.weight in TEXT_WEIGHTS]
        return self.recipes[max(names, key=lambda name: self.scores[name])].weight if names else 0.0


def _nearest(score_QP: np.ndarray) -> np.ndarray:
    """Return the (Q, K) products with the highest scores; of equal scores the first product."""
    return np.argsort(-score_QP, axis=1, kind="stable")[:, :K]


def _shared(one_QK: np.ndarray, other_QK: np.ndarray) -> float:
    """Return the mean share of products that two lists of the same query have in common."""
    return float(np.mean([np.isin(one_K, other_K).mean() for one_K, other_K in zip(one_QK, other_QK, strict=True)]))


def _reference_ranks(sample: Sample, chosen_Q: np.ndarray) -> dict[str, np.ndarray]:
    found = {NEW_TO_NEW: sample.ranks(sample.new_query_QD, sample.new, chosen_Q)}
    if sample.old_query_QE is not None:
        found[OLD_TO_OLD] = sample.ranks(sample.old_query_QE, sample.old, chosen_Q)
    if sample.new_query_QD.shape[1] == sample.old.vector_VD.shape[1]:
        found[UNADAPTED] = sample.ranks(sample.new_query_QD, sample.old, chosen_Q)
    return found
