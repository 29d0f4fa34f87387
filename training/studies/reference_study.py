"""Train the reference checkpoint with several seeds, and compare it with two frozen encoders on shops that it never saw.

Its words are read by the lower layers of a real language model, under a random vision tower that a frozen image encoder teaches.
The comparison is on the test splits of fashion and ikea (`training.studies.reference_tables`), with R@10 of the five directions.
The shipped checkpoint is compared on drawn products that neither was trained on.
Two encoders have no score between words and pictures, since their spaces have nothing in common. So there are two means over
rows: over those that both have, and over all, where a row without a score of the encoders counts as chance.

Shape suffixes: N queries of a row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import evaluation.baselines  # noqa: F401 - makes the kinds of encoders known
from evaluation.metrics import bootstrap_interval
from evaluation.paired_rows import Row, retrieval_rows
from evaluation.provenance import provenance
from evaluation.report import ARROWS
from evaluation.significance import paired_test
from product_data.atomic_files import write_atomically, written_whole
from product_data.catalogue.making import write_catalogue
from product_data.errors import OptionError
from product_data.tables import ProductTables, load_tables
from retrieval.encode import VectorCache, load_for_evaluation
from training.model.text_base import make_text_base
from training.places import RECIPES
from training.recipe.arguments import RecipeError
from training.recipe.files import read_recipe_file
from training.runs.folder import RunFolder
from training.shipped_checkpoint import MEASURED_ON
from training.shipped_checkpoint import SHIPPED as SHIPPED_CHECKPOINT
from training.studies.ablate import Run, run_all
from training.studies.ablation_suite import check_seeds
from training.studies.reference_tables import LEFT_OUT, write_reference_tables

RECIPE = "reference.yaml"
LAYERS = 2
VISION = {"hidden_size": 192, "depth": 4, "max_image_tokens": 9, "min_image_tokens": 4}
SPLIT = "test"
FROZEN, MOON, SHIPPED = "frozen encoders", "reference checkpoint", "shipped checkpoint"
SHARED, ALL = "mean of the rows of both", "mean of all rows"
_METRIC = "R@10"
_DIRECTIONS = ("t2mm", "i2mm", "mm2mm", "t2i", "i2t")


class UnfinishedError(ValueError):
    """Raised for a training of the study that did not finish; the same command continues it."""

    exit_status = 3


@dataclass(frozen=True)
class Encoders:
    """The places of the models that are given: two frozen encoders, and the language model of the base.

    Args:
        image: of an image encoder, see `evaluation.baselines.image_encoders.load_image_encoder`. It is compared with.
        text: of a text encoder, a model of sentence-transformers. It is compared with.
        language_model: whose lower layers the base has, see `training.model.text_base.make_text_base`.
        image_teacher: the image encoder that teaches, such as the same one for smaller pictures. Default: `image`.
    """

    image: str
    text: str
    language_model: str
    image_teacher: str = ""

    @property
    def fused(self) -> str:
        """Return the model that is compared with."""
        return f"frozen={self.image}+{self.text}"

    def teachers(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the recipe's teachers with these encoders, by form."""
        place = {"i": f"frozen_image={self.image_teacher or self.image}", "t": f"frozen_text={self.text}"}
        return [teacher | {"encoder": place[teacher["form"]]} for teacher in recipe["teachers"]]


def train_seeds(
    tables: Path, encoders: Encoders, work: Path, seeds: Sequence[int], keys: Mapping[str, Any] | None = None
) -> list[Path]:
    """Train with each seed, and return the folders of the trained models; a finished training is not run again.

    Args:
        tables: the folder of `write_reference_tables`.
        encoders: the teacher, and the language model of the base.
        work: folder of the base and of the trainings.
        seeds: seeds of the trainings.
        keys: changed keys of the recipe. Default: none.

    Raises:
        UnfinishedError: a training that did not finish; the same call continues it.
        RecipeError: seeds that stand twice, or a base of another language model.
    """
    check_seeds("--seeds", seeds)
    recipe = {**read_recipe_file(RECIPES / RECIPE), **(keys or {})}
    recipe["teachers"] = encoders.teachers(recipe)
    recipe["base"] = str(work / "base")
    data = [entry | {"path": str(tables / Path(entry["path"]).name)} for entry in recipe.pop("data")]
    recipe["evaluate_data"] = [str(tables / "left_out" / name) for name in LEFT_OUT]
    _make_base(encoders.language_model, work)
    runs = [Run("reference", seed, work / f"seed-{seed}", {**recipe, "seed": seed}) for seed in seeds]
    if missed := run_all(runs, data, 1, lambda: None):
        raise UnfinishedError(f"{'; '.join(missed)}: not finished; the same command continues")
    return [RunFolder(run.folder).final for run in runs]


def _make_base(language_model: str, work: Path) -> None:
    """Make the base unless it is there; its record says of which language model. One without a record is taken as it is.

    Raises:
        RecipeError: the base was made of another language model.
    """
    record, wanted = work / "base.json", {"language_model": language_model, "layers": LAYERS, "vision": VISION}
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    if (work / "base").is_dir() and found not in (None, wanted):
        raise RecipeError(f"{work / 'base'}: found a base made of {found}; expected {wanted}, or another --work")
    if not (work / "base").is_dir():
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(wanted) + "\n")
        make_text_base(language_model, work / "base", layers=LAYERS, vision=VISION, dtype="float32")


def left_out_rows(place: str, tables: Path) -> dict[str, list[Row]]:
    """Return the R@10 rows of the five directions of one model, by shop.

    Args:
        place: a checkpoint or KIND=PLACE.
        tables: the folder of `write_reference_tables`.
    """
    return {shop: rows_of(place, load_tables(tables / "left_out" / shop).select(SPLIT)) for shop in LEFT_OUT}


def rows_of(place: str, data: ProductTables) -> list[Row]:
    """Return the R@10 rows of the five directions of one model on one data set."""
    model, processor = load_for_evaluation(place)
    cache = VectorCache(model, processor, data.products, data.queries, batch_size=32)
    return [row for row in retrieval_rows(cache) if row.metric == _METRIC and row.what in _DIRECTIONS]


def drawn_rows(place: str, folder: Path) -> dict[str, list[Row]]:
    """Return the rows of one model on the 510 drawn products on which the settings of the shipped checkpoint were chosen.

    Args:
        place: a checkpoint or KIND=PLACE.
        folder: the catalogue; it is drawn if missing.
    """
    if not folder.is_dir():
        with written_whole(folder) as partial:
            write_catalogue(partial, **MEASURED_ON["validation"])
    return {"drawn products": rows_of(place, load_tables(folder).select(SPLIT))}


def mean_over_seeds(of_seeds: Sequence[Mapping[str, Sequence[Row]]]) -> dict[str, list[Row]]:
    """Return the rows with the mean over seeds as the value of each query.

    Raises:
        ValueError: seeds with different rows.
    """
    joined: dict[str, list[Row]] = {}
    for shop, first in of_seeds[0].items():
        joined[shop] = [
            replace(rows[0], value_N=np.mean([row.value_N for row in rows], axis=0))
            for rows in zip(first, *(other[shop] for other in of_seeds[1:]), strict=True)
        ]
    return joined


def mean_of_rows(rows: Sequence[tuple[str, Sequence[str], np.ndarray]]) -> np.ndarray:
    """Return one value for each query, whose mean is the mean over rows of each row's mean.

    `value_q = Q/R · Σ_r v_rq / N_r` over the rows r that have the query, N_r queries in row r, Q different ones in all R rows. In
    this form the rows have one paired test, in which a query that is searched in several directions is drawn once.

    Args:
        rows: shop, names of the queries, and their values (N,).
    """
    share: dict[tuple[str, str], float] = {}
    for shop, names, value_N in rows:
        for name, value in zip(names, value_N, strict=True):
            share[shop, name] = share.get((shop, name), 0.0) + float(value) / len(names)
    return np.array(list(share.values())) * len(share) / len(rows)


def compare(
    frozen: Mapping[str, Sequence[Row]], moon: Mapping[str, Sequence[Row]], other_name: str = FROZEN
) -> list[dict[str, Any]]:
    """Compare a Moon with the frozen encoders, or with another model, row by row, and in both means over rows.

    Args:
        frozen, moon: shop → rows of `left_out_rows` or `drawn_rows`.
        other_name: the name of the first in the entries. Default `FROZEN`.

    Returns: entries with shop, what, queries, choices, chance, and "models": name → value, 95 % interval and, for the Moon, the
    paired difference to the encoders; a row that the encoders lack has no difference.

    Raises:
        ValueError: rows of different queries.
    """
    entries, pairs = [], []
    for shop, rows in moon.items():
        known = {row.what: row for row in frozen[shop]}
        for row in rows:
            other = known.get(row.what)
            if other is not None and other.names != row.names:
                raise ValueError(f"{shop}, {row.what}: the models have different queries; expected the same queries")
            pairs.append((shop, row, other))
            facts = {"shop": shop, "what": row.what, "queries": len(row.names), "choices": row.choices}
            values = _compared(None if other is None else other.value_N, row.value_N, other_name)
            entries.append(facts | {"chance": row.chance, "models": values})
    means = {SHARED: [(shop, row, other.value_N) for shop, row, other in pairs if other is not None]}
    means[ALL] = [
        (shop, row, np.full(len(row.names), row.chance) if other is None else other.value_N)
        for shop, row, other in pairs
    ]
    for name, chosen in means.items():
        if not chosen:
            continue
        others = mean_of_rows([(shop, row.names, value_N) for shop, row, value_N in chosen])
        values = _compared(
            others, mean_of_rows([(shop, row.names, row.value_N) for shop, row, _ in chosen]), other_name
        )
        entries.append({"shop": name, "what": _METRIC, "rows": len(chosen), "models": values})
    return entries


def _compared(other_N: np.ndarray | None, moon_N: np.ndarray, other_name: str) -> dict[str, Any]:
    if other_N is None:
        return {MOON: _value(moon_N)}
    return {other_name: _value(other_N), MOON: _value(moon_N) | {"difference": paired_test(other_N, moon_N)}}


def _value(value_N: np.ndarray) -> dict[str, Any]:
    return {"value": float(value_N.mean()), "interval": list(bootstrap_interval(value_N))}


def write_reference_study(
    data: Path,
    encoders: Encoders,
    output: Path,
    work: Path,
    seeds: Sequence[int],
    keys: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the tables, train, compare, and write the results file.

    Args:
        data: folder with the folders of the shops.
        encoders: the frozen encoders, and the language model of the base.
        output: the results file, .json.
        work: folder for tables and trainings.
        seeds: seeds of the trainings.
        keys: changed keys of the recipe. Default: none.

    Returns:
        The content of the results file.

    Raises:
        OptionError: `output` is not a .json file.
        UnfinishedError: a training that did not finish; the same call continues it.
    """
    if output.suffix != ".json":
        raise OptionError(f"--output {output}; expected a .json file")
    tables = work / "tables"
    write_reference_tables(data, tables)
    finals = train_seeds(tables, encoders, work / "runs", seeds, keys)
    frozen = left_out_rows(encoders.fused, tables)
    of_seeds = [left_out_rows(str(final), tables) for final in finals]
    drawn = [drawn_rows(str(final), work / "drawn") for final in finals]
    size = sum(path.stat().st_size for path in finals[0].glob("*.safetensors"))
    results = {
        "seeds": list(seeds),
        "split": SPLIT,
        "keys": dict(keys or {}),
        "megabytes": round(size / 1e6, 1),
        "rows": compare(frozen, mean_over_seeds(of_seeds)),
        "by_seed": {
            str(seed): [_seed_entry(entry) for entry in compare(frozen, rows)]
            for seed, rows in zip(seeds, of_seeds, strict=True)
        },
        "drawn": compare(drawn_rows(str(SHIPPED_CHECKPOINT), work / "drawn"), mean_over_seeds(drawn), SHIPPED),
        "provenance": provenance(seeds[0], seeds=list(seeds)),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def _seed_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"shop": entry["shop"], "what": entry["what"], "value": entry["models"][MOON]["value"]}


def table(results: Mapping[str, Any], part: str = "rows", *, style: str = "github") -> str:
    """Return a table of a comparison, in percent.

    Args:
        results: from `write_reference_study`.
        part: "rows", with the frozen encoders on the shops that are left out, or "drawn", with the shipped checkpoint.
        style (`str`): a tabulate format. Default "github".
    """
    other_name = FROZEN if part == "rows" else SHIPPED
    shown: Callable[[Any], str] = functools.partial(_shown, scale=100)
    lines = []
    for entry in results[part]:
        models = entry["models"]
        what = ARROWS.get(entry["what"], entry["what"])
        difference = models[MOON].get("difference")
        change = "–" if difference is None else shown({"value": difference["difference"], **difference})
        chance = entry.get("chance")
        lines.append(
            [
                f"{entry['shop']}, {what}",
                shown(models.get(other_name)),
                shown(models[MOON]),
                "–" if chance is None else f"{100 * chance:.1f}",
                change,
            ]
        )
    heads = ["R@10, %", other_name, MOON, "chance", "difference, points"]
    return tabulate(lines, headers=heads, tablefmt=style, disable_numparse=True)


def _shown(entry: Mapping[str, Any] | None, scale: float) -> str:
    if entry is None:
        return "–"
    low, high = entry["interval"]
    return f"{scale * entry['value']:.1f} ({scale * low:.1f} to {scale * high:.1f})"
