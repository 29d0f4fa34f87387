"""Let a new model search the vectors of an old one: fit an adapter on a sample, and backfill in the order of traffic.

moon3 upgrade OLD NEW [--sample 1000] [--backfill 50000 --traffic log.csv]
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from product_data.feeds.feed_product import FeedProduct
from product_data.interactions import parse_count
from product_data.rows import ProductRow
from product_data.table_files import TableError, is_absent, read_rows
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import JobReport, embed_feed
from retrieval.encode import encode, load_for_evaluation
from retrieval.model_kinds import CheckpointError
from retrieval.upgrade.fitting import Sample, fit_upgrade
from retrieval.upgrade.gallery import Gallery
from retrieval.upgrade.opening import content_hashes
from retrieval.upgrade.recipes import Texts, short_texts
from retrieval.upgrade.sampling import LEAST_SAMPLE, UpgradeError, stratified_sample
from retrieval.upgrade.upgrade_folder import ModelOf, Upgrade, UpgradeFolder
from retrieval.vectors.content_hash import content_hash
from retrieval.vectors.fingerprint import model_fingerprint
from retrieval.vectors.vector_files import VectorFolder

Report = Callable[[str], Any]
Products = Callable[[], Iterable[FeedProduct]]
"""Returns the products of the catalogue, each time it is called."""


@dataclass(frozen=True)
class UpgradeOptions:
    """Options of an upgrade.

    Args:
        model (`str`): the new model: folder, hub id, or a kind and its place.
        sample (`int`): number of products that both models embed. Default 1000.
        seed (`int`): of the sample and of its parts. Default 0.
        batch_size (`int`): products per batch of the model. Default 32.
        device (`str` or `None`): device of the models. Default: the first GPU, or else the CPU.
        imports: modules that are imported before the model is loaded, see `EmbeddingOptions`.
    """

    model: str
    sample: int = 1000
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    imports: tuple[str, ...] = ()


def upgrade_folder(
    place: str | Path, options: UpgradeOptions, products: Products | None = None, *, report: Report = print
) -> Upgrade:
    """Fit an adapter from a new model to a folder's vectors and write it beside them; return the one that is there.

    The sample has each category's share. Its products' vectors by the new model stay in the folder and are searched from then on.

    Args:
        place: the old model's folder of vectors.
        options: options of the upgrade.
        products: the catalogue, see `Products`. Default: the facts in the folder, which name pictures by path or URL.
        report: called with each sentence. Default: print.

    Raises:
        UpgradeError: the new model made the folder's vectors, another upgrade is there, a sample that is too small, or
            products whose contents differ from those that the old model read.
        VectorFileError: not a complete folder of vectors.
        CheckpointError: a model that cannot be used.
    """
    old = VectorFolder(place)
    old.require_state()
    for module in options.imports:
        import_module(module)
    fingerprint = model_fingerprint(options.model)
    found = _require_new(old, options.model, fingerprint)
    if found is not None:
        if (found.sample, found.seed) != (options.sample, options.seed):
            report(
                f"{place}: the adapter that was fitted on {found.sample} products, seed {found.seed}, is kept; remove "
                f"{UpgradeFolder(place).path} to fit another"
            )
        return found
    ids, strata = _strata(old)
    wanted = {ids[index] for index in stratified_sample(strata, options.sample, seed=options.seed)}
    _embed(old, options, products, wanted, report)
    new = UpgradeFolder(place).vectors()
    assert new is not None
    upgrade = _fit(old, new, wanted, options, report)
    UpgradeFolder(place).write(upgrade)
    return upgrade


def backfill(
    place: str | Path,
    options: UpgradeOptions,
    count: int,
    traffic: Mapping[str, float] | None = None,
    products: Products | None = None,
    *,
    report: Report = print,
) -> JobReport:
    """Embed the most-viewed products with the new model; a killed backfill goes on with the same call.

    Args:
        place: the old model's folder of vectors, with an adapter.
        options: options of the upgrade.
        count (`int`): number of products, besides those of the sample; all if it is larger than the catalogue.
        traffic: product id → number of views, see `read_traffic`. Products without views come last, in the order of ids.
        products: the catalogue, see `upgrade_folder`.
        report: called with each sentence. Default: print.

    Raises:
        UpgradeError: no adapter for this model, a count below 1, or contents that differ from those of the old model.
        VectorFileError, CheckpointError: see `upgrade_folder`.
    """
    old = VectorFolder(place)
    for module in options.imports:
        import_module(module)
    if _require_new(old, options.model, model_fingerprint(options.model)) is None:
        raise UpgradeError(f"{place}: found no adapter; expected one before the backfill: run moon3 upgrade")
    if count < 1:
        raise UpgradeError(f"backfill: found {count}; expected 1 or more")
    views = traffic or {}
    ids = sorted(_strata(old)[0], key=lambda one: (-views.get(one, 0), one))
    return _embed(old, options, products, set(ids[:count]), report)


def read_traffic(path: str | Path) -> dict[str, float]:
    """Return product id → number of views of a log.

    Args:
        path: .csv, .jsonl or .parquet with a column product_id; each row counts once, or as often as its column `count` says.

    Raises:
        TableError: a file that cannot be read, a missing column, or a count that is not a whole number of at least 1.
    """
    views: Counter[str] = Counter()
    for number, row in enumerate(read_rows(Path(path)), start=2):
        if is_absent(product_id := row.get("product_id")):
            raise TableError(f"{path}, row {number}: found no product_id; expected the id of a product")
        try:
            views[str(product_id)] += 1 if is_absent(row.get("count")) else int(parse_count(row["count"]))
        except (ValueError, TypeError) as error:
            raise TableError(f"{path}, row {number}, column 'count': {error}") from error
    return dict(views)


def facts_as_products(folder: VectorFolder) -> Iterator[FeedProduct]:
    """Yield a folder's products as those of a feed; pictures that the feed held as bytes are missing."""
    for one in folder.products():
        row = ProductRow(
            one.product_id, one.title, one.description, one.category, dict(one.attributes), tuple(one.images)
        )
        yield FeedProduct(row, one.price, one.currency, one.availability, one.brand, one.url)


def query_of(product: Any) -> dict[str, Any] | None:
    """Return the query that looks for a product of the sample: its title, or else its first picture; None without both."""
    if product.title:
        return {"id": product.product_id, "text": product.title}
    return {"id": product.product_id, "image": product.images[0]} if product.images else None


def _require_new(old: VectorFolder, model: str, fingerprint: str) -> Upgrade | None:
    """Return the folder's upgrade to a model; None if there is none yet."""
    if fingerprint == old.fingerprint:
        raise UpgradeError(
            f"new model: found {model}, which made the vectors of {old.path}; expected another model than the old one"
        )
    found = UpgradeFolder(old.path).read()
    if found is None:
        return None
    for side, expected in (("old", old.fingerprint), ("new", fingerprint)):
        if (other := getattr(found, side)).fingerprint != expected:
            raise UpgradeError(
                f"{UpgradeFolder(old.path).path}: found an upgrade from {found.old.model} to {found.new.model}, whose {side} "
                f"model has the fingerprint {other.fingerprint}; expected {expected}. Remove this folder for another upgrade"
            )
    return found


def _strata(old: VectorFolder) -> tuple[list[str], list[str]]:
    """Return the ids and categories of the products that have a vector."""
    known: set[str] = set()
    for form in old.forms:
        for ids, _ in old.vectors(form):
            known.update(ids)
    pairs = [(one.product_id, " > ".join(one.category)) for one in old.products() if one.product_id in known]
    return [product_id for product_id, _ in pairs], [category for _, category in pairs]


def _embed(
    old: VectorFolder, options: UpgradeOptions, products: Products | None, wanted: set[str], report: Report
) -> JobReport:
    """Embed products with the new model, besides those that it has embedded already."""
    new = UpgradeFolder(old.path).vectors()
    if new is not None and new.state is not None:
        wanted = wanted | {product.product_id for product in new.products()}
    source = (lambda: facts_as_products(old)) if products is None else products
    chosen = list(_same_products(old, source(), wanted))
    missing = len(wanted) - len(chosen)
    if missing:
        report(
            f"{missing} of {len(wanted)} products are left out: their contents differ from those that the old model read"
        )
    if len(chosen) < max(LEAST_SAMPLE, len(wanted) / 2):
        raise UpgradeError(
            f"products: found the contents that the old model read for {len(chosen)} of {len(wanted)}; expected at least half, "
            f"and {LEAST_SAMPLE}: "
            + (
                "give the feed (--feed), which holds the pictures"
                if products is None
                else "embed the feed with moon3 embed"
            )
        )
    embedding = old.embedding
    job = EmbeddingOptions(
        options.model,
        forms=old.forms,
        reasoning=str(embedding.settings.get("reasoning", "none")),
        dtype=embedding.dtype,
        batch_size=options.batch_size,
        device=options.device,
        allow_removal=True,
        imports=options.imports,
    )
    return embed_feed(chosen, UpgradeFolder(old.path).vectors_path, job, report=report)


def _same_products(
    old: VectorFolder, products: Iterable[FeedProduct], wanted: Collection[str]
) -> Iterator[FeedProduct]:
    """Yield the wanted products of which the old model read the same."""
    expected = content_hashes(old, wanted)
    for product in products:
        product_id = product.row.product_id
        if product_id in wanted:
            found = {form: expected.get((product_id, form)) for form in old.forms}
            if all(hash_ is None or content_hash(product.row, form) == hash_ for form, hash_ in found.items()):
                yield product


def _fit(
    old: VectorFolder, new: VectorFolder, wanted: Collection[str], options: UpgradeOptions, report: Report
) -> Upgrade:
    old_vectors, new_vectors = (_vectors_of(folder, wanted) for folder in (old, new))
    keys = sorted(old_vectors.keys() & new_vectors.keys())
    ids = list(dict.fromkeys(product_id for product_id, _ in keys))
    if len(ids) < LEAST_SAMPLE:
        raise UpgradeError(
            f"sample: found {len(ids)} products with vectors of both models; expected at least {LEAST_SAMPLE}"
        )
    place = {product_id: number for number, product_id in enumerate(ids)}
    product_V = np.array([place[product_id] for product_id, _ in keys])
    old_gallery, new_gallery = (
        Gallery(np.stack([some[key] for key in keys]), product_V) for some in (old_vectors, new_vectors)
    )
    facts = {one.product_id: one for one in new.products()}
    queries = [record for record in (query_of(facts[product_id]) for product_id in ids) if record]
    rng = random.Random(options.seed)
    texts = [{"id": product_id, "text": text} for product_id in ids for text in short_texts(facts[product_id], rng)]
    product_R = np.array([place[record["id"]] for record in [*queries, *texts]], dtype=np.int64)
    records = [record | {"id": number} for number, record in enumerate([*queries, *texts])]
    by_new = _encoded(options.model, records, options)
    by_old, notes = _old_queries(old, records, options)
    both = [number for number in range(len(records)) if number in by_new and (number in by_old or not by_old)]
    asked, read = ([number for number in both if (number < len(queries)) is side] for side in (True, False))
    sample = Sample(
        old_gallery,
        new_gallery,
        _stacked(by_new, asked, new.dimension),
        product_R[asked],
        _stacked(by_old, asked, old.dimension) if by_old else None,
        Texts(
            _stacked(by_new, read, new.dimension),
            product_R[read],
            _stacked(by_old, read, old.dimension) if by_old else None,
        )
        if read
        else None,
    )
    for note in notes:
        report(note)
    fitted = fit_upgrade(sample, seed=options.seed)
    return Upgrade(
        ModelOf(old.embedding.model, old.fingerprint, old.dimension),
        ModelOf(options.model, new.fingerprint, new.dimension),
        fitted.name,
        fitted.adapter,
        fitted.back,
        fitted.calibration,
        options.sample,
        options.seed,
        fitted.chosen_by,
        {name: rank_Q.tolist() for name, rank_Q in fitted.rank_by.items()},
        notes,
    )


def _vectors_of(folder: VectorFolder, wanted: Collection[str]) -> dict[tuple[str, str], np.ndarray]:
    """Return (product id, form) → vector of some products."""
    found = {}
    for form in folder.forms:
        for ids, vector_ND in folder.vectors(form):
            for product_id, vector_D in zip(ids, vector_ND, strict=True):
                if product_id in wanted:
                    found[product_id, form] = vector_D
    return found


def _encoded(model: str, records: Sequence[dict[str, Any]], options: UpgradeOptions) -> dict[int, np.ndarray]:
    """Return id → vector of queries; those that the model cannot read are missing."""
    loaded, processor = load_for_evaluation(model, device=options.device)
    if not getattr(processor, "reads_pictures", True):
        records = [record for record in records if "image" not in record]
    encoded = encode(loaded, processor, records, kind="query", batch_size=options.batch_size)
    return {records[kept]["id"]: vector for kept, vector in zip(encoded.kept, encoded.vectors, strict=True)}


def _old_queries(
    old: VectorFolder, records: Sequence[dict[str, Any]], options: UpgradeOptions
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Return the old model's vectors of queries, or none and the reason: only the search old → old needs it."""
    place = old.embedding.model
    try:
        if model_fingerprint(place) == old.fingerprint:
            return _encoded(place, records, options), []
        why = "its files have changed"
    except (CheckpointError, OSError) as error:
        why = str(error)
    return {}, [f"the old model {place} cannot be searched with ({why}); old query, old vectors: not measured"]


def _stacked(vectors: Mapping[int, np.ndarray], ids: Sequence[int], dimension: int) -> np.ndarray:
    return np.stack([vectors[one] for one in ids]) if ids else np.zeros((0, dimension), dtype=np.float32)
