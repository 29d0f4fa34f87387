"""The recipe's keys of the data: which tables are read, and how their products and queries become tensors."""

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from model_cards.licences import check_data_licence
from processing_moon.processing_moon import DEFAULT_INSTRUCTIONS
from product_data.catalogue.making import make_catalogue
from product_data.interactions import ACTION_WEIGHTS, InteractionOptions
from product_data.reading import READING_KEYS, ReadingOptions
from training.errors import RecipeError
from training.recipe.checking import CONFIG, Count, Positive, check_value, mapping_of

TABLE_KEYS = ("products", "queries", "query_images", "interactions", "images", "written_attributes")


def _there(place: str) -> str:
    if place != "catalogue" and not os.path.exists(place):
        raise ValueError(f"found nothing at {Path(place).resolve()}; expected a file or folder")
    return place


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError(f"found {text!r}; expected text that is not empty")
    return text


def _licence(name: str) -> str:
    return check_data_licence("a data set", name)


_Place = Annotated[str, AfterValidator(_there)]
_Text = Annotated[str, AfterValidator(_said)]
_Licence = Annotated[str, AfterValidator(_licence)]
_OF_BOTH: dict[str, Any] = {"name": str, "weight": Positive, "mask_groups": bool, "licence": _Licence}
_OF_BOTH |= dict.fromkeys(READING_KEYS, Any)
_PLACES: dict[str, Any] = {"path": _Place, **dict.fromkeys(TABLE_KEYS, _Place | None)}
_STREAMS: dict[str, Any] = {"parquet": str | list[str], "columns": dict[str, Any]}
_STREAMS |= dict.fromkeys(("hub", "config", "split", "revision", "images"), str)
SOURCE, STREAM = mapping_of(_PLACES | _OF_BOTH), mapping_of(_STREAMS | _OF_BOTH)
"""An entry of `data`, read whole or streamed; `reading_of` checks its `READING_KEYS`."""
_CATALOGUE = {key: int if kind is int else Any for key, kind in typing.get_type_hints(make_catalogue).items()}
del _CATALOGUE["return"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class DataArguments:
    """Which tables are read, and how products and queries become tensors.

    Args:
        data: "catalogue" or paths of data sets; an entry may also be a mapping {path: …, or products:, queries:,
            query_images:, interactions:, images:; name:, weight:, mask_groups:, licence:}, weight in draws relative to the
            other data sets, licence for the card of what is trained (docs/model_cards.md).
        catalogue: options of the embedded catalogue, {products: 600, …}.
        split: the split that is trained on. A data set that names no splits is split by us: a fifth of its products,
            variants together, becomes "test", the rest "train"; "all" trains on everything.
        action_weights: relevance of an action in an interactions table, above 0 and at most 1.
        interaction_half_life_days: an interaction counts half for every so many days that it is older than the newest
            of its table; None: age does not matter.
        mask_groups: variants of a query's answer are no negatives for it.
        core_crop: append the crop of the core product as a second picture where a box is known.
        instructions: replaces the processor's system message by task, {product: …, query: …}; a small model with few
            tokens per item learns faster with short ones.
        bucket_batches: batches of one query form and like length of text are formed within windows of so many batches;
            0: pairs stay in the order in which they are drawn.
        streaming: read `data` row by row, for tables larger than memory. Every entry is then a table of triplets: parquet
            files (a path or pattern), a data set of the hub (owner/name), or a mapping {parquet: …, or hub:, config:,
            split:, revision:; columns:, images:, name:, weight:, mask_groups:, licence:}, columns {query.title: NAME, …}
            replacing what is found by pattern. Of a table with a column "split" the rows of `split` and "all" are read.
        shuffle_rows: with streaming, rows that are read ahead and shuffled among each other.
        allow_urls: fetch pictures that are given as http(s) addresses, from public hosts only.
        max_tokens: token budget of an item, pictures and prompt included; "auto": what 99 % of the products and queries need,
            measured once (`training.assembly.token_budget`); None leaves the processor's own limit.
        max_image_tokens: largest number of image tokens per picture; None leaves the processor's own limit.
    """

    data: list[str | dict[str, Any]] = Field(default_factory=lambda: ["catalogue"])  # type: ignore[arg-type]
    catalogue: mapping_of(_CATALOGUE) | None = None  # type: ignore[valid-type]
    split: str = "train"
    action_weights: dict[str, Any] = Field(default_factory=lambda: dict(ACTION_WEIGHTS))
    interaction_half_life_days: Positive | None = None
    mask_groups: bool = True
    core_crop: bool = True
    instructions: mapping_of(dict.fromkeys(DEFAULT_INSTRUCTIONS, _Text)) | None = None  # type: ignore[valid-type]
    bucket_batches: Annotated[int, Field(ge=0)] = 0
    streaming: bool = False
    shuffle_rows: Count = 1024
    allow_urls: bool = False
    max_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] | None = None
    max_image_tokens: Count | None = None

    @field_validator("bucket_batches")
    @classmethod
    def _check_buckets(cls, batches: int) -> int:
        if batches == 1:
            raise ValueError("found 1; expected a number of at least 2, or 0")
        return batches

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        interaction_options(self)
        for entry in self.data:
            _check_stream(entry) if self.streaming else _check_source(entry)
        return self


def interaction_options(data: DataArguments) -> InteractionOptions:
    """Return how the recipe weighs interactions.

    Raises:
        RecipeError: a weight or a half-life that cannot be used.
    """
    try:
        return InteractionOptions(data.action_weights, data.interaction_half_life_days)
    except ValueError as error:
        raise RecipeError(str(error).replace("half_life_days", "interaction_half_life_days")) from error


def reading_of(entry: Mapping[str, Any], interactions: InteractionOptions | None = None) -> ReadingOptions:
    """Return how the cells of an entry of `data` are read.

    Raises:
        RecipeError: strip_html or category_separator that cannot be used.
    """
    try:
        return ReadingOptions.of(entry, interactions)
    except ValueError as error:
        raise RecipeError(f"data: {error}") from error


def _check_source(entry: Any) -> None:
    """Refuse an entry of `data` that names nothing readable."""
    entry = {"path": entry} if isinstance(entry, str) else entry
    if ("path" in entry) == ("products" in entry):
        raise RecipeError(f"data: found {entry}; expected either a path or products (with queries and images)")
    reading_of(entry)
    check_value(SOURCE, entry, "data")


def _check_stream(entry: Any) -> None:
    """Refuse an entry of `data` that cannot be streamed; whether a data set of the hub is there shows when it is opened."""
    if entry == "catalogue":
        raise RecipeError("data: found 'catalogue' with streaming; expected a path, owner/name, or a mapping")
    if isinstance(entry, str):
        return
    reading_of(entry)
    check_value(STREAM, entry, "data")
    if ("parquet" in entry) == ("hub" in entry):
        raise RecipeError(f"data: found {entry}; expected either parquet or hub")
    unread = [key for key in ("config", "split", "revision") if key in entry and "parquet" in entry]
    if unread:
        raise RecipeError(f"data: {unread[0]}: found beside parquet; expected beside hub")
