"""Recipe keys of the data: the tables, and how their products and queries become tensors."""

import dataclasses
import functools
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
from product_data.co_augmentation.variant_files import is_variant_folder
from product_data.interactions import ACTION_WEIGHTS, InteractionOptions
from product_data.reading import READING_KEYS, ReadingOptions
from training.errors import RecipeError
from training.recipe.checking import CONFIG, Count, Positive, Share, check_value, mapping_of

AUTO_VARIANTS = "auto"
"""`co_augmentation.variants`: the folder `co_augmentation` in the folder of each data set."""
TABLE_KEYS = ("products", "queries", "query_images", "interactions", "images", "written_attributes")


def _check_exists(place: str) -> str:
    if place != "catalogue" and not os.path.exists(place):
        raise ValueError(f"found nothing at {Path(place).resolve()}; expected a file or folder")
    return place


def _check_not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError(f"found {text!r}; expected text that is not empty")
    return text


_Place = Annotated[str, AfterValidator(_check_exists)]
_Text = Annotated[str, AfterValidator(_check_not_empty)]
_Licence = Annotated[str, AfterValidator(functools.partial(check_data_licence, "a data set"))]
_COMMON_KEYS: dict[str, Any] = {"name": str, "weight": Positive, "mask_groups": bool, "licence": _Licence}
_COMMON_KEYS |= dict.fromkeys(READING_KEYS, Any)
_SOURCE_KEYS: dict[str, Any] = {"path": _Place, **dict.fromkeys(TABLE_KEYS, _Place | None)}
_STREAM_KEYS: dict[str, Any] = {"parquet": str | list[str], "columns": dict[str, Any]}
_STREAM_KEYS |= dict.fromkeys(("hub", "config", "split", "revision", "images"), str)
SOURCE, STREAM = mapping_of(_SOURCE_KEYS | _COMMON_KEYS), mapping_of(_STREAM_KEYS | _COMMON_KEYS)
"""The types of an entry of `data`, loaded into memory or streamed; `reading_of` checks its `READING_KEYS`."""
_CATALOGUE = {key: int if kind is int else Any for key, kind in typing.get_type_hints(make_catalogue).items()}
del _CATALOGUE["return"]
_CO_AUGMENTATION = mapping_of({"variants": str | list[str], "title_share": Share, "picture_share": Share})


@dataclasses.dataclass(frozen=True)
class CoAugmentation:
    """How variants of products are drawn; see the key `co_augmentation`.

    Args:
        variants: the folders, or `AUTO_VARIANTS`.
        title_share, picture_share (`float`): probabilities that a drawn product has an enriched title, or a new picture.
            Default .5 each.
    """

    variants: str | tuple[str, ...] = AUTO_VARIANTS
    title_share: float = 0.5
    picture_share: float = 0.5


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class DataArguments:
    """Data: the tables to train on, and how their products and queries become tensors.

    Args:
        data: the data sets: "catalogue", the catalogue that the project draws, or paths. An entry can also be a mapping
            with either `path` or `products`, `queries`, `query_images`, `interactions` and `images`, and with `name`,
            `weight`, `mask_groups` and `licence`. `weight` is the frequency of draws relative to the other data sets;
            `licence` goes to the card of the trained model (docs/model_cards.md).
        evaluate_data: the data sets of `evaluate_before` and `evaluate_after`, if they are not those of `data`, with the same
            entries. They are not trained on, and a data set without splits is evaluated whole. null: those of `data`.
        catalogue: options of the drawn catalogue, such as {products: 600}.
        split: the split to train on. In a data set without splits, one fifth of the products, variants together, is
            split off as "test" and the rest is "train". "all" trains on all products.
        action_weights: the relevance of each action in an interactions table, above 0 and at most 1.
        interaction_half_life_days: the age in days, relative to the newest interaction of the table, at which an
            interaction counts half. null: all interactions count the same.
        mask_groups: exclude variants of a query's answer from its negatives.
        core_crop: add a crop of the core product as a second picture, if the product's box is known.
        instructions: system messages that replace those of the processor, by task: {product: …, query: …}. A small
            model with a small token budget learns faster with short ones.
        co_augmentation: draw enriched titles and new pictures of products, as in MOON2.0 (arXiv 2511.12449):
            {variants: auto, title_share: 0.5, picture_share: 0.5}. `variants` is a folder that `moon3 co-augment` wrote, a
            list of them, one for each data set, or auto: the folder `co_augmentation` in the folder of each data set. The
            shares are the probabilities with which a drawn product has another title, and another first picture. Only
            training draws them; evaluations read the data alone. null: none.
        bucket_batches: the number of batches in a window within which pairs are grouped into batches by query form and
            length of text. 0: pairs keep the order in which they are drawn.
        streaming: read `data` row by row, for tables larger than memory. Each entry is a table of triplets: parquet
            files (a path or pattern), a data set from the Hub (owner/name), or a mapping with either `parquet` or
            `hub`, `config`, `split` and `revision`, and with `columns`, `images`, `name`, `weight`, `mask_groups` and
            `licence`. `columns`, such as {query.title: NAME}, replaces the columns that are recognized by their names.
            If a table has a column "split", only the rows of `split` and of "all" are read.
        shuffle_rows: the number of rows that are read ahead and shuffled. Only with `streaming`.
        allow_urls: download pictures that are given as http(s) URLs, from public hosts only.
        max_tokens: the token budget of a query or product, pictures and prompt included. "auto": a budget that is
            enough for 99 % of the products and queries, measured once before training. null: the limit of the
            processor.
        max_image_tokens: the largest number of image tokens of a picture. null: the limit of the processor.
    """

    data: list[str | dict[str, Any]] = Field(default_factory=lambda: ["catalogue"])  # type: ignore[arg-type]
    evaluate_data: list[str | dict[str, Any]] | None = None
    catalogue: mapping_of(_CATALOGUE) | None = None  # type: ignore[valid-type]
    split: str = "train"
    action_weights: dict[str, Any] = Field(default_factory=lambda: dict(ACTION_WEIGHTS))
    interaction_half_life_days: Positive | None = None
    mask_groups: bool = True
    core_crop: bool = True
    instructions: mapping_of(dict.fromkeys(DEFAULT_INSTRUCTIONS, _Text)) | None = None  # type: ignore[valid-type]
    co_augmentation: _CO_AUGMENTATION | None = None  # type: ignore[valid-type]
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
            raise ValueError("found 1; expected 0, or at least 2")
        return batches

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        interaction_options(self)
        _check_co_augmentation(self.co_augmentation)
        for entry in self.data:
            _check_stream(entry) if self.streaming else _check_source(entry)
        for entry in self.evaluate_data or ():
            _check_source(entry, "evaluate_data")
        return self


def co_augmentation_of(data: DataArguments) -> CoAugmentation | None:
    """Return the recipe's `co_augmentation` with its defaults, None without it."""
    found: Any = data.co_augmentation
    if found is None:
        return None
    values = dict(found)
    places = values.get("variants", AUTO_VARIANTS)
    if places != AUTO_VARIANTS:
        values["variants"] = (places,) if isinstance(places, str) else tuple(places)
    return CoAugmentation(**values)


def _check_co_augmentation(found: Any) -> None:
    """Raise RecipeError for folders without variants, or for probabilities that are both 0."""
    values: dict[str, Any] = dict(found or {})
    places = values.get("variants", AUTO_VARIANTS)
    if not places:
        raise RecipeError("co_augmentation: variants: found none; expected auto, or at least one folder")
    for place in [] if places == AUTO_VARIANTS else [places] if isinstance(places, str) else places:
        if not is_variant_folder(place):
            raise RecipeError(
                f"co_augmentation: variants: found no complete variants in {Path(place).resolve()}; expected a folder that "
                "moon3 co-augment wrote, or auto"
            )
    if values.get("title_share", 1) == values.get("picture_share", 1) == 0:
        raise RecipeError("co_augmentation: found 0 for title_share and picture_share; expected one above 0, or null")


def interaction_options(data: DataArguments) -> InteractionOptions:
    """Return the recipe's options for interactions.

    Raises:
        RecipeError: a weight or the half-life is out of range.
    """
    try:
        return InteractionOptions(data.action_weights, data.interaction_half_life_days)
    except ValueError as error:
        raise RecipeError(str(error).replace("half_life_days", "interaction_half_life_days")) from error


def reading_of(entry: Mapping[str, Any], interactions: InteractionOptions | None = None) -> ReadingOptions:
    """Return the options for reading the cells of an entry of `data`.

    Raises:
        RecipeError: strip_html or category_separator is invalid.
    """
    try:
        return ReadingOptions.of(entry, interactions)
    except ValueError as error:
        raise RecipeError(f"data: {error}") from error


def _check_source(entry: Any, key: str = "data") -> None:
    """Raise RecipeError for an invalid entry of `data`, or of another key."""
    entry = {"path": entry} if isinstance(entry, str) else entry
    if ("path" in entry) == ("products" in entry):
        raise RecipeError(f"{key}: found {entry}; expected either a path or products (with queries and images)")
    reading_of(entry)
    check_value(SOURCE, entry, key)


def _check_stream(entry: Any) -> None:
    """Raise RecipeError for an entry of `data` that cannot be streamed. Datasets from the Hub are checked when they are
    opened."""
    if entry == "catalogue":
        raise RecipeError("data: 'catalogue' cannot be streamed; expected a path, owner/name, or a mapping")
    if isinstance(entry, str):
        return
    reading_of(entry)
    check_value(STREAM, entry, "data")
    if ("parquet" in entry) == ("hub" in entry):
        raise RecipeError(f"data: found {entry}; expected either parquet or hub")
    unread = [key for key in ("config", "split", "revision") if key in entry and "parquet" in entry]
    if unread:
        raise RecipeError(f"data: {unread[0]}: does not work with parquet; expected only with hub")
