"""Recipe keys of the pairs: which queries and products are drawn together."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.recipe.checking import CONFIG, Count, Mix, Share


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PairArguments:
    """Pairs: which queries and products are drawn together.

    Args:
        query_mix: relative frequencies of queries that are an image (i), a text (t), or both (mm). The paper's are
            12 : 3 : 2.
        product_mix: relative frequencies of products with image and text (mm), image only (i) and text only (t). The
            paper's products always have both; the other forms are our design, for galleries of images only.
        hard_negatives: the number of hard negatives, products of the same category, that are encoded with each
            positive. With `streaming` at most 1, the negative of the row.
        positives_per_query: the largest number of known positives that are encoded with a query. With `streaming` 1.
        derived_queries: if a data set has fewer queries of a form than products, also draw queries that are derived
            from
            products: an altered view of a picture, the title, or a phrase of attributes.
        augment_queries: the probability that the picture of a query is altered, against overfitting to a few photos.
        augment_products: the probability that the pictures of a positive or hard negative are altered. Products are never
            altered outside training.
        drop_titles: the probability that a positive or hard negative is encoded without its title, against a model that reads
            titles and ignores pictures. A product that has no more than its title keeps it.
    """

    query_mix: Mix = Field(default_factory=lambda: {"i": 12.0, "t": 3.0, "mm": 2.0})
    product_mix: Mix = Field(default_factory=lambda: {"mm": 1.0})
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    positives_per_query: Count = 1
    derived_queries: bool = True
    augment_queries: Share = 0.0
    augment_products: Share = 0.0
    drop_titles: Share = 0.0
