"""Measure detectors of core boxes: how well their boxes fit, and what a crop to them does for search.

moon3 core-crop-study --data ../shared/data --weights u2netp.onnx --model Moon=training/checkpoints/moon1-catalogue \
    --output results/core_crop.json

The fit is measured on street photos, whose core is the box around all garments, and on photos of the drawn catalogue, whose
boxes are known. A picture without a box is used whole, so its box counts as the whole picture. Search is measured with frozen
weights on the phone photos of grocery (test), once for each source of boxes, with a paired bootstrap over photos. `--work` keeps
the boxes: the same command continues after an interruption.

Shape suffixes: N pictures or queries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

import evaluation.baselines  # noqa: F401 - registers their models
from evaluation.frozen_study import percent
from evaluation.metrics import bootstrap_interval
from evaluation.paired_rows import Row, retrieval_rows
from evaluation.report import ARROWS
from evaluation.significance import paired_test
from processing_moon import open_image
from processing_moon.product_moon import Box
from product_data.catalogue.making import make_catalogue
from product_data.core_boxes.box_cache import BoxCache, Pictured
from product_data.core_boxes.detectors import NamedDetector, open_detector
from product_data.core_boxes.saliency import SaliencyOptions
from product_data.table_files import ImageSource, read_rows
from product_data.tables import ProductTables, load_tables
from retrieval.encode import VectorCache, load_for_evaluation

NONE, LARGEST, SALIENCY, SALIENCY_REGION = "none", "largest region", "saliency", "saliency, largest region"
SOURCES = (NONE, LARGEST, SALIENCY)
SEARCH_SPLIT = "test"
_TIMED = 16
_CENTRE = 0.5**0.5


@dataclass(frozen=True)
class BoxedPicture:
    """A picture, its size, and the box of its core."""

    name: str
    picture: ImageSource
    size: tuple[int, int]
    box: Box


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes (x0, y0, x1, y1)."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, wide) * max(0.0, high)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def detectors_of(weights: Path) -> dict[str, NamedDetector]:
    """Return the detectors that are compared, by name."""
    return {
        LARGEST: open_detector("largest-region"),
        SALIENCY: open_detector("saliency", weights=weights),
        SALIENCY_REGION: open_detector("saliency", weights=weights, saliency=SaliencyOptions(region="largest")),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Fit


def street_pictures(folder: Path) -> tuple[list[BoxedPicture], list[str]]:
    """Return the street photos that show a garment, with the box around all garments of `scenes.jsonl`.

    Returns: the photos, and the names of the scenes whose photo the folder lacks.
    """
    pictures = {str(row["image_id"]): row["image"] for row in read_rows(folder / "query_images.parquet")}
    found, missing = [], []
    for scene in read_rows(folder / "scenes.jsonl"):
        name = scene["image"]
        boxes = np.array([entry["bbox"] for entry in scene["objects"]], dtype=np.float64).reshape(-1, 4)
        if name not in pictures:
            missing.append(name)
        elif len(boxes):
            box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
            found.append(BoxedPicture(name, pictures[name]["bytes"], (scene["width"], scene["height"]), box))
    return found, missing


def catalogue_pictures(products: int = 60, seed: int = 3) -> list[BoxedPicture]:
    """Return the photos of the drawn catalogue with their boxes.

    Args:
        products (`int`): size of the catalogue. Default 60.
        seed (`int`): its seed. Default 3.
    """
    _, queries = make_catalogue(products=products, seed=seed, progress=False)
    photos = [row for row in queries if row["image"] is not None]
    return [
        BoxedPicture(row["query_id"], row["image"], open_image(row["image"]).size, tuple(map(float, row["bbox"])))  # type: ignore[arg-type]
        for row in photos
    ]


def fit_results(pictures: Sequence[BoxedPicture], detectors: Mapping[str, NamedDetector], work: Path) -> dict[str, Any]:
    """Return the overlap of each detector's boxes with the true ones, and of two fixed boxes.

    Args:
        pictures: N pictures.
        detectors: name → detector.
        work: folder that keeps the boxes.

    Returns: "pictures"; "boxes": name → mean overlap and share of at least .5, each with a 95 % interval, and the share of
    pictures with a box; "differences": name → the paired difference of saliency's overlap minus that of the other.
    """
    whole = [(0.0, 0.0, float(entry.size[0]), float(entry.size[1])) for entry in pictures]
    fixed: dict[str, list[Box | None]] = {
        "whole picture": [None] * len(pictures),
        "centre, half of the area": [_centre(box) for box in whole],
    }
    found = fixed | {name: _boxes(pictures, detector, work) for name, detector in detectors.items()}
    overlap_of = {
        name: np.array([overlap(box or own, entry.box) for box, own, entry in zip(boxes, whole, pictures, strict=True)])
        for name, boxes in found.items()
    }
    results: dict[str, Any] = {"pictures": len(pictures), "boxes": {}, "differences": {}}
    for name, overlap_N in overlap_of.items():
        enough_N = (overlap_N >= 0.5).astype(np.float64)
        results["boxes"][name] = {
            "overlap": _mean(overlap_N),
            "at_least_half": _mean(enough_N),
            "with_box": float(np.mean([box is not None for box in found[name]])),
        }
        if name != SALIENCY:
            results["differences"][name] = paired_test(overlap_N, overlap_of[SALIENCY])
    return results


def _centre(whole: Box) -> Box:
    wide, high = whole[2] * (1 - _CENTRE) / 2, whole[3] * (1 - _CENTRE) / 2
    return wide, high, whole[2] - wide, whole[3] - high


def _mean(value_N: np.ndarray) -> dict[str, Any]:
    return {"value": float(value_N.mean()), "interval": list(bootstrap_interval(value_N))}


def _boxes(pictures: Sequence[BoxedPicture], detector: NamedDetector, work: Path) -> list[Box | None]:
    cache = BoxCache(work / "core_boxes.jsonl", detector)
    bar = tqdm(pictures, desc=f"boxes by {detector.name}", unit="picture", delay=3.0)
    return [cache.detections([Pictured(entry.name, entry.picture)])[0].box for entry in bar]


def speed_results(pictures: Sequence[BoxedPicture], detectors: Mapping[str, NamedDetector]) -> dict[str, Any]:
    """Return pictures a second and processor seconds a picture of each detector, measured one after the other."""
    images = [open_image(entry.picture) for entry in pictures[:_TIMED]]
    results = {}
    for name, detector in detectors.items():
        detector.detections(images[:1], [None])
        began, processor = time.perf_counter(), time.process_time()
        detector.detections(images, [None] * len(images))
        seconds = time.perf_counter() - began
        results[name] = {
            "pictures": len(images),
            "pictures_per_second": len(images) / seconds,
            "processor_seconds_per_picture": (time.process_time() - processor) / len(images),
        }
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Search


def with_boxes(tables: ProductTables, detector: NamedDetector | None, work: Path) -> ProductTables:
    """Return tables whose products and queries have the boxes of a detector, or no boxes.

    Args:
        tables: products and queries.
        detector: detects the boxes. None removes them.
        work: folder that keeps the boxes.
    """
    find: Callable[[str, ImageSource | None, str | None], Box | None] = lambda name, picture, title: None  # noqa: E731
    if detector is not None:
        cache = BoxCache(work / "core_boxes.jsonl", detector)

        def find(name: str, picture: ImageSource | None, title: str | None) -> Box | None:
            return None if picture is None else cache.detections([Pictured(name, picture, title)])[0].box

    kind = "none" if detector is None else detector.name
    products = [
        replace(row, core_box=find(row.product_id, row.images[0] if row.images else None, row.title or None))
        for row in tqdm(tables.products, desc=f"products, boxes: {kind}", unit="product", delay=3.0)
    ]
    queries = [
        replace(row, box=find(row.query_id, row.record().get("image"), row.text or None))
        for row in tqdm(tables.queries, desc=f"queries, boxes: {kind}", unit="query", delay=3.0)
    ]
    return replace(tables, products=products, queries=queries)


def search_rows(place: str, tables: ProductTables) -> list[Row]:
    """Return the rows of photos → products, and photos → pictures of products, of one model."""
    model, processor = load_for_evaluation(place)
    rows = retrieval_rows(VectorCache(model, processor, tables.products, tables.queries, batch_size=32))
    return [row for row in rows if row.what in ("i2mm", "i2i")]


def compare_sources(rows_of: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Compare the sources of boxes query by query; the reference is "none".

    Args:
        rows_of: source of boxes → rows of the same model on the same queries.

    Returns: for each row what, form, metric, queries, choices, chance, "boxes" (source → value and interval) and "differences"
    (source → paired difference to "none", and "largest region" → that of saliency to it).
    """
    compared = []
    for place, base in enumerate(rows_of[NONE]):
        own = {source: rows[place] for source, rows in rows_of.items()}
        differences = {source: paired_test(base.value_N, row.value_N) for source, row in own.items() if source != NONE}
        if LARGEST in own and SALIENCY in own:
            differences[f"{SALIENCY} - {LARGEST}"] = paired_test(own[LARGEST].value_N, own[SALIENCY].value_N)
        compared.append(
            {
                **{name: getattr(base, name) for name in ("what", "form", "metric", "choices", "chance")},
                "queries": len(base.names),
                "boxes": {source: _mean(row.value_N) for source, row in own.items()},
                "differences": differences,
            }
        )
    return compared


def measure_core_crop(
    data: Path,
    weights: Path,
    models: Mapping[str, str],
    work: Path,
    *,
    every: int = 1,
    drawn_products: int = 60,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure the fit of boxes and the search with frozen weights; see the head of this file.

    Args:
        data: folder with the folders street and grocery.
        weights: the ONNX file of a U²-Net.
        models: name → place of a checkpoint, for the search. Empty: the search is not measured.
        work: folder that keeps the boxes.
        every (`int`): search with every `every`-th photo of grocery. Default 1: all.
        drawn_products (`int`): size of the drawn catalogue. Default 60.
        keep: receives the results after each part. Default: nothing.
    """
    keep = keep or (lambda _: None)
    detectors = detectors_of(weights)
    street, missing = street_pictures(data / "street")
    results: dict[str, Any] = {
        "detectors": {name: {"name": detector.name, **detector.settings} for name, detector in detectors.items()},
        "street_scenes_without_photo": missing,
        "fit": {"street": fit_results(street, detectors, work)},
        "speed": speed_results(street, detectors),
        "search": {},
    }
    keep(results)
    if models:
        tables = load_tables(data / "grocery").select(SEARCH_SPLIT)
        tables = replace(tables, queries=tables.queries[::every])
        of_source = {source: with_boxes(tables, detectors.get(source), work) for source in SOURCES}
        for name, place in models.items():
            rows_of = {source: search_rows(place, boxed) for source, boxed in of_source.items()}
            results["search"][name] = {"model": place, "every": every, "rows": compare_sources(rows_of)}
            keep(results)
    results["fit"]["catalogue"] = fit_results(catalogue_pictures(drawn_products), detectors, work)
    keep(results)
    return results


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Summarise the study."""
    found = []
    for name, fit in results["fit"].items():
        for source, entry in fit["boxes"].items():
            found.append(
                f"{name}, {fit['pictures']} pictures, {source}: mean overlap {_shown(entry['overlap'])}, at least half "
                f"{_shown(entry['at_least_half'])}, {entry['with_box']:.0%} have a box."
            )
    for name, entry in results["speed"].items():
        found.append(f"{name}: {entry['pictures_per_second']:.1f} pictures a second.")
    runs = [(f"{name}, frozen", entry["rows"]) for name, entry in results["search"].items()]
    runs += [("trained", results["training"]["rows"])] if results.get("training") else []
    for name, rows in runs:
        for row in rows:
            values = ", ".join(f"boxes {source} {_shown(value)}" for source, value in row["boxes"].items())
            found.append(f"{name}, {row['what']}, {row['metric']} of {row['queries']} photos: {values}.")
    return found


def crop_tables(results: Mapping[str, Any]) -> tuple[str, str]:
    """Return two Markdown tables in percent: the fit of the boxes, and search with each source of boxes.

    Args:
        results: from `measure_core_crop`, with "training" from `training.studies.core_crop_training`.
    """
    fits = results["fit"]
    fit_lines = [
        [
            source,
            *(percent(fit["boxes"][source][key]) for fit in fits.values() for key in ("overlap", "at_least_half")),
        ]
        for source in next(iter(fits.values()))["boxes"]
    ]
    heads = [f"{name}, {fit['pictures']}: {key}" for name, fit in fits.items() for key in ("IoU", "IoU ≥ 50 %")]
    runs = [(f"{name}, frozen", entry["rows"]) for name, entry in results["search"].items()]
    runs.append((f"trained, {len(results['training']['seeds'])} seeds", results["training"]["rows"]))
    search_lines = [
        [
            f"{name}: {ARROWS.get(row['what'], row['what'])} {row['metric']}",
            *(percent(row["boxes"][source]) for source in SOURCES),
            _points(row["differences"][SALIENCY]),
            f"{100 * row['chance']:.1f}",
        ]
        for name, rows in runs
        for row in rows
    ]
    search_heads = ["grocery, phone photos", *SOURCES, "saliency − none, points", "chance"]
    return (
        tabulate(fit_lines, headers=["box", *heads], tablefmt="github", disable_numparse=True),
        tabulate(search_lines, headers=search_heads, tablefmt="github", disable_numparse=True),
    )


def _points(test: Mapping[str, Any]) -> str:
    low, high = test["interval"]
    return f"{100 * test['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _shown(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['value']:.3f} ({low:.3f} to {high:.3f})"


def results_text(results: Mapping[str, Any]) -> str:
    """Return the contents of the results file."""
    return json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
