"""Measure what product vectors bring to a click model: variants and vectors, seeds, all, known and new products.

    moon3 ctr simulate PRODUCTS --output runs/ctr/log-0.parquet --seed 0
    moon3 ctr train --log runs/ctr/log-0.parquet --vectors Moon=runs/ctr/vectors --output results/ctr.json

Every training is a cell: log, vectors, variant, settings and seed. A finished cell is kept in the folder `work`, and the same
command continues after an interruption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from applications.ctr.metrics import UserBootstrap, click_scores, percentile_interval
from applications.ctr.model import VARIANTS, CtrSettings
from applications.ctr.periods import Periods, divide
from applications.ctr.product_vectors import ProductVectors, read_vectors
from applications.ctr.training import ClickRows, Trained, train
from evaluation.provenance import provenance
from evaluation.weights import weights_of
from product_data.atomic_files import file_written_whole
from product_data.errors import OptionError
from product_data.impressions import ImpressionLog, read_impressions

SUBSETS = ("all", "known", "new")
IDS = "ids"
"""The variant without vectors, with which the others are compared."""
SEED = "{seed}"
_CODE = ("model.py", "training.py", "periods.py", "product_vectors.py")


@dataclass(frozen=True, eq=False)
class CtrStudy:
    """What is trained.

    Args:
        log (`str`): file of the log; with "{seed}" in its name each seed reads its own log.
        vectors: name → folder of `moon3 embed`.
        variants: names of `VARIANTS`. Default: all.
        seeds: seeds of the trainings. Default (0, 1, 2).
        form (`str`): form of the products: "mm", "t" or "i". Default "mm".
        settings: sizes and training.

    Raises:
        OptionError: no seed, a repeated seed, an unknown variant, or variants with vectors without vectors.
    """

    log: str
    vectors: Mapping[str, Path]
    variants: Sequence[str] = tuple(VARIANTS)
    seeds: Sequence[int] = (0, 1, 2)
    form: str = "mm"
    settings: CtrSettings = CtrSettings()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise OptionError(f"--seeds: found {list(self.seeds)}; expected different whole numbers")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise OptionError(f"--variants: found {unknown[0]!r}; expected one of {', '.join(VARIANTS)}")
        if not self.vectors and any(VARIANTS[name].vectors for name in self.variants):
            raise OptionError("--vectors: found none; expected NAME=FOLDER of moon3 embed, or --variants ids")

    def log_of(self, seed: int) -> str:
        """Return the file of a seed's log."""
        return self.log.replace(SEED, str(seed))

    def models(self) -> list[tuple[str, str | None]]:
        """Return (variant, name of the vectors or None) of each model."""
        found: list[tuple[str, str | None]] = [(name, None) for name in self.variants if not VARIANTS[name].vectors]
        return found + [(name, own) for own in self.vectors for name in self.variants if VARIANTS[name].vectors]


def model_name(variant: str, vectors: str | None) -> str:
    """Return the name of a model in tables: "ids", or "Moon: ids + vectors + histogram"."""
    text = variant.replace("_", " + ")
    return text if vectors is None else f"{vectors}: {text}"


@dataclass(frozen=True, eq=False)
class SeedData:
    """What all cells of one seed share: the log, its periods, and the vectors of its products."""

    log: ImpressionLog
    periods: Periods
    vectors: Mapping[str, ProductVectors]


def read_data(study: CtrStudy) -> dict[int, SeedData]:
    """Read the logs and vectors of a study, each file once.

    Raises:
        TableError, OptionError, VectorFileError: a log or vectors that cannot be used.
    """
    read: dict[str, SeedData] = {}
    for seed in study.seeds:
        file = study.log_of(seed)
        if file not in read:
            log = read_impressions(file)
            vectors = {name: read_vectors(folder, log, study.form) for name, folder in study.vectors.items()}
            read[file] = SeedData(log, divide(log), vectors)
    return {seed: read[study.log_of(seed)] for seed in study.seeds}


def run_cells(study: CtrStudy, data: Mapping[int, SeedData], work: Path) -> dict[tuple[str, int], Trained]:
    """Train the unfinished cells and return all: (name of the model, seed) → result.

    Args:
        study: what is trained.
        data: from `read_data`.
        work: folder that keeps finished cells; made if necessary.
    """
    work.mkdir(parents=True, exist_ok=True)
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)
    cells = [(seed, variant, name) for seed in study.seeds for variant, name in study.models()]
    found: dict[tuple[str, int], Trained] = {}
    made: dict[tuple[int, str | None], ClickRows] = {}
    for seed, variant, name in tqdm(cells, desc="click models", delay=3.0):
        own = data[seed].vectors[name] if name else None
        key = [variant, seed, asdict(study.settings), data[seed].log.digest, own.fingerprint if own else "", study.form]
        digest = hashlib.sha256(code + json.dumps(key).encode() + (own.vector_PD.tobytes() if own else b""))
        path = work / f"{variant}-{name or 'no_vectors'}-seed{seed}-{digest.hexdigest()[:12]}.npz".replace(" ", "_")
        if not path.is_file():
            if (seed, name) not in made:
                made = {(seed, name): ClickRows(data[seed].log, data[seed].periods, own, study.settings)}
            trained = train(made[seed, name], variant, study.settings, seed=seed)
            with file_written_whole(path) as partial, partial.open("wb") as stream:
                np.savez(stream, **asdict(trained))
        with np.load(path) as kept:
            found[model_name(variant, name), seed] = Trained(
                kept["probability_N"], int(kept["steps"]), float(kept["valid_loss"])
            )
    return found


def measured(
    study: CtrStudy, data: Mapping[int, SeedData], cells: Mapping[tuple[str, int], Trained], resamples: int = 500
) -> dict[str, Any]:
    """Return the scores of all cells, their means over seeds, and paired differences of AUC.

    The interval of a difference comes from a bootstrap over the users of the test period: in each resample, the difference is
    averaged over seeds, and seeds with one log draw the same users. It does not cover other products or periods.

    Args:
        study, data, cells: the study, see `read_data` and `run_cells`.
        resamples (`int`): of the bootstrap. Default 500.

    Returns: models: name → variant, vectors, seeds (seed → steps, valid_loss, scores of each subset), mean (subset → metric →
        mean over seeds), and against (name of the other model → subset → difference of AUC: mean, seeds, interval). A model is
        compared with ids alone, and with the same variant of other vectors that come later.
    """
    boot = {(seed, subset): _bootstrap(data[seed], subset, resamples) for seed in study.seeds for subset in SUBSETS}
    drawn = {
        (name, seed, subset): bootstrap.auc(cells[name, seed].probability_N[rows])
        for (seed, subset), (rows, bootstrap) in boot.items()
        if len(rows)
        for name in [model_name(*model) for model in study.models()]
    }
    scored = {
        name: {str(seed): _cell(data[seed], cells[name, seed]) for seed in study.seeds}
        for name in [model_name(*model) for model in study.models()]
    }
    models: dict[str, Any] = {}
    order = list(study.vectors)
    for variant, own in study.models():
        name = model_name(variant, own)
        others = [IDS] if own and IDS in study.variants else []
        others += [model_name(variant, other) for other in order[order.index(own) + 1 :]] if own else []
        models[name] = {
            "variant": variant,
            "vectors": own,
            "mean": {subset: _means([seed["scores"][subset] for seed in scored[name].values()]) for subset in SUBSETS},
            "seeds": scored[name],
            "against": {
                other: {subset: _difference(study, drawn, scored, (name, other), subset) for subset in SUBSETS}
                for other in others
            },
        }
    return models


def _rows_of(data: SeedData, subset: str) -> np.ndarray:
    """Return the places of a subset within the rows of the test period."""
    return np.flatnonzero(np.isin(data.periods.test, data.periods.subsets()[subset]))


def _bootstrap(data: SeedData, subset: str, resamples: int) -> tuple[np.ndarray, UserBootstrap]:
    rows = _rows_of(data, subset)
    test = data.periods.test[rows]
    return rows, UserBootstrap(data.log.clicked_N[test], data.log.user_N[test], resamples=resamples)


def _cell(data: SeedData, cell: Trained) -> dict[str, Any]:
    scores = {}
    for subset in SUBSETS:
        rows = _rows_of(data, subset)
        test = data.periods.test[rows]
        scores[subset] = click_scores(data.log.clicked_N[test], cell.probability_N[rows], data.log.user_N[test])
    return {"steps": cell.steps, "valid_loss": cell.valid_loss, "scores": scores}


def _means(scores: Sequence[Mapping[str, Any] | None]) -> dict[str, float] | None:
    whole = [score for score in scores if score is not None]
    if len(whole) < len(scores):
        return None
    return {
        name: float(np.mean([score[name] for score in whole]))
        for name in whole[0]
        if all(score[name] is not None for score in whole)
    }


def _difference(
    study: CtrStudy,
    drawn: Mapping[tuple[str, int, str], np.ndarray],
    scored: Mapping[str, Mapping[str, Any]],
    names: tuple[str, str],
    subset: str,
) -> dict[str, Any] | None:
    name, other = names
    own = [cell["scores"][subset] for cell in scored[name].values()]
    if None in own:
        return None
    by_seed = [
        score["AUC"] - cell["scores"][subset]["AUC"] for score, cell in zip(own, scored[other].values(), strict=True)
    ]
    draws_R = np.mean([drawn[name, seed, subset] - drawn[other, seed, subset] for seed in study.seeds], axis=0)
    return {"mean": float(np.mean(by_seed)), "seeds": by_seed, "interval": percentile_interval(draws_R)}


def log_facts(data: SeedData) -> dict[str, Any]:
    """Return facts about a log: what it holds, its periods, and for simulated behaviour the best possible AUC."""
    log, periods = data.log, data.periods
    facts: dict[str, Any] = {
        "simulated": log.simulation is not None,
        "digest": log.digest,
        "rows": len(log),
        "users": len(np.unique(log.user_N)),
        "products": len(np.unique(log.product_N)),
        "click_rate": float(log.clicked_N.mean()),
        "periods": {name: len(getattr(periods, name)) for name in ("train", "valid", "test")},
        "valid_from": periods.valid_from,
        "test_from": periods.test_from,
        "new_products": len(np.unique(log.product_N[periods.subsets()["new"]])),
        "missing_vectors": {name: vectors.missing for name, vectors in data.vectors.items()},
        "issues": [str(issue) for issue in log.issues],
    }
    if log.probability_N is not None:
        facts["best_possible_AUC"] = {
            subset: scores["AUC"]
            for subset, rows in periods.subsets().items()
            if (scores := click_scores(log.clicked_N[rows], log.probability_N[rows], log.user_N[rows])) is not None
        }
    if log.simulation is not None:
        facts["simulation"] = log.simulation
    return facts


def run_study(study: CtrStudy, work: Path, *, resamples: int = 500) -> dict[str, Any]:
    """Train all cells and return the content of the results file.

    Args:
        study: what is trained.
        work: folder that keeps finished cells.
        resamples (`int`): of the bootstrap over users. Default 500.

    Raises:
        TableError, OptionError, VectorFileError: a log or vectors that cannot be used; raised before the first training.
    """
    data = read_data(study)
    cells = run_cells(study, data, work)
    first = data[study.seeds[0]]
    return {
        "log": {str(seed): log_facts(own) for seed, own in data.items()},
        "vectors": {
            name: {
                "model": Path(vectors.model).name,
                "weights": weights_of(vectors.model),
                "fingerprint": vectors.fingerprint,
            }
            for name, vectors in first.vectors.items()
        },
        "form": study.form,
        "settings": asdict(study.settings),
        "resamples": resamples,
        "models": measured(study, data, cells, resamples),
        "provenance": provenance(study.seeds[0], seeds=list(study.seeds)),
    }
