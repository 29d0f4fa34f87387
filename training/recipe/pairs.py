"""The recipe's keys of the pairs: which queries and products are drawn together."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, Mix, Share


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PairArguments:
    """Which pairs are drawn.

    Args:
        query_mix: relative frequency of queries that are an image (i), a text (t), or both (mm); 12 : 3 : 2 is the paper's.
        product_mix: relative frequency of products with both (mm), image only (i), text only (t). The paper's products always
            have both; the other forms are our design, because image-only galleries are reported.
        hard_negatives: products of the same category encoded beside each positive; with streaming one at most, the row's own.
        positives_per_query: the largest number of a query's known positives that are encoded with it; with streaming 1.
        derived_queries: where a data set has fewer queries of a form than products, also draw queries made from the
            products themselves (an altered view of the picture, the title, an attribute phrase).
        augment_queries: probability that the picture of a real query is altered, against overfitting few photos.
    """

    query_mix: Mix = Field(default_factory=lambda: {"i": 12.0, "t": 3.0, "mm": 2.0})
    product_mix: Mix = Field(default_factory=lambda: {"mm": 1.0})
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    positives_per_query: Count = 1
    derived_queries: bool = True
    augment_queries: Share = 0.0
