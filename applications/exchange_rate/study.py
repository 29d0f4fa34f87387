"""Measure the exchange rate of a training run: vectors of each checkpoint, intermediate metrics, and the AUC of click models.

    moon3 exchange-rate RUN --products SHOP --log LOG.parquet --output results/exchange_rate.json

The vectors of a checkpoint and the trained click models are kept in the folder `work`: the same command continues after an
interruption. Shape suffixes: K checkpoints, R resamples, N queries of a row.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from applications.ctr.metrics import UserBootstrap, click_scores
from applications.ctr.study import CtrStudy, log_facts, model_name, read_data, run_cells
from applications.exchange_rate.rates import LEAST_CHECKPOINTS, exchange
from evaluation.benchmarks.retrieval import DIRECTIONS, make_search
from evaluation.paired_rows import Row, all_rows
from evaluation.provenance import provenance
from evaluation.report import ARROWS
from evaluation.shops_study import cached_rows, code_digest
from evaluation.weights import weights_of
from product_data.errors import OptionError
from product_data.feeds.reading import read_feed
from product_data.tables import ProductTables, load_tables
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.encode import VectorCache, load_for_evaluation
from retrieval.vectors.fingerprint import model_fingerprint
from training.runs.folder import RunFolder, is_complete

IMAGE_SEARCH = "i→mm R@10"
"""MOON Embedding's intermediate metric: image-based search recall, from a photo to the product that was chosen."""
SUBSETS = ("all", "new")


@dataclass(frozen=True, eq=False)
class ExchangeStudy:
    """What is measured.

    Args:
        run: folder of a training run, with at least five models: its base, its checkpoints and the trained model.
        products: folder of the products that the log is about, and of the queries for the intermediate metrics.
        ctr: the click model: log, one variant with vectors, seeds and settings; its vectors are filled in here.
        split (`str`): split of the queries. Default "test".
        resamples (`int`): of the bootstrap over users and queries. Default 500.
    """

    run: Path
    products: Path
    ctr: CtrStudy
    split: str = "test"
    resamples: int = 500


def models_of(run: Path) -> dict[int, Path]:
    """Return step → model of a run: its base as step 0, its complete checkpoints, and the trained model.

    Args:
        run: folder of a run of contrastive training.

    Raises:
        OptionError: no run, or fewer than five models; the message says how to keep more.
    """
    folder = RunFolder(run)
    if folder.stored_recipe() is None:
        raise OptionError(f"{run}: found no {folder.recipe.name}; expected the folder of a training run")
    models = {0: folder.base} if (folder.base / "config.json").is_file() else {}
    models |= {int(path.name.split("-")[1]): path for path in folder.checkpoints() if is_complete(path)}
    if folder.finished.is_file() and folder.final.is_dir():
        models[folder.steps()] = folder.final
    if len(models) < LEAST_CHECKPOINTS:
        raise OptionError(
            f"{run}: found {len(models)} models (steps {', '.join(map(str, models)) or 'none'}); expected at least "
            f"{LEAST_CHECKPOINTS}: train with save_steps and save_total_limit so that more checkpoints are kept"
        )
    return dict(sorted(models.items()))


def alignment_row(cache: VectorCache) -> Row | None:
    """Return the cosine of each image query with its nearest right answer: alignment (arXiv 2005.10242 §4.1), as a cosine.

    `‖q − p‖² = 2 − 2 cos(q, p)` for unit vectors. `None` without image queries.
    """
    search = make_search(cache, "i2mm", DIRECTIONS["i2mm"], {})
    if search is None:
        return None
    cosine_QG = search.vectors @ search.gallery.T
    value_N = np.array([row[right].max() for row, right in zip(cosine_QG, search.positives, strict=True)])
    names = tuple(cache.queries[index].query_id for index in search.indices)
    return Row("alignment", "i2mm", "mm", "cosine", value_N.astype(np.float64), names, None, None)


def intermediate_rows(model: str, tables: ProductTables) -> list[Row]:
    """Return the rows of all intermediate metrics of a model: retrieval, classification, attributes, alignment."""
    cache = VectorCache(*load_for_evaluation(model), tables.products, tables.queries)
    row = alignment_row(cache)
    return [*all_rows(cache), *([row] if row is not None else [])]


def row_name(row: Row) -> str:
    """Return the name of an intermediate metric, such as "i→mm R@10"."""
    if row.task in ("retrieval", "alignment"):
        arrows = {"i2i": "i→i", "mm2i": "mm→i", **ARROWS}
        of_pictures = ", pictures alone" if row.task == "retrieval" and row.what not in arrows else ""
        return f"{arrows.get(row.what, row.what)} {row.metric if row.task == 'retrieval' else 'alignment'}{of_pictures}"
    return f"{row.task} {row.what}, {row.form}"


def run_study(study: ExchangeStudy, work: Path) -> dict[str, Any]:
    """Measure all checkpoints and return the content of the results file.

    Args:
        study: what is measured.
        work: folder that keeps vectors, rows and click models.

    Raises:
        OptionError: fewer than five models, a click model without vectors, or data that lacks image queries.
    """
    (variant,) = study.ctr.variants
    models = models_of(study.run)
    tables = load_tables(study.products).select(study.split)
    work.mkdir(parents=True, exist_ok=True)
    rows: dict[int, dict[str, Row]] = {}
    vectors: dict[str, Path] = {}
    for step, model in tqdm(models.items(), desc="checkpoints", delay=3.0):
        rows[step] = {row_name(row): row for row in _rows(study, tables, str(model), work)}
        vectors[f"step {step}"] = work / f"vectors-{model_fingerprint(str(model))[:12]}"
        options = EmbeddingOptions(model=str(model), forms=(study.ctr.form,))
        embed_feed(read_feed(study.products), vectors[f"step {step}"], options, report=partial(str))
    if IMAGE_SEARCH not in rows[0 if 0 in rows else min(rows)]:
        raise OptionError(f"{study.products}: found no image queries in split {study.split!r}; expected at least 20")
    ctr = replace(study.ctr, vectors=vectors)
    data = read_data(ctr)
    cells = run_cells(ctr, data, work / "cells")
    found = {subset: _exchanged(ctr, data, cells, rows, variant, subset, study.resamples) for subset in SUBSETS}
    return {
        "run": Path(study.run).name,
        "steps": list(models),
        "weights": {step: weights_of(str(model)) for step, model in models.items()},
        "split": study.split,
        "variant": variant,
        "form": ctr.form,
        "settings": asdict(ctr.settings),
        "log": {str(seed): log_facts(own) for seed, own in data.items()},
        "values": {name: [float(of_step[name].value_N.mean()) for of_step in rows.values()] for name in _common(rows)},
        "queries": {name: len(rows[min(rows)][name].names) for name in _common(rows)},
        **found,
        "resamples": study.resamples,
        "provenance": provenance(ctr.seeds[0], seeds=list(ctr.seeds)),
    }


def _rows(study: ExchangeStudy, tables: ProductTables, model: str, work: Path) -> Sequence[Row]:
    parts = (
        code_digest(Path(__file__)).encode(),
        model_fingerprint(model).encode(),
        pickle.dumps((tables.products, tables.queries)),
    )
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return cached_rows(work / f"rows-{digest}.pkl", partial(intermediate_rows, model, tables))


def _common(rows: Mapping[int, Mapping[str, Row]]) -> list[str]:
    """Return the metrics that every checkpoint has on the same queries."""
    first = next(iter(rows.values()))
    return [
        name
        for name, row in first.items()
        if all(name in of_step and of_step[name].names == row.names for of_step in rows.values())
    ]


def _exchanged(
    ctr: CtrStudy,
    data: Mapping[int, Any],
    cells: Mapping[tuple[str, int], Any],
    rows: Mapping[int, Mapping[str, Row]],
    variant: str,
    subset: str,
    resamples: int,
) -> dict[str, Any]:
    """Return the AUC of each checkpoint on a subset of products, and the exchange rates of all metrics."""
    auc_KS: list[list[float]] = [[] for _ in rows]
    drawn: list[list[np.ndarray]] = [[] for _ in rows]
    for seed in ctr.seeds:
        log, periods = data[seed].log, data[seed].periods
        chosen = np.flatnonzero(np.isin(periods.test, periods.subsets()[subset]))
        test = periods.test[chosen]
        bootstrap = UserBootstrap(log.clicked_N[test], log.user_N[test], resamples=resamples)
        for place, name in enumerate(ctr.vectors):
            probability_N = cells[model_name(variant, name), seed].probability_N[chosen]
            scores = click_scores(log.clicked_N[test], probability_N, log.user_N[test])
            if scores is None:
                raise OptionError(f"{log.name}: found no clicks on {subset} products in the test period; expected some")
            auc_KS[place].append(scores["AUC"])
            drawn[place].append(bootstrap.auc(probability_N))
    auc_K = np.mean(auc_KS, axis=1)
    auc_KR = np.array([np.mean(own, axis=0) for own in drawn])
    exchanged = {}
    for name in _common(rows):
        value_KN = np.array([of_step[name].value_N for of_step in rows.values()])
        exchanged[name] = exchange(auc_K, value_KN.mean(axis=1), auc_KR, resampled_means(value_KN, resamples))
    ranked = sorted(
        (name for name, one in exchanged.items() if one["leave_one_out_R2"] is not None),
        key=lambda name: -exchanged[name]["leave_one_out_R2"]["value"],
    )
    return {"AUC": [float(value) for value in auc_K], "AUC_seeds": auc_KS, "metrics": exchanged, "ranking": ranked}


def resampled_means(value_KN: np.ndarray, resamples: int, seed: int = 1) -> np.ndarray:
    """Return the mean of each checkpoint in each resample of the queries, (K, R); all checkpoints draw the same queries."""
    rng = np.random.default_rng(seed)
    count = value_KN.shape[1]
    means = [value_KN[:, rng.integers(count, size=count)].mean(axis=1) for _ in range(resamples)]
    return np.array(means).T
