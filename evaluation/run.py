"""Evaluate a checkpoint: retrieval, classification and attribute prediction on one or several data sets.

python -m evaluation.run --model DIR --benchmark catalogue|PATH [PATH …] [--output results.json] [--sheet sheet.png]
    [--reasoning none|generate [--query-reasoning auto --gate-threshold 0.05] [--reasonings reasonings.parquet]]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.benchmarks.attributes import evaluate_attributes
from evaluation.benchmarks.classification import evaluate_classification
from evaluation.benchmarks.query_categories import evaluate_query_categories
from evaluation.benchmarks.retrieval import evaluate_retrieval, search_examples
from evaluation.data.reading import add_reading_arguments, reading_options
from evaluation.data.tables import EVERY_SPLIT, ProductTables, TableError, load_tables
from evaluation.encode import (
    QUERY_REASONING,
    ROW_REASONING,
    VARIANTS,
    Scoring,
    VectorCache,
    check_threshold,
    check_variants,
    config_digest,
    load_for_evaluation,
)
from evaluation.outputs import require_writable_file, require_writable_folder
from evaluation.provenance import provenance
from evaluation.reasonings import count_reasonings, reasoning_note, write_reasonings
from evaluation.report import contact_sheet, results_table, short_name
from evaluation.shortened import shortened_sentence, shortened_summary

BENCHMARKS = ("retrieval", "classification", "attributes")


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Args:
        split (`str` or `None`): which split; `None` for all rows. Default "test".
        only (`tuple[str, ...]`): which of retrieval, classification, attributes. Default: all three.
        limit (`int` or `None`): evaluate on this many products, drawn by `seed`, and on the queries that they answer.
        batch_size (`int`): records a batch. Default 32.
        core_crop (`bool` or `None`): whether the core crop is added where a box is known; `None`: as the processor is set.
        seed (`int`): of the limit, the bootstrap and the sheet's queries. Default 0.
        resamples (`int`): of the bootstrap. Default 1000.
        sheet (`str`, `Path` or `None`): where to draw queries with their top five.
        progress (`bool`): progress bars for longer work. Default True.
        variants (`str`): what a search makes of variants of a right answer (`evaluation.data.duplicates`): "left_out" of its
            ranking, "right" or "wrong". Identical products always count as right. Default "left_out".
        query_reasoning, product_reasoning (`str`): "none" or "generate": whether the model writes attributes of each query,
            of each product, before it embeds it. Label texts never reason. Queries also "auto": those that are unsure
            without it, in each search apart. Default "none".
        gate_threshold (`float` or `None`): of "auto": the margin below which a query is unsure, in [0, 2]. Default 0.05.
        max_reasoning_tokens (`int` or `None`): most tokens of a reasoning. Default: the model's own number.
        reasonings (`str`, `Path` or `None`): a .parquet file, where to write what was written.

    Raises:
        ValueError: an unknown benchmark, reasoning or `variants`, a number below 1, settings of a reasoning where no side
            generates, a threshold without "auto" or not in [0, 2].
    """

    split: str | None = "test"
    only: tuple[str, ...] = BENCHMARKS
    limit: int | None = None
    batch_size: int = 32
    core_crop: bool | None = None
    seed: int = 0
    resamples: int = 1000
    sheet: str | Path | None = None
    progress: bool = True
    variants: str = VARIANTS[0]
    query_reasoning: str = "none"
    product_reasoning: str = "none"
    gate_threshold: float | None = None
    max_reasoning_tokens: int | None = None
    reasonings: str | Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in BENCHMARKS]
        if unknown or not self.only:
            raise ValueError(f"only={', '.join(self.only)!r}; accepted: {', '.join(BENCHMARKS)}")
        for name in ("limit", "batch_size", "resamples", "max_reasoning_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; accepted: 1 or more")
        for name, accepted in (("query_reasoning", QUERY_REASONING), ("product_reasoning", ROW_REASONING)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        check_threshold(self.query_reasoning, self.gate_threshold)
        check_variants(self.variants)
        for name in ("max_reasoning_tokens", "reasonings"):
            if getattr(self, name) is not None and not self.generates:
                raise ValueError(
                    f"{name}={getattr(self, name)}, but neither queries nor products reason; accepted: with "
                    "query_reasoning or product_reasoning 'generate', or query_reasoning 'auto'"
                )
        if self.reasonings is not None and Path(self.reasonings).suffix != ".parquet":
            raise ValueError(f"reasonings={self.reasonings}; accepted: a .parquet file")

    @property
    def generates(self) -> bool:
        """Whether a side, or some of it, writes before it is embedded."""
        return {self.query_reasoning, self.product_reasoning} != {"none"}


def evaluate_model(
    model: Any,
    processor: Any,
    tables: ProductTables,
    *,
    model_name: str = "model",
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """Evaluate a model on tables.

    Args:
        model, processor: from `evaluation.encode.load_for_evaluation`, or any model whose output has `.embeddings`.
        tables: from `evaluation.data.tables.load_tables`, all splits or one.
        model_name (`str`): what the results call the model.
        options: EvaluationOptions. Default: its defaults.

    Queries with `positive_categories` are classified together with the products, under "query_categories".

    Returns: the content of a results file: model, benchmark, equal_products (how identical products and variants of an answer
    counted), label_set (of classification and attributes), reasoning (query and product: how they reason; gate_threshold
    with "auto"; max_reasoning_tokens; written: see `evaluation.reasonings.count_reasonings`), scores, image_only, absent (what
    has no score, and why), classification, query_categories, attributes, skipped, shortened (see
    `evaluation.shortened.shortened_summary`), warnings, provenance.

    Raises:
        TableError: no such split, or nothing in the gallery and no query that asks for a category.
        ValueError: reasoning of a model that does not.
    """
    options = options or EvaluationOptions()
    chosen = tables.select(options.split)
    chosen = limited_tables(chosen, options.limit, options.seed) if options.limit else chosen
    if not chosen.products and not any(row.positive_categories for row in chosen.queries):
        raise TableError(f"{tables.name}, split {options.split!r}: the gallery is empty, it has no products")
    started = time.monotonic()
    bootstrap: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    results: dict[str, Any] = {
        "model": model_name,
        "benchmark": tables.name,
        "equal_products": {"identical": "right", "variants": options.variants},
        "label_set": "the categories and values of the whole data set, whatever split is evaluated",
        "reasoning": _reasoning_settings(model, options),
        "scores": {},
        "image_only": {},
        "absent": {},
    }
    with _core_crop(processor, options.core_crop):
        cache = _vector_cache(model, processor, chosen, options, tables)
        if "retrieval" in options.only:
            results |= evaluate_retrieval(cache, **bootstrap)
        if "classification" in options.only:
            results["classification"] = evaluate_classification(cache, **bootstrap)
            results["query_categories"] = evaluate_query_categories(cache, results["absent"], **bootstrap)
        if "attributes" in options.only:
            results["attributes"] = evaluate_attributes(cache, **bootstrap)
        results["absent"] |= _absent_labels(results, cache)
        if options.sheet is not None:
            name = short_name(model_name) + reasoning_note(results["reasoning"])
            _draw_sheet(cache, options, f"{name} on {tables.name}")
        core_crop = getattr(processor, "core_crop", None)
    if options.generates:
        results["reasoning"]["written"] = count_reasonings(cache.reasonings())
    if options.reasonings is not None:
        write_reasonings(options.reasonings, cache.reasonings())
    results["skipped"] = cache.skipped()
    results["shortened"] = shortened = shortened_summary(cache.shortened())
    max_tokens = getattr(processor, "max_tokens", None)
    results["warnings"] = [shortened_sentence(shortened, max_tokens, cache.size())] if shortened["items"] else []
    results["provenance"] = provenance(
        options.seed,
        split=options.split,
        limit=options.limit,
        core_crop=core_crop,
        products=len(chosen.products),
        queries=len(chosen.queries),
        config_digest=config_digest(model),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        device=str(next(model.parameters()).device.type),
        bootstrap_resamples=options.resamples,
        issues={issue.kind: issue.count for issue in tables.report.issues},
        seconds=round(time.monotonic() - started, 2),
    )
    return results


def _reasoning_settings(model: Any, options: EvaluationOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {"query": options.query_reasoning, "product": options.product_reasoning}
    if options.query_reasoning == "auto":
        settings["gate_threshold"] = check_threshold("auto", options.gate_threshold)
    if options.generates:
        own = getattr(model.config, "max_reasoning_tokens", None)
        settings["max_reasoning_tokens"] = options.max_reasoning_tokens or own
    return settings


def _absent_labels(results: dict[str, Any], cache: VectorCache) -> dict[str, str]:
    """Why classification or attributes have no scores, where the products have labels."""
    absent = {}
    for name, labelled in (
        ("classification", [row for row in cache.products if row.category]),
        ("attributes", [row for row in cache.products if row.attributes]),
    ):
        if name in results and not results[name] and labelled:
            why = cache.why_empty() or "there is only one label, which would always be right"
            absent[name] = why
    return absent


def _vector_cache(
    model: Any,
    processor: Any,
    tables: ProductTables,
    options: EvaluationOptions,
    whole: ProductTables,
) -> VectorCache:
    thinking = None if options.max_reasoning_tokens is None else {"max_tokens": options.max_reasoning_tokens}
    return VectorCache(
        model,
        processor,
        tables.products,
        tables.queries,
        query_reasoning=options.query_reasoning,
        product_reasoning=options.product_reasoning,
        gate_threshold=options.gate_threshold,
        scoring=Scoring(options.variants, whole.products, whole.queries),
        batch_size=options.batch_size,
        progress=options.progress,
        thinking=thinking,
    )


def limited_tables(tables: ProductTables, limit: int, seed: int) -> ProductTables:
    """Tables with `limit` products, drawn by `seed`, and the queries that they answer."""
    count = len(tables.products)
    kept = sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())
    products = [tables.products[index] for index in kept]
    ids = {row.product_id for row in products}
    return replace(
        tables,
        products=products,
        queries=[row for row in tables.queries if ids.intersection(row.positives) or row.positive_categories],
    )


@contextmanager
def _core_crop(processor: Any, wanted: bool | None) -> Iterator[None]:
    before = getattr(processor, "core_crop", None)
    if wanted is not None:
        processor.core_crop = wanted
    try:
        yield
    finally:
        if wanted is not None:
            processor.core_crop = before


def _draw_sheet(cache: VectorCache, options: EvaluationOptions, title: str) -> None:
    examples = search_examples(cache, seed=options.seed)
    if not examples:
        print(f"no sheet drawn: no query has a right answer in the gallery ({title})", file=sys.stderr)
    elif options.sheet is not None:
        contact_sheet(examples, options.sheet, title=title)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.run", description="Evaluate a checkpoint on product data."
    )
    parser.add_argument("--model", required=True, help="folder or hub id of a Moon or dual-tower checkpoint")
    parser.add_argument(
        "--benchmark", required=True, nargs="+", help="catalogue, or a folder or products file in the two-table format"
    )
    parser.add_argument("--split", default="test", help="split to search in; all for every row (default: test)")
    parser.add_argument("--output", type=Path, help="results file; a folder when there are several benchmarks")
    parser.add_argument("--sheet", type=Path, help="PNG of queries with their top five")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help=f"some of {','.join(BENCHMARKS)}")
    parser.add_argument("--limit", type=int, help="evaluate on this many products")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--core-crop", action=argparse.BooleanOptionalAction, help="add the crop of the known box")
    parser.add_argument(
        "--reasoning", choices=ROW_REASONING, default="none", help="write attributes before embedding (default: none)"
    )
    parser.add_argument(
        "--query-reasoning",
        choices=QUERY_REASONING,
        help="of queries (default: as --reasoning); auto: only when unsure",
    )
    parser.add_argument(
        "--gate-threshold", type=float, help="of auto: the margin of two cosines below which a query is unsure (0.05)"
    )
    parser.add_argument("--product-reasoning", choices=ROW_REASONING, help="of products (default: as --reasoning)")
    parser.add_argument(
        "--max-reasoning-tokens", type=int, help="most tokens of a reasoning (default: the model's own)"
    )
    parser.add_argument(
        "--variants",
        choices=VARIANTS,
        default=VARIANTS[0],
        help="of a right answer, in its ranking (default: left_out)",
    )
    parser.add_argument("--reasonings", type=Path, help="parquet file for what was written")
    parser.add_argument("--device", help="cpu, cuda, … (default: the first GPU, or else the CPU)")
    parser.add_argument("--images-root", type=Path, help="folder that image paths are relative to")
    add_reading_arguments(parser)
    parser.add_argument("--catalogue-products", type=int, default=600, help="size of the embedded catalogue")
    parser.add_argument("--seed", type=int, default=0, help="of the catalogue, limit, bootstrap and sheet")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate from the command line; returns the exit status, 2 for what the user can put right."""
    chosen = _parser().parse_args(arguments)
    try:
        return _run(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    options = EvaluationOptions(
        split=chosen.split,
        only=tuple(name for name in chosen.only.split(",") if name),
        limit=chosen.limit,
        batch_size=chosen.batch_size,
        core_crop=chosen.core_crop,
        seed=chosen.seed,
        query_reasoning=chosen.query_reasoning or chosen.reasoning,
        product_reasoning=chosen.product_reasoning or chosen.reasoning,
        gate_threshold=chosen.gate_threshold,
        max_reasoning_tokens=chosen.max_reasoning_tokens,
        reasonings=chosen.reasonings,
        variants=chosen.variants,
    )
    several = len(chosen.benchmark) > 1
    if several and chosen.output is not None and chosen.output.suffix == ".json":
        raise ValueError(
            f"--output {chosen.output}: looks like a file; accepted: a folder when there are several benchmarks"
        )
    all_tables = [load_benchmark(source, chosen) for source in chosen.benchmark]
    names = [tables.name for tables in all_tables]
    if len(set(names)) < len(names):
        raise ValueError(f"benchmarks are called {', '.join(names)}; accepted: different names, or one run for each")
    outputs = [_output_of(chosen.output, name, several) for name in names]
    _require_outputs(chosen, outputs, names if several else [""])
    model, processor = load_for_evaluation(chosen.model, device=chosen.device)
    results = []
    for tables, output in zip(all_tables, outputs, strict=True):
        name = tables.name if several else ""
        own = replace(options, sheet=_named(chosen.sheet, name), reasonings=_named(chosen.reasonings, name))
        found = evaluate_model(model, processor, tables, model_name=chosen.model, options=own)
        results.append(found)
        if output is not None:
            _write(found, output)
        for reason in (f"{direction}: {why}" for direction, why in found["absent"].items()):
            print(f"{tables.name}, no score for {reason}", file=sys.stderr)
        if found["skipped"]:
            print(f"{tables.name}: {_skipped_sentence(found['skipped'])}", file=sys.stderr)
    print(results_table(results))
    without = [found["benchmark"] for found in results if not _has_scores(found)]
    if without:
        print(f"error: nothing of {', '.join(without)} could be scored; the lines above say why", file=sys.stderr)
    return 2 if without else 0


def _has_scores(found: dict[str, Any]) -> bool:
    kinds = ("classification", "query_categories", "attributes")
    return any(found["scores"].values()) or any(found["image_only"].values()) or any(found.get(kind) for kind in kinds)


def _skipped_sentence(skipped: Sequence[dict[str, Any]]) -> str:
    counts = Counter(one["kind"] for one in skipped)
    named = " and ".join(f"{count} {'queries' if kind == 'query' else 'products'}" for kind, count in counts.items())
    first = skipped[0]
    why = f"{first['id']!r}, {first['field']}: {first['reason']}"
    return f"{len(skipped)} records skipped ({named}), listed in the results; first: {why}"


def _output_of(output: Path | None, name: str, several: bool) -> Path | None:
    """The results file of a benchmark: the output, or a file in it."""
    return output if output is None or not (several or output.is_dir()) else output / f"{name}.json"


def _require_outputs(chosen: argparse.Namespace, outputs: Sequence[Path | None], names: Sequence[str]) -> None:
    """Refuse what cannot be written before anything is evaluated.

    Raises:
        ValueError: names the option.
    """
    if len(outputs) > 1:
        require_writable_folder("--output", chosen.output)
    for path in outputs:
        require_writable_file("--output", path)
    for name in names:
        require_writable_file("--sheet", _named(chosen.sheet, name))
        require_writable_file("--reasonings", _named(chosen.reasonings, name))


def _write(found: dict[str, Any], path: Path) -> None:
    """Write a results file whole; where that fails, the results are printed, so that they are not lost."""
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/null
            path.write_text(text, encoding="utf-8")
        else:
            path = path.resolve()
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
    except OSError:
        print(text)
        raise


def _named(path: Path | None, name: str) -> Path | None:
    """The path with the benchmark's name, where there are several."""
    return path.with_name(f"{path.stem}-{name}{path.suffix}") if path is not None and name else path


def load_benchmark(source: str, chosen: argparse.Namespace) -> ProductTables:
    """Tables of a benchmark from the command line, which says split, seed, images_root and catalogue_products.

    Raises:
        TableError: no such tables or split, or tables that cannot be used.
    """
    catalogue = {"products": chosen.catalogue_products} if source == "catalogue" else {}
    tables = load_tables(
        source, images_root=chosen.images_root, seed=chosen.seed, reading=reading_options(chosen), **catalogue
    )
    tables.report.raise_if_fatal()
    print(tables.report, file=sys.stderr)
    tables.select(chosen.split)  # a wrong split is refused before the model is loaded
    if chosen.split != EVERY_SPLIT and set(tables.splits) == {EVERY_SPLIT}:
        print(
            f"{tables.name} names no splits: every row is used, also what the model may have been trained on "
            "(training holds a fifth of such products out, for its own results_before and results_after)",
            file=sys.stderr,
        )
    return tables


if __name__ == "__main__":
    sys.exit(main())
