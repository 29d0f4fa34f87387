"""Measure search: exact search against faiss in speed and memory, first passes, and the recall of the store on disk.

    moon3 bench search --output results/search_speed.json

The vectors are drawn: points around random centres, as those of a catalogue cluster by kind of product.

Legend: Q queries, N products, D embedding.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from evaluation.provenance import provenance
from evaluation.speed import Comparison, compare
from product_data.errors import OptionError
from retrieval.stores.exact_search import FirstPass, FlatVectors
from retrieval.stores.interface import StoredProduct
from retrieval.stores.tuning import recall_of
from retrieval.stores.where import Where

K = 10
PARTS = ("exact", "first_passes", "store")
_BLOCK, _CENTRES, _SPREAD = 16384, 1000, 1.0
_PRICES = 50  # one price in 50 keeps 2 % of the products


@dataclass(frozen=True)
class SearchSizes:
    """Sizes of the measurement.

    Args:
        products (`int`): vectors of the exact search. Default 1,000,000.
        pass_products (`int`): vectors of the first passes. Default 200,000.
        store_products (`int`): products of the store. Default 100,000.
        queries (`int`): queries of exact search and first passes. Default 1,000.
        store_queries (`int`): queries of the store's recall. Default 200.
        dimension (`int`): D. Default 256.

    Raises:
        OptionError: a size below 1, or a dimension below 8.
    """

    products: int = 1_000_000
    pass_products: int = 200_000
    store_products: int = 100_000
    queries: int = 1000
    store_queries: int = 200
    dimension: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 8 if field.name == "dimension" else 1
            if getattr(self, field.name) < least:
                raise OptionError(f"--{field.name}: found {getattr(self, field.name)}; expected at least {least}")


def clustered_vectors(count: int, dimension: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of (N, D) float32 unit vectors around 1,000 random centres.

    `x = (c + spread · ε) / |c + spread · ε|`, where c is a random centre of length 1 and ε is Gaussian noise of expected length
    1. The centres do not depend on the seed. Our design.

    Args:
        count (`int`): number of vectors.
        dimension (`int`): D.
        seed (`int`): of the choice of centres and of the noise.
    """
    centre_CD = np.random.default_rng(0).standard_normal((_CENTRES, dimension), dtype=np.float32)
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    source = np.random.default_rng([1, seed])
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        noise_ND = source.standard_normal((size, dimension), dtype=np.float32) * np.float32(_SPREAD / dimension**0.5)
        vector_ND = centre_CD[source.integers(_CENTRES, size=size)] + noise_ND
        yield vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def flat_vectors(count: int, dimension: int, first_pass: FirstPass = "none") -> FlatVectors:
    """Return drawn vectors for exact search."""
    flat = FlatVectors(dimension, first_pass=first_pass)
    flat.resize(count)
    start = 0
    for block_ND in clustered_vectors(count, dimension, 0):
        flat.write(np.arange(start, start + len(block_ND)), block_ND)
        start += len(block_ND)
    return flat


def faiss_vectors(count: int, dimension: int) -> Any:
    """Return the same vectors in an `IndexFlatIP` of faiss, with as many threads as torch uses.

    Raises:
        OptionError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise OptionError("the exact part needs faiss; expected an installation with moon3[dev]") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(dimension)
    for block_ND in clustered_vectors(count, dimension, 0):
        index.add(block_ND)
    return index


def query_vectors(count: int, dimension: int) -> np.ndarray:
    """Return (Q, D) drawn queries, none of which is a product."""
    return np.concatenate(list(clustered_vectors(count, dimension, 1)))


def best_rows(flat: FlatVectors, query_QD: np.ndarray) -> list[list[int]]:
    """Return the rows of the 10 best vectors for each query; ties are in the order of rows."""
    answers = flat.search(query_QD, K)
    return [rows[np.argsort(-scores, kind="stable")[:K]].tolist() for rows, scores in answers]


def measure_exact(sizes: SearchSizes, repeats: int) -> dict[str, Any]:
    """Compare exact search with `IndexFlatIP`: seconds in alternating rounds, agreement, and peak memory of each."""
    query_QD = query_vectors(sizes.queries, sizes.dimension)
    peaks = {side: peak_bytes(side, sizes) for side in ("ours", "other")}
    flat, index = flat_vectors(sizes.products, sizes.dimension), faiss_vectors(sizes.products, sizes.dimension)
    found = best_rows(flat, query_QD)
    expected = index.search(query_QD, K)[1].tolist()
    about = f"exact search, {sizes.products:,} × {sizes.dimension}, {sizes.queries:,} queries: ours / faiss IndexFlatIP"
    both = Comparison(lambda: best_rows(flat, query_QD), lambda: index.search(query_QD, K), about)
    result = compare(both, repeats=repeats, warm_up=0)  # both have run once
    result |= {f"{side}_peak_bytes": peak for side, peak in peaks.items()}
    result |= {"stated_bytes": flat.memory_bytes + flat.search_bytes}
    return result | {"agreement": _overlap(found, expected)}


def peak_bytes(side: str, sizes: SearchSizes) -> int:
    """Return by how much the memory of a new process grows at its peak while it loads the vectors and searches once.

    Args:
        side: "ours" or "other".
        sizes: of the measurement.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grown_by, (side, sizes, torch.get_num_threads()))


def _grown_by(side: str, sizes: SearchSizes, threads: int) -> int:
    torch.set_num_threads(threads)
    query_QD = query_vectors(sizes.queries, sizes.dimension)
    faiss_vectors(1, sizes.dimension)  # so that both sides have loaded both libraries
    before = _peak_kibibytes()
    if side == "ours":
        best_rows(flat_vectors(sizes.products, sizes.dimension), query_QD)
    else:
        faiss_vectors(sizes.products, sizes.dimension).search(query_QD, K)
    return 1024 * (_peak_kibibytes() - before)


def _peak_kibibytes() -> int:
    """Return the peak of this program's memory; Linux' `ru_maxrss` would include that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def measure_first_passes(sizes: SearchSizes, repeats: int) -> dict[str, Any]:
    """Compare each first pass with exact scores against the plain pass: seconds, recall@10 and memory."""
    query_QD = query_vectors(sizes.queries, sizes.dimension)
    plain = flat_vectors(sizes.pass_products, sizes.dimension)
    expected = best_rows(plain, query_QD)
    results = {}
    passes: tuple[FirstPass, ...] = (sizes.dimension // 4, sizes.dimension // 2, "int8")
    for first_pass in passes:
        flat = flat_vectors(sizes.pass_products, sizes.dimension, first_pass)
        recall = _overlap(best_rows(flat, query_QD), expected)
        for number in sorted({1, sizes.queries}):
            some_QD = query_QD[:number]
            both = Comparison(
                lambda flat=flat, some=some_QD: best_rows(flat, some),  # type: ignore[misc]
                lambda some=some_QD: best_rows(plain, some),  # type: ignore[misc]
                f"{sizes.pass_products:,} × {sizes.dimension}, {number:,} queries: first pass {first_pass} / plain pass",
            )
            result = compare(both, repeats=repeats) | {"recall_at_10": recall}
            result |= {"ours_bytes": flat.memory_bytes, "other_bytes": plain.memory_bytes}
            results[f"first_pass_{first_pass}_queries_{number}"] = result
    return results


def measure_store(sizes: SearchSizes) -> dict[str, Any]:
    """Return recall@10 of the store on disk against exact search, over all products and under a filter that keeps 2 %."""
    from retrieval.stores.embedded import EmbeddedStore

    query_QD = query_vectors(sizes.store_queries, sizes.dimension)
    where = Where.parse("price = 7")
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(folder, sizes.dimension, "drawn")
        start = 0
        for block_ND in tqdm(list(clustered_vectors(sizes.store_products, sizes.dimension, 0)), desc="writing"):
            numbers = range(start, start + len(block_ND))
            products = [StoredProduct(f"{number:09}", price=number % _PRICES) for number in numbers]
            store.upsert(products, {"mm": block_ND})
            start += len(block_ND)
        compacted = store.compact()
        flat = flat_vectors(sizes.store_products, sizes.dimension)
        mask_N = np.arange(sizes.store_products) % _PRICES == 7
        recalls = {}
        for name, condition, mask in (("", None, None), ("filtered_", where, mask_N)):
            hits = store.search(query_QD, k=K, where=condition)
            found = [[int(hit.product.product_id) for hit in one] for one in hits]
            answers = flat.search(query_QD, K, mask)
            expected = [rows[np.argsort(-scores, kind="stable")[:K]].tolist() for rows, scores in answers]
            recalls[f"{name}recall_at_10"] = _overlap(found, expected)
        decision = store.indices["mm"]
        store.close()
    about = f"store on disk, {sizes.store_products:,} × {sizes.dimension}, recall@10 over all and under a filter of 2 %"
    return {"about": about, "compacted": compacted, "index": decision["index"], **recalls}


def _overlap(found: list[list[int]], expected: list[list[int]]) -> float:
    return recall_of(*([[str(row) for row in one] for one in side] for side in (found, expected)))


def measure_search(
    output: Path, sizes: SearchSizes, *, only: tuple[str, ...] = PARTS, repeats: int = 3
) -> dict[str, Any]:
    """Measure the parts and write the results file after each; earlier results of other parts stay in the file.

    Args:
        output: the JSON file.
        sizes: of the measurement.
        only: some of `PARTS`. Default: all.
        repeats (`int`): rounds of each comparison. Default 3.

    Raises:
        OptionError: fewer than 1 repeat, or faiss is not installed.
    """
    if repeats < 1:
        raise OptionError(f"--repeats: found {repeats}; expected at least 1")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "exact": lambda: {"exact": measure_exact(sizes, repeats)},
        "first_passes": lambda: measure_first_passes(sizes, repeats),
        "store": lambda: {"store": measure_store(sizes)},
    }
    results: dict[str, Any] = {}
    if output.is_file() and set(only) != set(PARTS):
        results = json.loads(output.read_text(encoding="utf-8"))
    for part in tqdm(only, desc="parts"):
        origin = provenance(0, sizes=asdict(sizes), faiss=_faiss_version())
        results |= {name: result | {"provenance": origin} for name, result in parts[part]().items()}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _faiss_version() -> str | None:
    return getattr(sys.modules.get("faiss"), "__version__", None)


def search_lines(results: dict[str, Any]) -> list[str]:
    """Return the results as lines for a reader."""
    lines = []
    for result in results.values():
        line = result["about"]
        if "ratio" in result:
            line += f": {result['ratio']:.2f}"
        for name in ("agreement", "recall_at_10", "filtered_recall_at_10"):
            if name in result:
                line += f", {name.replace('_', ' ')} {result[name]:.4f}"
        for name in ("ours_peak_bytes", "other_peak_bytes", "stated_bytes"):
            if name in result:
                line += f", {name.replace('_', ' ')} {result[name]:,}"
        lines.append(line + (f"; {result['compacted']}" if "compacted" in result else ""))
    return lines
