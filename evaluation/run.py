"""Evaluate a checkpoint: retrieval, classification and attribute prediction on one or several data sets.

moon3 evaluate --model DIR --benchmark catalogue|PATH [PATH …] [--output results.json] [--sheet sheet.png]
    [--reasoning none|generate [--query-reasoning auto --gate-threshold 0.05] [--reasonings reasonings.parquet]
    [--reasoning-control]]
"""

from __future__ import annotations

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

import evaluation.baselines  # noqa: F401 - registers their models
from evaluation.benchmarks.attribute_recall import evaluate_attribute_recall
from evaluation.benchmarks.attributes import KEYS, OWN_KEYS, evaluate_attributes, evaluate_shown_attributes
from evaluation.benchmarks.classification import evaluate_classification
from evaluation.benchmarks.dimensions import evaluate_dimensions
from evaluation.benchmarks.form_matrix import evaluate_form_matrix
from evaluation.benchmarks.query_categories import evaluate_query_categories
from evaluation.benchmarks.retrieval import Ranked, evaluate_retrieval, per_query, search_examples
from evaluation.contact_sheets import contact_sheet
from evaluation.data_sets import cutoffs_of, load_data_set, named_source, read_labels
from evaluation.metrics import CUTOFFS
from evaluation.provenance import provenance
from evaluation.reasoning_control import reasoning_control
from evaluation.reasonings import count_reasonings, label_agreement, reasoning_note, write_reasonings
from evaluation.report import short_name
from evaluation.weights import weights_of
from product_data.errors import OptionError
from product_data.outputs import require_writable_file, require_writable_folder
from product_data.reading import ReadingOptions
from product_data.tables import EVERY_SPLIT, ProductTables, TableError, load_tables
from product_data.triplets import TripletOptions
from retrieval.attention import set_attention
from retrieval.encode import (
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
from retrieval.shortened import shortened_sentence, shortened_summary

BENCHMARKS = ("retrieval", "classification", "attributes")
OPTIONAL_BENCHMARKS = ("matrix", "attribute_recall", "shown_attributes")
"""Evaluated only if they are in `only`."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Args:
        split (`str` or `None`): the split to evaluate; `None` for all products and queries. Default "test".
        only (`tuple[str, ...]`): the benchmarks to run: retrieval, classification, attributes, matrix (each form of
            query against each form of product), attribute_recall (whether search results agree in colour, material, …),
            shown_attributes (attributes that the picture and the text show). Default: the first three.
        cutoffs (`tuple[int, ...]` or `None`): the k of R@k and nDCG@k. Default: those that the data set's papers
            report, or else 1, 5, 10.
        attribute_keys (`str`): "own", or "paper" for the ten keys of MBE. Default "own".
        limit (`int` or `None`): evaluate on this many products, drawn by `seed`, and on the queries that they answer.
            Default: all products.
        batch_size (`int`): records per batch. Default 32.
        core_crop (`bool` or `None`): whether to add the core crop if a box is known. Default `None`: the processor's
        setting.
        seed (`int`): seed of the limit, of the bootstrap and of the sheet's queries. Default 0.
        resamples (`int`): samples of the bootstrap. Default 1000.
        sheet (`str`, `Path` or `None`): PNG file for a drawing of queries with their top five products. Default: none.
        progress (`bool`): show progress bars for longer work. Default True.
        variants (`str`): how a search treats variants of a right answer (`product_data.duplicates`): "left_out" of its
            ranking, "right" or "wrong". Identical products always count as right. Default "left_out".
        query_reasoning, product_reasoning (`str`): "none", or "generate": the model writes attributes of each query or
            product before it embeds it. Label texts never reason. `query_reasoning` can also be "auto": in each search,
            the queries that are unsure without reasoning reason. Default "none".
        gate_threshold (`float` or `None`): for "auto", the margin below which a query is unsure, in [0, 2]. Default
        0.05.
        max_reasoning_tokens (`int` or `None`): maximum number of reasoning tokens. Default: the model's number.
        reasonings (`str`, `Path` or `None`): .parquet file for the written reasoning texts. Default: none.
        reasoning_control (`bool`): whether to search again with each record's attributes exchanged for those of another,
            see `evaluation.reasoning_control`. Not with "auto". Default False.
        dtype (`str`): type of the weights: "float32", "bfloat16", "float16", or "auto", the checkpoint's. Default "auto".
        attn_implementation (`str` or `None`): attention by its name in transformers, such as "flash_attention_2", see
            `retrieval.attention`. Default: the model's.
        weights (`dict[str, str]` or `None`): model → where its weights come from, for a table; see
            `evaluation.weights.weights_of`. Default: what is recorded beside the weights.
        dimensions (`tuple[int, ...]` or `None`): widths for retrieval with the first numbers of each vector. Default:
            the model's `matryoshka_dims`.

    Raises:
        OptionError: an unknown benchmark, reasoning or `variants`, a number below 1, reasoning settings without a
            side that generates, or a threshold without "auto" or outside [0, 2].
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
    reasoning_control: bool = False
    dimensions: tuple[int, ...] | None = None
    cutoffs: tuple[int, ...] | None = None
    attribute_keys: str = OWN_KEYS
    weights: dict[str, str] | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in (*BENCHMARKS, *OPTIONAL_BENCHMARKS)]
        if unknown or not self.only:
            raise OptionError(
                f"only={', '.join(self.only)!r}; expected one of {', '.join((*BENCHMARKS, *OPTIONAL_BENCHMARKS))}"
            )
        if self.cutoffs is not None and (not self.cutoffs or min(self.cutoffs) < 1):
            raise OptionError(f"cutoffs={self.cutoffs}; expected numbers of 1 or more")
        if self.attribute_keys not in KEYS:
            raise OptionError(f"attribute_keys={self.attribute_keys!r}; expected one of {', '.join(KEYS)}")
        for name in ("limit", "batch_size", "resamples", "max_reasoning_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}={value}; expected 1 or more")
        if min(self.dimensions or (1,)) < 1:
            raise OptionError(f"dimensions={self.dimensions}; expected numbers of 1 or more")
        for name, accepted in (("query_reasoning", QUERY_REASONING), ("product_reasoning", ROW_REASONING)):
            if getattr(self, name) not in accepted:
                raise OptionError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(accepted)}")
        check_threshold(self.query_reasoning, self.gate_threshold)
        check_variants(self.variants)
        self._check_reasoning()

    def _check_reasoning(self) -> None:
        for name in ("max_reasoning_tokens", "reasonings"):
            if getattr(self, name) is not None and not self.generates:
                raise OptionError(
                    f"{name}={getattr(self, name)}, but neither queries nor products reason; expected "
                    "query_reasoning or product_reasoning 'generate', or query_reasoning 'auto'"
                )
        if self.reasoning_control and ("auto" in self.reasonings_of_sides or not self.generates):
            raise OptionError(
                f"reasoning_control with query_reasoning={self.query_reasoning!r} and product_reasoning="
                f"{self.product_reasoning!r}; expected 'generate' for one or both, and not 'auto'"
            )
        if self.reasoning_control and "retrieval" not in self.only:
            raise OptionError(f"reasoning_control with only={', '.join(self.only)!r}; expected retrieval among them")
        if self.reasonings is not None and Path(self.reasonings).suffix != ".parquet":
            raise OptionError(f"reasonings={self.reasonings}; expected a .parquet file")

    @property
    def generates(self) -> bool:
        """Whether queries or products, or some of them, reason."""
        return self.reasonings_of_sides != {"none"}

    @property
    def reasonings_of_sides(self) -> set[str]:
        """The modes of reasoning of queries and products."""
        return {self.query_reasoning, self.product_reasoning}


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
        model, processor: from `retrieval.encode.load_for_evaluation`, or any model whose output has `.embeddings`.
        tables: from `product_data.tables.load_tables`, with all splits or one.
        model_name (`str`): the model's name in the results. Default "model".
        options: options of the evaluation. Default: `EvaluationOptions()`.

    With "classification", queries with `positive_categories` are classified too, under "query_categories".

    Returns: the content of a results file: model, benchmark, equal_products (how identical products and variants of an
    answer count), label_set (the labels of classification and attributes), peer (how a peer embeds, see
    `evaluation.baselines.peers.PeerConfig`; None for a Moon), reasoning (query and product: their modes;
    gate_threshold with "auto"; max_reasoning_tokens; written, agreement: see `count_reasonings` and `label_agreement` of
    `evaluation.reasonings`; control: see `evaluation.reasoning_control.reasoning_control`), scores,
    image_only, absent (direction → why it has no score), per_query (the rank of each query, see `evaluation.per_query`),
    dimensions (for models with narrower vectors, see `evaluate_dimensions`), classification, query_categories,
    attributes, skipped, shortened (see `retrieval.shortened.shortened_summary`), warnings, provenance; cutoffs,
    image_search_recall, and the other benchmarks in `only`.

    Raises:
        TableError: no such split, or neither a product nor a query with categories.
        ValueError: reasoning with a model that does not reason.
    """
    options = options or EvaluationOptions()
    chosen = tables.select(options.split)
    chosen = limited_tables(chosen, options.limit, options.seed) if options.limit else chosen
    if not chosen.products and not any(row.positive_categories for row in chosen.queries):
        raise TableError(f"{tables.name}, split {options.split!r}: the gallery is empty; expected at least one product")
    started = time.monotonic()
    results: dict[str, Any] = {
        "model": model_name,
        "benchmark": tables.name,
        "equal_products": {"identical": "right", "variants": options.variants},
        "label_set": "the categories and values of the whole data set, whatever split is evaluated",
        "reasoning": _reasoning_settings(model, options),
        "peer": getattr(model.config, "recipe", None),
        "scores": {},
        "image_only": {},
        "absent": {},
    }
    with core_crop_set(processor, options.core_crop):
        cache = _vector_cache(model, processor, chosen, options, tables)
        results |= _protocols(cache, options, chosen, results["absent"])
        results["absent"] |= _absent_labels(results, cache)
        if options.sheet is not None:
            name = short_name(model_name) + reasoning_note(results["reasoning"])
            _draw_sheet(cache, options, f"{name} on {tables.name}")
        core_crop = getattr(processor, "core_crop", None)
        if options.reasoning_control and cache.reasonings():
            bootstrap = {"resamples": options.resamples, "seed": options.seed}
            results["reasoning"]["control"] = reasoning_control(cache, **bootstrap)
    if options.generates:
        results["reasoning"]["written"] = count_reasonings(cache.reasonings())
        agreed = label_agreement(cache.reasonings(), chosen.products, resamples=options.resamples, seed=options.seed)
        results["reasoning"]["agreement"] = agreed
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


def _by_dimensions(cache: VectorCache, options: EvaluationOptions, settings: dict[str, Any]) -> dict[str, Any]:
    """Return "dimensions", retrieval with narrower vectors; {} for a model without them."""
    own = getattr(getattr(cache.model, "config", None), "matryoshka_dims", None) or ()
    widths = own if options.dimensions is None else options.dimensions
    return {"dimensions": evaluate_dimensions(cache, widths, **settings)} if widths else {}


def _protocols(
    cache: VectorCache, options: EvaluationOptions, tables: ProductTables, absent: dict[str, str]
) -> dict[str, Any]:
    """Return the results of the benchmarks in `only`; `absent` receives the reasons for missing scores."""
    bootstrap: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    cutoffs: dict[str, Any] = {"cutoffs": options.cutoffs or cutoffs_of(tables.name) or CUTOFFS}
    keys: dict[str, Any] = {"keys": options.attribute_keys}
    results: dict[str, Any] = {}
    ranked: dict[str, Ranked] = {}
    if "retrieval" in options.only:
        results |= evaluate_retrieval(cache, **cutoffs, **bootstrap, ranked=ranked)
        absent |= results.pop("absent")
        results |= _by_dimensions(cache, options, cutoffs | bootstrap)
    if "classification" in options.only:
        names = tables.level_names
        results["classification"] = evaluate_classification(cache, level_names=names, **bootstrap)
        results["query_categories"] = evaluate_query_categories(cache, absent, **bootstrap)
    if "attributes" in options.only:
        results["attributes"] = evaluate_attributes(cache, **keys, **bootstrap)
    if "matrix" in options.only:
        results["matrix"] = evaluate_form_matrix(cache, **cutoffs, **bootstrap, ranked=ranked)
        results |= {"cutoffs": list(cutoffs["cutoffs"]), "per_query": per_query(cache, ranked)}
    if "attribute_recall" in options.only:
        results["attribute_recall"] = evaluate_attribute_recall(cache, **keys, **cutoffs, **bootstrap)
    if "shown_attributes" in options.only:
        results["shown_attributes"] = evaluate_shown_attributes(cache, **keys, **bootstrap)
    if options.attribute_keys != OWN_KEYS:
        results["attribute_keys"] = options.attribute_keys
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
    """Return why classification or attributes have no scores although products have labels."""
    absent = {}
    for name, labelled in (
        ("classification", [row for row in cache.products if row.category]),
        ("attributes", [row for row in cache.products if row.attributes]),
    ):
        if name in results and not results[name] and labelled:
            why = (
                cache.unrelated("t", "mm")
                or cache.empty_gallery_reason()
                or "found a single label, which would always be right"
            )
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
    make = getattr(model, "vector_cache", VectorCache)  # BM25 has its own
    return make(
        model,
        processor,
        tables.products,
        tables.queries,
        query_reasoning=options.query_reasoning,
        product_reasoning=options.product_reasoning,
        gate_threshold=options.gate_threshold,
        scoring=Scoring(options.variants, [*whole.products, *whole.labels], whole.queries),
        batch_size=options.batch_size,
        progress=options.progress,
        thinking=thinking,
    )


def limited_tables(tables: ProductTables, limit: int, seed: int) -> ProductTables:
    """Return tables with `limit` products, drawn by `seed`, and the queries that they answer."""
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
def core_crop_set(processor: Any, wanted: bool | None) -> Iterator[None]:
    """Set whether a processor adds the core crop inside the `with` block; `None` leaves it as it is."""
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
        print(f"{title}: no sheet drawn, because no query has a correct answer in the gallery", file=sys.stderr)
    elif options.sheet is not None:
        contact_sheet(examples, options.sheet, title=title)


class NothingScoredError(ValueError):
    """Raised for data sets without any score."""

    exit_status = 2


def evaluate_benchmarks(
    checkpoint: str,
    benchmarks: Sequence[ProductTables],
    *,
    options: EvaluationOptions,
    output: Path | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a checkpoint on one or several data sets, and write the results files.

    Args:
        checkpoint: folder or hub id, or a peer such as "clip=PLACE", see `retrieval.model_kinds`.
        benchmarks: the data sets.
        options: options for all data sets; with several, the name of the benchmark is added to the names of the
            sheet and of the reasoning file.
        output: the results file; with several benchmarks a folder. Default: no file.
        device (`str` or `None`): device of the model. Default: the first GPU, or else the CPU.

    Returns:
        The results of each data set, as `evaluate_model` returns them. Missing scores and skipped records are printed
        on stderr.

    Raises:
        OptionError: two benchmarks with one name, or a file as output of several benchmarks.
        OutputError: an output that cannot be written; raised before the checkpoint is loaded.
        CheckpointError: a checkpoint that cannot be used.
    """
    names = [tables.name for tables in benchmarks]
    paths = _results_files(output, names, options)
    model, processor = load_for_evaluation(checkpoint, device=device, dtype=options.dtype)
    on_gpu = next(model.parameters()).device.type == "cuda"
    wanted = options.attn_implementation
    attention = None if wanted is None else set_attention(model, wanted, on_gpu)
    results = []
    for tables, path in zip(benchmarks, paths, strict=True):
        name = tables.name if len(names) > 1 else ""
        own = replace(options, sheet=_named(options.sheet, name), reasonings=_named(options.reasonings, name))
        result = evaluate_model(model, processor, tables, model_name=checkpoint, options=own)
        result["provenance"] |= {} if wanted is None else {"attn_implementation": attention}
        result["weights"] = weights_of(checkpoint, options.weights)
        results.append(result)
        if path is not None:
            _write(result, path)
        for direction, why in result["absent"].items():
            print(f"{tables.name}, no score for {direction}: {why}", file=sys.stderr)
        if result["skipped"]:
            print(f"{tables.name}: {_skipped_sentence(result['skipped'])}", file=sys.stderr)
    return results


def require_scores(results: Sequence[dict[str, Any]]) -> None:
    """Check that each data set has at least one score.

    Raises:
        NothingScoredError: data sets without a score; the message lists them.
    """
    unscored = dict.fromkeys(result["benchmark"] for result in results if not has_scores(result))
    if unscored:
        raise NothingScoredError(f"found no scores for {', '.join(unscored)}; see the reasons in the lines above")


def has_scores(result: dict[str, Any]) -> bool:
    """Return whether results have at least one score."""
    kinds = ("classification", "query_categories", "attributes", "attribute_recall", "shown_attributes")
    cells = [cell for form, row in result.get("matrix", {}).items() if form != "absent" for cell in row.values()]
    return any((*result["scores"].values(), *result["image_only"].values(), *cells, *map(result.get, kinds)))


def _skipped_sentence(skipped: Sequence[dict[str, Any]]) -> str:
    counts = Counter(record["kind"] for record in skipped)
    sides = " and ".join(f"{count} {'queries' if kind == 'query' else 'products'}" for kind, count in counts.items())
    first = skipped[0]
    why = f"{first['id']!r}, {first['field']}: {first['reason']}"
    return f"{len(skipped)} records skipped ({sides}), listed in the results; first: {why}"


def _results_files(output: Path | None, names: Sequence[str], options: EvaluationOptions) -> list[Path | None]:
    """Return the results file of each benchmark, and check that all outputs can be written."""
    several = len(names) > 1
    if several and output is not None and output.suffix == ".json":
        raise OptionError(f"--output {output}: found the name of a file; expected a folder for several benchmarks")
    if len(set(names)) < len(names):
        raise OptionError(f"benchmarks: found the names {', '.join(names)}; expected different names, or separate runs")
    in_folder = output is not None and (several or output.is_dir())
    paths = [output / f"{name}.json" if output is not None and in_folder else output for name in names]
    if several:
        require_writable_folder("--output", output)
    for path in paths:
        require_writable_file("--output", path)
    for name in names if several else [""]:
        require_writable_file("--sheet", _named(options.sheet, name))
        require_writable_file("--reasonings", _named(options.reasonings, name))
    return paths


def _write(results: dict[str, Any], path: Path) -> None:
    """Write a complete results file; if that fails, print the results so that they are not lost."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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


def _named(path: str | Path | None, name: str) -> Path | None:
    """Return the path with the benchmark's name, if it is given."""
    path = None if path is None else Path(path)
    return path.with_name(f"{path.stem}-{name}{path.suffix}") if path is not None and name else path


def load_benchmark(
    source: str,
    *,
    split: str = "test",
    seed: int = 0,
    images_root: Path | None = None,
    reading: ReadingOptions | None = None,
    catalogue_products: int = 600,
    data_set: TripletOptions | None = None,
    labels: Path | None = None,
) -> ProductTables:
    """Read the tables of a benchmark, and print their report on stderr.

    Args:
        source: "catalogue", a folder or a products file; or the name of a public data set, "mbe" or "mbe=PLACE" (see
            `evaluation.data_sets`).
        split (`str`): the split that will be evaluated, to check that it exists; all products and queries are returned.
            Default "test".
        seed (`int`): seed of the embedded catalogue. Default 0.
        images_root: folder that image paths are relative to. Default: the folder of the table.
        reading: options for reading cells. Default: `ReadingOptions()`.
        catalogue_products (`int`): number of products of the embedded catalogue. Default 600.
        data_set: options for reading a public data set; split, seed, images_root and reading above take precedence.
        labels: a file of further labels, see `evaluation.data_sets.load_data_set`.

    Raises:
        TableError: no such tables or split, or tables that cannot be used.
        ColumnError: columns that cannot be used.
    """
    if named_source(source) is not None:
        options = replace(data_set or TripletOptions(), split=split, seed=seed, reading=reading or ReadingOptions())
        if images_root is not None:
            options = replace(options, images_root=images_root)
        tables = load_data_set(source, options, labels=labels)
        tables.report.raise_if_fatal()
        print(tables.report, file=sys.stderr)
        return tables
    catalogue: dict[str, Any] = {"products": catalogue_products} if source == "catalogue" else {}
    tables = load_tables(source, images_root=images_root, seed=seed, reading=reading, **catalogue)
    tables = tables if labels is None else replace(tables, labels=read_labels(labels))
    tables.report.raise_if_fatal()
    print(tables.report, file=sys.stderr)
    tables.select(split)  # a wrong split is refused before the model is loaded
    if split != EVERY_SPLIT and set(tables.splits) == {EVERY_SPLIT}:
        print(
            f"{tables.name} has no splits: all products are used, even those that the model may have been trained on "
            "(training holds out a fifth of such products, for its results_before and results_after)",
            file=sys.stderr,
        )
    return tables
