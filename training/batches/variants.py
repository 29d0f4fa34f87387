"""Draw variants of products in training: enriched titles and new pictures, the co-augmentation of MOON2.0 (arXiv 2511.12449)."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from product_data.co_augmentation.variant_files import BESIDE, TITLE, VariantFolder, is_variant_folder
from product_data.table_copies import same_folder
from product_data.tables import ProductRow, ProductTables
from training.recipe.data import AUTO_VARIANTS, CoAugmentation

Picture = tuple[str, tuple[float, float, float, float] | None]
"""Path of a picture, and the product's box in it."""


class VariantDraws:
    """Replace the title and the first picture of drawn products by accepted variants.

    Each time a product is drawn, its title is replaced with probability `title_share` by one of its enriched titles,
    and its first picture, independently, with probability `picture_share` by one of its new pictures, with that
    picture's core box. The product keeps its id: variants of one product are the same product for positives, the
    queue and the masks of negatives. MOON2.0 adds its variants to the training data; drawing them with a probability
    keeps the number of steps, and is our design.

    Args:
        folders: name of a data set → the folder of its variants.
        title_share, picture_share (`float`): probabilities, 0 to 1.

    Relations: `training.batches.pairs.PairDataset` calls `shown` with a generator that depends only on the seed and the position
        (in a stream: on the row), so a resumed run and several processes draw the same variants.
    """

    def __init__(self, folders: Mapping[str, VariantFolder], title_share: float, picture_share: float) -> None:
        self.title_share, self.picture_share = title_share, picture_share
        self.titles: dict[str, dict[str, tuple[str, ...]]] = {}
        self.pictures: dict[str, dict[str, tuple[Picture, ...]]] = {}
        self.digests: dict[str, str] = {}
        for name, folder in folders.items():
            self.digests[name] = _digest(folder)
            titles: dict[str, list[str]] = defaultdict(list)
            pictures: dict[str, list[Picture]] = defaultdict(list)
            for product_id, variants in folder.variants(accepted_only=True).items():
                for variant in variants:
                    if variant.kind == TITLE:
                        titles[product_id].append(variant.title)
                    else:
                        pictures[product_id].append((folder.picture(variant), variant.core_box))
            self.titles[name] = {key: tuple(values) for key, values in titles.items()}
            self.pictures[name] = {key: tuple(values) for key, values in pictures.items()}

    def known(self, name: str, ids: Sequence[str]) -> int:
        """Return how many of these products of a data set have a variant that can be drawn."""
        titles = self.titles.get(name, {}) if self.title_share else {}
        pictures = self.pictures.get(name, {}) if self.picture_share else {}
        return sum(product_id in titles or product_id in pictures for product_id in ids)

    def shown(self, name: str, rng: np.random.Generator, row: ProductRow) -> ProductRow:
        """Return a product as it is drawn: itself, or with a variant's title, picture or both.

        Args:
            name: the data set.
            rng: the generator of the draw.
            row: the product.
        """
        takes_title, takes_picture = rng.random(2) < (self.title_share, self.picture_share)
        title_place, picture_place = rng.random(2)
        titles = self.titles.get(name, {}).get(row.product_id, ())
        pictures = self.pictures.get(name, {}).get(row.product_id, ())
        if takes_title and titles:
            row = replace(row, title=titles[int(title_place * len(titles))])
        if takes_picture and pictures and row.images:
            path, box = pictures[int(picture_place * len(pictures))]
            row = replace(row, images=(path, *row.images[1:]), core_box=box)
        return row

    def longest(self, tables: ProductTables) -> ProductTables:
        """Return tables that also contain each product with its longest enriched title, to measure lengths of texts."""
        titles = self.titles.get(tables.name, {}) if self.title_share else {}
        rows = [
            replace(row, title=max(titles[row.product_id], key=len))
            for row in tables.products
            if row.product_id in titles
        ]
        return replace(tables, products=[*tables.products, *rows])


def _digest(folder: VariantFolder) -> str:
    """Return a digest of a folder's table, which names the pictures; their pixels follow from the settings of its record."""
    settings = json.dumps(folder.record["settings"], sort_keys=True)
    return hashlib.sha256((folder.digest() + settings).encode()).hexdigest()[:16]


def open_variants(options: CoAugmentation, places: Mapping[str, Path | None]) -> VariantDraws:
    """Return the variants of a recipe's data sets.

    Args:
        options: the recipe's `co_augmentation`.
        places: name of each data set → its folder, None if it has none.

    Raises:
        ValueError: "auto" and no data set's folder has variants; a folder of variants of another data set, or two of one.
        TableError: a folder without complete variants.
    """
    if options.variants == AUTO_VARIANTS:
        found = {name: place / BESIDE for name, place in places.items() if place and is_variant_folder(place / BESIDE)}
        if not found:
            raise ValueError(
                f"co_augmentation: found no folder {BESIDE!r} with variants in those of the data sets {list(places)}; expected "
                f"the output of moon3 co-augment SHOP --output SHOP/{BESIDE}, its folder as co_augmentation.variants, or "
                "co_augmentation: null"
            )
        return VariantDraws(
            {name: VariantFolder(path) for name, path in found.items()}, options.title_share, options.picture_share
        )
    folders: dict[str, VariantFolder] = {}
    for path in options.variants:
        folder = VariantFolder(path)
        beside = [name for name, place in places.items() if place and same_folder(place, folder.path.parent)]
        name = next(iter(places)) if len(places) == 1 else beside[0] if beside else folder.data_set
        if name not in places or name in folders:
            problem = "a second folder" if name in folders else "a folder"
            raise ValueError(
                f"co_augmentation: variants: found {problem} of the data set {name!r} at {folder.path}; expected one folder for "
                f"each of {', '.join(places)}"
            )
        folders[name] = folder
    return VariantDraws(folders, options.title_share, options.picture_share)
